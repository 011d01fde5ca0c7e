"""Weights as ONNX Runtime's kernels take them: unsigned codes, blocks that share a scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from dqlib.errors import InputError
from dqlib.quantizers import Quantized
from dqlib.storage.live import parameters_of

#: Bits that kernels have, and sizes of the blocks that share a scale, best first.
KERNEL_BITS, BLOCKS = (2, 4, 8), (128, 64, 32, 16)


def values_of(model: PreTrainedModel) -> dict[str, Quantized | torch.Tensor]:
    """Codes and scales of what a model quantizes, numbers of the rest, by every name that they have.

    Raises:
        InputError: a weight is quantized in part only.
    """
    values: dict[str, Quantized | torch.Tensor] = {}
    for each in parameters_of(model):
        quantized = each.quantized()
        values |= dict.fromkeys(each.names, each.value() if quantized is None else quantized)
    return values


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight as a kernel takes it.

    Args:
        unsigned: uint8 (rows, columns), around a zero point of ``2^(bits-1)``.
        scale: fp32 (rows, groups).
        bits: 2, 4 or 8.
    """

    unsigned: np.ndarray
    scale: np.ndarray
    bits: int

    @classmethod
    def of(cls, quantized: Quantized, bits: int | None = None) -> Codes | None:
        """Codes in the fewest bits that hold them, or in ``bits``; None for a grid that the kernels do not have."""
        rows, columns = quantized.codes.shape
        group = columns // quantized.scale.size(-1)
        if quantized.zero_point is not None or (group < columns and group % BLOCKS[-1]):
            return None
        least = max(2, 2 ** math.ceil(math.log2(quantized.bits)))
        if bits is not None and bits < least:
            raise InputError("bits", bits, f"at least {least} for codes of {quantized.bits} bits")
        bits = bits or least
        unsigned = (quantized.codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8).cpu().numpy()
        scale = quantized.scale.detach().float().cpu().expand(rows, -1).numpy()
        return cls(unsigned, scale, bits)

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.unsigned.shape[1] // self.scale.shape[1]

    def packed(self, block: int) -> np.ndarray:
        """uint8 (rows, blocks, bytes of a block), the lowest bits first; a last block is filled up with zeros."""
        rows, columns = self.unsigned.shape
        filled = np.pad(self.unsigned, ((0, 0), (0, -columns % block)), constant_values=2 ** (self.bits - 1))
        places = 8 // self.bits
        by_place = filled.reshape(rows, -1, block // places, places)
        shifts: np.ndarray = (np.arange(places) * self.bits).astype(np.uint8)
        return np.bitwise_or.reduce(by_place << shifts, axis=-1).astype(np.uint8)

    def scales(self, block: int) -> np.ndarray:
        """The scale of each block, fp32 (rows, blocks)."""
        blocks = -(-self.unsigned.shape[1] // block)
        return np.ascontiguousarray(np.repeat(self.scale, blocks // self.scale.shape[1], axis=1))

    def block(self) -> int:
        """The best size of block for these columns, none of which has two scales."""
        fitting = [size for size in BLOCKS if self.group % size == 0]
        return fitting[0] if fitting else BLOCKS[-1]

    def signed(self) -> np.ndarray:
        """int8 (columns, rows)."""
        return (self.unsigned.astype(np.int16) - 2 ** (self.bits - 1)).astype(np.int8).T


class Weights:
    """Weights by name, several as one where they read the same input."""

    def __init__(self, values: dict[str, Quantized | torch.Tensor], bits: int | None) -> None:
        self.values, self.bits = values, bits

    def number(self, name: str) -> np.ndarray:
        """A bias, a LayerNorm, a buffer: fp32."""
        value = self.values[name]
        assert not isinstance(value, Quantized)
        return value.numpy()

    def matrix(self, names: Sequence[str]) -> Codes | np.ndarray:
        """Rows of all these weights: codes, or fp32 where the kernels do not have the grid."""
        parts = [self.values[name] for name in names]
        bits = None if names[0].endswith("embed_positions.weight") else self.bits
        if all(isinstance(part, Quantized) for part in parts):
            codes = [each for part in parts if (each := Codes.of(part, bits)) is not None]
            if len(codes) == len(parts) and len({(each.bits, each.scale.shape[1]) for each in codes}) == 1:
                unsigned, scale = (np.concatenate([getattr(each, f) for each in codes]) for f in ("unsigned", "scale"))
                return Codes(unsigned, scale, codes[0].bits)
        return np.concatenate([(p.dequantize() if isinstance(p, Quantized) else p).float().numpy() for p in parts])
