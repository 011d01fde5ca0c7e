"""Which code a number came from: the rooms that decide it, by one hash.

The core (``dqlib/*.py`` and ``dqlib/storage``), ``corpora``, ``training`` and ``evaluation`` decide what a trained
model is and how it scores. Nothing else does, so nothing else ever makes a result stale.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[2]

#: Folders of the study whose code decides a number.
ROOMS = ("corpora", "training", "evaluation")


def core_hash(package: Path = PACKAGE) -> str:
    """SHA-256 of the core: its modules lie beside folders that decide nothing, so DVC cannot name it as one folder."""
    return _hash(package, [*package.glob("*.py"), *(package / "storage").rglob("*.py")])


@cache
def code_hash(package: Path = PACKAGE) -> str:
    """SHA-256 of all code that a number can depend on, so that none of another version is taken for its own."""
    files = [path for room in ROOMS for path in (package / "study" / room).rglob("*.py")]
    return hashlib.sha256((core_hash(package) + _hash(package, files)).encode()).hexdigest()


def _hash(package: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()
