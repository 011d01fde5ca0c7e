"""Live progress that crosses processes: workers report, whoever has a screen draws.

A worker writes one JSON line a report to its standard output; :mod:`dqlib.study.process.launch` reads them and
draws a bar where it runs (terminal or Jupyter). Under papermill the notebook has no screen: it hands
the reports on through a file, and the stage that runs papermill draws them in the terminal.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tqdm
import tqdm.auto

PREFIX = "@progress "
RELAY = "DQLIB_PROGRESS_FILE"


_in_process: Bars | None = None


def report(name: str, done: int, total: int, note: str = "") -> None:
    """Called by a job: ``done`` of ``total`` parts of the job ``name``."""
    line = PREFIX + json.dumps({"name": name, "done": done, "total": total, "note": note})
    if _in_process is not None:
        _in_process.show(line)
    else:
        print(line, flush=True)


@contextmanager
def shown_here() -> Iterator[None]:
    """While the block runs, reports of jobs in this process are drawn instead of printed."""
    global _in_process
    _in_process = Bars()
    try:
        yield
    finally:
        _in_process.close()
        _in_process = None


class Bars:
    """Draws reports as one progress bar a job, or relays them."""

    def __init__(self) -> None:
        self._relay = os.environ.get(RELAY)
        self._bar: tqdm.tqdm | None = None
        self._name = ""

    def show(self, line: str) -> None:
        """Show one report, as :func:`report` wrote it."""
        if self._relay:
            with Path(self._relay).open("a") as handle:
                handle.write(line.rstrip("\n") + "\n")
            return
        event = json.loads(line.removeprefix(PREFIX))
        if event["name"] != self._name:
            self.close()
            bar = tqdm.auto.tqdm if "ipykernel" in sys.modules else tqdm.tqdm
            self._bar = bar(total=event["total"], desc=event["name"], mininterval=0.5)
            self._name = event["name"]
        assert self._bar is not None
        self._bar.set_postfix_str(event["note"], refresh=False)
        self._bar.update(event["done"] - self._bar.n)
        if event["done"] >= event["total"]:
            self.close()

    def close(self) -> None:
        """End the current bar."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._name = None, ""


@contextmanager
def relayed(path: Path) -> Iterator[None]:
    """While the block runs, draw here what other processes relay to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    os.environ[RELAY] = str(path)
    done = threading.Event()

    def follow() -> None:
        bars = Bars()
        bars._relay = None
        with path.open() as handle:
            while True:
                finished = done.is_set()
                for line in iter(handle.readline, ""):
                    bars.show(line)
                if finished:
                    break
                done.wait(0.5)
        bars.close()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        del os.environ[RELAY]
        path.unlink(missing_ok=True)
