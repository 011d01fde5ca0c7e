"""Metrics of translations, as sacrebleu computes them: BLEU and chrF of a corpus, with bootstrap intervals.

Both are computed from sums of sentence statistics (matched n-grams and lengths), so a resample needs no text: its
statistics are summed anew (Koehn 2004). Sources: BLEU, Papineni et al. 2002; chrF, Popović 2015; signatures, Post 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from dqlib.study.evaluation.bootstrap import interval, resampled_sums

#: What BLEU is computed from, summed over sentences: lengths, and matched and all n-grams of one to four words.
BLEU_STATISTICS = ("prediction_length", "reference_length", "matched_1", "matched_2", "matched_3", "matched_4",
                   "ngrams_1", "ngrams_2", "ngrams_3", "ngrams_4")  # fmt: skip


class CorpusScore(NamedTuple):
    """A corpus-level score in percent with its 95% interval, and sacrebleu's signature of it."""

    value: float
    low: float
    high: float
    signature: str


def bleu(references: Sequence[str], predictions: Sequence[str], resamples: int) -> CorpusScore:
    """BLEU of all sentences together, with the interval over sentences, of one reference and prediction each."""
    return _corpus_score(BLEU(), references, predictions, resamples)


def chrf(references: Sequence[str], predictions: Sequence[str], resamples: int) -> CorpusScore:
    """chrF of all sentences together, as :func:`bleu`."""
    return _corpus_score(CHRF(), references, predictions, resamples)


def bleu_statistics(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """:data:`BLEU_STATISTICS` of each sentence, (sentences, statistics)."""
    return _statistics(BLEU(), references, predictions)


def bleu_of(sums: np.ndarray) -> np.ndarray:
    """BLEU of sums of :data:`BLEU_STATISTICS` over sentences: (sums, statistics) to (sums,)."""
    return _scores(BLEU(), sums)


def sentence_chrf(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """chrF of each sentence by itself, in percent, (sentences,)."""
    metric = CHRF()
    pairs = zip(references, predictions, strict=True)
    return np.array([metric.sentence_score(prediction, [reference]).score for reference, prediction in pairs])


def exact(references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    """100 where a prediction is its reference, 0 where it is not, (sentences,)."""
    return np.array([100.0 * (r.strip() == p.strip()) for r, p in zip(references, predictions, strict=True)])


def _corpus_score(
    metric: BLEU | CHRF, references: Sequence[str], predictions: Sequence[str], resamples: int
) -> CorpusScore:
    value = metric.corpus_score(list(predictions), [list(references)]).score
    sums = resampled_sums(_statistics(metric, references, predictions), resamples)
    return CorpusScore(value, *interval(_scores(metric, sums)), str(metric.get_signature()))


# sacrebleu's own bootstrap goes through these two methods as well, but gives a mean and half a width only.
def _statistics(metric: BLEU | CHRF, references: Sequence[str], predictions: Sequence[str]) -> np.ndarray:
    return np.array(metric._extract_corpus_statistics(list(predictions), [list(references)]))


def _scores(metric: BLEU | CHRF, sums: np.ndarray) -> np.ndarray:
    return np.array([metric._compute_score_from_stats(each.tolist()).score for each in sums])
