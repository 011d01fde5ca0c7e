"""How sure a number is: 95% intervals and p-values, over test documents (the bootstrap) and over seeds (Welch)."""

from __future__ import annotations

from collections.abc import Sequence

import mpmath
import numpy as np


def resampled_sums(statistics: np.ndarray, resamples: int) -> np.ndarray:
    """Sums of statistics over documents drawn again with replacement, as often as there are documents.

    (documents, statistics) to (resamples, statistics): what a corpus-level score needs. The draws are always the same.
    """
    count = len(statistics)
    times_drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples)
    return times_drawn @ statistics


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of resampled scores: their percentiles."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_interval(scores: np.ndarray, resamples: int) -> tuple[float, float]:
    """95% interval of the mean of scores (documents,): percentiles of resampled means (Efron 1979)."""
    generator, count = np.random.default_rng(0), len(scores)
    return interval(np.array([scores[generator.integers(0, count, count)].mean() for _ in range(resamples)]))


def two_sided(differences: np.ndarray) -> float:
    """Two-sided p-value of a difference, of what it is on documents drawn again with replacement.

    Twice the smaller share of the (resamples,) in which it is on either side of zero, ties on both; at least one over
    the resamples, at most 1 (the paired bootstrap of Koehn 2004).
    """
    side = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * side, 1 / len(differences))))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons of one family, so that one of them is wrongly below a level as rarely as one
    comparison by itself would be (Holm 1979)."""
    order, count = np.argsort(p_values, kind="stable"), len(p_values)
    stepped = np.maximum.accumulate([(count - i) * float(p_values[place]) for i, place in enumerate(order)])
    corrected = np.empty(count)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def welch_p_value(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Two-sided p-value of a difference of means of two samples (seeds,) of unlike variance (Welch 1947).

    None where a sample has fewer than two numbers, or both have no spread.
    """
    if min(len(ours), len(theirs)) < 2:
        return None
    errors = [float(np.var(sample, ddof=1)) / len(sample) for sample in (ours, theirs)]
    if not sum(errors):
        return None
    squared = (float(np.mean(ours)) - float(np.mean(theirs))) ** 2 / sum(errors)
    degrees = sum(errors) ** 2 / sum(e**2 / (len(x) - 1) for e, x in zip(errors, (ours, theirs), strict=True))
    # The tails of Student's t with that many degrees of freedom, as an incomplete beta function.
    return float(mpmath.betainc(degrees / 2, 0.5, 0, degrees / (degrees + squared), regularized=True))
