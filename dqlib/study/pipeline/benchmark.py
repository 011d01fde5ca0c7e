"""The benchmark of presets: against each other at equal bits and equal steps.

Runs share the machine, one thread each, since that is faster than all threads for one; a run that is finished is
not repeated, so the benchmark continues where it was stopped.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from dqlib.errors import InputError
from dqlib.presets import get_preset
from dqlib.study.params import settings as S
from dqlib.study.params.identity import code_hash
from dqlib.study.pipeline.study import Study, check_owner, is_made, provenance_text
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
    """Make every run that is missing, and return the folder of all.

    Raises:
        JobError: a run failed.
    """
    benchmark = benchmark_of(study)
    study.teacher()
    missing = [run for run in benchmark.runs() if not is_made(folder_of(study, run), _provenance(study, run))]
    for run in missing[:1]:
        check_owner(folder_of(study, run))
    run_all("benchmark", [Job(str(run), _make, (study, run)) for run in missing])
    return study.folders.methods


def folder_of(study: Study, run: S.Run) -> Path:
    """Folder of a run."""
    return study.folders.run(run.preset, run.config.slug, run.seed, run.steps)


def _make(study: Study, run: S.Run) -> None:
    """One run, in a worker."""
    from dqlib.study.pipeline.jobs import make_run, quiet

    quiet()
    make_run(study.settings, study.name, run, folder_of(study, run), _provenance(study, run))


def _provenance(study: Study, run: S.Run) -> str:
    benchmark = benchmark_of(study)
    return provenance_text(
        {
            "teacher": hashlib.sha256((study.folders.teacher / "model.safetensors").read_bytes()).hexdigest(),
            "preset": repr(get_preset(run.preset)),
            "config": str(run.config),
            "seed": run.seed,
            "distill": replace(benchmark.distill, steps=benchmark.distillation(run).steps),
            "evaluate": benchmark.evaluate,
            "code": code_hash(),
            **study.labels_of(run.preset),
        }
    )
