"""Starting jobs from a notebook or a stage: several processes, one progress bar, one clear error."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile

from dqlib.files import DiskFullError
from dqlib.study.params.settings import Settings, available_cores
from dqlib.study.process.locks import BusyError
from dqlib.study.process.progress import PREFIX, Bars, shown_here

#: Environment variable with a command that starts a Python module on all processes of a cluster: with
#: ``srun torchrun --nnodes=2 ...`` in it, ``-m dqlib.study.pipeline.jobs ...`` is put behind.
LAUNCHER = "DQLIB_LAUNCHER"


class JobError(RuntimeError):
    """A job failed; the message is the last thing that it said."""


def in_this_process(settings: Settings) -> bool:
    """Whether a job runs in the process that asks for it."""
    return settings.compute.processes == 1 and not os.environ.get(LAUNCHER)


def launch(
    settings: Settings, params: str, job: str, task: str, config: str | None = None, preset: str | None = None
) -> None:
    """Run one job of :mod:`dqlib.study.pipeline.jobs` on ``compute.processes`` processes and wait for it.

    A single process is this one; more are started beside it, or wherever the command in :data:`LAUNCHER` starts them.

    Args:
        settings: what ``params`` holds.
        params: parameter file or name of a profile, handed to the job.
        job, task, config, method: see :mod:`dqlib.study.pipeline.jobs`.

    Raises:
        JobError: the job failed.
    """
    processes, launcher = settings.compute.processes, shlex.split(os.environ.get(LAUNCHER, ""))
    if in_this_process(settings):
        from dqlib.study.pipeline.jobs import run_job  # torch and transformers are needed only now
        from dqlib.study.training.loop import TrainingError

        try:
            with shown_here():
                return run_job(settings, job, task, config, preset)
        except (BusyError, DiskFullError, TrainingError) as error:
            raise JobError(str(error)) from error
    here = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*(launcher or here), "-m", "dqlib.study.pipeline.jobs", job, "--params", params, "--task", task]
    if config is not None:
        command += ["--config", config]
    if preset is not None:
        command += ["--preset", preset]
    threads = max(1, available_cores() // processes)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    bars = Bars()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(PREFIX):
                    bars.show(line)
                else:
                    print(line, end="")
            code = process.wait()
        finally:
            bars.close()
            if process.poll() is None:  # we were told to stop: leave no process behind that holds a lock
                process.terminate()
                process.wait()
        errors.seek(0)
        told = errors.read()
    if code:
        said = re.findall(rf"^error: (.*)|{DiskFullError.__name__}: (.*)$", told, re.MULTILINE)
        said = [one or other for one, other in said]
        raise JobError(said[0] if said else f"{job} of {task} failed:\n{told[-4000:]}")
