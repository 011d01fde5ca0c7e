"""How sure a number is: 95% intervals and p-values, over test documents (the bootstrap) and over seeds (Welch)."""

from __future__ import annotations

from collections.abc import Sequence

import mpmath
import numpy as np


def resampled_sums(statistics: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Sums of statistics over documents drawn again with replacement: what a corpus-level score needs.

    Args:
        statistics: (documents, statistics).
        resamples: how many times all documents are drawn.
        seed: of the draws.

    Returns:
        (resamples, statistics).
    """
    count = len(statistics)
    times_drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    return times_drawn @ statistics


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of resampled scores: their percentiles."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_interval(scores: np.ndarray, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean over documents: percentiles of resampled means (Efron 1979).

    Args:
        scores: (documents,), one score per document.
        resamples: how many times documents are drawn with replacement.
        seed: of the draws.
    """
    return interval(_resampled_means(scores, resamples, seed))


def paired_p_value(ours: np.ndarray, theirs: np.ndarray, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of a difference of means by the paired bootstrap over documents (Koehn 2004).

    Args:
        ours, theirs: (documents,), scores of the same documents.
        resamples: how many times documents are drawn with replacement.
        seed: of the draws.
    """
    return two_sided(_resampled_means(ours - theirs, resamples, seed))


def _resampled_means(scores: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means over documents drawn again with replacement, (resamples,)."""
    generator = np.random.default_rng(seed)
    return np.array([scores[generator.integers(0, len(scores), len(scores))].mean() for _ in range(resamples)])


def two_sided(differences: np.ndarray) -> float:
    """Two-sided p-value of a difference, of what it is on documents drawn again with replacement.

    Twice the smaller share of resamples in which the difference is on either side of zero, ties on both; at least one
    over the resamples, at most 1.

    Args:
        differences: (resamples,).
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
    """Two-sided p-value of a difference of means of two samples of unlike variance (Welch 1947), such as of seeds.

    Args:
        ours, theirs: (seeds,), one number each.

    Returns:
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
