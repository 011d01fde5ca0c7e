"""The benchmark of presets: against each other at equal bits and equal steps.

Runs share the machine, one thread each, since that is faster than all threads for one; a run that is finished, here or
in the committed tables (:mod:`dqlib.study.pipeline.ledger`), is not repeated, so the benchmark continues where it was
stopped, in a new clone, too.
"""

from __future__ import annotations

from pathlib import Path

from dqlib.errors import InputError
from dqlib.study.params import settings as S
from dqlib.study.params.identity import code_hash
from dqlib.study.params.paths import PROVENANCE
from dqlib.study.pipeline.ledger import Ledger, Row, read_ledger, run_provenance
from dqlib.study.pipeline.study import Study
from dqlib.study.process.provenance import is_made, provenance_text
from dqlib.study.process.workers import Job, run_all


def benchmark_of(study: Study) -> S.Methods:
    """The parameters of the benchmark.

    Raises:
        InputError: the profile has none.
    """
    if study.task.methods is None:
        raise InputError(f"{study.name}.methods", None, "given, to run the benchmark")
    return study.task.methods


def run_benchmark(study: Study) -> Path:
    """Make every run that is missing here and in the committed tables, and return the folder of all.

    Raises:
        InputError: the profile has no benchmark of the task.
        JobError: a run failed.
    """
    benchmark_of(study)  # refuses a task without one, before anything is made
    study.teacher()
    run_all("benchmark", [Job(str(run), _make, (study, run)) for run in missing_runs(study)])
    study.folders.methods.mkdir(parents=True, exist_ok=True)  # also where the tables hold every run
    return study.folders.methods


def missing_runs(study: Study) -> list[S.Run]:
    """Runs that are neither made here nor held by the committed tables, in the order in which they are made.

    Committed rows that do not count, being of another teacher, of other code or parameters, are named.
    """
    ledger = read_ledger(study)
    missing = [run for run in benchmark_of(study).runs() if place_of(study, run, ledger) is None]
    for why in dict.fromkeys(ledger.left_out.values()):
        names = [str(run) for run in missing if ledger.left_out.get(run) == why]
        if names:
            print(f"rows of the committed tables that are {why}: {'; '.join(names)}", flush=True)
    return missing


def place_of(study: Study, run: S.Run, ledger: Ledger) -> Path | Row | None:
    """Where a finished run is: the folder that it was made in here, as the parameters want it, or else its row of the
    committed tables; None of one that is missing."""
    folder = folder_of(study, run)
    there = (folder / PROVENANCE).is_file()  # else pseudo-labels need not be made to know it
    if there and is_made(folder, provenance_text(_provenance(study, run, ledger.teacher))):
        return folder
    return ledger.rows.get(run)


def folder_of(study: Study, run: S.Run) -> Path:
    """Folder of a run."""
    return study.folders.run(run.preset, run.config.slug, run.seed, run.steps)


def _make(study: Study, run: S.Run) -> None:
    """One run, in a worker."""
    from dqlib.study.pipeline.jobs import make_run, quiet

    quiet()
    folder, provenance = folder_of(study, run), _provenance(study, run, study.teacher_digest())
    study.made(folder, provenance, lambda: make_run(study.settings, study.name, run, folder))


def _provenance(study: Study, run: S.Run, teacher: str) -> dict[str, object]:
    return {**run_provenance(study, run, teacher), "code": code_hash(), **study.labels_of(run.preset)}
