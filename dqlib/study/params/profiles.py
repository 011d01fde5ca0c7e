"""Choosing a profile: ``python -m dqlib.study profile smoke`` makes it the ``params.yaml`` that DVC reads."""

from __future__ import annotations

from dqlib.errors import InputError
from dqlib.files import write_bytes
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
    settings, target = load_settings(profile), project_root() / "params.yaml"
    if not settings.in_pipeline:
        return False
    settings.check_pipeline()
    if target.is_file():
        chosen = load_settings("params.yaml")
        if chosen.profile == profile:
            chosen.check_pipeline()
            return False
        if target.read_bytes() != profile_path(chosen.profile).read_bytes():
            allowed = (
                "unedited before another profile replaces it; save your edits as profiles/NAME.yaml, "
                f"or copy profiles/{profile}.yaml over it"
            )
            raise InputError("params.yaml", chosen.profile, allowed)
    write_bytes(target, profile_path(profile).read_bytes())
    return True
