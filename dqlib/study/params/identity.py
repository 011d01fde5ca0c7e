"""Which code a number came from: the rooms that decide it, by one hash.

The core (``dqlib/*.py`` and ``dqlib/storage``), ``corpora``, ``training`` and ``evaluation`` decide what a trained
model is and how it scores. Nothing else does, so nothing else ever makes a result stale.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from dqlib.files import write_text

PACKAGE = Path(__file__).parents[2]

#: Folders of the study whose code decides a number; each may import those before it, and the core.
ROOMS = ("corpora", "training", "evaluation")


@cache
def code_hash(package: Path = PACKAGE, room: str = ROOMS[-1]) -> str:
    """SHA-256 of all code that what a room makes can depend on: the core, the rooms before it, and its own.

    Args:
        package: folder of the code.
        room: one of :data:`ROOMS`; the last, of which scores are, when left out.
    """
    core = _hash(package, [*package.glob("*.py"), *(package / "storage").rglob("*.py")])
    rooms = ROOMS[: ROOMS.index(room) + 1]
    files = [path for each in rooms for path in (package / "study" / each).rglob("*.py")]
    return hashlib.sha256((core + _hash(package, files)).encode()).hexdigest()


def write_hashes(folder: Path) -> None:
    """A file for each room with its :func:`code_hash`: the core lies beside what decides nothing, so that stages of DVC
    cannot name it as a folder, and names of files stand for code up to a room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for room in ROOMS:
        write_text(folder / f"{room}.sha256", code_hash(PACKAGE, room) + "\n")


def _hash(package: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()
