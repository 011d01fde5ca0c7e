"""Students: fewer layers copied from a teacher, then quantized.

:mod:`dqlib.storage.students` saves and loads them; ``student.save_pretrained`` writes the same.
"""

from __future__ import annotations

import copy
import weakref
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dqlib import attention
from dqlib.architectures import Architecture, architecture_of, submodule, submodules
from dqlib.config import FULL_PRECISION, Config, WeightQuantization
from dqlib.errors import InputError, within
from dqlib.fake_quantize import LEARNED, WeightFakeQuantizer
from dqlib.generation import check_generation
from dqlib.layers import (
    ActivationFakeQuantizer,
    QuantLayer,
    QuantLinear,
    give_quantizer,
    matrix,
    quantize_embedding,
    quantize_linear,
)
from dqlib.presets import Preset, get_preset
from dqlib.pruning import Calibration, check_widths, importance, norms, prune
from dqlib.terms import LayerMaps

_WITH_WEIGHT = (nn.Linear, nn.Embedding, Conv1D)


def layer_map(student_layers: int, teacher_layers: int, single_layer: str = "first") -> list[int]:
    """Teacher layer of each student layer: evenly spaced from the first to the last, each rounded to the nearest.

    DQ-BART (arXiv:2203.11239), section 2.2, in all presets. Of 6 layers, three are 0 2 5, four 0 2 3 5 and five
    0 1 3 4 5, as DQ-BART's code lists them. In general so: halfway between two layers, students of at most half of the
    teacher's layers take the lower one and deeper students the upper one. A single layer is the teacher's first, the
    one which reads embeddings, or, as that code has it, the ``last``.

    Raises:
        InputError: the student has no layer, or more than the teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise InputError("student_layers", student_layers, f"between 1 and {teacher_layers}, the teacher's layers")
    if student_layers == 1:
        return [teacher_layers - 1 if single_layer == "last" else 0]
    steps, down = student_layers - 1, 2 * student_layers <= teacher_layers
    return [(2 * i * (teacher_layers - 1) + steps - down) // (2 * steps) for i in range(student_layers)]


def supervision_map(student_layers: int, teacher_layers: int) -> list[int]:
    """Teacher layer whose output each student layer should give: the last of those it replaces.

    Equals :func:`layer_map` but for a single layer, which stands for the whole stack. Without layers, empty.
    """
    return layer_map(student_layers, teacher_layers, "last") if student_layers else []


def supervision_maps(config: Config, teacher: PreTrainedModel, student: PreTrainedModel | None = None) -> LayerMaps:
    """Teacher layer that supervises each layer of a student, in both stacks, and the heads that it still has.

    Args:
        student: knows which of the teacher's heads it keeps; needed where the configuration has fewer of them.

    Raises:
        InputError: the configuration has fewer heads, and the student is not given or does not know which.
    """
    encoder, decoder = architecture_of(teacher.config).depths(teacher.config)
    kept = getattr(student, "dqlib_kept_heads", None)
    if config.heads is not None and kept is None:
        found = None if student is None else type(student).__name__
        raise InputError("student", found, f"of make_student or load_student, to know which heads '{config}' has")
    maps = supervision_map(config.encoder_layers, encoder), supervision_map(config.decoder_layers, decoder)
    return LayerMaps(*maps, kept or {})


def make_student(
    teacher: PreTrainedModel, config: Config, preset: Preset | str = "dqlib", calibration: Calibration | None = None
) -> PreTrainedModel:
    """A student of the teacher: layers copied and made narrower, weights and activations fake-quantized.

    Args:
        teacher: a model in full precision, of one of the known architectures; it is not changed.
        calibration: batches of the teacher's inputs (``input_ids``, ``attention_mask``, ``labels``), some hundred
            examples in all, on which the bits of each module are chosen where the configuration has a budget. Heads
            and neurons on which the teacher's loss there depends least are left out (:func:`dqlib.pruning.importance`);
            with None, those of the smallest weights are, which costs accuracy. Not needed for anything else.

    Returns:
        A model of the teacher's class, in training mode.

    Raises:
        InputError: the architecture is unknown, the teacher has too few layers, heads or neurons or is quantized, the
            preset is not defined for architecture or bits, a weight is not finite, a setting of its generation is none
            that a file may have, a budget is below the smallest student or comes without calibration, or heads or
            neurons are to be left out on a calibration set that is empty or has no labels.
    """
    names, preset = architecture_of(teacher.config), get_preset(preset)
    config = config.with_layers_of(*names.depths(teacher.config))
    names.check_fits(config, teacher.config)
    preset.check_fits(config, teacher.config.model_type)
    _check_model(teacher)
    check_generation(teacher)
    if config.is_open:
        from dqlib.storage.budget import choose_bits  # the floor above, which counts bytes

        config = choose_bits(teacher, config, preset, calibration)
    fewer = (config.encoder_layers, config.decoder_layers) != names.depths(teacher.config)
    if fewer and getattr(teacher.config, "scale_attn_by_inverse_layer_idx", False):
        allowed = "False where layers are left out, since it counts them by place"
        raise InputError("scale_attn_by_inverse_layer_idx", True, allowed)
    if config.narrow:
        check_widths(teacher, config, preset)
    student = copy.deepcopy(teacher)
    scores: dict[str, Tensor] = {}
    if config.narrow:  # of the whole teacher, whose loss says something
        scores = norms(student) if calibration is None else importance(student.eval(), calibration)
    origins = _leave_out_layers(student, config, preset)
    if config.narrow:
        prune(student, config, scores, origins)
    return quantize_model(student, config, preset).train()


def _leave_out_layers(student: PreTrainedModel, config: Config, preset: Preset) -> dict[str, list[int]]:
    """Keep as many layers of a copy of the teacher as the configuration says; which they were, by the side."""
    origins = {}
    for side, stack in architecture_of(student.config).stacks.items():
        depth = getattr(config, f"{side}_layers")
        layers = student.get_submodule(stack.layers)
        origins[side] = layer_map(depth, len(layers), preset.single_layer)
        kept = [layers[i] for i in origins[side]]
        del layers[:]
        layers.extend(kept)
        for index, layer in enumerate(layers):
            for module in layer.modules():
                if getattr(module, "layer_idx", None) is not None:
                    module.layer_idx = index  # the key-value cache is addressed by it
        setattr(student.config, stack.depth, depth)
    student.config.num_hidden_layers = config.encoder_layers or config.decoder_layers
    return origins


def quantize_model(model: PreTrainedModel, config: Config, preset: Preset | str = "dqlib") -> PreTrainedModel:
    """Fake-quantize a model in place and return it: linear layers, embeddings, head, attention.

    Raises:
        InputError: as :func:`make_student`; or the bits of a budget are not chosen yet.
    """
    names, preset = architecture_of(model.config), get_preset(preset)
    if config.is_open:
        raise InputError("config", str(config), "one whose bits are chosen, as make_student does")
    preset.check_fits(config, model.config.model_type)
    _check_model(model)
    _Quantizing(model, names, config, preset).run()
    model.set_attn_implementation(attention.NAME)
    for name in ("resize_token_embeddings", "resize_decoder_token_embeddings"):  # the latter is Marian's
        if hasattr(model, name):
            setattr(model, name, _Resizing(model, name))
    model.dqlib_config, model.dqlib_preset = config, preset
    return model


def _check_model(model: PreTrainedModel) -> None:
    """Refuse a bare model, whose layers have other paths than those of the model with a head, and a quantized one."""
    for side, stack in architecture_of(model.config).stacks.items():
        if submodule(model, stack.layers) is None:
            raise InputError("model", type(model).__name__, f"a model with a head, with its {side} at {stack.layers}")
    if any(isinstance(module, QuantLayer) for module in model.modules()):
        found = f"{type(model).__name__} quantized as {getattr(model, 'dqlib_config', 'a student')}"
        allowed = "in full precision, such as a student's folder gives with transformers' from_pretrained"
        raise InputError("model", found, allowed)


class _Resizing:
    """``resize_token_embeddings`` of a student: scales gain and lose rows with their tables.

    The student is copied and pickled with it, and not kept alive by it.
    """

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        self._model, self._name = weakref.ref(model), name

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._model(), self._name)

    def __call__(self, *arguments: Any, **options: Any) -> nn.Embedding:
        model = self._model()
        assert model is not None  # it is what has this method
        names = architecture_of(model.config)
        heads = {path: submodule(model, path) for path in names.heads_of_vocabulary}
        # The ties that there are: looked up anew, a name that begins like a weight's would be taken for it, and a head
        # be tied that a checkpoint has apart.
        model.tie_weights = lambda: type(model).tie_weights(model, recompute_mapping=False)
        try:
            resized = getattr(type(model), self._name)(model, *arguments, **options)
        finally:
            del model.tie_weights
        for path, old in heads.items():
            new = submodule(model, path)
            if new is not old and isinstance(old, QuantLinear):  # a plain one, where the head is not tied
                quantize_linear(new, old.weight_quantizer, old.activation)
        tables = submodules(model, (*names.token_embeddings, *names.heads_of_vocabulary))
        quantizers: set[WeightFakeQuantizer] = set()
        for module in dict.fromkeys(tables):
            quantizer = getattr(module, "weight_quantizer", None)
            if quantizer is not None:
                quantizer.resize(module.weight)
                give_quantizer(module, quantizer, quantizer in quantizers)  # one table may have taken another's place
                quantizers.add(quantizer)
        return resized


class _Quantizing:
    """One pass over a model; keeps what its steps share."""

    def __init__(self, model: PreTrainedModel, names: Architecture, c: Config, preset: Preset) -> None:
        self.model, self.names, self.c, self.preset = model, names, c, preset
        self.activation = ActivationFakeQuantizer(c.a_bits, preset.activations)
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.bits = {id(self._weight(path)): bits for path, bits in c.modules}

    def run(self) -> None:
        table = self._embeddings()
        if self.preset.quantize_head:
            for head in submodules(self.model, self.names.heads_of_vocabulary):
                self._head(head, table)
        for stack in self.names.stacks.values():
            for layer in self.model.get_submodule(stack.layers):
                for module in submodules(layer, self.names.attentions):
                    self._attention(module)
                for module in list(layer.modules()):
                    if type(module) in (nn.Linear, Conv1D):
                        quantize_linear(module, self._weights(module), self.activation)
        for module in submodules(self.model, self.names.linears):
            quantize_linear(module, self._weights(module), self.activation)

    def _embeddings(self) -> tuple[nn.Parameter, WeightFakeQuantizer] | None:
        if self.c.e_bits >= FULL_PRECISION:
            return None
        granularity, shared = self.preset.weights.embedding, None
        for module in submodules(self.model, self.names.token_embeddings):
            tied = shared is not None and shared[0] is module.weight
            if shared is None or not tied:
                shared = module.weight, self._quantizer(module, self._bits(module, self.c.e_bits), granularity)
            quantize_embedding(module, shared[1], tied)
        if self.preset.position_bits < FULL_PRECISION:
            for module in submodules(self.model, self.names.positions):
                if isinstance(module, nn.Embedding):
                    plain = WeightQuantization()
                    quantize_embedding(module, self._quantizer(module, self.preset.position_bits, "per_row", plain))
        return shared

    def _head(self, head: nn.Linear, table: tuple[nn.Parameter, WeightFakeQuantizer] | None) -> None:
        quantizer, tied = None, False
        if table is not None:  # the quantizer of the table that the head is tied to, or one of its own
            tied = head.weight is table[0]
            bits = self._bits(head, self.c.e_bits)
            quantizer = table[1] if tied else self._quantizer(head, bits, self.preset.weights.embedding)
        quantize_linear(head, quantizer, self.activation, tied=tied)

    def _attention(self, module: nn.Module) -> None:
        module.activation = self.activation
        heads, joint = getattr(module, self.names.heads), self.names.joint_projection
        for name in self.names.key_value:
            projection = getattr(module, name)
            quantize_linear(
                projection,
                self._weights(projection),
                self.activation,
                # one scale per tensor cannot be found for a part of the cache: the attention rounds instead
                output_heads=None if self.activation.per_tensor else heads * (2 if joint else 1),
                output_skip=matrix(projection).size(0) // 3 if joint else 0,
            )

    def _weights(self, layer: nn.Linear | Conv1D) -> WeightFakeQuantizer | None:
        if self.c.w_bits >= FULL_PRECISION:
            return None
        return self._quantizer(layer, self._bits(layer, self.c.w_bits), self.preset.weights.linear)

    def _weight(self, path: str) -> Tensor:
        """The weight of a module that has bits of its own."""
        weight = getattr(submodule(self.model, path), "weight", None)
        if weight is None:
            raise InputError("modules", path, f"a module of {type(self.model).__name__} with a weight")
        return weight

    def _bits(self, module: nn.Module, uniform: int) -> int:
        """Bits of a module: its own, or those of all where the configuration is uniform."""
        if not self.c.modules:
            return uniform
        if id(module.weight) not in self.bits:
            raise InputError(f"bits of {self.paths[id(module)]}", None, "given: each module of a budget has its own")
        return self.bits[id(module.weight)]

    def _quantizer(
        self, module: nn.Module, bits: int, granularity: str, quantization: WeightQuantization | None = None
    ) -> WeightFakeQuantizer:
        with within(self.paths[id(module)]):
            return WeightFakeQuantizer(matrix(module), bits, granularity, quantization or self.preset.weights)


def weight_quantizers(model: nn.Module) -> list[WeightFakeQuantizer]:
    """The quantizers of all weights, each once."""
    return [module for module in model.modules() if isinstance(module, WeightFakeQuantizer)]


def quantized_modules(model: nn.Module) -> dict[str, QuantLayer]:
    """All layers with a quantized weight, by name; a tied weight is listed under each of its names."""
    layers = ((name, module) for name, module in model.named_modules() if isinstance(module, QuantLayer))
    return {name: layer for name, layer in layers if layer.weight_quantizer is not None}


def module_quantizers(model: PreTrainedModel) -> dict[str, WeightFakeQuantizer]:
    """The quantizers of linear layers, embeddings and heads by path; tied ones once, under the first of their paths.

    Tables of positions, whose bits are the preset's, are left out.
    """
    positions = architecture_of(model.config).positions
    found: dict[WeightFakeQuantizer, str] = {}
    for path, module in quantized_modules(model).items():
        if path not in positions:
            found.setdefault(module.quantizer, path)
    return {path: quantizer for quantizer, path in found.items()}


def plain_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that some module uses as they are: biases, LayerNorms, tables whose head is not quantized.

    Tied parameters once; trained scales, which are part of the scales, are left out.
    """
    quantized = set(quantized_modules(model).values())
    coded = {id(module.weight) for module in quantized}
    used = {id(m.weight) for m in model.modules() if isinstance(m, _WITH_WEIGHT) and m not in quantized}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.endswith(LEARNED) and (id(parameter) not in coded or id(parameter) in used)
    }


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that belong to a model's state, such as the bias of BART's logits."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in model.state_dict().items() if name not in parameters}


