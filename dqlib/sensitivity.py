"""What each module loses when it alone has few bits: measured on a few texts, without any training.

The loss is the divergence of the model's next token from its teacher's (Kullback-Leibler, nats per token). Measured is
what the weights of one module add to it, quantized as a preset does it, while all other weights stay in full precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dqlib.architectures import architecture_of
from dqlib.config import BUDGET_ACTIVATION_BITS, Config
from dqlib.errors import InputError
from dqlib.losses import IGNORED_LABEL, logits_kl
from dqlib.presets import Preset, get_preset
from dqlib.pruning import Calibration
from dqlib.student import make_student, module_quantizers, set_blend

#: Loss that each number of bits adds, by the path of a module.
Sensitivities = dict[str, dict[int, float]]


@torch.no_grad()
def sensitivities(
    teacher: PreTrainedModel,
    calibration: Calibration,
    preset: Preset | str = "dqlib",
    activation_bits: int = BUDGET_ACTIVATION_BITS,
) -> Sensitivities:
    """The loss that each module of a teacher adds when it alone has few bits: a forward pass per module and bits.

    Args:
        teacher: in full precision; it is not changed.
        calibration: inputs of the teacher, with the ``labels`` of its logits. Tokens whose label is -100 do not count;
            without labels, all that the attention mask has do.
        activation_bits: of the activations, in all measurements alike, so that their loss is not a module's.

    Returns:
        Nats per token that a module adds at each of ``preset.budget_bits``, by the path of the module (tied ones once,
        under the first path). Where nothing is lost, a number may be a little below zero.

    Raises:
        InputError: there is no calibration, or no token in it counts; or as :func:`dqlib.student.make_student`.
    """
    preset, names = get_preset(preset), architecture_of(teacher.config)
    depths, decoder = names.depths(teacher.config), names.decoder
    divergence = _Divergence(teacher, calibration)
    found: Sensitivities = {}
    for bits in preset.budget_bits:
        student = make_student(teacher, Config(bits, bits, activation_bits, *depths), preset).eval()
        set_blend(student, 0.0)  # all weights are seen in full precision, activations rounded
        encoded = divergence.encoded(student)
        before = divergence(student, encoded)
        for path, quantizer in module_quantizers(student).items():
            quantizer.blend = 1.0
            same = decoder is not None and path.startswith(f"{decoder.layers}.")  # what the encoder gives
            found.setdefault(path, {})[bits] = divergence(student, encoded if same else None) - before
            quantizer.blend = 0.0
    return found


class _Divergence:
    """Of a model from its teacher, whose logits are computed once."""

    def __init__(self, teacher: PreTrainedModel, calibration: Calibration) -> None:
        if not calibration:
            raise InputError("calibration", "empty", "at least one batch of the teacher's inputs")
        self.batches = [{name: value.to(teacher.device) for name, value in batch.items()} for batch in calibration]
        training = teacher.training
        self.logits = [_logits(teacher.eval(), batch) for batch in self.batches]
        teacher.train(training)
        self.masks = [_counting(*each) for each in zip(self.batches, self.logits, strict=True)]
        self.tokens = sum(int(mask.sum()) for mask in self.masks)
        if not self.tokens:
            raise InputError("calibration", "tokens none of which counts", "texts with labels other than -100")

    def encoded(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """What an encoder gives of each batch, to be given to its decoder again; nothing of other models."""
        if not model.config.is_encoder_decoder:
            return [{} for _ in self.batches]
        encoder, read = model.get_encoder(), ("input_ids", "attention_mask")
        inputs = [{name: batch[name] for name in read if name in batch} for batch in self.batches]
        return [{"encoder_outputs": encoder(**each)} for each in inputs]

    def __call__(self, model: PreTrainedModel, encoded: Sequence[Mapping[str, Any]] | None = None) -> float:
        """Nats per token; ``encoded`` is what the model's encoder gives, where it is known."""
        total = 0.0
        for i, batch in enumerate(self.batches):
            logits = _logits(model, {**batch, **(encoded[i] if encoded else {})})
            total += float(logits_kl(logits, self.logits[i], self.masks[i], self.tokens))
        return total


def _logits(model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    """Logits of a batch; the model makes the decoder's inputs of the labels where they are not given."""
    needed = "decoder_input_ids" not in batch and model.config.is_encoder_decoder
    inputs = {name: value for name, value in batch.items() if name != "labels" or needed}
    if "encoder_outputs" in inputs:
        inputs.pop("input_ids")
    return model(**inputs).logits


def _counting(batch: Mapping[str, Tensor], logits: Tensor) -> Tensor:
    """Which logits count, (batch, target), or (batch,) of a classifier."""
    if "labels" in batch:
        return batch["labels"] != IGNORED_LABEL
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == logits.shape[:-1]:
        return mask.bool()
    return torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
