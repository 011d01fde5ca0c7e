"""How a command of the study ends: an error of the user's making is one sentence, and so is Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from dqlib.errors import InputError
from dqlib.files import DiskFullError
from dqlib.study.process.launch import JobError

#: Status of a command that Ctrl-C ended, as shells have it.
INTERRUPTED = 128 + signal.SIGINT


def ended(run: Callable[[], None], *told: type[Exception]) -> int:
    """Do what a command does, and return its exit status: 0, 2 after an error that was told, 130 after Ctrl-C.

    Args:
        run: what the command does.
        told: errors that are told in a sentence, beside those that every command tells.
    """
    try:
        run()
    except (DiskFullError, InputError, JobError, *told) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr, flush=True)
        return INTERRUPTED
    return 0
