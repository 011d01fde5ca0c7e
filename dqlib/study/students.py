"""All students of a task: as many at a time as there are cores, one thread each, where ``compute.processes`` is 1.

A student that is there as the parameters want it is not made again, so a run that was stopped continues where it
was. ``python -m dqlib.study.students --task summarization`` makes those of one task.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dqlib.errors import InputError
from dqlib.study.launch import JobError
from dqlib.study.paths import project_root
from dqlib.study.pipeline import Study
from dqlib.study.pool import Work, run_all


def run_students(study: Study) -> Path:
    """Make every student that is missing, and return the folder of all.

    Raises:
        JobError: a training failed; students that were made stay.
    """
    study.teacher()
    missing = [student for student in study.task.students() if not study.has_student(*student)]
    works = [
        Work(f"{configuration} {method}", _make, (study.params, study.name, str(configuration), method))
        for configuration, method in missing
    ]
    if study.settings.compute.processes == 1:
        run_all(f"{study.name}: students", works)
    else:  # each takes all processes, so one after another
        for work in works:
            work.call(*work.arguments)
    return study.folders.students


def _make(params: str, task: str, config: str, method: str) -> None:
    """One student, in a worker."""
    Study(params, task).student(config, method)


def main(arguments: list[str] | None = None) -> int:
    """Make all students of a task."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.students", description=main.__doc__)
    parser.add_argument("--params", default="params.yaml", help="parameter file, or name of a profile")
    parser.add_argument("--task", default="summarization")
    options = parser.parse_args(arguments)
    try:
        folder = run_students(Study(options.params, options.task))
    except (InputError, JobError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"students: {folder.relative_to(project_root())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
