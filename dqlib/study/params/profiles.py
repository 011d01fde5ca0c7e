"""Choosing a profile: ``python -m dqlib.study profile smoke`` makes it the ``params.yaml`` that DVC reads."""

from __future__ import annotations

from dqlib.errors import InputError
from dqlib.files import write_text
from dqlib.study.params.paths import project_root
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
    of_hub = any(settings.task(task).corpus.origin == "hub" for task in settings.tasks)
    if of_hub or set(TASKS) - set(settings.tasks):  # the notebooks show pre-training
        by_hand = f"`python -m dqlib.study make students --params {profile}` makes the models of the tasks that it has"
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
