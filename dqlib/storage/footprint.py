"""How many bytes a model needs, counted from the codes and scales that its quantizers really make."""

from __future__ import annotations

from math import prod

from torch import nn
from transformers import PreTrainedModel

from dqlib.fake_quantize import LEARNED
from dqlib.storage.account import FP32_BYTES, Entry
from dqlib.storage.live import parameters_of


def footprint(model: PreTrainedModel, with_zeros: bool = False) -> list[Entry]:
    """One entry per parameter; tied parameters once. Their bytes are those of the tensors in a packed file.

    A table that one use needs quantized and another in full precision, such as the output head of DQ-BART's code,
    has an entry for each. A buffer of zeros, of which a file holds nothing, has one only if ``with_zeros``.
    """
    found = parameters_of(model)
    entries = [Entry(each.names, each.kind, prod(each.shape), *each.sizes, each.repeats) for each in found]
    return [entry for entry in entries if entry.size_bytes or with_zeros]


def size_bytes(model: PreTrainedModel) -> int:
    """Bytes of a quantized model by :func:`footprint`."""
    return sum(entry.size_bytes for entry in footprint(model))


def fp32_size_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters in full precision, tied ones once; trained factors of scales are not its own."""
    return FP32_BYTES * sum(p.numel() for name, p in model.named_parameters() if not name.endswith(LEARNED))
