"""The manifest of every folder that dqlib writes: what it is, what it holds, and the SHA-256 of each file.

JSON, one line per file and per parameter, closed by a SHA-256 of itself. ``docs/packed-format.md`` describes it.
Here is neither torch nor transformers, so that a folder is checked in no time.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dqlib.config import Granularity
from dqlib.errors import InputError, check_choice, within
from dqlib.files import write_text
from dqlib.storage.packing import ENCODINGS, packed_size

MANIFEST = "dqlib.json"
FORMAT, VERSION = "dqlib", 2

#: Kinds of folders, and what writes each.
WRITERS = {
    "packed": "save_packed",
    "student": "save_student",
    "model": "save_model",
    "ctranslate2": "export_ctranslate2",
    "onnxruntime": "export_onnx",
}

#: The weights of a packed model.
WEIGHTS = "packed.safetensors"

#: Kinds of what a packed model stores.
TENSOR_KINDS = ("weights", "embedding", "positions", "rest")

#: Types of a zero point by the name that safetensors has for them.
ZERO_POINTS = {"int8": "I8", "int16": "I16", "int32": "I32"}

#: Bytes of a number of each type.
ITEM_BYTES = {"F16": 2, "U8": 1, "I8": 1, "I16": 2, "I32": 4}

#: Endings of files that may hold pickles, which no packed model has.
PICKLES = frozenset({".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"})


@dataclass(frozen=True, slots=True)
class File:
    """A file of a folder: its length and its SHA-256."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        """What a file holds, if it is one: a pipe could be read for ever.

        Raises:
            InputError: there is no such file.
        """
        try:
            if not path.is_file():
                raise InputError(path.name, "no file" if path.exists() else "missing", "a file in the folder")
            with path.open("rb") as stream:
                return cls(path.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            raise InputError(path.name, error.strerror or str(error), "a file in the folder") from None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a manifest says.

    Args:
        kind: of the folder, one of :data:`WRITERS`.
        files: all files that may be read, by their names from the folder on.
        parameters: of a packed model, records of what its weights file holds (:func:`dqlib.storage.stored.record`).
    """

    kind: str
    about: Mapping[str, Any]
    files: Mapping[str, File]
    parameters: Sequence[Mapping[str, Any]] = field(default=())

    def text(self) -> str:
        """The manifest as JSON, closed by a SHA-256 of itself."""
        files = {name: {"bytes": each.size, "sha256": each.sha256} for name, each in self.files.items()}
        whole = {"format": FORMAT, "version": VERSION, "kind": self.kind, "about": self.about}
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in whole.items()]
        listed = ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in files.items())
        records = ",\n".join(json.dumps(each, separators=(",", ":")) for each in self.parameters)
        lines += [f'"files": {{\n{listed}\n}}', f'"parameters": [\n{records}\n]']
        whole |= {"files": files, "parameters": list(self.parameters)}
        return "{\n" + ",\n".join([*lines, f'"sha256": "{_seal(whole)}"']) + "\n}\n"

    @classmethod
    def parse(cls, text: str | bytes) -> Manifest:
        """Read and check a manifest.

        Raises:
            InputError: it is damaged, of an unknown version, or says what no folder of its kind has.
        """
        try:
            whole = json.loads(text)
            seal = whole.pop("sha256", None) if isinstance(whole, dict) else None
            sound = seal == _seal(whole)
        except (ValueError, RecursionError) as error:
            raise InputError(MANIFEST, f"{error}", "JSON, as dqlib wrote it") from None
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise InputError(MANIFEST, "another format", f"of the format {FORMAT!r}, as this dqlib writes it")
        if whole.get("version") != VERSION:
            raise InputError(f"{MANIFEST}, version", whole.get("version"), f"{VERSION}, which this dqlib reads")
        if not sound:
            raise InputError(f"{MANIFEST}, sha256", seal, "that of the rest of the manifest, which was changed since")
        for name, kind in (("kind", str), ("about", dict), ("files", dict), ("parameters", list)):
            _check_type(MANIFEST, whole, name, kind)
        check_choice(f"{MANIFEST}, kind", whole["kind"], WRITERS)
        try:
            parameters = tuple(map(_checked, whole["parameters"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(MANIFEST, f"without or with {error}", "as dqlib wrote it") from None
        return cls(whole["kind"], whole["about"], _files(whole["files"]), parameters)


def seal(folder: str | Path, kind: str, about: Mapping[str, Any], parameters: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the manifest of a folder, over all files that are in it: the last file of what is written."""
    folder = Path(folder)
    files = {name: File.of(folder / name) for name in sorted(files_in(folder) - {MANIFEST})}
    (folder / MANIFEST).write_text(Manifest(kind, about, files, parameters).text(), encoding="utf-8")


def name_files(folder: str | Path, names: Iterable[str]) -> None:
    """Let the manifest of a folder name files that were written beside those that it names.

    Raises:
        InputError: as :func:`opened`, or there is no such file.
    """
    manifest = opened(folder, *WRITERS)
    files = {**manifest.files, **{name: File.of(Path(folder) / name) for name in names}}
    write_text(Path(folder) / MANIFEST, replace(manifest, files=dict(sorted(files.items()))).text())


def opened(folder: str | Path, *kinds: str) -> Manifest:
    """The manifest of a folder of one of these kinds; the files that it names are not read yet.

    Raises:
        InputError: the folder is of another kind or has no manifest, the manifest is damaged, or a packed model's
            folder holds a pickle.
    """
    folder = Path(folder)
    allowed = f"a folder written by {' or '.join(WRITERS[kind] for kind in kinds)}, with its {MANIFEST}"
    if not (folder / MANIFEST).is_file():
        raise InputError("folder", str(folder), allowed)
    manifest = Manifest.parse((folder / MANIFEST).read_bytes())
    if manifest.kind not in kinds:
        raise InputError("folder", f"{folder}, written by {WRITERS[manifest.kind]}", allowed)
    pickles = [name for name in files_in(folder) if Path(name).suffix.lower() in PICKLES]
    if manifest.kind == "packed" and pickles:
        raise InputError("folder", min(pickles), "a folder without files that may be pickles, as a packed one is")
    return manifest


def folder_kind(folder: str | Path) -> str | None:
    """The kind of a folder that dqlib wrote; None where it has no manifest.

    Raises:
        InputError: as :func:`opened`.
    """
    return opened(folder, *WRITERS).kind if (Path(folder) / MANIFEST).is_file() else None


def check_files(folder: str | Path, manifest: Manifest, *names: str) -> None:
    """Raise an ``InputError`` that names the file, where one of a manifest is missing or has another SHA-256.

    Of all files, or of those with these names.
    """
    for name in names or manifest.files:
        _check_same(name, File.of(_checked_file(folder, manifest, name)), manifest)


def read_file(folder: str | Path, manifest: Manifest, name: str) -> bytes:
    """What a file that the manifest names holds, if it is the one.

    Raises:
        InputError: it is missing or was changed, or the manifest does not name it.
    """
    data, found = _read(folder, manifest, name)
    _check_same(name, found, manifest)
    return data


def verify(folder: str | Path) -> list[str]:
    """Check every file of a folder that dqlib wrote, of whatever kind, against its manifest.

    Returns:
        One sentence for each fault, which names the tensor or file; empty where there is none.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("folder", str(folder), "a folder")
    try:
        manifest = opened(folder, *WRITERS)
    except InputError as error:
        return [str(error)]
    faults = []
    for name in manifest.files:
        try:
            if manifest.kind == "packed" and name == WEIGHTS:
                read_tensors(folder, manifest, each=True)
            else:
                check_files(folder, manifest, name)
        except InputError as error:
            faults.append(str(error))
    return faults


def check_replaceable(folder: str | Path, *kinds: str) -> None:
    """Raise an ``InputError`` that names a file, where a folder holds anything but what one of these kinds does."""
    folder, writers = Path(folder), " or ".join(WRITERS[kind] for kind in kinds)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    there = files_in(folder) if folder.is_dir() else set()
    if MANIFEST in there:
        manifest = Manifest.parse((folder / MANIFEST).read_bytes())
        others = there - {MANIFEST, *manifest.files}
        if manifest.kind in kinds and not others:
            return
        there = others or there
    allowed = f"new, empty, or a folder written by {writers} and nothing else, which is replaced"
    raise InputError("folder", f"{folder}, with {min(there)}" if there else str(folder), allowed)


def files_in(folder: Path) -> set[str]:
    """Names of all files within a folder and its folders; a link is one, whatever it leads to."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found}


def packed_size_bytes(folder: str | Path) -> int:
    """Bytes of a packed model on disk: weights file and manifest.

    Configuration and tokenizer, which the full-precision model has as well, are not counted.

    Raises:
        InputError: the folder is no packed model, or its weights are missing or of another length.
    """
    weights = _checked_file(folder, opened(folder, "packed"), WEIGHTS)
    return sum(path.stat().st_size for path in (weights, weights.with_name(MANIFEST)))


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as a file of safetensors has it.

    Args:
        kind: type, by the name that safetensors has for it.
        shape: of the tensor.
        data: its bytes, which nothing else uses.
    """

    kind: str
    shape: tuple[int, ...]
    data: bytearray


def read_tensors(folder: str | Path, manifest: Manifest, each: bool = False) -> dict[str, RawTensor]:
    """All tensors of a packed model, if each is what the manifest says.

    Args:
        each: check the CRC-32 of each tensor, too, which else is asked only to find the damaged one.

    Raises:
        InputError: the file or a tensor is missing, damaged or not in the manifest, or a number is not finite.
    """
    import numpy as np
    import safetensors

    data, found = _read(folder, manifest, WEIGHTS)
    try:
        read = {name: RawTensor(t["dtype"], tuple(t["shape"]), t["data"]) for name, t in safetensors.deserialize(data)}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InputError(WEIGHTS, f"damaged ({error})", "a whole safetensors file") from None
    expected: set[str] = set()
    for record in manifest.parameters:
        for (name, form), crc32 in zip(expected_tensors(record).items(), record["crc32"], strict=True):
            if name in expected:
                raise InputError(name, "twice in the manifest", "there once")
            expected.add(name)
            tensor = read.get(name)
            if tensor is None:
                raise InputError(name, "missing", f"in {WEIGHTS}, since the manifest names it")
            if (tensor.kind, tensor.shape) != form:
                forms = [f"{kind} of shape {shape}" for kind, shape in ((tensor.kind, tensor.shape), form)]
                raise InputError(name, forms[0], f"{forms[1]} in {WEIGHTS}, as the manifest has it")
            if (each or found != manifest.files[WEIGHTS]) and zlib.crc32(tensor.data) != crc32:
                allowed = f"{crc32}, as the manifest has it: the file is damaged, {WEIGHTS}"
                raise InputError(name, f"CRC-32 {zlib.crc32(tensor.data)}", allowed)
            if tensor.kind == "F16" and not np.isfinite(np.frombuffer(tensor.data, np.float16)).all():
                raise InputError(name, "nan or inf", f"finite numbers in {WEIGHTS}")
    if extra := read.keys() - expected:
        raise InputError(min(extra), f"in {WEIGHTS}", "named by the manifest, or not be there")
    _check_same(WEIGHTS, found, manifest)
    return read


def expected_tensors(record: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of the tensors of the weights file that a record names, in the order of its checksums."""
    name, shape = record["names"][0], tuple(record["shape"])
    if record["encoding"] == "zeros":
        return {}
    if record["encoding"] == "fp16":
        return {name: ("F16", shape)}
    rows, columns = matrix_shape(record)
    scale_shape = Granularity.parse(record["granularity"]).scale_shape(rows, columns)
    size = packed_size(rows * columns, record["bits"], record["encoding"])
    tensors = {f"{name}.codes": ("U8", (size,)), f"{name}.scale": ("F16", scale_shape)}
    if "zero_point" in record:
        tensors[f"{name}.zero_point"] = ZERO_POINTS[record["zero_point"]], scale_shape
    return tensors


def matrix_shape(record: Mapping[str, Any]) -> tuple[int, int]:
    """Shape of the codes of a record."""
    rows, columns = record["shape"]
    return (columns, rows) if record.get("transposed") else (rows, columns)


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _seal(whole: Mapping[str, Any]) -> str:
    return sha256(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode())


def _read(folder: str | Path, manifest: Manifest, name: str) -> tuple[bytes, File]:
    """What a file that the manifest names holds, of the length that it has there, and what it is."""
    data = _checked_file(folder, manifest, name).read_bytes()
    return data, File(len(data), sha256(data))


def _checked_file(folder: str | Path, manifest: Manifest, name: str) -> Path:
    """The path of a file that the manifest names, if it is one and has the length that it has there."""
    path = Path(folder) / name
    if name not in manifest.files:
        raise InputError(MANIFEST, f"without {name}", f"one that names {name}")
    if not path.is_file():
        raise InputError(name, "no file" if path.exists() else "missing", "a file in the folder")
    found, size = path.stat().st_size, manifest.files[name].size
    if found != size:
        raise InputError(name, f"{found} bytes", f"{size} bytes long, as the manifest has it")
    return path


def _check_same(name: str, found: File, manifest: Manifest) -> None:
    if found != manifest.files[name]:
        allowed = f"{manifest.files[name].sha256}, as the manifest has it: it was changed"
        raise InputError(name, f"SHA-256 {found.sha256}", allowed)


def _files(listed: Mapping[str, Any]) -> dict[str, File]:
    """The files that a manifest names, if they lie in its folder."""
    files = {}
    for name, each in listed.items():
        path = PurePosixPath(name)
        inside = str(path) == name and not path.is_absolute() and ".." not in path.parts and path.parts
        if not inside or "\\" in name or ":" in name or name == MANIFEST:
            raise InputError(f"{MANIFEST}, files", name, "the plain name of another file in the folder")
        _check_type(f"{MANIFEST}, files", listed, name, dict)
        _check_type(f"{MANIFEST}, files, {name}", each, "bytes", int)
        _check_type(f"{MANIFEST}, files, {name}", each, "sha256", str)
        files[name] = File(each["bytes"], each["sha256"])
    return files


def _checked(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record, if its fields are among those that there are."""
    names = record.get("names") if isinstance(record, dict) else record
    if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
        raise InputError(f"{MANIFEST}, names", names, "a list of one name at least")
    name = names[0]
    for key, kind in (("scheme", str), ("granularity", str), ("bits", int), ("transposed", bool), ("repeats", str)):
        if key in record:
            _check_type(name, record, key, kind)
    check_choice(f"{name}, encoding", record["encoding"], (*ENCODINGS, "fp16", "zeros"))
    check_choice(f"{name}, kind", record["kind"], TENSOR_KINDS)
    check_choice(f"{name}, zero_point", record.get("zero_point", "int8"), tuple(ZERO_POINTS))
    shape = record["shape"]
    if not _whole_numbers(shape) or not _whole_numbers(record["crc32"]):
        raise InputError(f"{name}, shape", shape, "whole numbers")
    if record["encoding"] in ENCODINGS and len(shape) != 2:
        raise InputError(f"{name}, shape", shape, "two numbers, for a quantized weight")
    with within(name):
        expected = expected_tensors(record)
    if len(expected) != len(record["crc32"]):
        raise InputError(f"{name}, crc32", record["crc32"], f"{len(expected)} numbers, one per tensor")
    return record


def _check_type(where: str, fields: Mapping[str, Any], name: str, kind: type) -> None:
    """Raise an ``InputError`` where a field is missing or of another type than it has in JSON."""
    if type(fields.get(name)) is not kind:
        allowed = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}
        raise InputError(f"{where}, {name}", fields.get(name), allowed[kind])


def _whole_numbers(values: Iterable[Any]) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
