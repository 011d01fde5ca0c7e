"""Pairs from files: JSON Lines, CSV, Parquet or aligned text, gzipped or not, columns named by the parameters."""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet
import pyarrow.types

from dqlib.errors import InputError
from dqlib.study.corpora.classes import class_name
from dqlib.study.corpora.documents import documents
from dqlib.study.corpora.rows import Row, named_row
from dqlib.study.corpora.splits import HELD_OUT_PERCENT, SPLITS, UNSEEN, split_of
from dqlib.study.params import settings as S
from dqlib.study.params.paths import project_root

KINDS = (".jsonl", ".json", ".csv", ".parquet")

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
        InputError: the file is missing, unreadable, empty or of another kind; a column is missing; a
            line is bad (the message has its number); text files do not have the same lines.
    """
    path = project_root() / path
    rows = _aligned_rows(path, columns) if "*" in path.name else _file_rows(path, columns, of_class)
    if not rows:
        raise InputError("file", str(path), "a file with at least one row")
    return rows


def files_of(path: str | Path, columns: list[str]) -> list[Path]:
    """The files that :func:`read_rows` reads for these arguments.

    Raises:
        InputError: a file is missing.
    """
    path = project_root() / path
    files = list(_by_column(path, columns).values()) if "*" in path.name else [path]
    for each in files:
        _check_exists(each)
    return files


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
    rows = read_rows(path, _columns(corpus, kind), corpus.target if kind.labels else None)
    names = text_columns(corpus, kind)
    return [
        named_row({ours: row[theirs] for ours, theirs in names.items()}, row.get(corpus.language or ""), corpus, path)
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
    for row in read_rows(path, _of_source(corpus)):
        yield named_row({"source": row[corpus.source]}, row.get(corpus.language or ""), corpus, path)


def unpaired_digests(corpus: S.Corpus, path: str | None) -> list[str]:
    """SHA-256 of the files that :func:`unpaired` reads; nothing for corpora that are not from files.

    Raises:
        InputError: a file is missing.
    """
    if corpus.origin != "files" or path is None:
        return []
    return [_digest(each, *_last_change(each)) for each in files_of(path, _of_source(corpus))]


def text_columns(corpus: S.Corpus, kind: S.Kind) -> dict[str, str]:
    """Our names for the columns of a row, and those that the parameters give them."""
    return {name: column for name in kind.columns if (column := getattr(corpus, name)) is not None}


def place_of(corpus: S.Corpus, kind: S.Kind, split: str, number: int) -> str:
    """Where in its file a row of a split is, counted from 0: the path, and the line or, of a part, the row."""
    if getattr(corpus, split) is None or (split == "train" and None in (corpus.validation, corpus.test)):
        return f"{corpus.train}, row {number + 1} of those for {split}"
    path, columns = project_root() / _named_files(corpus)[split], _columns(corpus, kind)
    if "*" in path.name:
        return f"{path}, line {number + 1}"
    of_kind, reader = _reader(path)
    line, _ = next(itertools.islice(reader(path, of_kind, columns), number, None))
    return f"{path}, line {line}"


def file_digests(corpus: S.Corpus, kind: S.Kind) -> dict[str, list[str]]:
    """SHA-256 of the files that each split is read from; nothing for corpora that are not from files.

    Raises:
        InputError: a file is missing.
    """
    if corpus.origin != "files":
        return {}
    files = {split: files_of(path, _columns(corpus, kind)) for split, path in _named_files(corpus).items()}
    return {split: [_digest(path, *_last_change(path)) for path in paths] for split, paths in files.items()}


def _last_change(path: Path) -> tuple[int, int]:
    """Size of a file, and when it was changed last, in nanoseconds."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@cache
def _digest(path: Path, *_: int) -> str:
    """SHA-256 of a file, computed once for each of its changes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named_files(corpus: S.Corpus) -> dict[str, str]:
    """Path of each split's file, as the parameters have it."""
    return {split: getattr(corpus, split) for split in (*SPLITS, UNSEEN) if getattr(corpus, split)}


def _columns(corpus: S.Corpus, kind: S.Kind) -> list[str]:
    return [*text_columns(corpus, kind).values(), *([corpus.language] if corpus.language else [])]


def _of_source(corpus: S.Corpus) -> list[str]:
    return [corpus.source, *([corpus.language] if corpus.language else [])]


def _file_rows(path: Path, columns: list[str], of_class: str | None) -> list[dict[str, str]]:
    kind, reader = _reader(path)
    return [
        {column: (_class if column == of_class else _text)(row, column, number, path) for column in columns}
        for number, row in reader(path, kind, columns)
    ]


def _reader(path: Path) -> tuple[str, Callable[[Path, str, list[str]], Iterator[tuple[int, dict[str, Any]]]]]:
    """The kind of a file, and what reads its rows with their lines."""
    _check_exists(path)
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in KINDS:
        raise InputError("file", str(path), f"one of {', '.join(KINDS)}, or one of them followed by .gz")
    return kind, {".csv": _csv_rows, ".parquet": _parquet_rows}.get(kind, _json_rows)


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


def _json_rows(path: Path, kind: str, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path, kind):
        if not line.strip():
            continue
        row, allowed = None, "a JSON object"
        try:
            row = json.loads(line)
        except ValueError:
            pass
        except RecursionError:
            allowed = "a JSON object of fewer levels"
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}", line[:60], allowed)
        yield number, row


def _csv_rows(path: Path, kind: str, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader((line for _, line in _lines(path, kind)), strict=True)
    try:
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
        for column in columns:
            if names.count(column) != 1:
                raise InputError(f"{path}, column", column, f"one of {', '.join(names)}")
            held = table.schema.field(column).type
            if not (
                _holds_text(held) or pyarrow.types.is_integer(held) or pyarrow.types.is_boolean(held)
            ):  # other values may have no counterpart in Python
                raise InputError(f"{path}, column {column}", str(held), "text, or whole numbers of classes")
        for number, values in enumerate(zip(*(table[column] for column in columns), strict=True), start=1):
            yield number, {column: value.as_py() for column, value in zip(columns, values, strict=True)}
    except (*_DAMAGE, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, kind, error, number) from None


def _holds_text(kind: pyarrow.DataType) -> bool:
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), pyarrow.null())


def _class(row: dict[str, Any], column: str, number: int, path: Path) -> str:
    """The class of a row, as text."""
    name = class_name(row.get(column))
    if column in row and name is None:
        raise InputError(f"{path}, line {number}, column {column}", row[column], "a class: text or a whole number")
    return _text({**row, column: name} if name is not None else row, column, number, path)


def _text(row: dict[str, Any], column: str, number: int, path: Path) -> str:
    if column not in row:
        raise InputError(f"{path}, line {number}, column", column, f"one of {', '.join(map(str, row))}")
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{path}, line {number}, column {column}", value, "text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}, line {number}, column {column}", value, "text without lone surrogates") from None
    return value.strip()
