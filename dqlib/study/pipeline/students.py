"""All students of a task: as many at a time as there are cores, one thread each, where one process makes one.

A student that is there as the parameters want it is not made again, so a run that was stopped continues where it
was. ``python -m dqlib.study.pipeline.students --task summarization`` makes those of one task.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dqlib.study.params.paths import project_root
from dqlib.study.params.settings import load_settings
from dqlib.study.pipeline.study import Study
from dqlib.study.process.exit_codes import ended
from dqlib.study.process.launch import in_this_process
from dqlib.study.process.workers import Job, run_all


def run_students(study: Study) -> Path:
    """Make every student that is missing, and return the folder of all.

    Raises:
        JobError: a training failed; students that were made stay.
    """
    study.teacher()
    missing = [student for student in study.task.students() if not study.has_student(*student)]
    jobs = [
        Job(f"{config} {preset}", _make, (study.params, study.name, str(config), preset)) for config, preset in missing
    ]
    if in_this_process(study.settings):
        run_all(f"{study.name}: students", jobs)
    else:  # each takes all processes, so one after another
        for job in jobs:
            job.call(*job.arguments)
    return study.folders.students


def _make(params: str, task: str, config: str, preset: str) -> None:
    """One student, in a worker."""
    Study(params, task).student(config, preset)


def main(arguments: list[str] | None = None) -> int:
    """Make all students of a task."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.pipeline.students", description=main.__doc__)
    parser.add_argument("--params", default="params.yaml", help="parameter file, or name of a profile")
    parser.add_argument("--task", default="summarization")
    parser.add_argument("--dry-run", action="store_true", help="make nothing; tell what it would take")
    options = parser.parse_args(arguments)

    def run() -> None:
        if options.dry_run:
            from dqlib.study.pipeline.plan import plan

            print(plan(load_settings(options.params), only=options.task))
            return
        folder = run_students(Study(options.params, options.task))
        print(f"students: {folder.relative_to(project_root())}")

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
