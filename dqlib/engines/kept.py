"""How a model is asked, kept beside it: in its ``config.json``, among the ``task_specific_params``, as T5's are.

A packed model and an export are no checkpoints: what was asked for when they were distilled is said nowhere else.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqlib.files import atomic_folder
from dqlib.storage.manifest import name_files
from dqlib.storage.reading import CONFIG, add_to_config, read_json

#: The entry of ``config.json``, and the one in it.
ENTRY, OURS = "task_specific_params", "dqlib"

#: What is kept, by the names of the options of ``dqlib evaluate``, with the type of each.
KEPT = {"prefix": str, "language": str, "source_tokens": int, "target_tokens": int, "beams": int}


def kept(folder: str | Path) -> dict[str, Any]:
    """What is kept in a folder; nothing where it, or its ``config.json``, says nothing."""
    tasks = read_json(Path(folder) / CONFIG, optional=True).get(ENTRY)
    ours = tasks.get(OURS) if isinstance(tasks, dict) else None
    return {name: ours[name] for name, kind in KEPT.items() if isinstance(ours, dict) and type(ours.get(name)) is kind}


def keep(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Keep settings, some of :data:`KEPT`, in a folder that dqlib wrote; those that are None or empty are left out.

    The folder is replaced as a whole: its manifest is at no time that of another configuration.
    """
    if not settings:
        return
    with atomic_folder(folder) as scratch:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        add_to_config(scratch, {ENTRY: {OURS: {name: value for name, value in settings.items() if value}}})
        name_files(scratch, [CONFIG])
