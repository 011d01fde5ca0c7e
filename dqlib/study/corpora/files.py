"""Pairs from files: JSON Lines, CSV, Parquet or aligned text, gzipped or not, columns named by the parameters."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet
import pyarrow.types

from dqlib.errors import InputError
from dqlib.study.corpora.classes import class_name
from dqlib.study.corpora.rows import Row, documents, named_row
from dqlib.study.corpora.splits import HELD_OUT_PERCENT, SPLITS, UNSEEN, split_of
from dqlib.study.params import kinds
from dqlib.study.params import settings as S
from dqlib.study.params.paths import project_root

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")

#: What texts without a target are read by: a kind of tasks that has sources alone.
SOURCES = dataclasses.replace(kinds.KINDS[kinds.SEQ2SEQ], columns=("source",))

#: What reading a file, and unpacking it, ends with where it is damaged.
_DAMAGE = (OSError, EOFError, zlib.error)

csv.field_size_limit(2**31 - 1)  # long documents are cut where they are tokenized, as those of other kinds are


def read_rows(path: str | Path, columns: list[str], of_class: str | None = None) -> list[dict[str, str]]:
    """Rows of a data file, with the wanted columns as stripped text.

    Args:
        path: a ``.jsonl``, ``.csv`` or ``.parquet`` file, or one of them with ``.gz`` added; relative
            paths start at the project's folder. A ``*`` in it stands for the name of a column: then each column is
            a text file of its own, and line by line they belong together.
        columns: names of the columns to keep.
        of_class: the one of them that may hold whole numbers.

    Raises:
        InputError: the file is missing, unreadable, empty or of another kind; a column is missing, or there
            twice; a line is bad (the message has its number); text files do not have the same lines.
    """
    path = project_root() / path
    if "*" in path.name:
        rows = _aligned_rows(path, columns)
    else:
        rows = [
            {column: _text(row, column, number, path, column == of_class) for column in columns}
            for number, row in _numbered_rows(path, columns)
        ]
    if not rows:
        raise InputError("file", str(path), "a file with at least one row")
    return rows


def build(corpus: S.Corpus, kind: S.Kind) -> dict[str, list[Row]]:
    """The rows of every split of a corpus from files.

    Raises:
        InputError: a file, column or line is missing or bad, or a language has no token.
    """
    splits: dict[str, list[Row]] = {}
    for split, path in _named_files(corpus).items():
        rows = rows_of_file(corpus, kind, path)[: corpus.limit]
        splits |= _held_out(rows, corpus) if split == "train" else {split: rows}
    if text_columns(corpus, kind).keys() != {"source"}:
        return splits
    return {split: list(documents(row["source"] for row in rows)) for split, rows in splits.items()}


def rows_of_file(corpus: S.Corpus, kind: S.Kind, path: str) -> list[Row]:
    """The rows of a file under our names for their columns, or of a pattern of text files.

    Raises:
        InputError: as :func:`read_rows`, or a language has no token.
    """
    names, language = text_columns(corpus, kind), corpus.language or ""
    rows = read_rows(path, columns_read(corpus, kind), corpus.target if kind.labels else None)
    return [
        named_row({ours: row[theirs] for ours, theirs in names.items()}, row.get(language), corpus, path)
        for row in rows
    ]


def _held_out(rows: list[Row], corpus: S.Corpus) -> dict[str, list[Row]]:
    """Rows of train in splits: those that have no file get a part of it, which a hash of the source decides."""
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS if split == "train" or not getattr(corpus, split)}
    for row in rows:
        split = split_of(row["source"], HELD_OUT_PERCENT)
        splits[split if split in splits else "train"].append(row)
    return splits


def unpaired(corpus: S.Corpus, path: str) -> Iterator[Row]:
    """Texts without a target from a file that has them in the column of the pairs' sources.

    Raises:
        InputError: the file, a column or a line is missing or bad, or a language has no token.
    """
    return iter(rows_of_file(corpus, SOURCES, path))


def text_columns(corpus: S.Corpus, kind: S.Kind) -> dict[str, str]:
    """Our names for the columns of a row, and those that the parameters give them."""
    return {name: column for name in kind.columns if (column := getattr(corpus, name)) is not None}


def place_of(corpus: S.Corpus, kind: S.Kind, split: str, number: int) -> str:
    """Where in its file a row of a split is, counted from 0: the path, and the line or, of a part, the row."""
    if getattr(corpus, split) is None or (split == "train" and None in (corpus.validation, corpus.test)):
        return f"{corpus.train}, row {number + 1} of those for {split}"
    path = project_root() / _named_files(corpus)[split]
    if "*" in path.name:
        return f"{path}, line {number + 1}"
    line, _ = next(itertools.islice(_numbered_rows(path, columns_read(corpus, kind)), number, None))
    return f"{path}, line {line}"


def file_digests(corpus: S.Corpus, kind: S.Kind) -> dict[str, list[str]]:
    """SHA-256 of the files that each split is read from; nothing for corpora that are not from files.

    Raises:
        InputError: a file is missing.
    """
    return {split: digests_of(corpus, kind, path) for split, path in _named_files(corpus).items()}


def digests_of(corpus: S.Corpus, kind: S.Kind, path: str) -> list[str]:
    """SHA-256 of a file of a corpus, or of those of a pattern.

    Raises:
        InputError: a file is missing.
    """
    pattern = project_root() / path
    files = _by_column(pattern, columns_read(corpus, kind)).values() if "*" in pattern.name else [pattern]
    for each in files:
        _check_exists(each)
    return [_digest(each, each.stat().st_size, each.stat().st_mtime_ns) for each in files]


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file of that size, changed last at that time: computed once for each of its changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named_files(corpus: S.Corpus) -> dict[str, str]:
    """Path of each split's file, as the parameters have it; none for corpora that are not from files."""
    splits = (*SPLITS, UNSEEN) if corpus.origin == "files" else ()
    return {split: getattr(corpus, split) for split in splits if getattr(corpus, split)}


