"""The papers' claims, each beside what this study measured. Every number is read from the tables in ``results/``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas

from dqlib.study.evaluation.bootstrap import welch_p_value
from dqlib.study.evaluation.similarity import HELD_OUT_PAIRS
from dqlib.study.params.kinds import SEQ2SEQ
from dqlib.study.params.tasks import TASKS
from dqlib.study.report.names import METRIC_NAMES, QUANTIZATION_ALONE, UNDECIDED, is_model
from dqlib.study.report.verdicts import (
    NOT_RUN,
    PRETRAINED,
    Basis,
    Retention,
    Tables,
    Verdict,
    ahead,
    corrected,
    decided,
    listed,
    needed,
    needed_by_p,
    not_run,
    significant,
    written_p,
)

#: A claim of "little loss", or of none, holds where at least this part of the teacher's score is left.
LITTLE, NOTHING = 0.95, 0.99
#: The same by what is lost.
LEAST = {"little": LITTLE, "nothing": NOTHING}
#: A perplexity is near the teacher's where it is at most that many times as large.
NEAR = 1.2
#: More training, and the part of the gap that it may leave at most.
TIMES, PART = 8, 0.5
#: Presets of earlier work that are trained for longer.
EARLIER = ("dq-bart", "xtc", "quantgpt")
#: Presets that differ by the contrast of tokens alone: with it, and without.
CONTRAST = (("quantgpt", "quantgpt-no-contrast"), ("dqlib-with-contrast", "dqlib"))
#: Presets whose clip at 2 bits is fixed or learned, and which are else QuantGPT's.
CLIPS = (("a fixed clip", "quantgpt-fixed-clip"), ("a learned clip", "quantgpt-learned-clip"))


def claims_table(tables: Tables) -> pandas.DataFrame:
    """Every claim that the tables have the rows for; columns ``claim``, ``task``, ``measured``, ``verdict``."""
    parts = (_joint, _headline, _limit, _translation, _accumulation, _similarity, _few_layers, _gpt2, _of_runs)
    return pandas.DataFrame([verdict for part in parts for verdict in part(tables)], columns=Verdict._fields)


def _joint(tables: Tables) -> Iterable[Verdict]:
    claim = "(a) Distilling and quantizing together beats quantization alone"
    alone = tables.comparisons[tables.comparisons.baseline == QUANTIZATION_ALONE]
    for row, p_value in corrected(list(alone.itertuples())):
        scores = f"{row.score:.2f} against {row.baseline_score:.2f} {METRIC_NAMES[row.headline]}"
        measured = f"{row.config}: {scores}, p = {written_p(p_value)}"
        more = needed_by_p(tables.basis(row), row.p_value, len(alone))
        yield decided(claim, row.task, measured, ahead(row, p_value), more)


def _headline(tables: Tables) -> Iterable[Verdict]:
    claims = {task: TASKS[task].claim for task in tables.tasks}
    for (who, loss), task in sorted((claim, task) for task, claim in claims.items() if claim):
        half = tables.retention_of(task, "2-2-8", "half")
        if half is not None:
            yield half.verdict(f"(b) At the shape of 16.5x, {who} {loss}", task, LEAST[loss])


def _limit(tables: Tables) -> Iterable[Verdict]:
    by_task = tables.retentions(tables.of_kind(SEQ2SEQ), "2-2-8", "one")
    if len(by_task) > 1:
        kept = [each for each in by_task.values() if each.decided]
        apart = bool(kept) and max(each.low for each in kept) > min(each.high for each in kept)
        measured = f"2-2-8 1-1 keeps: {listed(by_task)}; the bar: intervals of the best and the worst apart"
        claim = "(c) At the shape of 27.7x, the loss differs by task"
        yield decided(claim, "all", measured, apart or None, _apart(kept))


def _apart(kept: list[Retention]) -> str:
    """How many times the documents, and seeds, would set the intervals of the best and the worst task apart."""
    ordered = sorted(kept, key=lambda each: each.part)
    if not ordered or ordered[0].part == ordered[-1].part:
        return ""
    worst, best = ordered[0], ordered[-1]
    widths = best.part - best.low + worst.high - worst.part
    counted = "documents and seeds" if max(worst.basis.seeds, best.basis.seeds) > 1 else "documents"
    return f"; {(widths / (best.part - worst.part)) ** 2:.1f} times the {counted} of each task would decide it"


def _translation(tables: Tables) -> Iterable[Verdict]:
    by_task = tables.retentions(tables.of_kind(SEQ2SEQ), "2-2-8", "full")
    for translation in (task for task in tables.tasks if TASKS[task].translates):
        whole = tables.retention_of(translation, "8-8-8", "full")
        if whole is not None:
            yield whole.verdict("(d) Translation keeps its quality at 8 bits", translation, NOTHING)
        others = [each for task, each in by_task.items() if task != translation]
        if translation in by_task and others:
            claim, ours = "(d) Translation loses more than the others at 2 bits", by_task[translation]
            more = all(ours.high < each.low for each in others)
            less = any(ours.low > each.high for each in others)
            measured = f"2-2-8 at full depth keeps: {listed(by_task)}"
            yield decided(claim, translation, measured, True if more else False if less else None)


def _accumulation(tables: Tables) -> Iterable[Verdict]:
    claim = "(e) Errors accumulate along the output"
    rows = _of_two_bits(tables, tables.accumulation)
    for row, p_value in corrected(rows):
        measured = (
            f"{row.config}: {row.early:.1f} points of recall lost in the first part of the reference, "
            f"{row.late:.1f} in the last, p = {written_p(p_value)}"
        )
        more = needed_by_p(tables.basis(row), row.p_value, len(rows))
        yield decided(claim, row.task, measured, significant(row.late - row.early, p_value), more)


def _similarity(tables: Tables) -> Iterable[Verdict]:
    claim = "(f) Few bits make representations of tokens alike"
    for row in _of_two_bits(tables, tables.similarity):
        measured = (
            f"{row.config}: mean cosine of different tokens {row.decoder:.3f} against {row.teacher:.3f} "
            f"in the teacher ({row.more_alike:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f})"
        )
        held_out = tables.basis(row)._replace(number=HELD_OUT_PAIRS, what="held-out texts")
        more = needed(held_out, (row.more_alike, row.low, row.high), 0.0)
        yield decided(claim, row.task, measured, True if row.low > 0 else False if row.high < 0 else None, more)


def _few_layers(tables: Tables) -> Iterable[Verdict]:
    claim = "(i) One bit and fewer than half of the layers keep the accuracy"
    for task in tables.of_kind("classification"):
        teacher, students = tables.models(task)
        few = students.config.str.startswith("1-1-8 ") & (2 * students.encoder_layers < teacher.encoder_layers)
        if not few.any():
            layers = teacher.encoder_layers
            yield not_run(claim, task, f"a student 1-1-8 of at most {(layers - 1) // 2} of {layers} layers")
            continue
        student = students[few].sort_values("encoder_layers").iloc[-1]
        kept = tables.retention_in(student)
        yield kept.verdict(claim, task, LITTLE, f"{student.compression:.1f}x smaller, {kept.against(LITTLE)}")


def _gpt2(tables: Tables) -> Iterable[Verdict]:
    claim = "(l) At 2 bits a language model is near its teacher's perplexity"
    for task in tables.of_kind("language_modelling"):
        kept = tables.retention_of(task, "2-2-8", "full")
        if kept is None:
            yield not_run(claim, task, "a student 2-2-8 of all layers")
            continue
        times = f"{1 / kept.part:.2f} ({1 / kept.high:.2f} to {1 / kept.low:.2f}) times" if kept.decided else UNDECIDED
        measured = f"{kept.config}: {times} the teacher's perplexity; the bar is {NEAR}"
        yield kept.verdict(claim, task, 1 / NEAR, measured)


def _of_runs(tables: Tables) -> Iterable[Verdict]:
    """The claims (g), (h), (j) and (k), for each task that they are about; (j) of texts, too, where such runs are.

    Runs are judged by the gap of their validation loss to the teacher's, over seeds: it tells methods apart where
    scores of the test do not, since its spread over seeds is a hundredth of a nat. Not (a): the loss is of references,
    and who learns from them alone may have a lower one than its teacher and write worse texts (``docs/presets.md``).
    """
    found: list[_OfRuns | Verdict] = []
    contrast = "(j) Contrast of tokens helps at equal steps"
    for task in tables.of_kind(SEQ2SEQ):
        lines = _pairs(tables, task, contrast, CONTRAST)
        found += [each for each in lines if isinstance(each, _OfRuns) or each.verdict != NOT_RUN]
    for task in tables.of_kind("classification"):
        found += [*_longer(tables, task), *_not_pretrained(tables, task)]
    for task in tables.of_kind("language_modelling"):
        found += _pairs(tables, task, contrast, CONTRAST)
        for name, preset in CLIPS:
            claim = f"(k) Dynamic scaling beats {name} at 2 bits"
            found += _pairs(tables, task, claim, [("quantgpt", preset)], bits="2-2-")
    for each in found:
        if isinstance(each, Verdict):
            yield each
            continue
        letter = each.claim[:3]  # as in "(k)", whose two lines are one family
        family = [other for other in found if isinstance(other, _OfRuns) and other.claim.startswith(letter)]
        p_value = dict(corrected(family))[each]
        measured, more = f"{each.measured}, p = {written_p(p_value)}", significant(each.more, p_value)
        needs = needed_by_p(Basis(each.seeds, what="seeds"), each.p_value, len(family))
        yield decided(each.claim, each.task, measured, more, needs)


class _OfRuns(NamedTuple):
    """A comparison of gaps over seeds: by how much the claim holds, and the p-value before Holm's correction."""

    claim: str
    task: str
    measured: str
    more: float
    p_value: float
    seeds: int


