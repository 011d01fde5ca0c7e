"""Parameters of a model, whichever way it holds them: live, in a student's modules, or stored, as a file had them.

:func:`parameters_of` is the one place that knows both; what counts bytes, packs or exports takes the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dqlib.architectures import architecture_of, submodules
from dqlib.errors import InputError, within
from dqlib.fake_quantize import LEARNED
from dqlib.layers import QuantConv1D, QuantLayer
from dqlib.quantizers import Quantized
from dqlib.storage.account import FP16_BYTES
from dqlib.storage.packing import packed_size
from dqlib.storage.stored import PackedWeight, Stored, as_half, whole
from dqlib.student import persistent_buffers


@dataclass(frozen=True, slots=True)
class Live:
    """A parameter in one of the forms in which modules use it: quantized, or as it is.

    Args:
        names: of the parameter, in all modules that use it so.
        kind: one of :data:`dqlib.storage.manifest.TENSOR_KINDS`.
        layer: one of the quantized layers that use it so; None where it is used as it is.
    """

    names: tuple[str, ...]
    kind: str
    parameter: Tensor
    layer: QuantLayer | None = None
    repeats: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """In the model."""
        return tuple(self.parameter.shape)

    @property
    def transposed(self) -> bool:
        """Whether the codes are (columns, rows) of the parameter, as in GPT-2."""
        return isinstance(self.layer, QuantConv1D)

    @property
    def is_zeros(self) -> bool:
        """Whether this is a buffer of zeros, of which nothing is stored."""
        return not isinstance(self.parameter, nn.Parameter) and not self.parameter.any()

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bits of a code, bytes of all codes (or fp16 numbers), bytes of scales and zero points."""
        numel = self.parameter.numel()
        if self.layer is None:
            return 8 * FP16_BYTES, 0 if self.is_zeros else FP16_BYTES * numel, 0
        q = self.layer.quantized()
        scale_bytes = FP16_BYTES * q.scale.numel() + (0 if q.zero_point is None else whole(q.zero_point).nbytes)
        return q.bits, packed_size(numel, q.bits, q.encoding), scale_bytes

    def quantized(self) -> Quantized | None:
        """Codes and scales; None for what is not quantized.

        Raises:
            InputError: the forward pass sees the quantized weight in part only.
        """
        if self.layer is None:
            return None
        blend = self.layer.quantizer.blend
        if blend != 1:
            raise InputError(f"{self.names[0]}, blend", blend, "1: codes stand for quantized weights only")
        return self.layer.quantized()

    def value(self) -> Tensor:
        """The parameter in fp32, on the CPU, that nothing else uses."""
        quantized = self.quantized()
        if quantized is None:
            return self.parameter.detach().float().cpu().clone()
        value = quantized.dequantize().cpu()
        return value.T.contiguous() if self.transposed else value

    def stored(self) -> Stored:
        """The parameter as a file holds it.

        Raises:
            InputError: its numbers are not those that a file holds.
        """
        quantized, content, now = self.quantized(), None, "call round_for_storage before the evaluation"
        with within(self.names[0]):
            if self.layer is not None and quantized is not None:
                quantizer = self.layer.quantizer
                if not quantizer.half_scales:
                    raise InputError("scale", "not rounded", f"rounded to fp16: {now}")
                content = PackedWeight.of(quantized, str(quantizer.scheme), str(quantizer.granularity), self.transposed)
            elif not self.is_zeros:
                content = as_half(self.parameter, "value", f"a number of fp16: {now}")
        return Stored(self.names, self.kind, self.shape, content, self.repeats)


def parameters_of(model: PreTrainedModel) -> Sequence[Live | Stored]:
    """Every parameter and persistent buffer of a student, or of what ``load_packed`` gave, tied ones once.

    A table that is looked up quantized, while the head tied to it is not quantized (DQ-BART's code), has two forms.
    Trained scales are part of the scales and have none.
    """
    loaded: list[Stored] | None = getattr(model, "dqlib_packed", None)
    return _live(model) if loaded is None else loaded


def stored(model: PreTrainedModel) -> Iterator[Stored]:
    """Everything that a student, or what :func:`dqlib.storage.packed.load_packed` gave, is stored as, one at a time.

    Raises:
        InputError: numbers are not those that a file holds (see :func:`dqlib.student.round_for_storage`), or a
            loaded model was changed since.
    """
    state = model.state_dict()
    for each in parameters_of(model):
        if isinstance(each, Live):
            yield each.stored()
            continue
        for name in each.names:
            if name not in state or not torch.equal(state[name].cpu(), each.value()):
                raise InputError(name, "changed", "as load_packed gave it: a loaded model is packed again as it was")
        yield each


def _live(model: PreTrainedModel) -> list[Live]:
    found: dict[tuple[int, int | None], tuple[list[str], Tensor, QuantLayer | None]] = {}
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    small = submodules(model, architecture_of(model.config).positions)
    positions = {id(module.weight) for module in small if isinstance(module, nn.Embedding)}
    for path, module in model.named_modules(remove_duplicate=False):
        quantizer = getattr(module, "weight_quantizer", None)
        for name, parameter in module.named_parameters(path, recurse=False):
            if name.endswith(LEARNED):
                continue
            layer = module if quantizer is not None and parameter is module.weight else None
            key = id(parameter), None if layer is None else id(quantizer)
            found.setdefault(key, ([], parameter, layer))[0].append(name)
    quantized = {of: names[0] for (of, _), (names, _, layer) in found.items() if layer is not None}
    parameters = []
    for (of, _), (names, parameter, layer) in found.items():
        kind = "positions" if of in positions else "embedding" if of in tables else "weights"
        if layer is None:
            parameters.append(Live(tuple(names), "rest", parameter, repeats=quantized.get(of)))
        else:
            parameters.append(Live(tuple(names), kind, parameter, layer))
    return parameters + [Live((name,), "rest", buffer) for name, buffer in persistent_buffers(model).items()]