def columns_read(corpus: S.Corpus, kind: S.Kind) -> list[str]:
    """The columns that are read: of texts, and of the language."""
    return [*text_columns(corpus, kind).values(), *([corpus.language] if corpus.language else [])]


def _numbered_rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file with their lines."""
    _check_exists(path)
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in ENDINGS:
        raise InputError("file", str(path), f"one of {', '.join(ENDINGS)}, or one of them followed by .gz")
    return {".csv": _csv_rows, ".parquet": _parquet_rows}.get(kind, _json_rows)(path, kind, columns)


def _aligned_rows(pattern: Path, columns: list[str]) -> list[dict[str, str]]:
    """Rows whose columns are text files with one text per line; lines that are blank in all of them are no rows."""
    paths = _by_column(pattern, columns)
    texts = {column: [line for _, line in _lines(path, "text")] for column, path in paths.items()}
    fewest = min(columns, key=lambda column: len(texts[column]))
    count = len(texts[fewest])
    for column, lines in texts.items():
        if len(lines) > count:
            allowed = f"absent, or matched by a line of {paths[fewest]}, which has {count} lines"
            raise InputError(f"{paths[column]}, line {count + 1}", lines[count].strip()[:60], allowed)
    rows = []
    for number in range(count):
        row = {column: lines[number] for column, lines in texts.items()}
        if any(map(str.strip, row.values())):
            rows.append({column: _text(row, column, number + 1, path) for column, path in paths.items()})
    return rows


def _by_column(pattern: Path, columns: list[str]) -> dict[str, Path]:
    """Text file of each column."""
    return {column: pattern.with_name(pattern.name.replace("*", column)) for column in columns}


def _lines(path: Path, kind: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; they end with line feeds alone, or rare characters would misalign texts."""
    _check_exists(path)
    number = 0
    try:
        with _opened(path) as handle:
            while line := handle.readline():
                number += 1
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, kind, error, number) from None
    except _DAMAGE as error:
        raise _unreadable(path, kind, error, number + 1) from None


def _opened(path: Path) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise InputError("file", str(path), "a file that exists")


def _unreadable(path: Path, kind: str, error: Exception, number: int | None = None) -> InputError:
    where = "" if number is None else f"line {number}: "
    return InputError("file", str(path), f"a readable {kind} file ({where}{' '.join(str(error).split())})")


class _Object(dict):
    """A JSON object with its names as they are written: one may be there twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.names = [name for name, _ in pairs]


def _check_once(names: Sequence[str], columns: list[str], where: str) -> None:
    """Refuse a column that is read and whose name is there again, since nobody knows which of the two is meant."""
    for column in columns:
        if names.count(column) > 1:
            raise InputError(f"{where}, column", column, f"there once, not {names.count(column)} times")


def _json_rows(path: Path, kind: str, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path, kind):
        if not line.strip():
            continue
        row, allowed = None, "a JSON object"
        try:
            row = json.loads(line, object_pairs_hook=_Object)
        except ValueError:
            pass
        except RecursionError:
            allowed = "a JSON object of fewer levels"
        if not isinstance(row, _Object):
            raise InputError(f"{path}, line {number}", line[:60], allowed)
        _check_once(row.names, columns, f"{path}, line {number}")
        yield number, row


def _csv_rows(path: Path, kind: str, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader((line for _, line in _lines(path, kind)), strict=True)
    try:
        _check_once(reader.fieldnames or (), columns, str(path))
        for row in reader:
            if None in row:
                allowed = "absent: the line has too many fields"
                raise InputError(f"{path}, line {reader.line_num}", row[None][0], allowed)
            yield reader.line_num, row
    except csv.Error as error:
        raise _unreadable(path, kind, error, reader.reader.line_num) from None


def _parquet_rows(path: Path, kind: str, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    number = None
    try:
        with _opened(path) as handle:
            file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(handle.read()))
        names, table = file.schema_arrow.names, file.read(columns=columns)
        _check_once(names, columns, str(path))
        for column in columns:
            if column not in names:
                raise InputError(f"{path}, column", column, f"one of {', '.join(names)}")
            held = table.schema.field(column).type
            if not _is_read(held):
                raise InputError(f"{path}, column {column}", str(held), "text, or whole numbers of classes")
        for number, values in enumerate(zip(*(table[column] for column in columns), strict=True), start=1):
            yield number, {column: value.as_py() for column, value in zip(columns, values, strict=True)}
    except (*_DAMAGE, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, kind, error, number) from None


def _is_read(kind: pyarrow.DataType) -> bool:
    """Whether values of a type are texts or may be classes: others may have no counterpart in Python."""
    if pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind):
        return True
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.null())


def _text(row: dict[str, Any], column: str, number: int, path: Path, is_class: bool = False) -> str:
    """What a row has in a column, without the blanks around it; a class may be a whole number."""
    if column not in row:
        raise InputError(f"{path}, line {number}, column", column, f"one of {', '.join(map(str, row))}")
    value, where = row[column], f"{path}, line {number}, column {column}"
    if is_class and (value := class_name(row[column])) is None:
        raise InputError(where, row[column], "a class: text or a whole number")
    if not isinstance(value, str) or not value.strip():
        raise InputError(where, value, "text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(where, value, "text without lone surrogates") from None
    return value.strip()
