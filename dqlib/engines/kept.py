"""How a model is asked, kept beside it: in its ``config.json``, among the ``task_specific_params``, as T5's are.

A packed model and an export are no checkpoints: what was asked for when they were distilled is said nowhere else.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqlib.files import atomic_folder
from dqlib.storage.manifest import MANIFEST, WRITERS, File, Manifest, opened
from dqlib.storage.reading import CONFIG, json_object

#: The entry of ``config.json``, and the one in it.
ENTRY, OURS = "task_specific_params", "dqlib"

#: What is kept, by the names of the options of ``dqlib evaluate``, with the type of each.
KEPT = {"prefix": str, "language": str, "source_tokens": int, "target_tokens": int, "beams": int}


def content_of(folder: str | Path) -> dict[str, Any]:
    """Of the folder's ``config.json``; nothing where it has none."""
    path = Path(folder) / CONFIG
    return json_object(path.read_bytes(), CONFIG) if path.is_file() else {}


def kept(folder: str | Path) -> dict[str, Any]:
    """What is kept in a folder; nothing where it, or its ``config.json``, says nothing."""
    tasks = content_of(folder).get(ENTRY)
    ours = tasks.get(OURS) if isinstance(tasks, dict) else None
    return {name: ours[name] for name, kind in KEPT.items() if isinstance(ours, dict) and type(ours.get(name)) is kind}


def keep(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Keep settings, some of :data:`KEPT`, in a folder that dqlib wrote; those that are None or empty are left out.

    The folder is replaced as a whole: its manifest is at no time that of another configuration.
    """
    if not settings:
        return
    manifest, content = opened(folder, *WRITERS), content_of(folder)
    content[ENTRY] = {OURS: {name: value for name, value in settings.items() if value}}
    with atomic_folder(folder) as scratch:
        shutil.copytree(folder, scratch, dirs_exist_ok=True)
        path = scratch / CONFIG
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        files = {**manifest.files, CONFIG: File.of(path)}
        sealed = Manifest(manifest.kind, manifest.about, files, manifest.parameters)
        (scratch / MANIFEST).write_text(sealed.text(), encoding="utf-8")
