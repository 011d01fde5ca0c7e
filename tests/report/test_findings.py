"""The sentences that open the results are decided by the tables."""

import pandas

from dqlib.study.report.claims import Tables
from dqlib.study.report.findings import findings
from tests.helpers import grid


def found(metrics, comparisons=None, **changed):
    compared = grid.comparisons(metrics) if comparisons is None else comparisons
    empty = pandas.DataFrame()
    return findings(Tables(metrics, compared, grid.retention(metrics, **changed), empty, empty))


def test_they_tell_of_bits_of_layers_and_of_training_together():
    bits, layers, together = found(grid.metrics())
    assert bits.startswith("**Down to 8 bits, with all layers, every task keeps 99%")
    assert "`2-2-8`: summarization 96.0% (95.6 to 96.4)" in bits
    assert "keeping half of the decoder costs 1.0 points more" in layers
    assert "keeping one layer on each side costs 16.0 points more" in layers
    assert together.startswith("**Distilling and quantizing together beats quantization alone in 3 of 3 comparisons**")


def test_what_falls_short_is_said():
    metrics = grid.metrics(translation={("8-8-8", "full"): 0.97})
    compared = grid.comparisons(metrics)
    compared.loc[0, "p_value"] = 0.6
    compared.loc[1, "score"] = compared.baseline_score[1] - 3
    bits, _, together = found(metrics, compared)
    assert bits.startswith("**Already at 8 bits, with all layers, not every task keeps 99%")
    assert "translation 97.0%" in bits
    assert "beats quantization alone in 1 of 3 comparisons, behind in 1, and 1 is not decided**" in together


def test_a_study_with_less_says_less():
    metrics = grid.metrics()
    metrics = metrics[metrics.config.str.startswith(("8-8-8", "32-32-32"))]
    (bits,) = found(metrics)
    assert bits == "**Down to 8 bits, with all layers, every task keeps 99% of its teacher's score or more.**"
