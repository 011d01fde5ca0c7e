"""Choosing a profile: ``python -m dqlib.study.params.profiles smoke`` makes it the ``params.yaml`` that DVC reads."""

from __future__ import annotations

import argparse
import sys

from dqlib.errors import InputError
from dqlib.study.params.paths import project_root, write_text
from dqlib.study.params.settings import TASKS, load_settings, profile_path


def choose_profile(profile: str) -> bool:
    """Make a profile the current parameters; parameters of that profile with edits of yours are kept.

    Returns:
        Whether ``params.yaml`` was written.

    Raises:
        InputError: no such profile, a value in it is not allowed, it is not one for the pipeline, or edits of
            another profile would be lost.
    """
    source, target = profile_path(profile), project_root() / "params.yaml"
    settings = load_settings(profile)
    of_hub = any(settings.task(task).corpus.source == "hub" for task in settings.tasks)
    if of_hub or set(TASKS) - set(settings.tasks):  # the notebooks show pre-training
        by_hand = (
            f"`python -m dqlib.study.pipeline.students --params {profile}` makes the models of the tasks that it has"
        )
        allowed = f"one with all tasks of the pipeline ({', '.join(TASKS)}) and no corpus of the hub; {by_hand}"
        raise InputError("profile", profile, allowed)
    wanted = source.read_text(encoding="utf-8")
    if target.is_file():
        text = target.read_text(encoding="utf-8")
        current = load_settings("params.yaml").profile
        if current == profile:
            return False
        unedited = text == profile_path(current).read_text(encoding="utf-8")
        if not unedited:
            raise InputError(
                "params.yaml",
                current,
                f"unedited before another profile replaces it; save your edits as profiles/NAME.yaml, "
                f"or copy profiles/{profile}.yaml over it",
            )
    write_text(target, wanted)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.params.profiles", description=__doc__)
    parser.add_argument("profile")
    options = parser.parse_args(arguments)
    try:
        written = choose_profile(options.profile)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    told = " written to params.yaml; `git checkout params.yaml dvc.lock` goes back to those of the commit"
    print(f"profile {options.profile}{told if written else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
