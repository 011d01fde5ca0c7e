"""Pairs from files: JSON Lines, CSV, Parquet or aligned text, gzipped or not, columns named by the parameters."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from dqlib.errors import InputError
from dqlib.study.paths import project_root

KINDS = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(path: str | Path, columns: list[str]) -> list[dict[str, str]]:
    """Rows of a data file, with the wanted columns as stripped text.

    Args:
        path: a ``.jsonl``, ``.csv`` or ``.parquet`` file, or one of them with ``.gz`` added; relative
            paths start at the project's folder. A ``*`` in it stands for the name of a column: then each column is
            a text file of its own, and line by line they belong together.
        columns: names of the columns to keep.

    Raises:
        InputError: the file is missing, unreadable, empty or of another kind; a column is missing; a
            line is bad (its number is told); text files do not have the same lines.
    """
    path = project_root() / path
    rows = _aligned_rows(path, columns) if "*" in path.name else _file_rows(path, columns)
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


def _file_rows(path: Path, columns: list[str]) -> list[dict[str, str]]:
    _check_exists(path)
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in KINDS:
        raise InputError("file", str(path), f"one of {', '.join(KINDS)}, or one of them followed by .gz")
    reader = {".csv": _csv_rows, ".parquet": _parquet_rows}.get(kind, _json_rows)
    rows = []
    try:
        with _opened(path) as handle:
            for number, row in reader(handle, path):
                rows.append({column: _text(row, column, number, path) for column in columns})
    except (OSError, EOFError, pyarrow.ArrowException, UnicodeDecodeError, csv.Error) as error:
        raise InputError("file", str(path), f"a readable {kind} file ({' '.join(str(error).split())})") from None
    return rows


def _aligned_rows(pattern: Path, columns: list[str]) -> list[dict[str, str]]:
    """Rows whose columns are text files with one text a line; lines that are blank in all of them are no rows."""
    paths = _by_column(pattern, columns)
    texts = {column: _lines(path) for column, path in paths.items()}
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


def _lines(path: Path) -> list[str]:
    _check_exists(path)
    try:
        with _opened(path) as handle:
            return [line.decode("utf-8") for line in handle]  # by line feeds alone, or rare characters would misalign
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError("file", str(path), f"readable text ({' '.join(str(error).split())})") from None


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise InputError("file", str(path), "a file that exists")


def _json_rows(handle: IO[bytes], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}", line[:60].decode(errors="replace"), "a JSON object")
        yield number, row


def _csv_rows(handle: IO[bytes], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(handle))
    reader = csv.DictReader(lines, strict=True)
    for row in reader:
        if None in row:
            raise InputError(f"{path}, line {reader.line_num}", row[None][0], "absent: the line has too many fields")
        yield reader.line_num, row


def _parquet_rows(handle: IO[bytes], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from enumerate(pyarrow.parquet.read_table(pyarrow.BufferReader(handle.read())).to_pylist(), start=1)


def _text(row: dict[str, Any], column: str, number: int, path: Path) -> str:
    if column not in row:
        raise InputError(f"{path}, line {number}, column", column, f"one of {', '.join(map(str, row))}")
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{path}, line {number}, column {column}", value, "text that is not empty")
    return value.strip()
