"""The ledger of the benchmark: runs that the results hold already, from whatever machine, and that none trains again.

Each row of a table of runs ends with two short ids: of what the run was made from (teacher, preset, config, seed,
parameters), and of the code that decides numbers. A row counts where both are what the parameters ask for, so a
benchmark is computed over several nights and machines, and what is finished lies in git.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas

from dqlib.presets import get_preset
from dqlib.study.params import settings as S
from dqlib.study.params.identity import code_hash
from dqlib.study.params.paths import TABLES, project_root
from dqlib.study.params.tasks import benchmark_file
from dqlib.study.pipeline.study import Study
from dqlib.study.process.provenance import provenance_text

#: Tables of runs: records of those of equal steps and of the longer ones, and validation loss and cost of all.
METHODS, LONGER, PARTS = "methods.csv", "methods_longer.csv", "parts.csv"

#: The columns that end them.
IDENTITY = ("provenance", "code")

#: Characters of an id.
LENGTH = 12

#: A finished run by the names of columns: its record, ``validation_loss``, ``minutes`` and the two ids.
Row = Mapping[str, Any]

Key = tuple[str, str, int, int]


@dataclass(frozen=True)
class Ledger:
    """What the committed tables hold of a benchmark.

    ``rows`` are of runs that need not be trained, ``left_out`` the others, each with why its row does not count; both
    are asked for of a ``teacher``, by the SHA-256 of its weights.
    """

    teacher: str
    rows: dict[S.Run, Row]
    left_out: dict[S.Run, str]


def run_provenance(study: Study, run: S.Run, teacher: str) -> dict[str, object]:
    """What a run is made from but the code and what the teacher wrote, which follows from these."""
    benchmark = study.task.methods
    assert benchmark is not None
    return {
        "teacher": teacher,
        "preset": repr(get_preset(run.preset)),
        "config": str(run.config),
        "seed": run.seed,
        "distill": replace(benchmark.distill, steps=benchmark.distillation(run).steps),
        "evaluate": benchmark.evaluate,
    }


def run_ids(study: Study, run: S.Run, teacher: str) -> dict[str, str]:
    """The two ids of a run by the names of their columns."""
    whole = run_provenance(study, run, teacher)
    if study.task.uses_pseudo_labels(run.preset):
        whole["labels"] = study.task.pseudo_labels  # their text need not be made to know whether a row counts
    found = hashlib.sha256(provenance_text(whole).encode()).hexdigest()
    return {"provenance": found[:LENGTH], "code": code_hash()[:LENGTH]}


def read_ledger(study: Study) -> Ledger:
    """The rows of the results' tables that count, and those that do not; the teacher must be there."""
    benchmark, teacher = study.task.methods, study.teacher_digest()
    assert benchmark is not None
    folder = project_root() / study.settings.results / TABLES
    methods, longer, parts = (_rows(folder / benchmark_file(name, study.name)) for name in (METHODS, LONGER, PARTS))
    records, ledger = longer | methods, Ledger(teacher, {}, {})  # runs of equal steps are in both, fresh in methods
    for run in benchmark.runs():
        key = run.preset, str(run.config), run.seed, run.steps or benchmark.distill.steps
        if key not in records or key not in parts:
            continue
        wanted, both = run_ids(study, run, teacher), (records[key], parts[key])
        differs = [name for name in IDENTITY if {str(row.get(name)) for row in both} != {wanted[name]}]
        if differs:
            ledger.left_out[run] = "of other code" if differs == ["code"] else "of another teacher or other parameters"
        else:
            ledger.rows[run] = parts[key] | records[key]
    return ledger


def _rows(path: Path) -> dict[Key, dict[str, Any]]:
    """Rows of a table of runs by what names a run; none where there is no such table."""
    if not path.is_file():
        return {}
    table = pandas.read_csv(path, dtype=dict.fromkeys(IDENTITY, str))
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return {
        (row.get("preset") or row["part"], row["config"], row["seed"], row.get("train_steps") or row["steps"]): row
        for row in rows
    }
