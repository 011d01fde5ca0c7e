"""Progress as printed lines: which job, how far it is, how long it will still take.

Lines cross processes, notebooks and logs by themselves. A job's first and last report are printed, and between them one
every :data:`SECONDS`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

#: Seconds between two lines of one job.
SECONDS = 10.0


@dataclass
class _Job:
    began: float
    done_before: int  # when it was first heard of: a job that goes on from a checkpoint does not begin at 0
    printed: float


_jobs: dict[str, _Job] = {}


def report(name: str, done: int, total: int, note: str = "") -> None:
    """Called by a job: ``done`` of ``total`` parts of the job ``name``."""
    now = time.monotonic()
    job = _jobs.get(name)
    if job is not None and done < total and now - job.printed < SECONDS:
        return
    if job is None:
        job = _jobs[name] = _Job(now, done, now)
    job.printed = now
    parts = [f"{name}: {done:,} of {total:,}"]
    if job.done_before < done < total:
        parts.append(f"{duration((now - job.began) / (done - job.done_before) * (total - done))} left")
    print(", ".join([*parts, note] if note else parts), flush=True)
    if done >= total:
        del _jobs[name]


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
