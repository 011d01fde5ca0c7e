"""One DVC stage: run a notebook with papermill, its progress drawn in the terminal.

``python -m dqlib.study.pipeline.notebook summarization --config '2-2-8 2-1'`` executes ``notebooks/summarization.ipynb``
with the parameters of ``params.yaml`` and keeps the executed copy under ``runs/``, and beside it as HTML. Without
``--config``, the notebook of a task shows its headline. The executed copy of a notebook that fails is kept too, with
the error in it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.files import room_in
from dqlib.study.params.paths import project_root, write_text
from dqlib.study.params.settings import Settings, load_settings
from dqlib.study.process.exit_codes import ended
from dqlib.study.process.progress import relayed

#: Task whose headline a notebook shows that is not named by one.
TASK_OF = {"deploy": "summarization"}


def executed_path(settings: Settings, notebook: str, config: str | None = None, task: str | None = None) -> Path:
    """Where the executed copy of a notebook is kept."""
    parts = [notebook, *([task] if task else []), *([Config.parse(config).slug] if config else [])]
    return settings.runs / "notebooks" / f"{'-'.join(parts)}.ipynb"


def run_notebook(notebook: str, params: str, config: str | None = None, task: str | None = None) -> Path:
    """Execute a notebook, and return where its executed copy is.

    Raises:
        InputError: a parameter is not allowed, or there is no such notebook.
        PapermillExecutionError: a cell failed.
        DeadKernelError: the process of the notebook was killed.
        DiskFullError: there is no room for the executed copy.
    """
    settings = load_settings(params)
    if task is not None:
        settings.task(task)
    source = project_root() / "notebooks" / f"{notebook}.ipynb"
    if not source.is_file():
        known = sorted(path.stem for path in source.parent.glob("*.ipynb"))
        raise InputError("notebook", notebook, f"one of {', '.join(known)}")
    target = executed_path(settings, notebook, config, task)
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = TASK_OF.get(notebook, notebook)
    if config is None and shown in settings.tasks:
        config = str(settings.task(shown).headline)
    parameters = {"params": params} | ({"config": str(Config.parse(config))} if config else {})
    parameters |= {"task": task} if task else {}
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this environment, not a user's of the same name
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    with room_in(target.parent), relayed(target.with_suffix(".progress")):
        papermill.execute_notebook(
            source,
            target,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=project_root(),
            extra_arguments=["--log-level=CRITICAL"],  # of the kernel, which else tells at length that it was stopped
        )
    page, _ = HTMLExporter().from_filename(str(target))
    write_text(target.with_suffix(".html"), page)
    return target


def main(arguments: list[str] | None = None) -> int:
    """Command line of a stage."""
    parser = argparse.ArgumentParser(
        prog="python -m dqlib.study.pipeline.notebook", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("notebook")
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--config", help="configuration of a student, such as '2-2-8 2-1'")
    parser.add_argument("--task", help="task of a notebook that serves several, such as 'teacher'")
    options = parser.parse_args(arguments)

    def run() -> None:
        target = run_notebook(options.notebook, options.params, options.config, options.task)
        print(f"{options.notebook}: {target.relative_to(project_root())}")

    try:
        return ended(run)
    except PapermillExecutionError as error:
        executed = executed_path(load_settings(options.params), options.notebook, options.config, options.task)
        print(f"error: {options.notebook}: {error.ename}: {error.evalue}", file=sys.stderr)
        print(f"The executed notebook with the whole traceback: {executed}", file=sys.stderr)
    except DeadKernelError:
        cause = "the system does so where memory runs out"
        print(f"error: {options.notebook}: the process of the notebook was killed; {cause}.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