def _of_runs_of(claim: str, task: str, measured: str, ours: np.ndarray, theirs: np.ndarray) -> _OfRuns | Verdict:
    """The claim that our gaps are smaller than theirs, (seeds,) each; a single seed decides nothing."""
    p_value, seeds = welch_p_value(ours, theirs), min(len(ours), len(theirs))
    if p_value is None:
        return decided(claim, task, f"{measured}; {seeds} seed, which decides nothing", None)
    return _OfRuns(claim, task, measured, float(theirs.mean() - ours.mean()), p_value, seeds)


def _longer(tables: Tables, task: str) -> list[_OfRuns | Verdict]:
    claim = f"(g) Few bits are under-trained: {TIMES} times the steps halve the gap"
    rows = tables.runs[(tables.runs.task == task) & tables.runs.part.isin(EARLIER)]
    rows = rows[rows.config.str.match("[12]-[12]-")]
    found: list[_OfRuns | Verdict] = []
    for (part, config), group in rows.groupby(["part", "config"], sort=False):
        steps = int(group.steps.min())
        short, long = _gaps(group[group.steps == steps]), _gaps(group[group.steps == TIMES * steps])
        if len(long):
            measured = (
                f"{part} at {config}: {short.mean():.3f} nats after {steps:,} steps, {long.mean():.3f} after "
                f"{TIMES * steps:,} ({long.mean() / short.mean():.2f} of it); the bar is {PART}"
            )
            found.append(_of_runs_of(claim, task, measured, long, PART * short))
    needed = f"runs of {' or '.join(EARLIER)} at 1 or 2 bits, and of {TIMES} times their steps"
    return found or [not_run(claim, task, needed)]


