"""Many small trainings at once, one thread each: on two cores faster than one after another with two threads."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from dqlib.study.launch import JobError
from dqlib.study.progress import RELAY, report, shown_here
from dqlib.study.settings import available_cores

_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Work:
    """A call that a worker makes, and what to name it in the progress bar and in an error."""

    name: str
    call: Callable[..., None]
    arguments: tuple


def run_all(title: str, works: Sequence[Work]) -> None:
    """Make all calls, as many at a time as there are cores; what was made before an error stays.

    Raises:
        JobError: a call failed; those that had not begun are not made.
    """
    if not works:
        return
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(_THREADS)  # read by the workers when they import torch
    workers, spawn = min(available_cores(), len(works)), multiprocessing.get_context("spawn")
    try:
        with (
            shown_here(),
            tempfile.TemporaryDirectory() as scratch,
            ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent) as pool,
        ):
            runs = {pool.submit(_quietly, work, Path(scratch)): work for work in works}
            for number, run in enumerate(as_completed(runs), start=1):
                error = run.exception()
                if error is not None:
                    pool.shutdown(cancel_futures=True)
                    raise JobError(f"{title}, {runs[run].name}: {error}") from error
                report(title, number, len(works), runs[run].name)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _end_with_parent() -> None:
    """Let a worker end when its parent is killed, where the system can: else it would go on, and be in the way."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _quietly(work: Work, scratch: Path) -> None:
    """One call, in a worker, which has no screen of its own."""
    import torch

    torch.set_num_threads(1)
    os.environ[RELAY] = str(scratch / f"{os.getpid()}.progress")
    with (scratch / f"{os.getpid()}.txt").open("a") as said, redirect_stdout(said):
        work.call(*work.arguments)
