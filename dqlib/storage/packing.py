"""Codes as bytes and back: eight codes of one bit per byte, five of three values, four of four, two of four bits.

Bytes are laid out in *planes*: where ``k`` codes share a byte and there are ``m`` bytes, code ``i`` is in byte
``i mod m`` at place ``i // m``. Each step then works on whole stretches of memory. ``docs/packed-format.md``
describes the same for those who write a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from dqlib.errors import InputError, check_choice

if TYPE_CHECKING:  # sizes are asked for without torch, which takes seconds to import
    import torch
    from torch import Tensor

#: Codes of three values in a byte: 3^5 = 243 of its 256 values are used, 1.6 bits per code.
TRITS = 5

#: How codes are given: ``ternary`` -1, 0, 1; ``odd`` the odd numbers from -(2^b - 1) to 2^b - 1; ``bits`` -2^(b-1) to
#: 2^(b-1) - 1, and, as there is no zero among two values, the odd numbers at 1 bit.
ENCODINGS = ("ternary", "odd", "bits")

#: Bytes that are packed, and codes that are unpacked, at a time, so that all passes but the first find them in a cache.
BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class _Part:
    """Bits of a code that are packed apart: a byte is the sum of ``digit * base^place`` over its places."""

    shift: int  # lowest bit of the code that belongs to the part
    base: int
    places: int

    def size(self, count: int) -> int:
        return -(-count // self.places)


def packed_size(count: int, bits: int, encoding: str = "bits") -> int:
    """Bytes of that many packed codes.

    Args:
        bits: of a code, 1 to 8.
        encoding: one of :data:`ENCODINGS`; five ternary codes share a byte.

    Raises:
        InputError: there are no codes of such bits.
    """
    return sum(part.size(count) for part in _parts(bits, encoding))


def pack(codes: Tensor, bits: int, encoding: str = "bits") -> Tensor:
    """Codes as bytes.

    Args:
        codes: int8 of any shape, on the grid of the encoding.
        bits: of a code, 1 to 8; 2 for ``ternary``.

    Returns:
        uint8 (:func:`packed_size`,). Spare places of the last bytes are zero.

    Raises:
        InputError: a code is not on the grid, or there are no codes of such bits or encoding.
    """
    import torch

    parts = _parts(bits, encoding)
    flat = codes.detach().cpu().contiguous().view(-1).numpy()
    odd, (low, high) = _is_odd(bits, encoding), _range(bits, encoding)
    if flat.size and (flat.min() < low or flat.max() > high or (odd and not (flat & 1).all())):
        raise InputError("codes", f"{flat.min()} to {flat.max()}", f"{'odd numbers from ' * odd}{low} to {high}")
    digits = (flat - np.int8(low)).view(np.uint8)  # wraps around at 8 bits, as it should
    if odd:
        digits >>= np.uint8(1)
    packed = []
    for part in parts:
        whole = torch.zeros(part.size(flat.size), dtype=torch.uint8)
        for place, block, codes_of_block in _blocks(part, flat.size):
            digit = digits[codes_of_block]
            if len(parts) > 1:
                digit = (digit >> part.shift) & (part.base - 1)
            whole.numpy()[block] += digit * np.uint8(part.base**place)
        packed.append(whole)
    return torch.cat(packed)


def unpack(packed: Tensor, shape: Sequence[int], bits: int, encoding: str = "bits") -> Tensor:
    """The codes that :func:`pack` made bytes of.

    Returns:
        int8 of that shape.

    Raises:
        InputError: there are too many or too few bytes, or one that no five codes make.
    """
    import torch

    read = _reader(packed, prod(shape), bits, encoding)
    codes = large_tensor((prod(shape),), torch.int8)
    for first in range(0, codes.numel(), BLOCK):
        read(first, codes.numpy()[first : first + BLOCK])
    return codes.view(*shape)


def unpack_rows(
    packed: Tensor, shape: Sequence[int], bits: int, encoding: str = "bits"
) -> Iterator[tuple[slice, Tensor]]:
    """The codes of a matrix as :func:`unpack` gives them, some rows at a time: few enough for a cache.

    Yields:
        The rows, and their codes, int8 (rows, columns), in memory that the next ones are written to.

    Raises:
        InputError: as :func:`unpack`.
    """
    import torch

    rows, columns = shape
    read, most = _reader(packed, rows * columns, bits, encoding), max(1, BLOCK // max(columns, 1))
    memory: np.ndarray = np.empty(min(most, rows) * columns, np.int8)
    for first in range(0, rows, most):
        some = min(most, rows - first)
        codes = memory[: some * columns]
        read(first * columns, codes)
        yield slice(first, first + some), torch.from_numpy(codes).view(some, columns)


def _reader(packed: Tensor, count: int, bits: int, encoding: str) -> Callable[[int, np.ndarray], None]:
    """What writes codes to memory (int8) that holds as many as are wanted: from the one with a number on."""
    size, ternary, parts = packed_size(count, bits, encoding), encoding == "ternary", _parts(bits, encoding)
    if packed.numel() != size:
        raise InputError("packed", f"{packed.numel()} bytes", f"{size} bytes for {count} codes of {bits} bits")
    if ternary and size and packed.max() >= 3**TRITS:
        raise InputError("packed", f"a byte of {packed.max()}", f"bytes below {3**TRITS} for ternary codes")
    ends = list(accumulate(part.size(count) for part in parts))
    bytes_ = [packed.numpy()[end - part.size(count) : end] for part, end in zip(parts, ends, strict=True)]
    low, odd = np.int8(_range(bits, encoding)[0]), _is_odd(bits, encoding)

    def read(first: int, codes: np.ndarray) -> None:
        for part, bytes_of_part in zip(parts, bytes_, strict=True):
            _read_digits(bytes_of_part, part, first, codes.view(np.uint8))
        if odd:
            np.add(codes, codes, out=codes)
        np.add(codes, low, out=codes)

    return read


def large_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor without values, in memory that is fast to write to for the first time.

    NumPy asks the system for large pages, which torch does not, and most of the time of reading a model goes into
    getting its memory. The start is a multiple of 64 bytes, as torch has it, which vector instructions like.
    """
    import torch

    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(*shape)


