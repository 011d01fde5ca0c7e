"""The papers' claims, each beside what this study measured. Every number is read from the tables in ``results/``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas

from dqlib.study.params.kinds import SEQ2SEQ
from dqlib.study.params.tasks import TASKS
from dqlib.study.report.claims_of_runs import of_runs
from dqlib.study.report.names import METRIC_NAMES, QUANTIZATION_ALONE, UNDECIDED
from dqlib.study.report.verdicts import (
    Retention,
    Tables,
    Verdict,
    ahead,
    corrected,
    decided,
    listed,
    not_run,
    significant,
    written_p,
)

#: A claim of "little loss" holds where at least this part of the teacher's score is left.
LITTLE = 0.95
#: A claim of "no loss" holds where at least this part is left.
NOTHING = 0.99
#: The same by what is lost.
LEAST = {"little": LITTLE, "nothing": NOTHING}
#: A perplexity is near the teacher's where it is at most that many times as large.
NEAR = 1.2


def claims_table(tables: Tables) -> pandas.DataFrame:
    """Every claim that the tables have the rows for; columns ``claim``, ``task``, ``measured``, ``verdict``."""
    parts = (_joint, _headline, _limit, _translation, _accumulation, _similarity, _few_layers, _gpt2, of_runs)
    return pandas.DataFrame([verdict for part in parts for verdict in part(tables)], columns=Verdict._fields)


def _joint(tables: Tables) -> Iterable[Verdict]:
    claim = "(a) Distilling and quantizing together beats quantization alone"
    alone = tables.comparisons[tables.comparisons.baseline == QUANTIZATION_ALONE]
    for row, p_value in corrected(list(alone.itertuples())):
        scores = f"{row.score:.2f} against {row.baseline_score:.2f} {METRIC_NAMES[row.headline]}"
        measured = f"{row.config}: {scores}, p = {written_p(p_value)}"
        yield decided(claim, row.task, measured, ahead(row, p_value))


def _headline(tables: Tables) -> Iterable[Verdict]:
    claims = {task: TASKS[task].claim for task in tables.tasks}
    for (who, loss), task in sorted((claim, task) for task, claim in claims.items() if claim):
        half, least = tables.retention_of(task, "2-2-8", "half"), LEAST[loss]
        if half is not None:
            claim = f"(b) At the shape of 16.5x, {who} {loss}"
            yield decided(claim, task, _against(half, least), half.at_least(least))


def _limit(tables: Tables) -> Iterable[Verdict]:
    by_task = tables.retentions(tables.of_kind(SEQ2SEQ), "2-2-8", "one")
    if len(by_task) > 1:
        kept = [each for each in by_task.values() if each.decided]
        apart = bool(kept) and max(each.low for each in kept) > min(each.high for each in kept)
        measured = f"2-2-8 1-1 keeps: {listed(by_task)}; the bar: intervals of the best and the worst apart"
        yield decided("(c) At the shape of 27.7x, the loss differs by task", "all", measured, apart or None)


def _translation(tables: Tables) -> Iterable[Verdict]:
    by_task = tables.retentions(tables.of_kind(SEQ2SEQ), "2-2-8", "full")
    for translation in (task for task in tables.tasks if TASKS[task].translates):
        whole = tables.retention_of(translation, "8-8-8", "full")
        if whole is not None:
            claim = "(d) Translation keeps its quality at 8 bits"
            yield decided(claim, translation, _against(whole, NOTHING), whole.at_least(NOTHING))
        others = [each for task, each in by_task.items() if task != translation]
        if translation in by_task and others:
            claim, ours = "(d) Translation loses more than the others at 2 bits", by_task[translation]
            more = all(ours.high < each.low for each in others)
            less = any(ours.low > each.high for each in others)
            measured = f"2-2-8 at full depth keeps: {listed(by_task)}"
            yield decided(claim, translation, measured, True if more else False if less else None)


def _accumulation(tables: Tables) -> Iterable[Verdict]:
    claim = "(e) Errors accumulate along the output"
    for row, p_value in corrected(_of_two_bits(tables, tables.accumulation)):
        measured = (
            f"{row.config}: {row.early:.1f} points of recall lost in the first part of the reference, "
            f"{row.late:.1f} in the last, p = {written_p(p_value)}"
        )
        yield decided(claim, row.task, measured, significant(row.late - row.early, p_value))


def _similarity(tables: Tables) -> Iterable[Verdict]:
    claim = "(f) Few bits make representations of tokens alike"
    for row in _of_two_bits(tables, tables.similarity):
        measured = (
            f"{row.config}: mean cosine of different tokens {row.decoder:.3f} against {row.teacher:.3f} "
            f"in the teacher ({row.more_alike:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f})"
        )
        yield decided(claim, row.task, measured, True if row.low > 0 else False if row.high < 0 else None)


def _few_layers(tables: Tables) -> Iterable[Verdict]:
    claim = "(i) One bit and fewer than half of the layers keep the accuracy"
    for task in tables.of_kind("classification"):
        rows = tables.metrics[(tables.metrics.task == task) & (tables.metrics.preset != QUANTIZATION_ALONE)]
        layers = rows[rows.role == "teacher"].iloc[0].encoder_layers
        students = rows[(rows.role == "student") & rows.config.str.startswith("1-1-8 ")]
        students = students[2 * students.encoder_layers < layers].sort_values("encoder_layers")
        if students.empty:
            yield not_run(claim, task, f"a student 1-1-8 of at most {(layers - 1) // 2} of {layers} layers")
            continue
        kept, smaller = tables.retention_in(students.iloc[-1]), students.iloc[-1].compression
        measured = f"{_against(kept, LITTLE)}; {smaller:.1f}x smaller"
        yield decided(claim, task, measured, kept.at_least(LITTLE))


def _gpt2(tables: Tables) -> Iterable[Verdict]:
    claim = "(l) At 2 bits a language model is near its teacher's perplexity"
    for task in tables.of_kind("language_modelling"):
        kept = tables.retention_of(task, "2-2-8", "full")
        if kept is None:
            yield not_run(claim, task, "a student 2-2-8 of all layers")
            continue
        times = f"{1 / kept.part:.2f} ({1 / kept.high:.2f} to {1 / kept.low:.2f}) times" if kept.decided else UNDECIDED
        measured = f"{kept.config}: {times} the teacher's perplexity; the bar is {NEAR}"
        yield decided(claim, task, measured, kept.at_least(1 / NEAR))


def _of_two_bits(tables: Tables, table: pandas.DataFrame) -> list[Any]:
    """The row of each task's student of two bits with all layers, where it was run."""
    found: list[Any] = []
    for task in tables.tasks:
        student = tables.shape(task, "2-2-8", "full")
        if student is not None:
            rows = table[(table.task == task) & (table.config == student.config) & (table.preset == student.preset)]
            found += rows.itertuples()
    return found


def _against(retention: Retention, least: float) -> str:
    config, metric = retention.config, retention.metric
    if not retention.decided:
        return f"{config}: the teacher's {metric} is too near to zero for a part of it"
    return f"{config} keeps {retention} of the teacher's {metric}; the bar is {100 * least:.0f}%"
