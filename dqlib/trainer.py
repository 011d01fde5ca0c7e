"""Distillation in transformers' own trainers: their arguments, callbacks and checkpoints, a preset's losses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.modeling_outputs import ModelOutput

from dqlib import attention
from dqlib.architectures import architecture_of, layer_weights
from dqlib.errors import InputError
from dqlib.fake_quantize import LEARNED
from dqlib.losses import IGNORED_LABEL, MemoryBank, cross_entropy
from dqlib.presets import Preset, get_preset
from dqlib.student import is_student, set_attention_maps, supervision_maps
from dqlib.terms import distillation_terms


class DistillationMixin:
    """Makes ``Trainer`` and ``Seq2SeqTrainer`` train a student against its teacher.

    ``class Distiller(DistillationMixin, Seq2SeqTrainer): pass``, and then as ever, with ``teacher=`` besides. A
    function given as ``compute_loss_func`` would not do: it sees what the student answers and not what it was asked.

    The training loss is the preset's, over the tokens of the whole step however many micro-batches and processes share
    it (those of the reduction ``reference`` are plain means of micro-batches). The loss of an evaluation is the
    cross-entropy of the labels, which is comparable with the teacher's. Scales that are trained have the learning rate
    that the preset's recipe gives them, relative to that of the arguments, and no weight decay. Checkpoints are
    students, which ``dqlib.load_student`` reads. The memory of a contrastive loss is not in them: it fills again.

    Args:
        teacher: in full precision; switched to evaluation and, where its attention maps are compared, to an attention
            that gives them, which SDPA does not.

    Raises:
        InputError: the model is no student, or one of another preset or teacher; labels are to be smoothed.
    """

    model: PreTrainedModel
    optimizer: torch.optim.Optimizer | None
    args: Any
    accelerator: Any
    processing_class: Any
    data_collator: Any

    def __init__(
        self,
        model: PreTrainedModel,
        args: Any = None,
        *rest: Any,
        teacher: PreTrainedModel,
        preset: Preset | str = "dqlib",
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module) or not is_student(model):
            raise InputError("model", type(model).__name__, "a student, of make_student or load_student")
        self.preset = get_preset(preset)
        if self.preset.describe() != model.dqlib_preset.describe():
            raise InputError("preset", self.preset.name, f"{model.dqlib_preset.name}, which the student was made with")
        names = architecture_of(teacher.config)
        if teacher.config.model_type != model.config.model_type:
            raise InputError("teacher", teacher.config.model_type, f"of the student's kind, {model.config.model_type}")
        names.check_fits(model.dqlib_config, teacher.config)
        super().__init__(model, args, *rest, **options)  # type: ignore[call-arg]  # of a trainer
        if self.args.label_smoothing_factor:
            raise InputError("label_smoothing_factor", self.args.label_smoothing_factor, "0 beside a teacher")
        self.loss_is_scaled_for_ga = self.preset.loss.reduction == "tokens"
        self.recipe = self.preset.recipe_for(model.dqlib_config, layer_weights(model) / layer_weights(teacher))
        self.shifts_labels = names.encoder is None  # a label of a decoder alone is that of the token before it
        self.teacher, weights = teacher.eval().to(self.args.device), self.preset.loss
        self.maps = supervision_maps(model.dqlib_config, teacher, model)
        if weights.attention:
            teacher.set_attn_implementation(attention.NAME)  # which gives the maps; in full precision in a teacher
            for each in (model, teacher):
                set_attention_maps(each, weights.attention_maps)
        with_bank = weights.contrastive and weights.momentum
        self.bank = MemoryBank(teacher.config.vocab_size, weights.momentum) if with_bank else None
        self._tokens: tuple[Tensor | None, Tensor | None] = (None, None)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer of the arguments, in which the scales that are trained are a group of their own."""
        given = self.optimizer
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)  # type: ignore[misc]
        named = (self.model if model is None else model).named_parameters()
        scales = [value for name, value in named if name.endswith(LEARNED) and value.requires_grad]
        if given is None and scales:
            apart = {id(value) for value in scales}
            for group in optimizer.param_groups:
                group["params"] = [value for value in group["params"] if id(value) not in apart]
            rate = self.args.learning_rate * self.recipe.scale_learning_rate
            optimizer.add_param_group({"params": scales, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def get_batch_samples(self, *arguments: Any, **options: Any) -> tuple[list[Any], Any]:
        """The micro-batches of a step, whose source and target tokens are counted over all processes."""
        samples, items = super().get_batch_samples(*arguments, **options)  # type: ignore[misc]
        counts = torch.zeros(1, 2, dtype=torch.long, device=self.args.device)
        for inputs in samples:
            labels = self._labels(inputs)
            sources = inputs.get("attention_mask", inputs["input_ids"].new_ones(inputs["input_ids"].shape))
            counts += torch.tensor([[int(sources.sum()), int((labels != IGNORED_LABEL).sum())]], device=counts.device)
        total = self.accelerator.gather(counts).sum(dim=0).clamp(min=1)
        # gradients of processes are averaged, so that each divides by its share
        self._tokens = (total[0] / self.accelerator.num_processes, total[1] / self.accelerator.num_processes)
        return samples, items

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student, and let its manifest name the tokenizer that the trainer writes beside it."""
        from dqlib.storage.manifest import MANIFEST, name_files  # a floor above, which only saving needs

        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if self.args.should_save and isinstance(tokenizer, Tokenizer) and (folder / MANIFEST).is_file():
            names = {Path(path).relative_to(folder).as_posix() for path in tokenizer.save_pretrained(folder)}
            name_files(folder, [name for name in names if (folder / name).is_file()])

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        """The distance to the teacher while the student is trained, and the cross-entropy of the labels elsewhere."""
        labels, inputs = self._labels(inputs), {name: inputs[name] for name in inputs if name != "labels"}
        if self.model.config.is_encoder_decoder and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels)
        if not model.training:
            outputs = model(**inputs)
            loss = cross_entropy(outputs.logits, labels)
            return (loss, outputs) if return_outputs else loss
        weights = self.preset.loss
        states = weights.hidden > 0 or weights.contrastive > 0
        wanted = {"output_attentions": weights.attention > 0, "output_hidden_states": states}
        outputs = model(**inputs, **wanted)
        with torch.no_grad():
            aim = self.teacher(**inputs, **wanted)
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        terms = distillation_terms(outputs, aim, labels, mask, self.maps, weights, self._tokens, self.bank)
        loss = torch.stack([weights.of(name) * term for name, term in terms.items()]).sum()
        return (loss, outputs) if return_outputs else loss

    def _labels(self, inputs: Mapping[str, Any]) -> Tensor:
        """Labels of the logits, each at its own place, or an ``InputError`` where a batch has none."""
        if inputs.get("labels") is None:
            raise InputError("labels", None, "a column of the data set, or be made by the data collator")
        labels: Tensor = inputs["labels"]
        if not self.shifts_labels:
            return labels
        return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED_LABEL)], dim=1)
