"""Choosing a profile: ``python -m dqlib.study profile smoke`` makes it the ``params.yaml`` that DVC reads."""

from __future__ import annotations

from dqlib.errors import InputError
from dqlib.files import write_text
from dqlib.study.params.paths import project_root
from dqlib.study.params.settings import load_settings, profile_path


def choose_profile(profile: str) -> bool:
    """Make a profile the current parameters; parameters of that profile with edits of yours are kept.

    Returns:
        Whether ``params.yaml`` was written; it is not for a profile that runs without DVC.

    Raises:
        InputError: no such profile, a value in it is not allowed, its stages are not those of its tasks, or edits of
            another profile would be lost.
    """
    source, target = profile_path(profile), project_root() / "params.yaml"
    settings = load_settings(profile)
    if not settings.in_pipeline:
        return False
    settings.check_pipeline()
    wanted = source.read_text(encoding="utf-8")
    if target.is_file():
        text = target.read_text(encoding="utf-8")
        chosen = load_settings("params.yaml")
        current = chosen.profile
        if current == profile:
            chosen.check_pipeline()
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
