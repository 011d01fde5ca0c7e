"""Recall by position: where in an output quality is lost, since early errors change all that is written later.

The recall of ROUGE-L is the share of the reference's words that lie on a longest common subsequence with the
prediction; here it is kept for each part of the reference. It needs predictions alone, no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas

from dqlib.study.evaluation.records import read_predictions

#: Parts of a reference, and groups of references by length, that are kept apart.
PARTS, GROUPS = 5, 4

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Words of a text, in lower case, without the marks (nearly every text ends with the same one)."""
    return _WORD.findall(text.lower())


def recalled(reference: Sequence[str], prediction: Sequence[str]) -> np.ndarray:
    """Which words of the reference lie on a longest common subsequence with the prediction.

    Of several subsequences of the same length, the one that ends latest in the prediction is taken.

    Returns:
        (words of the reference,), bool.
    """
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*reference, *prediction]))}
    ours = np.array([vocabulary[word] for word in prediction], dtype=int)
    table: np.ndarray = np.zeros((len(reference) + 1, len(ours) + 1), dtype=np.int32)  # lengths of prefixes
    for i, word in enumerate(reference, start=1):
        longer = np.where(ours == vocabulary[word], table[i - 1, :-1] + 1, table[i - 1, 1:])
        table[i, 1:] = np.maximum.accumulate(longer)
    on_it: np.ndarray = np.zeros(len(reference), dtype=bool)
    i, j = len(reference), len(ours)
    while i and j:
        if table[i, j] == table[i - 1, j]:
            i -= 1
        elif table[i, j] == table[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            on_it[i] = True
    return on_it


@dataclass(frozen=True)
class Recall:
    """How many of the references' words one model's predictions recall, by part of the reference."""

    parts: np.ndarray  # (documents, :data:`PARTS`), words recalled in each part of the reference
    sizes: np.ndarray  # (documents, :data:`PARTS`), words that there are

    @property
    def halves(self) -> np.ndarray:
        """(documents, 2): recall before and after the middle part; not a number where a side is empty."""
        sides = slice(0, PARTS // 2), slice(PARTS - PARTS // 2, PARTS)
        with np.errstate(invalid="ignore"):
            return np.stack([self.parts[:, s].sum(1) / self.sizes[:, s].sum(1) for s in sides], axis=1)


def read_recall(folder: Path, language: str | None = None) -> Recall:
    """Recall of a trained model on all test documents, or on those in one language."""
    lines = read_predictions(folder, language)
    parts, sizes = np.zeros((2, len(lines), PARTS))
    for i, line in enumerate(lines):
        reference = words(line["reference"])
        places: np.ndarray = np.arange(len(reference)) * PARTS // max(len(reference), 1)
        on_it = recalled(reference, words(line["prediction"]))
        sizes[i] = np.bincount(places, minlength=PARTS)
        parts[i] = np.bincount(places[on_it], minlength=PARTS)
    return Recall(parts, sizes)


def by_position(ours: Recall, teacher: Recall) -> pandas.DataFrame:
    """Recall in each part of the reference, and the teacher's: columns ``part``, ``recall``, ``recall_of_teacher`` in
    percent, ``words``."""
    sizes = ours.sizes.sum(axis=0)
    return pandas.DataFrame(
        {
            "part": np.arange(1, PARTS + 1),
            "recall": 100 * ours.parts.sum(axis=0) / sizes,
            "recall_of_teacher": 100 * teacher.parts.sum(axis=0) / sizes,
            "words": sizes.astype(int),
        }
    )


def by_length(ours: Recall, teacher: Recall) -> pandas.DataFrame:
    """The same by the length of the reference, in :data:`GROUPS` groups of similar size; ``longest`` in words."""
    lengths = ours.sizes.sum(axis=1)
    groups = np.array_split(np.argsort(lengths, kind="stable"), GROUPS)
    return pandas.DataFrame(
        [
            {
                "group": number,
                "longest": int(lengths[group].max()),
                "recall": 100 * ours.parts[group].sum() / lengths[group].sum(),
                "recall_of_teacher": 100 * teacher.parts[group].sum() / lengths[group].sum(),
                "words": int(lengths[group].sum()),
            }
            for number, group in enumerate(groups, start=1)
            if group.size  # else there are fewer documents than groups
        ]
    )
