"""The manifest of a packed model: what the folder holds, in which form, with checksums.

JSON, one line a parameter. It says how every tensor of the weights file becomes a parameter again, and names all
files that may be read. ``docs/packed-format.md`` describes it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dqlib.config import Granularity
from dqlib.errors import InputError
from dqlib.packing import packed_size
from dqlib.stored import KINDS, ZERO_POINTS, PackedWeight, Stored

MANIFEST, WEIGHTS = "packed.json", "packed.safetensors"
FORMAT, VERSION = "dqlib-packed", 1

_ENCODINGS = ("ternary", "bits", "fp16", "zeros")
_TYPES = {str(kind).removeprefix("torch."): kind for kind in ZERO_POINTS}


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says.

    Args:
        student: how to build the model, as :func:`dqlib.student.describe` told it.
        files: SHA-256 of every other file, by name: configuration, tokenizer.
        weights_bytes, weights_sha256: length and SHA-256 of the weights file.
        parameters: records of the parameters, as :func:`record` made them.
    """

    student: Mapping[str, Any]
    files: Mapping[str, str]
    weights_bytes: int
    weights_sha256: str
    parameters: tuple[Mapping[str, Any], ...]

    def text(self) -> str:
        """The manifest as JSON, closed by a SHA-256 of itself."""
        head = {"format": FORMAT, "version": VERSION, "student": self.student, "files": self.files}
        head["weights"] = {"file": WEIGHTS, "bytes": self.weights_bytes, "sha256": self.weights_sha256}
        whole = head | {"parameters": list(self.parameters)}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        records = ",\n".join(json.dumps(each, separators=(",", ":")) for each in self.parameters)
        lines += [f'"parameters": [\n{records}\n]', f'"sha256": "{_seal(whole)}"']
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def parse(cls, text: str | bytes) -> Manifest:
        """Read and check a manifest.

        Raises:
            InputError: it is damaged, of an unknown version, or says what no packed model has.
        """
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(MANIFEST, f"{error}", "JSON, as save_packed wrote it") from None
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise InputError(MANIFEST, "another format", f"of the format {FORMAT!r}")
        if whole.get("version") != VERSION:
            raise InputError(f"{MANIFEST}, version", whole.get("version"), f"{VERSION}, which this dqlib reads")
        seal = whole.pop("sha256", None)
        try:
            sound = seal == _seal(whole)
        except RecursionError as error:
            raise InputError(MANIFEST, f"{error}", "JSON, as save_packed wrote it") from None
        if not sound:
            raise InputError(f"{MANIFEST}, sha256", seal, "that of the rest of the manifest, which was changed since")
        for field, kind in (("student", dict), ("files", dict), ("weights", dict), ("parameters", list)):
            _check_type(MANIFEST, whole, field, kind)
        try:
            weights = whole["weights"]
            if weights["file"] != WEIGHTS:
                raise InputError(f"{MANIFEST}, file", weights["file"], WEIGHTS)
            _check_type(MANIFEST, weights, "bytes", int)
            _check_type(MANIFEST, weights, "sha256", str)
            parameters = tuple(_checked(each) for each in whole["parameters"])
            for name in whole["files"]:
                _check_type(f"{MANIFEST}, files", whole["files"], name, str)
                if Path(name).name != name or name in (MANIFEST, WEIGHTS, "", ".", ".."):
                    raise InputError(f"{MANIFEST}, files", name, "the plain name of another file in the folder")
            return cls(whole["student"], whole["files"], weights["bytes"], weights["sha256"], parameters)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(MANIFEST, f"without or with {error}", "as save_packed wrote it") from None


def record(each: Stored) -> dict[str, Any]:
    """What the manifest says of a parameter: names, form, checksums."""
    said: dict[str, Any] = {"names": list(each.names), "kind": each.kind, "shape": list(each.shape)}
    content = each.content
    if isinstance(content, PackedWeight):
        said["encoding"] = "ternary" if content.ternary else "bits"
        said |= {"bits": content.bits, "scheme": content.scheme, "granularity": content.granularity}
        if content.transposed:
            said["transposed"] = True
        if content.zero_point is not None:
            said["zero_point"] = str(content.zero_point.dtype).removeprefix("torch.")
    else:
        said["encoding"] = "zeros" if content is None else "fp16"
    if each.repeats is not None:
        said["repeats"] = each.repeats
    said["crc32"] = [checksum(tensor) for tensor in each.tensors.values()]
    return said


