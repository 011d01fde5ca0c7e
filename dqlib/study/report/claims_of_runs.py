"""Claims that runs of the benchmark decide, by the gap of their validation loss to the teacher's, over seeds.

The validation loss tells methods apart where scores of the test do not: its spread over seeds is a hundredth of a nat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas

from dqlib.study.evaluation.bootstrap import welch_p_value
from dqlib.study.params.kinds import SEQ2SEQ
from dqlib.study.report.verdicts import NOT_RUN, PRETRAINED, Tables, Verdict, decided, not_run, significant, written_p

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
    contrast = "(j) Contrast of tokens helps at equal steps"
    for task in tables.of_kind(SEQ2SEQ):
        yield from (each for each in _pairs(tables, task, contrast, CONTRAST) if each.verdict != NOT_RUN)
    for task in tables.of_kind("classification"):
        yield from _longer(tables, task)
        yield from _not_pretrained(tables, task)
    for task in tables.of_kind("language_modelling"):
        yield from _pairs(tables, task, contrast, CONTRAST)
        for name, preset in CLIPS:
            claim = f"(k) Dynamic scaling beats {name} at 2 bits"
            yield from _pairs(tables, task, claim, [("quantgpt", preset)], bits="2-2-")


def _longer(tables: Tables, task: str) -> list[Verdict]:
    claim = f"(g) Few bits are under-trained: {TIMES} times the steps halve the gap"
    rows = tables.runs[(tables.runs.task == task) & tables.runs.part.isin(EARLIER)]
    rows, found = rows[rows.config.str.match("[12]-[12]-")], []
    for (part, config), group in rows.groupby(["part", "config"], sort=False):
        steps = int(group.steps.min())
        short, long = _gaps(group[group.steps == steps]), _gaps(group[group.steps == TIMES * steps])
        if len(long):
            agrees, p = _less(long, PART * short)
            measured = (
                f"{part} at {config}: {short.mean():.3f} nats after {steps:,} steps, {long.mean():.3f} after "
                f"{TIMES * steps:,} ({long.mean() / short.mean():.2f} of it); the bar is {PART}{p}"
            )
            found.append(decided(claim, task, measured, agrees))
    needed = f"runs of {' or '.join(EARLIER)} at 1 or 2 bits, and of {TIMES} times their steps"
    return found or [not_run(claim, task, needed)]


def _not_pretrained(tables: Tables, task: str) -> list[Verdict]:
    claim = "(h) A student cut from its teacher needs no pre-training of its own"
    rows, found = (
        tables.comparisons[(tables.comparisons.task == task) & (tables.comparisons.baseline == PRETRAINED)],
        [],
    )
    for row in rows.itertuples():
        measured = (
            f"{row.config}: {row.score:.2f} against {row.baseline_score:.2f} of one that was pre-trained at its depth, "
            f"p = {written_p(row.p_value)}; the bar: not behind"
        )
        agrees = row.score >= row.baseline_score or significant(-1, row.p_value)
        found.append(decided(claim, task, measured, agrees))
    return found or [not_run(claim, task, "a task beside it, whose teacher is pre-trained at a student's depth")]


def _pairs(tables: Tables, task: str, claim: str, pairs: Sequence[tuple[str, str]], bits: str = "") -> list[Verdict]:
    """A line for each config and each pair of presets, of which the first one is claimed to be better."""
    rows, found = tables.runs[tables.runs.task == task], []
    rows = rows[rows.config.str.startswith(bits)]
    for (config, steps), group in rows.groupby(["config", "steps"], sort=False):
        for better, other in pairs:
            ours, theirs = (_gaps(group[group.part == name]) for name in (better, other))
            if len(ours) and len(theirs):
                agrees, p = _less(ours, theirs)
                measured = (
                    f"{config} after {steps:,} steps: gap {ours.mean():.3f} of {better} against {theirs.mean():.3f} of "
                    f"{other}{p}"
                )
                found.append(decided(claim, task, measured, agrees))
    return found or [not_run(claim, task, "runs of " + ", or of ".join(" and ".join(pair) for pair in pairs))]


def _gaps(rows: pandas.DataFrame) -> np.ndarray:
    """Validation loss less the teacher's, (runs,), in nats a token or text."""
    return (rows.validation_loss - rows.teacher_loss).to_numpy(dtype=float)


def _less(ours: np.ndarray, theirs: np.ndarray) -> tuple[bool | None, str]:
    """Whether gaps are smaller than others, over seeds, and the p-value in words; not decided by a single seed."""
    p_value = welch_p_value(ours, theirs)
    if p_value is None:
        return None, f"; {min(len(ours), len(theirs))} seed, which decides nothing"
    return significant(theirs.mean() - ours.mean(), p_value), f", p = {written_p(p_value)}"
