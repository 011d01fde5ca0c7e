"""Students: fewer layers copied from a teacher, then quantized.

A saved student is a standard Hugging Face folder (full-precision weights) with ``dqlib.json`` beside
the weights, which says how to quantize them again.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

from torch import nn
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from dqlib import attention
from dqlib.architectures import architecture_of
from dqlib.config import FULL_PRECISION, Configuration
from dqlib.errors import InputError
from dqlib.layers import QuantEmbedding, QuantLinear, quantize_embedding, quantize_linear
from dqlib.quantizers import Granularity, WeightFakeQuantizer

#: Learned positions are few; eight bits cost them nothing (kept in full precision in a 32-bit student).
POSITION_BITS = 8
SIDECAR = "dqlib.json"


def layer_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Teacher layer of each student layer, maximally spaced; the first and the last are always kept.

    DQ-BART (arXiv:2203.11239), section 2.2. A single layer is the teacher's first: that is the one
    which reads embeddings.

    Raises:
        InputError: the student has no layer, or more than the teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise InputError("student_layers", student_layers, f"between 1 and {teacher_layers}, the teacher's layers")
    if student_layers == 1:
        return [0]
    return [i * (teacher_layers - 1) // (student_layers - 1) for i in range(student_layers)]


def supervision_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Teacher layer whose output each student layer should give: the last of those it replaces.

    Equals :func:`layer_map` but for a single layer, which stands for the whole stack.
    """
    return [teacher_layers - 1] if student_layers == 1 else layer_map(student_layers, teacher_layers)


def make_student(
    teacher: PreTrainedModel,
    configuration: Configuration,
    granularity: Granularity | str = Granularity.PER_ROW,
) -> PreTrainedModel:
    """A student of the teacher: layers copied, weights and activations fake-quantized.

    Args:
        teacher: an encoder-decoder in full precision; it is not changed.
        configuration: bits and layers.
        granularity: of the scales of weights and embeddings.

    Returns:
        A model of the teacher's class, in training mode.

    Raises:
        InputError: the architecture is unknown or the teacher has too few layers.
    """
    names = architecture_of(teacher.config)
    configuration.check_fits(teacher.config.encoder_layers, teacher.config.decoder_layers)
    student = copy.deepcopy(teacher)
    for side in ("encoder", "decoder"):
        depth = getattr(configuration, f"{side}_layers")
        stack = student.get_submodule(getattr(names, side))
        stack.layers = nn.ModuleList(stack.layers[i] for i in layer_map(depth, len(stack.layers)))
        for index, layer in enumerate(stack.layers):
            for module in layer.modules():
                if getattr(module, "layer_idx", None) is not None:
                    module.layer_idx = index  # the key-value cache is addressed by it
        setattr(student.config, f"{side}_layers", depth)
    student.config.num_hidden_layers = configuration.encoder_layers
    return quantize_model(student, configuration, granularity).train()


def quantize_model(
    model: PreTrainedModel,
    configuration: Configuration,
    granularity: Granularity | str = Granularity.PER_ROW,
) -> PreTrainedModel:
    """Fake-quantize a model in place and return it: linear layers, embeddings, head, attention."""
    names = architecture_of(model.config)
    c = configuration
    if c.e_bits < FULL_PRECISION:
        shared = WeightFakeQuantizer(c.e_bits, granularity)  # one for all uses of the tied table
        for name in names.token_embeddings:
            quantize_embedding(model.get_submodule(name), shared)
        for name in names.positions:
            quantize_embedding(model.get_submodule(name), WeightFakeQuantizer(POSITION_BITS))
    else:
        shared = None
    quantize_linear(model.get_submodule(names.head), shared, c.a_bits)
    for side in (names.encoder, names.decoder):
        for module in model.get_submodule(side).layers.modules():
            if hasattr(module, "is_causal"):  # an attention
                module.activation_bits = c.a_bits
                for name in names.key_value:
                    _quantize_weights(getattr(module, name), c, granularity, output_heads=module.num_heads)
        for module in model.get_submodule(side).layers.modules():
            if type(module) is nn.Linear:
                _quantize_weights(module, c, granularity)
    model.set_attn_implementation(attention.NAME)
    model.dqlib_configuration, model.dqlib_granularity = c, Granularity(granularity)
    return model


def _quantize_weights(
    layer: nn.Linear, c: Configuration, granularity: Granularity | str, output_heads: int | None = None
) -> None:
    quantizer = WeightFakeQuantizer(c.w_bits, granularity) if c.w_bits < FULL_PRECISION else None
    quantize_linear(layer, quantizer, c.a_bits, output_heads)


def quantized_modules(model: nn.Module) -> dict[str, QuantLinear | QuantEmbedding]:
    """All layers with a quantized weight, by name; a tied weight is listed under each of its names."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear | QuantEmbedding) and module.weight_quantizer is not None
    }


def save_student(model: PreTrainedModel, folder: str | Path) -> None:
    """Save a student in the Hugging Face layout, with the sidecar that :func:`load_student` reads."""
    folder = Path(folder)
    model.save_pretrained(folder)
    sidecar = {"config": str(model.dqlib_configuration), "granularity": str(model.dqlib_granularity)}
    (folder / SIDECAR).write_text(json.dumps(sidecar, indent=2) + "\n")


def load_student(folder: str | Path) -> PreTrainedModel:
    """Load what :func:`save_student` saved, in evaluation mode.

    Raises:
        InputError: the folder has no sidecar, so it is not a student.
    """
    folder = Path(folder)
    if not (folder / SIDECAR).is_file():
        raise InputError("folder", str(folder), f"a folder written by save_student, with a {SIDECAR}")
    sidecar = json.loads((folder / SIDECAR).read_text())
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    return quantize_model(model, Configuration.parse(sidecar["config"]), sidecar["granularity"]).eval()
