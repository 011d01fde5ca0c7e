"""The tables that benchmarks write."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dqlib.errors import InputError
from dqlib.files import write_text


@dataclass(frozen=True, slots=True)
class Row:
    """One number of ``benchmark.csv``, and how many times better it is than the baseline's.

    Without a baseline, ``baseline`` is empty and ``ratio`` is None.
    """

    name: str
    shape: str
    config: str
    engine: str
    metric: str
    value: float
    unit: str
    baseline: str
    ratio: float | None
    device: str


def put_rows(new: list[Row], path: Path, same: tuple[str, ...] = ("name",)) -> None:
    """Put rows into ``benchmark.csv``, in place of those that have the same values in some columns; all others stay.

    Args:
        new: what was measured.
        path: of the table.
        same: columns by which a later run finds what to replace; by default all of the same benchmark, wherever it ran.

    Raises:
        InputError: the file has other columns.
    """
    columns = [field.name for field in fields(Row)]
    old: list[dict[str, str]] = []
    if path.is_file():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != columns:
                raise InputError("results", str(path), f"a table with the columns {','.join(columns)}")
            old = list(reader)
    added = [asdict(row) | {"value": f"{row.value:.6g}", "ratio": _short(row.ratio)} for row in new]
    replaced = {tuple(row[name] for name in same) for row in added}
    _write([*(row for row in old if tuple(row[name] for name in same) not in replaced), *added], columns, path)


def write_rows(rows: list[Any], path: Path) -> None:
    """Write a new table of dataclasses of one kind, numbers with four digits."""
    columns = [field.name for field in fields(rows[0])]
    _write([{name: _short(value) for name, value in asdict(row).items()} for row in rows], columns, path)


def _short(value: Any) -> Any:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else value


def _write(rows: Iterable[dict[str, Any]], columns: list[str], path: Path) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, buffer.getvalue())
