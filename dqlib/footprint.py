"""How many bytes a model needs, counted from the codes and scales that its quantizers really make."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from dqlib.packing import packed_size
from dqlib.stored import Form, PackedWeight, Stored, forms, whole

FP32_BYTES = 4
FP16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """Account of one parameter in one form.

    Args:
        name: of the parameter.
        kind: ``weights``, ``embedding``, ``positions`` or ``rest``.
        numel: how many numbers.
        bits: of a code, 16 where it is not quantized.
        code_bytes: codes packed without gaps (ternary: five a byte), or fp16 numbers.
        scale_bytes: scales (fp16) and zero points.
        repeats: the quantized parameter whose original, needed in full precision by another use, this is.
    """

    name: str
    kind: str
    numel: int
    bits: int
    code_bytes: int
    scale_bytes: int
    repeats: str | None = None

    @property
    def size_bytes(self) -> int:
        """Codes and scales."""
        return self.code_bytes + self.scale_bytes


def footprint(model: PreTrainedModel) -> list[Entry]:
    """One entry a parameter; tied parameters once. Their bytes are those of the tensors in a packed file.

    A table that one use needs quantized and another in full precision, such as the output head of DQ-BART's code,
    has an entry for each. Buffers of zeros, of which a file holds nothing, have none.
    """
    loaded = getattr(model, "dqlib_packed", None)
    entries = [_of_form(form) for form in forms(model)] if loaded is None else [entry_of(each) for each in loaded]
    return [entry for entry in entries if entry.size_bytes]


def entry_of(each: Stored) -> Entry:
    """Account of what is stored."""
    content = each.content
    if isinstance(content, PackedWeight):
        numel = content.shape[0] * content.shape[1]
        return Entry(each.name, each.kind, numel, content.bits, content.code_bytes, content.scale_bytes)
    numel = 0 if content is None else content.numel()
    return Entry(each.name, each.kind, numel, 8 * FP16_BYTES, FP16_BYTES * numel, 0, each.repeats)


def _of_form(form: Form) -> Entry:
    if form.layer is None:
        is_stored = isinstance(form.parameter, nn.Parameter) or bool(form.parameter.any())
        numel = form.parameter.numel() if is_stored else 0
        return Entry(form.names[0], form.kind, numel, 8 * FP16_BYTES, FP16_BYTES * numel, 0, form.repeats)
    q = form.layer.quantized()
    scale_bytes = FP16_BYTES * q.scale.numel() + (0 if q.zero_point is None else whole(q.zero_point).nbytes)
    numel = q.codes.numel()
    return Entry(form.names[0], form.kind, numel, q.bits, packed_size(numel, q.bits, q.ternary), scale_bytes)


def size_bytes(model: PreTrainedModel) -> int:
    """Bytes of a quantized model by :func:`footprint`."""
    return sum(entry.size_bytes for entry in footprint(model))


def fp32_size_bytes(model: nn.Module) -> int:
    """Bytes of a model in full precision, tied parameters once."""
    return FP32_BYTES * sum(parameter.numel() for parameter in model.parameters())
