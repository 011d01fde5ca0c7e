"""Starting a job on several processes: its lines go where this process prints, its failure is one clear error."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from dqlib.files import DiskFullError
from dqlib.study.params.settings import available_cores
from dqlib.study.process.exit_codes import JobError

#: Environment variable with a command that starts a Python module on all processes of a cluster: with
#: ``srun torchrun --nnodes=2 ...`` in it, ``-m dqlib.study ...`` is put behind.
LAUNCHER = "DQLIB_LAUNCHER"


def on_this_process(processes: int) -> bool:
    """Whether a job for so many processes runs in the one that asks for it."""
    return processes == 1 and not os.environ.get(LAUNCHER)


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run ``python -m dqlib.study`` with arguments on several processes, and wait for it.

    The processes are started here, or wherever the command in :data:`LAUNCHER` starts them.

    Raises:
        JobError: the job failed.
    """
    here = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(shlex.split(os.environ.get(LAUNCHER, "")) or here), "-m", "dqlib.study", *arguments]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(max(1, available_cores() // processes)),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
            code = process.wait()
        finally:
            if process.poll() is None:  # stopped itself: leave no process behind that holds a lock
                process.terminate()
                process.wait()
        errors.seek(0)
        written = errors.read()
    if code:
        sentences = re.findall(rf"^error: (.*)|{DiskFullError.__name__}: (.*)$", written, re.MULTILINE)
        messages = [one or other for one, other in sentences]
        raise JobError(messages[0] if messages else f"{' '.join(arguments)} failed:\n{written[-4000:]}")
