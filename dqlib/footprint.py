"""How many bytes a model needs, counted from the codes and scales that its quantizers really make."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn
from transformers import PreTrainedModel

from dqlib.packing import packed_size
from dqlib.stored import Form, PackedWeight, Stored, forms, whole
from dqlib.student import LEARNED

FP32_BYTES = 4
FP16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """Account of one parameter in one form.

    Args:
        names: of the parameter, more than one where it is tied.
        kind: ``weights``, ``embedding``, ``positions`` or ``rest``.
        numel: how many numbers.
        bits: of a code, 16 where it is not quantized.
        code_bytes: codes packed without gaps (ternary: five a byte), or fp16 numbers.
        scale_bytes: scales (fp16) and zero points.
        repeats: the quantized parameter whose original, needed in full precision by another use, this is.
    """

    names: tuple[str, ...]
    kind: str
    numel: int
    bits: int
    code_bytes: int
    scale_bytes: int
    repeats: str | None = None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def size_bytes(self) -> int:
        """Codes and scales."""
        return self.code_bytes + self.scale_bytes


def footprint(model: PreTrainedModel, with_zeros: bool = False) -> list[Entry]:
    """One entry a parameter; tied parameters once. Their bytes are those of the tensors in a packed file.

    A table that one use needs quantized and another in full precision, such as the output head of DQ-BART's code,
    has an entry for each. A buffer of zeros, of which a file holds nothing, has one only if ``with_zeros``.
    """
    loaded = getattr(model, "dqlib_packed", None)
    entries = map(_of_form, forms(model)) if loaded is None else map(_of_stored, loaded)
    return [entry for entry in entries if entry.size_bytes or with_zeros]


def _of_stored(each: Stored) -> Entry:
    content, numel = each.content, prod(each.shape)
    if isinstance(content, PackedWeight):
        return Entry(each.names, each.kind, numel, content.bits, content.code_bytes, content.scale_bytes)
    return Entry(
        each.names, each.kind, numel, 8 * FP16_BYTES, 0 if content is None else content.nbytes, 0, each.repeats
    )


def _of_form(form: Form) -> Entry:
    numel = form.parameter.numel()
    if form.layer is None:
        is_stored = isinstance(form.parameter, nn.Parameter) or bool(form.parameter.any())
        return Entry(
            form.names, form.kind, numel, 8 * FP16_BYTES, FP16_BYTES * numel if is_stored else 0, 0, form.repeats
        )
    q = form.layer.quantized()
    scale_bytes = FP16_BYTES * q.scale.numel() + (0 if q.zero_point is None else whole(q.zero_point).nbytes)
    return Entry(form.names, form.kind, numel, q.bits, packed_size(numel, q.bits, q.ternary), scale_bytes)


def size_bytes(model: PreTrainedModel) -> int:
    """Bytes of a quantized model by :func:`footprint`."""
    return sum(entry.size_bytes for entry in footprint(model))


def fp32_size_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters in full precision, tied ones once; trained factors of scales are not its own."""
    return FP32_BYTES * sum(p.numel() for name, p in model.named_parameters() if not name.endswith(LEARNED))
