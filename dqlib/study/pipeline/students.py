"""All students of a task, and all runs of the benchmark: as many at a time as there are cores or accelerators.

What is there as the parameters want it is not made again, so a run that was stopped continues where it was.
"""

from __future__ import annotations

from pathlib import Path

from dqlib.study.pipeline.study import Study
from dqlib.study.process.launch import on_this_process
from dqlib.study.process.workers import Job, run_all


def run_students(study: Study) -> Path:
    """Make every student that is missing, and return the folder of all.

    Raises:
        JobError: a training failed; students that were made stay.
    """
    study.teacher()
    missing = [student for student in study.task.seeded_students() if not study.has_student(*student)]
    jobs = [
        Job(f"{config} {preset}, seed {seed}", Study.student, (study, config, preset, seed))
        for config, preset, seed in missing
    ]
    if on_this_process(study.settings.compute.processes):
        run_all(f"{study.name}: students", jobs)
    else:  # each takes all processes, so one after another
        for job in jobs:
            job.call(*job.arguments)
    return study.folders.students
