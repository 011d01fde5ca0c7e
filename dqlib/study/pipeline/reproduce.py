"""Running a whole study under a profile, by DVC where its stages are for the profile."""

from __future__ import annotations

import signal
import subprocess

from dqlib.study.params.settings import TASKS, Settings, load_settings
from dqlib.study.process.exit_codes import JobError


def reproduce(profile: str) -> None:
    """Run the study up to its comparison under a profile that was chosen.

    A profile that the stages of ``dvc.yaml`` are not for, with one task say, runs without DVC: the same parts in the
    same order, which make what is missing or was made from other parameters.

    Raises:
        InputError: a parameter is not allowed.
        JobError: a part failed.
    """
    settings = load_settings(profile)
    if not settings.in_pipeline:
        _without_dvc(settings)
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is DVC's, which ends in order
    try:
        if subprocess.call(["dvc", "repro", "compare"]):
            raise JobError("dvc repro compare failed; what it printed says why, and the same command goes on from here")
    finally:
        signal.signal(signal.SIGINT, before)


def _without_dvc(settings: Settings) -> None:
    from dqlib.study.pipeline.notebook import run_notebook  # slow to import
    from dqlib.study.pipeline.students import run_students
    from dqlib.study.pipeline.study import Study

    studies = [Study(settings.profile, task, settings) for task in settings.tasks]
    for study in studies:
        study.corpus()
    for study in studies:
        run_notebook("teacher", settings.profile, task=study.name)
    for study in studies:
        run_students(study)
    compared = [study.name for study in studies if TASKS[study.name].compared]
    for task in compared:
        run_notebook(settings.notebook(task), settings.profile, task=task)
    if compared:
        run_notebook("compare", settings.profile)
