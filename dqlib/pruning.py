"""Narrower layers: fewer heads of attention and fewer neurons of feed-forward layers, the least important left out.

A head keeps its size, and with it the scale of its scores, so a student of ``h`` heads has projections of ``h`` times
the teacher's features per head. The model's own configuration goes on giving the teacher's number of heads, from which
transformers computes that size; :func:`narrow` then makes a new model as narrow as a student is. Of feed-forward layers
the configuration gives the student's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dqlib.architectures import Architecture, architecture_of, submodule, submodules
from dqlib.config import FULL_PRECISION, Config, Granularity
from dqlib.errors import InputError
from dqlib.layers import matrix
from dqlib.presets import Preset

#: What an importance is estimated on: batches of what the model's forward takes, with ``labels``.
Calibration = Sequence[Mapping[str, Tensor]]

#: Importance of each head or neuron, by the path of the projection that reads them.
Importance = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Units:
    """Heads of one attention, or neurons of one feed-forward layer.

    Args:
        part: ``encoder``, ``decoder`` or ``cross`` for heads; empty for neurons.
        writers: the projections whose outputs they are; of heads, that of the values.
        size: features of one.
        attention: of these heads; None for neurons.
    """

    part: str
    layer: int
    path: str
    reader: nn.Linear | Conv1D
    writers: tuple[nn.Linear | Conv1D, ...]
    size: int = 1
    attention: nn.Module | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return matrix(self.reader).size(1) // self.size


def units(model: PreTrainedModel, *sides: str) -> Iterator[Units]:
    """Heads and neurons of all layers, or of those of a stack, ``encoder`` or ``decoder``."""
    names = architecture_of(model.config)
    for side in sides or names.stacks:
        for index, layer in enumerate(model.get_submodule(names.stacks[side].layers)):
            place = f"{names.stacks[side].layers}.{index}"
            for path, output in zip(names.attentions, names.outputs, strict=True):
                attention, reader = submodule(layer, path), submodule(layer, output)
                if attention is not None:
                    part = side if path == names.attentions[0] else "cross"
                    writer, size = getattr(attention, names.key_value[-1]), getattr(attention, names.head_size)
                    yield Units(part, index, f"{place}.{output}", reader, (writer,), size, attention)
            writers = tuple(submodules(layer, names.neurons))
            for path in names.neurons_to:
                reader = submodule(layer, path)
                if reader is not None:
                    yield Units("", index, f"{place}.{path}", reader, writers)


def check_widths(model: PreTrainedModel, config: Config, preset: Preset) -> None:
    """Raise an ``InputError`` unless rows of narrower projections divide into the preset's groups of weights."""
    group = Granularity.parse(preset.weights.linear).group
    if not group or config.w_bits >= FULL_PRECISION:
        return
    each = next(each for each in units(model) if each.attention is not None)
    for field, size in (("heads", each.size), ("ffn", 1)):
        value = getattr(config, field)
        if value is not None and value * size % group:
            allowed = f"a number whose {size * value} features the groups of {group} weights of '{preset.name}' divide"
            raise InputError(f"config '{config}', {field}", value, allowed)


def importance(model: PreTrainedModel, calibration: Calibration) -> dict[str, Tensor]:
    """How much the loss depends on each head and neuron, to first order: mean over examples of |dL / dg|.

    ``g`` is a gate of 1 that multiplies the output of a head or neuron, so the derivative is the sum over its features
    and the tokens of an example of output times gradient: for heads Michel et al. 2019 (arXiv:1905.10650, eq. 2), for
    neurons Molchanov et al. 2017 (arXiv:1611.06440, eq. 8) and 2019 (arXiv:1906.10771, section 3). The loss is the
    model's own, summed over the labels of a batch.

    Args:
        model: in evaluation mode, in full precision; it is not changed.

    Raises:
        InputError: there is no batch, one has no labels or none that counts, or the loss is not finite.
    """
    if not len(calibration):
        raise InputError("calibration", "no batches", "one batch at least, or be left out to prune by norms of weights")
    found = list(units(model))
    gates: dict[str, list[Tensor]] = {each.path: [] for each in found}
    handles = [each.reader.register_forward_pre_hook(_gate(each, gates[each.path])) for each in found]
    scores = {each.path: torch.zeros(each.count, device=each.reader.weight.device) for each in found}
    examples = 0
    try:
        for batch in calibration:
            loss = _loss(model, batch)
            for path, gradients in zip(gates, _gradients(loss, gates), strict=True):
                scores[path] += gradients.abs().sum(dim=0)
                examples += len(gradients) if path == found[0].path else 0
            for of_path in gates.values():
                of_path.clear()
    finally:
        for handle in handles:
            handle.remove()
    return {path: score / examples for path, score in scores.items()}


@torch.no_grad()
def norms(model: PreTrainedModel) -> dict[str, Tensor]:
    """Importance without any data: the norm of what writes a head or neuron times the norm of what reads it.

    Magnitude pruning of whole units, as of filters by Li et al. 2017 (arXiv:1608.08710). It knows nothing of what the
    model reads; give a calibration set where there is one.
    """
    scores = {}
    for each in units(model):
        score = _norms(matrix(each.reader).T, each)
        for writer in each.writers:
            score = score * _norms(matrix(writer), each)
        scores[each.path] = score
    return scores


