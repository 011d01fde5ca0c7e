"""Running a notebook with papermill, as a stage of the pipeline does.

The executed copy is kept under ``runs/``, and beside it as HTML; that of a notebook that fails is kept too, with the
error in it. What its cells print, the progress of trainings above all, is printed here as well.
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import papermill
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from dqlib.config import Config
from dqlib.errors import InputError, check_choice
from dqlib.files import room_in, write_text
from dqlib.study.params.paths import project_root
from dqlib.study.params.settings import Settings, load_settings
from dqlib.study.params.tasks import kind_of
from dqlib.study.process.exit_codes import JobError

#: Notebooks of tasks of every kind; others that have a task are of its kind alone.
OF_ANY_KIND = ("teacher", "methods")


def executed_path(settings: Settings, notebook: str, config: str | None = None, task: str | None = None) -> Path:
    """Where the executed copy of a notebook is kept; that of a task with its headline is read by `compare`'s stage."""
    shown = task or (notebook if notebook in settings.tasks else None)
    name, folder = [notebook, *([task] if task else [])], settings.runs / "notebooks"
    if shown is not None and notebook == settings.notebook(shown):
        name, folder = [shown], folder if config else folder / "tasks"
    return folder / f"{'-'.join([*name, *([Config.parse(config).slug] if config else [])])}.ipynb"


def run_notebook(notebook: str, params: str, config: str | None = None, task: str | None = None) -> Path:
    """Execute a notebook, and return where its executed copy is.

    It shows the student of ``config``, or the headline of its task, and the ``task``, or the one that it names itself,
    or the first one of the profile that is like it where the profile has not that one.

    Raises:
        InputError: a parameter is not allowed, there is no such notebook, or the profile has no task for it.
        JobError: a cell failed, or the process of the notebook was killed.
        DiskFullError: there is no room for the executed copy.
    """
    settings = load_settings(params)
    if task is not None:
        settings.task(task)
    source = project_root() / "notebooks" / f"{notebook}.ipynb"
    if not source.is_file():
        known = sorted(path.stem for path in source.parent.glob("*.ipynb"))
        raise InputError("notebook", notebook, f"one of {', '.join(known)}")
    own = papermill.inspect_notebook(str(source))  # its parameters, by name
    shown = task or notebook
    if "task" in own:
        usual = ast.literal_eval(own["task"]["default"])
        like = [name for name in settings.tasks if notebook in OF_ANY_KIND or kind_of(name) is kind_of(usual)]
        if not like:
            raise InputError("notebook", notebook, f"one for the tasks of '{params}': {', '.join(settings.tasks)}")
        if task is not None:
            check_choice(f"task of the notebook '{notebook}'", task, like)
        elif usual not in like:
            task = like[0]
        shown = task or usual
    target = executed_path(settings, notebook, config, task)
    target.parent.mkdir(parents=True, exist_ok=True)
    if config is None and "config" in own and shown in settings.tasks:
        config = str(settings.task(shown).headline)
    parameters = {"params": params} | ({"config": str(Config.parse(config))} if config else {})
    parameters |= {"task": task} if task and "task" in own else {}
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this environment, not a user's of the same name
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    try:
        with room_in(target.parent):
            papermill.execute_notebook(
                source,
                target,
                parameters,
                kernel_name="python3",
                progress_bar=False,
                stdout_file=sys.stdout,
                cwd=project_root(),
                extra_arguments=["--log-level=CRITICAL"],  # of the kernel, which else tells at length that it stopped
            )
    except PapermillExecutionError as error:
        kept = f"The executed notebook with the whole traceback: {target}"
        raise JobError(f"{notebook}: {error.ename}: {error.evalue}\n{kept}") from None
    except DeadKernelError:
        cause = "the system does so where memory runs out"
        raise JobError(f"{notebook}: the process of the notebook was killed; {cause}.") from None
    page, _ = HTMLExporter().from_filename(str(target))
    write_text(target.with_suffix(".html"), page)
    return target