def _is_odd(bits: int, encoding: str) -> bool:
    return bits == 1 or encoding == "odd"


def _range(bits: int, encoding: str) -> tuple[int, int]:
    """The lowest and the highest code."""
    if _is_odd(bits, encoding):
        return 1 - 2**bits, 2**bits - 1
    return (-1, 1) if encoding == "ternary" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _parts(bits: int, encoding: str) -> list[_Part]:
    """Codes of 3, 5, 6 and 7 bits are packed as parts of 4, 2 and 1 bits, the low bits first."""
    if bits not in range(1, 9):
        raise InputError("bits", bits, "a whole number from 1 to 8")
    check_choice("encoding", encoding, ENCODINGS)
    if encoding == "odd" and bits == 8:
        raise InputError("bits", bits, "at most 7 for odd codes, which are int8")
    if encoding == "ternary":
        if bits != 2:
            raise InputError("bits", bits, "2 for ternary codes")
        return [_Part(0, 3, TRITS)]
    parts, shift = [], 0
    for width in (8, 4, 2, 1):
        if bits & width:
            parts.append(_Part(shift, 2**width, 8 // width))
            shift += width
    return parts


def _blocks(part: _Part, count: int) -> Iterator[tuple[int, slice, slice]]:
    """Place, bytes, and the codes that are at that place of those bytes, a block of bytes at a time."""
    size = part.size(count)
    for start in range(0, size, BLOCK):
        for place in range(part.places):
            first = place * size + start
            length = min(BLOCK, size - start, count - first)  # the last planes may be short
            if length > 0:
                yield place, slice(start, start + length), slice(first, first + length)


def _read_digits(packed: np.ndarray, part: _Part, first: int, digits: np.ndarray) -> None:
    """Write the digits of a part to memory, those of codes from the one with the number ``first`` on.

    The lowest part is written first, the others added to it.
    """
    size, start, end = packed.size, first, first + digits.size
    while start < end:
        place = start // size
        stop = min(end, (place + 1) * size)
        block, out = packed[start - place * size : stop - place * size], digits[start - first : stop - first]
        power, last = part.base**place, place == part.places - 1
        if part.base == 3:  # NumPy divides by one number many at a time, and has nothing as fast for the rest
            np.floor_divide(block, np.uint8(power), out=out)
            if not last:
                out -= (out // np.uint8(3)) * np.uint8(3)
        else:
            digit = np.right_shift(block, np.uint8(power.bit_length() - 1), out=None if part.shift else out)
            if not last:
                digit &= np.uint8(part.base - 1)
            if part.shift:
                out |= digit << np.uint8(part.shift)
        start = stop
