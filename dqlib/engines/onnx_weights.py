"""Weights as ONNX Runtime's kernels take them: unsigned codes, blocks that share a scale."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dqlib.errors import InputError
from dqlib.quantizers import Quantized
from dqlib.storage.live import parameters_of

#: Bits that kernels have, and sizes of the blocks that share a scale, best first.
KERNEL_BITS, BLOCKS = (2, 4, 8), (128, 64, 32, 16)


def values_of(model: PreTrainedModel) -> dict[str, Quantized | torch.Tensor]:
    """Codes and scales of what a model quantizes, numbers of the rest, by every name that they have.

    Weights of linear layers are (outputs, inputs), GPT-2's too.

    Raises:
        InputError: a weight is quantized in part only.
    """
    values: dict[str, Quantized | torch.Tensor] = {}
    turned = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Conv1D)}
    for each in parameters_of(model):
        value = each.quantized()
        if value is None:
            value = each.value()
            value = value.T if turned.intersection(each.names) else value
        values |= dict.fromkeys(each.names, value)
    return values


@dataclass(frozen=True, slots=True)
class Codes:
    """A weight as a kernel takes it: ``(unsigned - 2^(bits-1)) * scale``, and half a scale more where it is shifted.

    The odd codes -3, -1, 1 and 3 are the unsigned 0 to 3, twice their scale apart, around a zero point of 1.5. Kernels
    of few bits want a whole one, so they multiply around 2, and what is missing, half a scale for each column, is half
    a scale times the sum of the input's row.

    Args:
        unsigned: uint8 (rows, columns).
        scale: fp32 (rows, groups); one group where it is shifted.
        bits: 2, 4 or 8.
    """

    unsigned: np.ndarray
    scale: np.ndarray
    bits: int
    shifted: bool = False

    @classmethod
    def of(cls, quantized: Quantized, bits: int | None = None, shifted: bool = False) -> Codes | None:
        """Codes in the fewest bits that hold them, or in ``bits``; None for a grid that the kernels do not have.

        Odd codes with several scales per row take a bit more: each group would have a sum of its own.

        Args:
            bits: 2, 4 or 8.
            shifted: shift codes of one bit, too, which are odd, so that they can stand with those of four levels.

        Raises:
            InputError: ``bits`` do not hold the codes.
        """
        rows, columns = quantized.codes.shape
        group = columns // quantized.scale.size(-1)
        if quantized.zero_point is not None or (group < columns and group % BLOCKS[-1]):
            return None
        odd = quantized.encoding == "odd" or (shifted and quantized.bits == 1)
        least = _kernel_bits(quantized.bits + (odd and group < columns))
        if bits is not None and bits < least:
            raise InputError("bits", bits, f"at least {least} for codes of {quantized.bits} bits")
        bits = bits or least
        codes, scale = quantized.codes.to(torch.int16), quantized.scale.detach().float()
        shifted = odd and bits == _kernel_bits(quantized.bits)
        if shifted:
            codes, scale = (codes - 1) // 2, 2 * scale
        unsigned = (codes + 2 ** (bits - 1)).to(torch.uint8).cpu().numpy()
        return cls(unsigned, scale.cpu().expand(rows, -1).numpy(), bits, shifted)

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

    def missing(self) -> np.ndarray:
        """What each column of a row lacks, fp32 (rows,), where the codes are shifted."""
        return self.scale[:, 0] / 2

    def signed(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes around zero, int8 (columns, rows), and their scales (rows,), of which each row has one."""
        codes, scale = self.unsigned.astype(np.int16) - 2 ** (self.bits - 1), self.scale[:, 0]
        if self.shifted:
            codes, scale = 2 * codes + 1, scale / 2
        return codes.astype(np.int8).T, scale


def _kernel_bits(bits: int) -> int:
    """The fewest bits of a kernel that hold so many."""
    return next(size for size in KERNEL_BITS if size >= bits)


class Weights:
    """Weights by name, several as one where they read the same input.

    ``bits`` are asked for of all but the tables at the paths ``own``, which have more than a student's weights.
    """

    def __init__(self, values: dict[str, Quantized | torch.Tensor], bits: int | None, own: Collection[str]) -> None:
        self.values, self.bits, self.own = values, bits, own

    def number(self, name: str) -> np.ndarray:
        """A bias, a LayerNorm, a buffer: fp32."""
        value = self.values[name]
        assert not isinstance(value, Quantized)
        return value.numpy()

    def rows(self, name: str) -> int:
        """Outputs of a linear layer, by its weight."""
        value = self.values[name]
        return len(value.codes if isinstance(value, Quantized) else value)

    def matrix(self, names: Sequence[str]) -> Codes | np.ndarray:
        """Rows of all these weights: codes, or fp32 where the kernels do not have the grid."""
        parts = [self.values[name] for name in names]
        bits = None if names[0].removesuffix(".weight") in self.own else self.bits
        if all(isinstance(part, Quantized) for part in parts):
            codes = [each for part in parts if (each := Codes.of(part, bits)) is not None]
            if len({(e.bits, e.shifted) for e in codes}) > 1:  # bits are those of a module, not of all
                most, shifted = max(e.bits for e in codes), any(e.shifted for e in codes)
                codes = [each for part in parts if (each := Codes.of(part, most, shifted)) is not None]
            if len(codes) == len(parts) and len({(e.bits, e.scale.shape[1], e.shifted) for e in codes}) == 1:
                unsigned, scale = (np.concatenate([getattr(each, f) for each in codes]) for f in ("unsigned", "scale"))
                return Codes(unsigned, scale, codes[0].bits, codes[0].shifted)
        return np.concatenate([(p.dequantize() if isinstance(p, Quantized) else p).float().numpy() for p in parts])