@torch.no_grad()
def round_for_storage(model: nn.Module) -> None:
    """Make a student compute with the numbers that its packed file will hold, in place.

    Scales and every parameter or persistent buffer that is not quantized are rounded to fp16. To be called after
    training and before the last evaluation, so that what is measured is what is stored.

    Raises:
        InputError: a parameter has no fp16 value.
    """
    for name, parameter in (plain_parameters(model) | persistent_buffers(model)).items():
        rounded = parameter.half().to(parameter.dtype)
        if not torch.isfinite(rounded).all():
            raise InputError(name, float(parameter.abs().max()), "numbers of at most 65504, the largest of fp16")
        parameter.copy_(rounded)
    for quantizer in weight_quantizers(model):
        quantizer.half_scales = True
    model.dqlib_rounded = True  # of a student without any quantized weight, too


def set_blend(model: nn.Module, blend: float) -> None:
    """How much of the quantized weight the forward pass sees, from 0 (full precision) to 1."""
    for quantizer in weight_quantizers(model):
        quantizer.blend = blend


def forget(model: nn.Module) -> None:
    """Let a student quantize all its weights anew at its next forward pass.

    To be called after weights were written through ``.data``, as moving averages and optimizers that are not
    PyTorch's do: such a change leaves no trace, and the student would go on with what it made of the old weights.
    """
    for quantizer in weight_quantizers(model):
        quantizer.forget()


