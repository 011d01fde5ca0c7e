"""Many small trainings at once: one thread each, which on two cores is faster than one after another with two threads.

On a machine with accelerators, each of them has one training at a time instead.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue

from dqlib.study.params.settings import available_cores
from dqlib.study.process.exit_codes import JobError
from dqlib.study.process.progress import report

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Job:
    """A call that a worker makes, and what to name it in the progress and in an error."""

    name: str
    call: Callable[..., object]
    arguments: tuple


def devices() -> list[str]:
    """Accelerators of this machine, as ``CUDA_VISIBLE_DEVICES`` names them; none where only cores compute."""
    import torch

    if not torch.accelerator.is_available():
        return []
    visible = os.environ.get(_VISIBLE)
    return visible.split(",") if visible else [str(number) for number in range(torch.accelerator.device_count())]


def at_a_time() -> int:
    """Jobs that run at the same time: one per accelerator, or else one per core."""
    return len(devices()) or available_cores()


def run_all(title: str, jobs: Sequence[Job]) -> None:
    """Run all jobs, :func:`at_a_time`; what was made before an error stays.

    Raises:
        JobError: a job failed; those that had not begun are not run.
    """
    if not jobs:
        return
    workers, spawn, found = min(at_a_time(), len(jobs)), multiprocessing.get_context("spawn"), devices()
    free = spawn.SimpleQueue()
    for device in found:
        free.put(device)
    threads = max(1, available_cores() // workers) if found else 1
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))  # read by the workers when they import torch
    try:
        with (
            ProcessPoolExecutor(workers, spawn, initializer=_as_worker, initargs=(free if found else None,)) as pool,
            _stopping(pool),
        ):
            with _uninterrupted():  # workers begin here, and would print of Ctrl-C before they know what to do then
                runs = {pool.submit(_call, job): job for job in jobs}
            for number, run in enumerate(as_completed(runs), start=1):
                error = run.exception()
                if error is not None:
                    pool.shutdown(cancel_futures=True)
                    raise JobError(f"{title}, {runs[run].name}: {error}") from error
                report(title, number, len(jobs), runs[run].name)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _stopping(pool: ProcessPoolExecutor) -> Iterator[None]:
    """After Ctrl-C, stop all workers, each of which removes what it has half written; nothing else is begun."""
    try:
        yield
    except (KeyboardInterrupt, BrokenProcessPool):
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():
            with suppress(ProcessLookupError):
                os.kill(worker.pid or 0, signal.SIGINT)
        for worker in multiprocessing.active_children():
            worker.join()
        raise


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back within the block, for processes that it starts too, where the system can."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_working = False


def _as_worker(free: SimpleQueue[str] | None) -> None:
    """Begin as a worker, on an accelerator of its own if there are any.

    Ctrl-C ends it without a word, and so does, where the system can, the end of its parent.
    """
    if free is not None:
        os.environ[_VISIBLE] = free.get()  # before anything asks for a device
    signal.signal(signal.SIGINT, _interrupted)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _interrupted(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal and the parent both say it
    if not _working:
        os._exit(128 + signal.SIGINT)
    raise KeyboardInterrupt


def _call(job: Job) -> None:
    """One job, in a worker."""
    global _working
    _working = True
    try:
        import torch

        torch.set_num_threads(int(os.environ[_THREADS[0]]))
        job.call(*job.arguments)
    except KeyboardInterrupt:
        os._exit(128 + signal.SIGINT)  # what it had half written is gone by now
    finally:
        _working = False
