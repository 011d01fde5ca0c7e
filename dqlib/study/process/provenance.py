"""What something was made from, as a text beside it: whoever asks for the same finds it made, and takes up no other."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from dqlib.study.params.paths import PROVENANCE


def is_made(folder: Path, provenance: str, file: str = PROVENANCE) -> bool:
    """Whether a folder is there and was made from just that, as a file in it says; a damaged one says nothing."""
    path = folder / file
    return path.is_file() and path.read_bytes() == provenance.encode()


def provenance_text(provenance: Mapping[str, object]) -> str:
    """What a folder was made from, as the text of its ``provenance.json``."""
    return json.dumps(provenance, default=_plain, sort_keys=True, indent=1)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
