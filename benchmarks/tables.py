"""What benchmarks have in common: arguments, ratios, and the tables that they write."""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dqlib.errors import InputError
from dqlib.files import write_text

ROOT = Path(__file__).parent.parent


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

    def __str__(self) -> str:
        against = f", {self.ratio:.4g} times better than {self.baseline}" if self.ratio else ""
        return f"{self.shape} {self.config} {self.engine}: {self.metric} {self.value:.6g} {self.unit}{against}"


def parser(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Arguments that most benchmarks take, and their docstring's first line."""
    arguments = argparse.ArgumentParser(description=str(doc).partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=rounds)
    arguments.add_argument("--results", type=Path, default=ROOT / "results", help="folder of tables and figures")
    return arguments


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def put_rows(new: list[Row], results: Path, same: tuple[str, ...] = ("name",)) -> None:
    """Put rows into ``benchmark.csv``, in place of those that have the same values in some columns; all others stay.

    Args:
        new: what was measured.
        results: folder of results.
        same: columns by which a later run finds what to replace; by default all of the same benchmark, wherever it ran.

    Raises:
        InputError: the file has other columns.
    """
    path, columns = results / "tables" / "benchmark.csv", [field.name for field in fields(Row)]
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
