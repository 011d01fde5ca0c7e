"""The tables that benchmarks write."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
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


def by_name(row: Row | dict[str, str]) -> Any:
    """What a later run of the same benchmark replaces, wherever it ran."""
    return row["name"] if isinstance(row, dict) else row.name


def by_baseline(row: Row | dict[str, str]) -> Any:
    """What a later run replaces that measures the same on the same device; a value has a row for each baseline."""
    values = row if isinstance(row, dict) else asdict(row)
    return tuple(values[name] for name in ("name", "shape", "config", "engine", "metric", "baseline", "device"))


def put_rows(new: list[Row], path: Path, key: Callable[[Row | dict[str, str]], Any] = by_name) -> None:
    """Put rows into ``benchmark.csv``, in place of those with the same key; all others stay.

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
    replaced = {key(row) for row in new}
    told = [asdict(row) | {"value": f"{row.value:.6g}", "ratio": _short(row.ratio)} for row in new]
    _write([*(row for row in old if key(row) not in replaced), *told], columns, path)


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
