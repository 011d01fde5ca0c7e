"""How many bytes a model needs, counted from the codes and scales that its quantizers really make."""

from __future__ import annotations

from math import prod

from torch import nn
from transformers import PreTrainedModel

from dqlib.fake_quantize import LEARNED
from dqlib.storage.account import FP16_BYTES, FP32_BYTES, Entry
from dqlib.storage.packing import packed_size
from dqlib.storage.stored import Form, PackedWeight, Stored, forms, whole


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