def set_attention_maps(model: PreTrainedModel, kind: str) -> None:
    """Which maps the attentions of a model give out: ``probabilities``, ``scores`` or ``relations``.

    It has an effect with the attention implementation ``dqlib``, which every student has.
    """
    names = architecture_of(model.config)
    for stack in names.stacks.values():
        for layer in model.get_submodule(stack.layers):
            for number, path in enumerate(names.attentions):  # the first reads what it writes, the next another text
                module = submodule(layer, path)
                if module is not None:
                    module.attention_maps = "probabilities" if kind == "relations" and number else kind


def is_student(model: nn.Module) -> bool:
    """Whether a model is a student in training's form, not one read from a packed file, which holds codes only."""
    return hasattr(model, "dqlib_config") and not hasattr(model, "dqlib_packed")


#: What transformers does to save a model, which for a student is a part of it.
save_weights = PreTrainedModel.save_pretrained


@wraps(save_weights)
def _save_as_what_it_is(
    self: PreTrainedModel, save_directory: str | Path, is_main_process: bool = True, *args: Any, **options: Any
) -> None:
    """Save a student as :func:`dqlib.storage.students.save_student` does, a packed model packed, others as ever.

    Of a model with adapters, transformers saves these alone.

    Raises:
        InputError: a student is to be sent to the hub in the same call, which would be without its manifest.
    """
    if not hasattr(self, "dqlib_config") or getattr(self, "_hf_peft_config_loaded", False):
        save_weights(self, save_directory, is_main_process, *args, **options)
        return
    from dqlib.storage import packed, students  # the floor above, which only what is saved needs

    if options.pop("push_to_hub", False):
        raise InputError("push_to_hub", True, "left out, and model.push_to_hub be called")
    if is_main_process:
        (students if is_student(self) else packed).add_to_folder(self, save_directory, *args, **options)


# ``Trainer`` and ``push_to_hub`` save by this name. The class of a student is that of its teacher, and as an attribute
# of the student itself the method would keep it alive, or let it go while it is being saved.
PreTrainedModel.save_pretrained = _save_as_what_it_is
