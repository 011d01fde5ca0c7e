"""Which code a number came from: the rooms that decide it, by one hash.

The core (``dqlib/*.py`` and ``dqlib/storage``), ``corpora``, ``training`` and ``evaluation`` decide what a trained
model is and how it scores; what a teacher writes for its students is decided by ``labelling`` and the engines as well.
Nothing else decides a number, so nothing else ever makes a result stale. Of parameters, values do, those that are left
out included; how they are read and checked does not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cache
from pathlib import Path

from dqlib.files import write_text

PACKAGE = Path(__file__).parents[2]

#: Folders of the study whose code decides a number; each may import those before it, and the core.
ROOMS = ("corpora", "training", "evaluation")
#: The room after these, which may import the engines, too.
LABELLING = "labelling"


@cache
def code_hash(package: Path = PACKAGE, room: str = ROOMS[-1]) -> str:
    """SHA-256 of all code that what a room makes can depend on: the core, the rooms before it, and its own.

    ``room`` is one of :data:`ROOMS`, or :data:`LABELLING`; scores are of the last of ``ROOMS``.
    """
    rooms = (*ROOMS, LABELLING)
    folders = [package / "storage", *(package / "study" / each for each in rooms[: rooms.index(room) + 1])]
    if room == LABELLING:
        folders.append(package / "engines")
    digest = hashlib.sha256()
    for path in sorted([*package.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def write_hashes(folder: Path) -> None:
    """A file for each room, on which DVC stages depend: the SHA-256 of its :func:`code_hash` and of the defaults.

    The core lies beside what decides nothing, so stages cannot name its folder. And what ``params.yaml`` leaves out
    is decided by the defaults of the blocks' classes, which a stage that depends on ``params.yaml`` does not see.
    """
    folder.mkdir(parents=True, exist_ok=True)
    defaults = json.dumps(default_values(), sort_keys=True)
    for room in (*ROOMS, LABELLING):
        text = code_hash(PACKAGE, room) + defaults
        write_text(folder / f"{room}.sha256", hashlib.sha256(text.encode()).hexdigest() + "\n")


def default_values() -> dict[str, str]:
    """What parameters are that a YAML file leaves out, by the names of their classes and fields."""
    from dqlib.study.params import settings  # which imports all of them

    values: dict[str, str] = {}
    for name in settings.__all__:
        block = getattr(settings, name)
        for field in dataclasses.fields(block) if dataclasses.is_dataclass(block) else ():
            if field.default_factory is not dataclasses.MISSING:
                values[f"{name}.{field.name}"] = repr(field.default_factory())
            elif field.default is not dataclasses.MISSING:
                values[f"{name}.{field.name}"] = repr(field.default)
    return values