def _not_pretrained(tables: Tables, task: str) -> list[Verdict]:
    claim = "(h) A student cut from its teacher needs no pre-training of its own"
    rows, found = tables.comparisons[tables.comparisons.baseline == PRETRAINED], []
    for row in rows[rows.task == task].itertuples():
        kept = Retention(row.config, METRIC_NAMES[row.headline], row.kept, row.low, row.high, tables.basis(row))
        measured = (
            f"{row.config}: {row.score:.2f} against {row.baseline_score:.2f} of one that was pre-trained at its depth, "
            f"which is {kept} of it; the bar is {100 * NOTHING:.0f}%"
        )
        found.append(kept.verdict(claim, task, NOTHING, measured))
    return found or [not_run(claim, task, "a task beside it, whose teacher is pre-trained at a student's depth")]


def _pairs(
    tables: Tables, task: str, claim: str, pairs: Sequence[tuple[str, str]], bits: str = ""
) -> list[_OfRuns | Verdict]:
    """A line for each config and each pair of presets, of which the first one is claimed to be better."""
    rows = tables.runs[(tables.runs.task == task) & tables.runs.config.str.startswith(bits)]
    found: list[_OfRuns | Verdict] = []
    for (config, steps), group in rows.groupby(["config", "steps"], sort=False):
        for better, other in pairs:
            ours, theirs = (_gaps(group[group.part == name]) for name in (better, other))
            if len(ours) and len(theirs):
                gaps = f"gap {ours.mean():.3f} of {better} against {theirs.mean():.3f} of {other}"
                found.append(_of_runs_of(claim, task, f"{config} after {steps:,} steps: {gaps}", ours, theirs))
    return found or [not_run(claim, task, "runs of " + ", or of ".join(" and ".join(pair) for pair in pairs))]


def _gaps(rows: pandas.DataFrame) -> np.ndarray:
    """Validation loss less the teacher's, (runs,), in nats per token or text."""
    return (rows.validation_loss - rows.teacher_loss).to_numpy(dtype=float)


def _of_two_bits(tables: Tables, table: pandas.DataFrame) -> list[Any]:
    """The row of each task's student of two bits with all layers, where it was run."""
    found: list[Any] = []
    for task in tables.tasks:
        student = tables.shape(task, "2-2-8", "full")
        if student is not None:
            found += table[is_model(table, student)].itertuples()
    return found
