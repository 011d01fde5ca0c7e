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

from dqlib.config import Configuration
from dqlib.errors import InputError
from dqlib.presets import preset
from dqlib.study.params import settings as S
from dqlib.study.params.paths import project_root, write_text
from dqlib.study.pipeline.identity import code_hash
from dqlib.study.pipeline.study import STAMP, Study, check_owner, stamp_text
from dqlib.study.process.exit_codes import ended
from dqlib.study.process.workers import Work, run_all

#: Preset, configuration, seed, and the steps where they are not those of all runs.
Cell = tuple[str, Configuration, int] | tuple[str, Configuration, int, int]


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
    missing = [cell for cell in [*bench.cells(), *bench.longer()] if not _is_made(study, cell)]
    for cell in missing[:1]:
        check_owner(folder_of(study, cell))
    run_all("bench", [Work(_told(cell), _run, (study.params, study.name, cell)) for cell in missing])
    return study.folders.methods


def folder_of(study: Study, cell: Cell) -> Path:
    """Folder of a run."""
    name, configuration, *rest = cell
    return study.folders.method(name, configuration.slug, *rest)


def _told(cell: Cell) -> str:
    name, configuration, seed, *steps = cell
    return f"{name} at {configuration}, seed {seed}" + "".join(f", {n} steps" for n in steps)


def _distillation(bench: S.Methods, cell: Cell) -> S.Distillation:
    name, _, seed, *steps = cell
    return replace(bench.distill, preset=name, seed=seed, steps=steps[0] if steps else bench.distill.steps)


def _run(params: str, task: str, cell: Cell) -> None:
    """One run, in a worker."""
    from dqlib.study.corpora.corpus import load_corpus
    from dqlib.study.pipeline.jobs import distilled, made, quiet, score_student
    from dqlib.study.training.loop import make_accelerator

    quiet()
    study = Study(params, task)
    bench, folders = bench_of(study), study.folders
    distillation, target = _distillation(bench, cell), folder_of(study, cell)
    accelerator = make_accelerator(distillation.seed, distillation.precision)
    corpus = load_corpus(folders.corpus)
    with made(accelerator, folders, target) as folder:
        common = study.task, corpus, folders.teacher, accelerator, folder
        student = distilled(distillation, cell[1], *common, target, task)
        score_student(student, distillation, bench.evaluate, *common, task)
        write_text(folder / STAMP, _made_from(study, cell))


def _is_made(study: Study, cell: Cell) -> bool:
    stamp = folder_of(study, cell) / STAMP
    return stamp.is_file() and stamp.read_text() == _made_from(study, cell)


def _made_from(study: Study, cell: Cell) -> str:
    name, configuration, seed, *_ = cell
    bench = bench_of(study)
    return stamp_text(
        {
            "teacher": hashlib.sha256((study.folders.teacher / "model.safetensors").read_bytes()).hexdigest(),
            "preset": repr(preset(name)),
            "configuration": str(configuration),
            "seed": seed,
            "distill": replace(_distillation(bench, cell), preset=bench.distill.preset, seed=bench.distill.seed),
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
