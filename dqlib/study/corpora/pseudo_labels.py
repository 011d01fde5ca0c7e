"""Pseudo-labels: what a teacher writes of training texts, kept like a corpus, with what they were made from.

``pairs.jsonl`` has the first rows of the training split with the teacher's target in the place of the reference,
``texts.jsonl`` texts that are in no pair. ``labels.json`` names the teacher and the corpus by their hashes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqlib.errors import InputError
from dqlib.files import atomic_folder
from dqlib.study.corpora.rows import Row, Rows, write_rows

_INFO, PARTS = "labels.json", ("pairs", "texts")


@dataclass(frozen=True)
class LoadedLabels:
    """Rows of the training split with the teacher's targets, rows in no pair with the teacher's, and what is known."""

    pairs: Rows
    texts: Rows
    info: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of all rows."""
        return self.info["sha256"]


def write_labels(folder: str | Path, rows: Mapping[str, Iterable[Row]], about: Mapping[str, Any]) -> None:
    """Write pseudo-labels to a folder, aside and put in place at once.

    ``rows`` have the teacher's targets, by the names of :data:`PARTS`; ``about`` has the hashes of ``corpus`` and
    ``teacher``, and how the targets were made.

    Raises:
        InputError: there are no pairs.
    """
    with atomic_folder(folder) as scratch:
        digest = hashlib.sha256()
        written = {part: write_rows(rows[part], scratch / f"{part}.jsonl", digest) for part in PARTS}
        if not written["pairs"]:
            raise InputError("pseudo_labels", 0, "at least one pair of the training split")
        info = {
            **about,
            "sha256": digest.hexdigest(),
            "sizes": {part: len(each) for part, each in written.items()},
            "empty": {part: sum(not row["target"] for row in each) for part, each in written.items()},
        }
        (scratch / _INFO).write_text(json.dumps(info, indent=2) + "\n")


def load_labels_info(folder: str | Path) -> dict[str, Any]:
    """What is known of pseudo-labels: the hashes of corpus, teacher and rows, sizes, and how they were written."""
    return json.loads((Path(folder) / _INFO).read_text())


def load_labels(folder: str | Path, corpus: str, teacher: str) -> LoadedLabels:
    """Read and check what :func:`write_labels` wrote.

    ``corpus`` and ``teacher`` are SHA-256 of the corpus that is trained on and of the weights of the student's teacher.

    Raises:
        InputError: they are missing or damaged, or of another corpus or teacher.
    """
    folder, again = Path(folder), "`python -m dqlib.study make pseudo-labels` makes them"
    if not (folder / _INFO).is_file():
        raise InputError("pseudo-labels", str(folder), f"a folder that is there; {again}")
    info = load_labels_info(folder)
    for name, value in (("corpus", corpus), ("teacher", teacher)):
        if info[name] != value:
            allowed = f"of the {name} that the student is trained with, {value[:12]}; {again} for it"
            raise InputError(f"pseudo-labels in {folder}, {name}", info[name][:12], allowed)
    digest = hashlib.sha256(b"".join((folder / f"{part}.jsonl").read_bytes() for part in PARTS)).hexdigest()
    if digest != info["sha256"]:
        allowed = f"{info['sha256'][:12]}, as when they were written; remove the folder, and {again} anew"
        raise InputError(f"pseudo-labels in {folder}, SHA-256", digest[:12], allowed)
    pairs, texts = (Rows(folder / f"{part}.jsonl") for part in PARTS)
    return LoadedLabels(pairs, texts, info)
