"""One maker at a time: two runs in one clone do not write the same folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dqlib.study.process.exit_codes import JobError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]


class BusyError(JobError):
    """Another run is making the same thing."""


@contextmanager
def only_maker(target: Path, lock: Path) -> Iterator[None]:
    """While the block runs, no other process may make ``target``.

    ``lock`` is a file for nothing else. The lock is the operating system's: it ends with its process, however that
    ends.

    Raises:
        BusyError: another process is making it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise BusyError(
                    f"{target} is being made by another run (process {handle.read().strip() or 'unknown'}); wait until "
                    "it ends, or stop it, and start again."
                ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
