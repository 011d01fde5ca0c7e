"""The bench: presets against each other at equal bits and equal steps.

Runs share the machine, one thread each, since that is faster than all threads for one; a run that is finished is
not repeated, so the bench continues where it was stopped. ``python -m dqlib.study.pipeline.benchmark`` makes all runs.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.presets import get_preset
from dqlib.study.params import settings as S
from dqlib.study.params.paths import project_root, write_text
from dqlib.study.pipeline.identity import code_hash
from dqlib.study.pipeline.study import STAMP, Study, check_owner, stamp_text
from dqlib.study.process.exit_codes import ended
from dqlib.study.process.workers import Job, run_all

#: Preset, configuration, seed, and the steps where they are not those of all runs.
Run = tuple[str, Config, int] | tuple[str, Config, int, int]


def bench_of(study: Study) -> S.Methods:
    """The parameters of the bench.

    Raises:
        InputError: the profile has none.
    """
    if study.task.methods is None:
        raise InputError(f"{study.name}.methods", None, "given, to run the bench")
    return study.task.methods


def run_methods(study: Study) -> Path:
    """Make every run that is missing, and return the folder of all.

    Raises:
        JobError: a run failed.
    """
    bench = bench_of(study)
    study.teacher()
    missing = [run for run in [*bench.runs(), *bench.longer()] if not _is_made(study, run)]
    for run in missing[:1]:
        check_owner(folder_of(study, run))
    run_all("bench", [Job(_told(run), _run, (study.params, study.name, run)) for run in missing])
    return study.folders.methods


def folder_of(study: Study, run: Run) -> Path:
    """Folder of a run."""
    name, config, *rest = run
    return study.folders.preset(name, config.slug, *rest)


def _told(run: Run) -> str:
    name, config, seed, *steps = run
    return f"{name} at {config}, seed {seed}" + "".join(f", {n} steps" for n in steps)


def _distillation(bench: S.Methods, run: Run) -> S.Distillation:
    name, _, seed, *steps = run
    return replace(bench.distill, preset=name, seed=seed, steps=steps[0] if steps else bench.distill.steps)


def _run(params: str, task: str, run: Run) -> None:
    """One run, in a worker."""
    from dqlib.study.corpora.corpus import load_corpus
    from dqlib.study.pipeline.jobs import distilled, made, quiet, score_student
    from dqlib.study.training.loop import make_accelerator

    quiet()
    study = Study(params, task)
    bench, folders = bench_of(study), study.folders
    distillation, target = _distillation(bench, run), folder_of(study, run)
    accelerator = make_accelerator(distillation.seed, distillation.precision)
    corpus = load_corpus(folders.corpus)
    with made(accelerator, folders, target) as folder:
        common = study.task, corpus, folders.teacher, accelerator, folder
        student = distilled(distillation, run[1], *common, target, task)
        score_student(student, distillation, bench.evaluate, *common, task)
        write_text(folder / STAMP, _provenance(study, run))


def _is_made(study: Study, run: Run) -> bool:
    stamp = folder_of(study, run) / STAMP
    return stamp.is_file() and stamp.read_text() == _provenance(study, run)


def _provenance(study: Study, run: Run) -> str:
    name, config, seed, *_ = run
    bench = bench_of(study)
    return stamp_text(
        {
            "teacher": hashlib.sha256((study.folders.teacher / "model.safetensors").read_bytes()).hexdigest(),
            "preset": repr(get_preset(name)),
            "configuration": str(config),
            "seed": seed,
            "distill": replace(_distillation(bench, run), preset=bench.distill.preset, seed=bench.distill.seed),
            "evaluate": bench.evaluate,
            "code": code_hash(),
        }
    )


def main(arguments: list[str] | None = None) -> int:
    """Make all runs of the bench."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.pipeline.benchmark", description=main.__doc__)
    parser.add_argument("--params", default="params.yaml", help="parameter file, or name of a profile")
    parser.add_argument("--task", default="summarization")
    options = parser.parse_args(arguments)

    def run() -> None:
        folder = run_methods(Study(options.params, options.task))
        print(f"bench: {folder.relative_to(project_root())}")

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