def expected_tensors(said: Mapping[str, Any]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of the tensors of the weights file that a record names, in the order of its checksums."""
    name, shape = said["names"][0], tuple(said["shape"])
    if said["encoding"] == "zeros":
        return {}
    if said["encoding"] == "fp16":
        return {name: (torch.float16, shape)}
    rows, columns = _matrix(said)
    scale_shape = Granularity.parse(said["granularity"]).scale_shape(rows, columns)
    size = packed_size(rows * columns, said["bits"], said["encoding"] == "ternary")
    tensors = {f"{name}.codes": (torch.uint8, (size,)), f"{name}.scale": (torch.float16, scale_shape)}
    if "zero_point" in said:
        tensors[f"{name}.zero_point"] = _TYPES[said["zero_point"]], scale_shape
    return tensors


def restored(said: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Stored:
    """The parameter that a record describes, of tensors that are as it expects."""
    names, shape = tuple(said["names"]), tuple(said["shape"])
    if said["encoding"] == "zeros":
        content = None
    elif said["encoding"] == "fp16":
        content = tensors[names[0]]
    else:
        content = PackedWeight(
            _matrix(said), said["bits"], said["encoding"] == "ternary", said["scheme"], said["granularity"],
            said.get("transposed", False), tensors[f"{names[0]}.codes"], tensors[f"{names[0]}.scale"],
            tensors.get(f"{names[0]}.zero_point"),
        )  # fmt: skip
    return Stored(names, said["kind"], shape, content, said.get("repeats"))


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes: five times as fast as SHA-256, and no flipped bit escapes it."""
    return zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _seal(whole: Mapping[str, Any]) -> str:
    return sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode())


def _matrix(said: Mapping[str, Any]) -> tuple[int, int]:
    """Shape of the codes."""
    rows, columns = said["shape"]
    return (columns, rows) if said.get("transposed") else (rows, columns)


def _checked(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record, if its fields are among those that there are."""
    names = said.get("names") if isinstance(said, dict) else said
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise InputError(f"{MANIFEST}, names", names, "a list of one name at least")
    name = names[0]
    for field, kind in (("scheme", str), ("granularity", str), ("bits", int), ("transposed", bool), ("repeats", str)):
        if field in said:
            _check_type(name, said, field, kind)
    for field, allowed in (("encoding", _ENCODINGS), ("kind", KINDS)):
        if said[field] not in allowed:
            raise InputError(f"{name}, {field}", said[field], f"one of {', '.join(allowed)}")
    if str(said.get("zero_point", "int8")) not in _TYPES:
        raise InputError(f"{name}, zero_point", said["zero_point"], f"one of {', '.join(_TYPES)}")
    shape = said["shape"]
    if not _whole_numbers(shape) or not _whole_numbers(said["crc32"]):
        raise InputError(f"{name}, shape", shape, "whole numbers")
    try:
        expected = expected_tensors(said)
    except InputError as error:
        raise InputError(f"{name}, {error.field}", error.value, error.allowed) from None
    except ValueError:
        raise InputError(f"{name}, shape", shape, "two numbers, for a quantized weight") from None
    if len(expected) != len(said["crc32"]):
        raise InputError(f"{name}, crc32", said["crc32"], f"{len(expected)} numbers, one a tensor")
    return said


def _check_type(where: str, said: Mapping[str, Any], field: str, kind: type) -> None:
    """Refuse a field that is missing or of another type than it has in JSON.

    Raises:
        InputError: it is; ``where`` it stands and the field are named.
    """
    if type(said.get(field)) is not kind:
        allowed = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}
        raise InputError(f"{where}, {field}", said.get(field), allowed[kind])


def _whole_numbers(values: Iterable[Any]) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
