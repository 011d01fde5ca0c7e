"""ROUGE of summaries and answers, per document."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from rouge_score import rouge_scorer

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'`(])")


def rouge(references: Sequence[str], predictions: Sequence[str]) -> dict[str, np.ndarray]:
    """F-measures of each document in percent, with Porter stemming (Lin 2004).

    ROUGE-Lsum compares sentence by sentence; sentences are split at ``.``, ``!`` or ``?`` before a capital.

    Returns:
        An array (documents,) for each of :data:`ROUGE`.
    """
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [
        scorer.score(sentences(reference), sentences(prediction))
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    return {kind: np.array([100 * score[kind].fmeasure for score in scores]) for kind in ROUGE}


def sentences(text: str) -> str:
    """The text with one sentence per line, as ROUGE-Lsum reads it."""
    return _SENTENCE_END.sub("\n", text)
