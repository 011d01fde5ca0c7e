"""Claims that runs of the benchmark decide, by the gap of their validation loss to the teacher's, over seeds.

The validation loss tells methods apart where scores of the test do not: its spread over seeds is a hundredth of a nat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas

from dqlib.study.evaluation.bootstrap import welch_p_value
from dqlib.study.params.kinds import SEQ2SEQ
from dqlib.study.report.verdicts import PRETRAINED, Tables, Verdict, significant, written_p

#: More training, and the part of the gap that it may leave at most.
TIMES, PART = 8, 0.5
#: Presets of earlier work that are trained for longer.
EARLIER = ("dq-bart", "xtc", "quantgpt")
#: Presets that differ by the contrast of tokens alone: with it, and without.
CONTRAST = (("quantgpt", "quantgpt-no-contrast"), ("dqlib-with-contrast", "dqlib"))
#: Presets whose clip at 2 bits is fixed or learned, and which are else QuantGPT's.
CLIPS = (("a fixed clip", "quantgpt-fixed-clip"), ("a learned clip", "quantgpt-learned-clip"))


def of_runs(tables: Tables) -> Iterable[Verdict]:
    """The claims (g), (h), (j) and (k), for each task that they are about; (j) of texts, too, where such runs are.

    Not (a): a teacher that was trained with smoothed labels has a higher loss than its texts deserve, and who learns
    from it takes that over.
    """
    for task in tables.of_kind(SEQ2SEQ):
        yield from (verdict for verdict in _contrast(tables, task) if verdict.run)
    for task in tables.of_kind("classification"):
        yield from _longer(tables, task)
        yield from _not_pretrained(tables, task)
    for task in tables.of_kind("language_modelling"):
        yield from _contrast(tables, task)
        yield from _clips(tables, task)


def _longer(tables: Tables, task: str) -> Iterable[Verdict]:
    claim = f"(g) Few bits are under-trained: {TIMES} times the steps halve the gap"
    rows = tables.runs[(tables.runs.task == task) & tables.runs.part.isin(EARLIER)]
    rows, found = rows[rows.config.str.match("[12]-[12]-")], False
    for (part, config), group in rows.groupby(["part", "config"], sort=False):
        steps = int(group.steps.min())
        short, long = _gaps(group[group.steps == steps]), _gaps(group[group.steps == TIMES * steps])
        if not len(long):
            continue
        found, left = True, long.mean() / short.mean()
        agrees, p = _less(long, PART * short)
        measured = (
            f"{part} at {config}: {short.mean():.3f} nats after {steps:,} steps, {long.mean():.3f} after "
            f"{TIMES * steps:,} ({left:.2f} of it); the bar is {PART}{p}"
        )
        yield Verdict(claim, task, measured, agrees)
    if not found:
        needed = f"runs of {' or '.join(EARLIER)} at 1 or 2 bits, and of {TIMES} times their steps"
        yield Verdict.not_run(claim, task, needed)


def _not_pretrained(tables: Tables, task: str) -> Iterable[Verdict]:
    claim = "(h) A student cut from its teacher needs no pre-training of its own"
    rows = tables.comparisons[(tables.comparisons.task == task) & (tables.comparisons.baseline == PRETRAINED)]
    for row in rows.itertuples():
        measured = (
            f"{row.config}: {row.score:.2f} against {row.baseline_score:.2f} of one that was pre-trained at its depth, "
            f"p = {written_p(row.p_value)}; the bar: not behind"
        )
        ahead = row.score >= row.baseline_score
        yield Verdict(claim, task, measured, True if ahead else significant(-1, row.p_value))
    if rows.empty:
        yield Verdict.not_run(claim, task, "a task beside it, whose teacher is pre-trained at a student's depth")


def _contrast(tables: Tables, task: str) -> Iterable[Verdict]:
    claim = "(j) Contrast of tokens helps at equal steps"
    yield from _pairs(tables, task, claim, CONTRAST)


def _clips(tables: Tables, task: str) -> Iterable[Verdict]:
    for name, preset in CLIPS:
        claim = f"(k) Dynamic scaling beats {name} at 2 bits"
        yield from _pairs(tables, task, claim, [("quantgpt", preset)], bits="2-2-")


def _pairs(
    tables: Tables, task: str, claim: str, pairs: Sequence[tuple[str, str]], bits: str = ""
) -> Iterable[Verdict]:
    """A line for each config and each pair of presets, of which the first one is claimed to be better."""
    rows, found = tables.runs[tables.runs.task == task], False
    rows = rows[rows.config.str.startswith(bits)]
    for config, steps in dict.fromkeys(zip(rows.config, rows.steps, strict=True)):
        group = rows[(rows.config == config) & (rows.steps == steps)]
        for better, other in pairs:
            ours, theirs = (_gaps(group[group.part == name]) for name in (better, other))
            if not (len(ours) and len(theirs)):
                continue
            found = True
            agrees, p = _less(ours, theirs)
            measured = (
                f"{config} after {steps:,} steps: gap {ours.mean():.3f} of {better} against {theirs.mean():.3f} of "
                f"{other}{p}"
            )
            yield Verdict(claim, task, measured, agrees)
    if not found:
        yield Verdict.not_run(claim, task, "runs of " + ", or of ".join(" and ".join(pair) for pair in pairs))


def _gaps(rows: pandas.DataFrame) -> np.ndarray:
    """Validation loss less the teacher's, (runs,), in nats a token or text."""
    return (rows.validation_loss - rows.teacher_loss).to_numpy(dtype=float)


def _less(ours: np.ndarray, theirs: np.ndarray) -> tuple[bool | None, str]:
    """Whether gaps are smaller than others, over seeds, and the p-value in words; not decided by a single seed."""
    p_value = welch_p_value(ours, theirs)
    if p_value is None:
        return None, f"; {min(len(ours), len(theirs))} seed, which decides nothing"
    return significant(theirs.mean() - ours.mean(), p_value), f", p = {written_p(p_value)}"
