"""The bench: presets against each other at equal bits and equal steps.

Runs share the machine, one thread each, since that is faster than all threads for one; a run that is finished is
not repeated, so the bench continues where it was stopped. ``python -m dqlib.study.methods`` makes all runs.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path

from dqlib.config import Configuration
from dqlib.errors import InputError
from dqlib.presets import preset
from dqlib.study import settings as S
from dqlib.study.launch import JobError
from dqlib.study.paths import atomic_folder, project_root, write_text
from dqlib.study.pipeline import STAMP, Study, stamp_text
from dqlib.study.progress import report, shown_here

Cell = tuple[str, Configuration, int]

_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


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
    missing = [cell for cell in bench.cells() if not _is_made(study, cell)]
    if missing:
        with shown_here(), tempfile.TemporaryDirectory() as scratch:
            _run_all(study, missing, Path(scratch))
    return study.folders.methods


def _run_all(study: Study, missing: list[Cell], scratch: Path) -> None:
    workers = min(S.available_cores(), len(missing))
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(_THREADS)  # read by the workers when they import torch
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            runs = {pool.submit(_run, study.params, study.name, cell, scratch): cell for cell in missing}
            for number, run in enumerate(as_completed(runs), start=1):
                name, configuration, seed = runs[run]
                error = run.exception()
                if error is not None:
                    pool.shutdown(cancel_futures=True)
                    raise JobError(f"bench, {name} at {configuration}, seed {seed}: {error}") from error
                report("bench", number, len(missing), f"{name} {configuration}")
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _run(params: str, task: str, cell: Cell, scratch: Path) -> None:
    """One run, in a worker."""
    import torch

    from dqlib.study.corpus import load_corpus
    from dqlib.study.jobs import distilled, quiet, score_student
    from dqlib.study.train import make_accelerator

    torch.set_num_threads(1)
    quiet()
    study = Study(params, task)
    bench, folders = bench_of(study), study.folders
    name, configuration, seed = cell
    distillation = replace(bench.distill, preset=name, seed=seed)
    target = folders.method(name, configuration.slug, seed)
    accelerator, corpus = make_accelerator(seed), load_corpus(folders.corpus)
    log = scratch / f"{os.getpid()}.txt"
    with log.open("a") as said, redirect_stdout(said), atomic_folder(target) as folder:
        common = study.task, corpus, folders.teacher, accelerator, folder
        student = distilled(distillation, configuration, *common, target, task)
        score_student(student, distillation, bench.evaluate, *common, task)
        write_text(folder / STAMP, _made_from(study, cell))


def _is_made(study: Study, cell: Cell) -> bool:
    name, configuration, seed = cell
    stamp = study.folders.method(name, configuration.slug, seed) / STAMP
    return stamp.is_file() and stamp.read_text() == _made_from(study, cell)


def _made_from(study: Study, cell: Cell) -> str:
    name, configuration, seed = cell
    bench = bench_of(study)
    return stamp_text(
        {
            "teacher": hashlib.sha256((study.folders.teacher / "model.safetensors").read_bytes()).hexdigest(),
            "preset": repr(preset(name)),
            "configuration": str(configuration),
            "seed": seed,
            "distill": bench.distill,
            "evaluate": bench.evaluate,
            "code": code_hash(),
        }
    )


#: Files that a run's numbers do not depend on: a run's own preset is part of its stamp, sizes are counted when the
#: table is made, and a student is packed after all that.
_NO_PART_OF_A_RUN = (
    "presets", "account", "cli", "files", "footprint", "manifest", "packed", "packing", "stored",
)  # fmt: skip


@cache
def code_hash() -> str:
    """SHA-256 of all code that a run's numbers can depend on, so that none of another version is taken for its own."""
    package = Path(__file__).parent.parent
    training = ("batches", "evaluate", "jobs", "train")
    files = [*sorted(package.glob("*.py")), *(package / "study" / f"{name}.py" for name in training)]
    wanted = [file for file in files if file.stem not in _NO_PART_OF_A_RUN]
    return hashlib.sha256(b"".join(file.read_bytes() for file in wanted)).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Make all runs of the bench."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.methods", description=main.__doc__)
    parser.add_argument("--params", default="params.yaml", help="parameter file, or name of a profile")
    parser.add_argument("--task", default="summarization")
    options = parser.parse_args(arguments)
    try:
        folder = run_methods(Study(options.params, options.task))
    except (InputError, JobError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"bench: {folder.relative_to(project_root())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
