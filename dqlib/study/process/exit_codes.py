"""How a command of the study ends: an error of the user's making is one sentence, and so is Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from dqlib.errors import InputError

#: Status of a command that Ctrl-C ended, as shells have it.
INTERRUPTED = 128 + signal.SIGINT


class JobError(RuntimeError):
    """A job failed; the message is the last thing that it wrote."""


def exit_code(run: Callable[[], object], name: str = "error") -> int:
    """Run a command, and return its exit status: 0, 2 after an error of the user's making, 130 after Ctrl-C.

    ``name`` opens the sentence of an error.
    """
    try:
        run()
    except (InputError, JobError, OSError) as error:  # a full disk among the last
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr, flush=True)
        return INTERRUPTED
    return 0
