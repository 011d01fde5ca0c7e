"""How many bytes a model needs, counted from the codes and scales that its quantizers really make."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dqlib.student import LEARNED, plain_parameters, quantized_modules

FP32_BYTES = 4
FP16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Entry:
    """Account of one parameter: how many numbers, at how many bits, with which scales (fp16)."""

    name: str
    kind: str  # weights | embedding | positions | rest
    numel: int
    bits: int
    scales: int

    @property
    def size_bytes(self) -> int:
        """Codes packed without gaps, and scales."""
        return (self.numel * self.bits + 7) // 8 + self.scales * FP16_BYTES


def footprint(model: nn.Module) -> list[Entry]:
    """One entry a parameter; tied parameters once.

    A table that any of its uses needs in full precision, such as the output head of DQ-BART's code, is not
    counted as quantized. Codes count at their bits (ternary: 2), scales and everything unquantized (biases,
    LayerNorm) at 16.
    """
    quantized = {id(m.weight): m for m in quantized_modules(model).values()}
    plain = plain_parameters(model)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    entries = []
    for name, parameter in model.named_parameters():  # each tied parameter once
        if name.endswith(LEARNED):
            continue  # part of the scale that is counted with its weight
        module = quantized.get(id(parameter))
        if name in plain:
            entries.append(Entry(name, "rest", parameter.numel(), 8 * FP16_BYTES, 0))
        else:
            codes = module.quantized()
            scales = codes.scale.numel() + (0 if codes.zero_point is None else codes.zero_point.numel())
            entries.append(Entry(name, _kind(name, id(parameter) in tables), codes.codes.numel(), codes.bits, scales))
    return entries


def size_bytes(model: nn.Module) -> int:
    """Bytes of a quantized model by :func:`footprint`."""
    return sum(entry.size_bytes for entry in footprint(model))


def fp32_size_bytes(model: nn.Module) -> int:
    """Bytes of a model in full precision, tied parameters once."""
    return FP32_BYTES * sum(parameter.numel() for parameter in model.parameters())


def _kind(name: str, is_table: bool) -> str:
    if "position" in name:
        return "positions"
    return "embedding" if is_table else "weights"
