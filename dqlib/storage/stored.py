"""Parameters as a file holds them: packed weights with their scales, and the rest in fp16, each once."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dqlib.errors import InputError, within
from dqlib.quantizers import Quantized
from dqlib.storage.account import FP16_BYTES
from dqlib.storage.manifest import ZERO_POINTS, RawTensor, matrix_shape
from dqlib.storage.packing import large_tensor, pack, unpack, unpack_rows

#: Types of tensors by the names that safetensors has for them.
_TYPES = {"F16": torch.float16, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantized matrix as a file holds it.

    Args:
        shape: (rows, columns) of the codes.
        encoding: of the codes, one of :data:`dqlib.storage.packing.ENCODINGS`.
        scheme, granularity: how they were made, as :func:`dqlib.quantizers.quantize` names it; not needed to read them.
        transposed: whether the parameter is (columns, rows), as in GPT-2.
        codes: uint8, packed.
        scale: fp16, in the shape that the granularity gives.
        zero_point: int8, int16 or int32 in that shape; None on a symmetric grid.
    """

    shape: tuple[int, int]
    bits: int
    encoding: str
    scheme: str
    granularity: str
    transposed: bool
    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None = None

    @classmethod
    def of(cls, quantized: Quantized, scheme: str, granularity: str, transposed: bool = False) -> PackedWeight:
        """Pack codes, scales and zero points.

        Raises:
            InputError: a scale is not an fp16 number, or a zero point not a whole one.
        """
        return cls(
            tuple(quantized.codes.shape),
            quantized.bits,
            quantized.encoding,
            str(scheme),
            str(granularity),
            transposed,
            pack(quantized.codes, quantized.bits, quantized.encoding),
            as_half(quantized.scale, "scale", "a number of fp16"),
            None if quantized.zero_point is None else whole(quantized.zero_point.detach().cpu()),
        )

    def quantized(self) -> Quantized:
        """Codes (int8), scales and zero points (fp32), as a quantizer makes them."""
        codes = unpack(self.codes, self.shape, self.bits, self.encoding)
        zero_point = None if self.zero_point is None else self.zero_point.float()
        return Quantized(codes, self.scale.float(), self.bits, zero_point, self.encoding)

    def value(self, out: Tensor | None = None) -> Tensor:
        """The parameter (fp32) that the codes stand for; written to ``out``, of as many numbers, if that is given."""
        out = large_tensor((self.shape[0] * self.shape[1],), torch.float32) if out is None else out
        value = out.view(self.shape[::-1] if self.transposed else self.shape)
        for rows, codes in unpack_rows(self.codes, self.shape, self.bits, self.encoding):
            scale, zero_point = (
                None if each is None else each.float() if each.size(0) == 1 else each[rows].float()
                for each in (self.scale, self.zero_point)
            )
            quantized = Quantized(codes, scale, self.bits, zero_point, self.encoding)
            if self.transposed:
                value[:, rows].copy_(quantized.dequantize().T)
            else:
                quantized.dequantize(value[rows])
        return value

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is written, by the ending of its name."""
        both = {"codes": self.codes, "scale": self.scale}
        return both if self.zero_point is None else both | {"zero_point": self.zero_point}


@dataclass(frozen=True)
class Stored:
    """One parameter, or a buffer, as a file holds it.

    Args:
        names: it has in the model's state; tied ones are stored once, under the first.
        content: packed, or fp16; None for a buffer of zeros, of which nothing is stored.
        repeats: name of the packed weight whose full-precision original this is: a table that is looked up
            quantized, while the output head tied to it is not quantized.
    """

    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    content: PackedWeight | Tensor | None
    repeats: str | None = None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is written, by name."""
        if isinstance(self.content, PackedWeight):
            return {f"{self.name}.{ending}": tensor for ending, tensor in self.content.tensors.items()}
        return {} if self.content is None else {self.name: self.content}

    @property
    def transposed(self) -> bool:
        """Whether the codes are (columns, rows) of the parameter, as in GPT-2."""
        return isinstance(self.content, PackedWeight) and self.content.transposed

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Bits of a code, bytes of all codes (or fp16 numbers), bytes of scales and zero points."""
        bits = self.content.bits if isinstance(self.content, PackedWeight) else 8 * FP16_BYTES
        sizes = [tensor.nbytes for tensor in self.tensors.values()]
        return bits, sum(sizes[:1]), sum(sizes[1:])

    def quantized(self) -> Quantized | None:
        """Codes and scales; None for what is not quantized."""
        return self.content.quantized() if isinstance(self.content, PackedWeight) else None

    def value(self, out: Tensor | None = None) -> Tensor:
        """The parameter in fp32; of packed codes written to ``out``, of as many numbers, if that is given.

        Raises:
            InputError: packed codes have a byte that no codes make.
        """
        if isinstance(self.content, PackedWeight):
            with within(self.name):
                return self.content.value(out)
        return torch.zeros(self.shape) if self.content is None else self.content.float()


def record(each: Stored) -> dict[str, Any]:
    """What a manifest says of a parameter: names, form, checksums."""
    fields: dict[str, Any] = {"names": list(each.names), "kind": each.kind, "shape": list(each.shape)}
    content = each.content
    if isinstance(content, PackedWeight):
        fields["encoding"] = content.encoding
        fields |= {"bits": content.bits, "scheme": content.scheme, "granularity": content.granularity}
        if content.transposed:
            fields["transposed"] = True
        if content.zero_point is not None:
            fields["zero_point"] = str(content.zero_point.dtype).removeprefix("torch.")
    else:
        fields["encoding"] = "zeros" if content is None else "fp16"
    if each.repeats is not None:
        fields["repeats"] = each.repeats
    fields["crc32"] = [checksum(tensor) for tensor in each.tensors.values()]
    return fields


def restored(record: Mapping[str, Any], raw: Mapping[str, RawTensor]) -> Stored:
    """The parameter that a record describes, of tensors that are as it expects."""
    names, shape = tuple(record["names"]), tuple(record["shape"])
    if record["encoding"] == "zeros":
        content = None
    elif record["encoding"] == "fp16":
        content = _tensor(raw[names[0]])
    else:
        zero_point = raw.get(f"{names[0]}.zero_point")
        content = PackedWeight(
            matrix_shape(record), record["bits"], record["encoding"], record["scheme"], record["granularity"],
            record.get("transposed", False), _tensor(raw[f"{names[0]}.codes"]), _tensor(raw[f"{names[0]}.scale"]),
            None if zero_point is None else _tensor(zero_point),
        )  # fmt: skip
    return Stored(names, record["kind"], shape, content, record.get("repeats"))


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes, by which the damaged tensor of a file is found."""
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def _tensor(raw: RawTensor) -> Tensor:
    if not raw.data:
        return torch.empty(raw.shape, dtype=_TYPES[raw.kind])
    return torch.frombuffer(raw.data, dtype=_TYPES[raw.kind]).view(raw.shape)


def whole(zero_point: Tensor) -> Tensor:
    """Zero points as integers of the smallest of :data:`dqlib.storage.manifest.ZERO_POINTS` that holds them all.

    Raises:
        InputError: one is not a whole number, or too large.
    """
    for kind in (getattr(torch, name) for name in ZERO_POINTS):
        integers = zero_point.clamp(-(2.0**31), 2.0**31 - 129).to(kind)  # 2^31 - 1 is no number of fp32
        if torch.equal(integers.to(zero_point.dtype), zero_point):
            return integers
    raise InputError("zero_point", float(zero_point.abs().max()), "whole numbers of 32 bits")


def as_half(tensor: Tensor, field: str, allowed: str) -> Tensor:
    """A tensor in fp16, on the CPU.

    Raises:
        InputError: fp16 does not hold one of its numbers, which is named.
    """
    tensor = tensor.detach().cpu()
    half = tensor.half()
    others = tensor[~torch.isfinite(half) | (half.to(tensor.dtype) != tensor)]
    if others.numel():
        raise InputError(field, float(others[0]), allowed)
    return half
