"""Where the bytes of a model are: ours by part, the paper's count beside them, and what another head would cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dqlib.architectures import ARCHITECTURES
from dqlib.errors import InputError
from dqlib.storage.manifest import (
    ITEM_BYTES,
    MANIFEST,
    WEIGHTS,
    check_files,
    expected_tensors,
    opened,
    packed_size_bytes,
)

if TYPE_CHECKING:  # the account of a folder is given without torch
    from transformers import PreTrainedModel

FP32_BYTES = 4
FP16_BYTES = 2

#: Parts of an account and what they hold, in order.
PARTS = {
    "weights": "codes of linear layers",
    "embeddings": "codes of token tables, which are the output head too",
    "positions": "codes of position tables",
    "scales": "scales (fp16) and zero points of these",
    "full head": "a table that is looked up quantized, in fp16 for a head that is not quantized",
    "rest": "biases, norms and all else that is not quantized, in fp16",
    "overhead": "names, shapes and checksums: header of the weights file, and manifest",
}
_HEADS = {f"{path}.weight" for names in ARCHITECTURES.values() for path in names.heads_of_vocabulary}


@dataclass(frozen=True, slots=True)
class Entry:
    """Account of one parameter in one form.

    Args:
        kind: ``weights``, ``embedding``, ``positions`` or ``rest``.
        bits: of a code, 16 where it is not quantized.
        code_bytes: codes packed without gaps (three levels: five per byte; four: four), or fp16 numbers.
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


@dataclass(frozen=True, slots=True)
class Part:
    """One row: how many of the model's numbers, and their bytes by three ways of counting."""

    numbers: int = 0
    size_bytes: int = 0
    paper_bytes: int = 0
    fp32_bytes: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(*(getattr(self, field) + getattr(other, field) for field in self.__slots__))


@dataclass(frozen=True, slots=True)
class Account:
    """Bytes of a model by part. ``str`` gives it as a table.

    Args:
        teacher_bytes: fp32 bytes that ratios are relative to.
        head_numbers: numbers of a quantized output head; 0 if there is none.
        head_bytes: bytes that this head has for itself, not shared with a table.
    """

    parts: Mapping[str, Part]
    teacher_bytes: int
    head_numbers: int
    head_bytes: int

    @property
    def total(self) -> Part:
        """The sum of all parts: ``size_bytes`` are those on disk, of a model that is there.

        ``paper_bytes`` count as DQ-BART's table does (arXiv:2203.11239): codes at their bits, no scales, all else
        in fp32, and nothing for a head in full precision.
        """
        return sum(self.parts.values(), Part())

    def with_full_head(self, bytes_a_number: int) -> int:
        """Bytes if the output head were not quantized, but had a table of fp16 (2 bytes) or fp32 (4 bytes)."""
        return self.total.size_bytes - self.head_bytes + bytes_a_number * self.head_numbers

    def __str__(self) -> str:
        rows = [("part", "numbers", "bytes", "share", "paper's count", "fp32")]
        for name, part in {**self.parts, "all": self.total}.items():
            share = f"{100 * part.size_bytes / max(self.total.size_bytes, 1):.1f}%"
            rows.append((name, _number(part.numbers), _number(part.size_bytes), share,
                         _number(part.paper_bytes), _number(part.fp32_bytes)))  # fmt: skip
        sizes = {"on disk" if self.parts["overhead"].size_bytes else "tensors": self.total.size_bytes}
        sizes["paper's count"] = self.total.paper_bytes
        if self.head_numbers:
            sizes["with a head in fp16"] = self.with_full_head(FP16_BYTES)
            sizes["with a head in fp32"] = self.with_full_head(FP32_BYTES)
        ratios = [(name, _number(size), f"{self.teacher_bytes / size:.1f}x") for name, size in sizes.items()]
        title = [("bytes", "", f"smaller than {_number(self.teacher_bytes)} in fp32")]
        return _table(rows) + "\n\n" + _table(title + ratios)


def account(what: PreTrainedModel | str | Path, teacher_bytes: int | None = None) -> Account:
    """The account of a student, of a loaded packed model, or of the folder of one.

    Args:
        what: model or folder; only a folder has overhead.
        teacher_bytes: fp32 bytes that ratios are relative to; by default those of the same shape in fp32.

    Raises:
        InputError: the folder is no packed model, or its weights file is missing or was changed.
    """
    parts, overhead = dict.fromkeys(PARTS, Part()), 0
    if isinstance(what, str | Path):
        manifest = opened(what, "packed")
        check_files(what, manifest, WEIGHTS)
        entries = [_entry(record) for record in manifest.parameters]
        overhead = packed_size_bytes(what) - sum(entry.size_bytes for entry in entries)
    else:
        from dqlib.storage.footprint import footprint

        entries = footprint(what, with_zeros=True)
    for entry in entries:
        name, part = _part(entry)
        parts[name] += part
        parts["scales"] += Part(size_bytes=entry.scale_bytes)
    parts["overhead"] += Part(size_bytes=overhead)
    heads = [entry for entry in entries if entry.bits < 8 * FP16_BYTES and _HEADS.intersection(entry.names)]
    numbers, own = sum(each.numel for each in heads), sum(each.size_bytes for each in heads if len(each.names) == 1)
    fp32_bytes = sum(part.fp32_bytes for part in parts.values())
    return Account(parts, fp32_bytes if teacher_bytes is None else teacher_bytes, numbers, own)


def fp32_bytes_of(folder: str | Path) -> int:
    """Bytes that the model of a Hugging Face folder has in full precision.

    A model that dqlib saved says how many numbers it has; of others the configuration is asked.

    Raises:
        InputError: the folder has no configuration of a known architecture.
    """
    if not (Path(folder) / "config.json").is_file():
        raise InputError("folder", str(folder), "a folder with a config.json")
    if (Path(folder) / MANIFEST).is_file():
        numbers = opened(folder, "model", "student").about.get("numbers")
        if type(numbers) is int:
            return FP32_BYTES * numbers
    import torch

    from dqlib.storage.footprint import fp32_size_bytes
    from dqlib.storage.reading import model_class, read_config

    config = read_config(folder)
    with torch.device("meta"):
        return fp32_size_bytes(model_class(config, (config.architectures or [""])[0])(config))


def _entry(record: Mapping[str, Any]) -> Entry:
    """The footprint's entry of what a manifest says of a parameter."""
    sizes = [ITEM_BYTES[kind] * prod(shape) for kind, shape in expected_tensors(record).values()]
    numel, bits = prod(record["shape"]), record.get("bits", 8 * FP16_BYTES)
    names, repeats = tuple(record["names"]), record.get("repeats")
    return Entry(names, record["kind"], numel, bits, sum(sizes[:1]), sum(sizes[1:]), repeats)


def _part(entry: Entry) -> tuple[str, Part]:
    if entry.repeats is not None:  # its numbers are those of the table that it repeats
        return "full head", Part(size_bytes=entry.code_bytes)
    fp32_bytes = FP32_BYTES * entry.numel
    of_paper = (entry.numel * entry.bits + 7) // 8 if entry.kind in ("weights", "embedding") else fp32_bytes
    name = "embeddings" if entry.kind == "embedding" else entry.kind
    return name, Part(entry.numel, entry.code_bytes, of_paper, fp32_bytes)


def _number(number: int) -> str:
    return f"{number:,}" if number else "-"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join(lines)