def prune(model: PreTrainedModel, config: Config, scores: Importance, origins: Mapping[str, Sequence[int]]) -> None:
    """Leave the most important heads and neurons of each layer, in their order, in place.

    Where layers share a table of biases by head (T5), all self-attentions of a stack keep the same heads, those of
    the largest sum. The kept heads are noted in ``model.dqlib_kept_heads``, by part and layer.

    Args:
        model: in full precision, of the layers that the student is to have.
        origins: the teacher's layer that each layer is a copy of, by side.
    """
    names = architecture_of(model.config)
    kept_heads: dict[str, list[list[int]]] = {}
    for side, layers in origins.items():
        path = names.stacks[side].layers
        found = list(units(model, side))
        moved = (each.path.replace(f"{path}.{each.layer}.", f"{path}.{layers[each.layer]}.", 1) for each in found)
        of_unit = [scores[path_in_teacher] for path_in_teacher in moved]
        if names.head_bias:
            own = [score for each, score in zip(found, of_unit, strict=True) if each.part == side]
            of_unit = [sum(own) if each.part == side else score for each, score in zip(found, of_unit, strict=True)]
        for each, score in zip(found, of_unit, strict=True):
            if each.attention is not None and config.heads is not None:
                kept = _best(score, config.heads)
                _keep_heads(names, each, kept)
                kept_heads.setdefault(each.part, []).append(kept)
            elif each.attention is None and config.ffn is not None:
                kept = _best(score, config.ffn)
                _keep(each.reader, kept, outputs=False)
                for writer in each.writers:
                    _keep(writer, kept, outputs=True)
    if config.ffn is not None:
        for field in names.neuron_fields:
            setattr(model.config, field, config.ffn)
    if kept_heads:
        model.dqlib_kept_heads = kept_heads


def narrow(model: PreTrainedModel, heads: int | None) -> PreTrainedModel:
    """Give a model that transformers made of a student's configuration the student's heads, in place; return it.

    Its numbers are about to be replaced: it is the shape that counts.

    Raises:
        InputError: an attention has fewer heads.
    """
    if heads is None:
        return model
    for each in units(model):
        if each.attention is not None:
            if heads > each.count:
                raise InputError("heads", heads, f"at most {each.count}, as many as {each.path} has")
            _keep_heads(architecture_of(model.config), each, list(range(heads)))
    return model


def _keep_heads(names: Architecture, each: Units, kept: list[int]) -> None:
    attention, size = each.attention, each.size
    assert attention is not None
    features = [head * size + i for head in kept for i in range(size)]
    width = each.count * size
    _keep(each.reader, features, outputs=False)
    rows = [part * width + i for part in range(3) for i in features] if names.joint_projection else features
    for projection in submodules(attention, {*names.key_value, *filter(None, [names.query])}):
        _keep(projection, rows, outputs=True)
    for bias in submodules(attention, filter(None, [names.head_bias])):
        bias.weight = _selected(bias.weight, kept, 1)
        bias.embedding_dim = len(kept)
    setattr(attention, names.heads, len(kept))
    for field in names.heads_width:
        setattr(attention, field, len(features))


def _keep(layer: nn.Linear | Conv1D, kept: list[int], outputs: bool) -> None:
    """Leave some of the inputs, or of the outputs, of a linear layer."""
    transposed = isinstance(layer, Conv1D)
    layer.weight = _selected(layer.weight, kept, 1 if outputs == transposed else 0)
    if outputs and layer.bias is not None:
        layer.bias = _selected(layer.bias, kept, 0)
    inputs_and_outputs = ("nx", "nf") if transposed else ("in_features", "out_features")
    setattr(layer, inputs_and_outputs[outputs], len(kept))


def _selected(parameter: Tensor, kept: list[int], dim: int) -> nn.Parameter:
    index = torch.tensor(kept, device=parameter.device)
    return nn.Parameter(parameter.detach().index_select(dim, index), requires_grad=parameter.requires_grad)


def _best(scores: Tensor, count: int) -> list[int]:
    """Indices of the largest scores, in order; of equal ones the first."""
    return sorted(torch.argsort(scores, descending=True, stable=True)[:count].tolist())


def _norms(weight: Tensor, each: Units) -> Tensor:
    """Norm of the weights of each unit, which has rows of its own; of a joint projection, the values' are last."""
    return weight.detach().float()[-each.count * each.size :].reshape(each.count, -1).norm(dim=1)


def _gate(each: Units, gates: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Multiply the inputs of a projection by gates of 1, one per example and unit, which are appended."""

    def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]  # (batch, tokens, features)
        gate = x.new_ones(x.size(0), 1, each.count, 1, requires_grad=True)
        gates.append(gate)
        return ((x.unflatten(-1, (each.count, each.size)) * gate).flatten(-2), *inputs[1:])

    return hook


def _loss(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's loss of a batch, summed over its labels."""
    if not isinstance(batch, Mapping) or batch.get("labels") is None:
        found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise InputError("calibration", found, "batches of what the model's forward takes, with labels")
    with torch.enable_grad():
        loss = model(**{name: value.to(model.device) for name, value in batch.items()}).loss
    if not torch.isfinite(loss):
        raise InputError("calibration", loss.item(), "batches whose loss is a finite number")
    return loss * (batch["labels"] >= 0).sum()


def _gradients(loss: Tensor, gates: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
    """The gradient by the gates of each path, (batch, units); a path that is used in parts has the sum of these."""
    flat = [gate for of_path in gates.values() for gate in of_path]
    gradients = iter(torch.autograd.grad(loss, flat))
    return [sum(next(gradients)[:, 0, :, 0] for _ in of_path) for of_path in gates.values()]
