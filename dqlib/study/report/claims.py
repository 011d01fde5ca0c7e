"""The papers' claims, each beside what this study measured. Every number is read from the tables in ``results/``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas

from dqlib.study.evaluation.bootstrap import holm
from dqlib.study.evaluation.records import FALLING
from dqlib.study.params.tasks import TASKS
from dqlib.study.report.names import METRIC_NAMES, QUANTIZATION_ALONE, UNDECIDED, percent

#: A claim of "little loss" holds where at least this part of the teacher's score is left.
LITTLE = 0.95
#: A claim of "no loss" holds where at least this part is left.
NOTHING = 0.99
#: The same by what is lost.
LEAST = {"little": LITTLE, "nothing": NOTHING}
#: A difference is decided where its p-value is smaller.
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Tables:
    """The tables that claims are read from, each as in ``results/tables/``."""

    metrics: pandas.DataFrame
    comparisons: pandas.DataFrame
    retention: pandas.DataFrame
    accumulation: pandas.DataFrame
    similarity: pandas.DataFrame

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order of the table."""
        return list(dict.fromkeys(self.metrics.task))

    def shape(self, task: str, bits: str, shape: str) -> pandas.Series | None:
        """The student of a task with these bits and the shape ``full``, ``half`` or ``one``; None if not run."""
        rows = self.metrics[(self.metrics.task == task) & (self.metrics.preset != QUANTIZATION_ALONE)]
        teacher = rows[rows.role == "teacher"].iloc[0]
        encoder, decoder = teacher.encoder_layers, teacher.decoder_layers
        layers = {"full": (encoder, decoder), "half": (encoder, decoder // 2), "one": (1, 1)}[shape]
        config = f"{bits} {layers[0]}-{layers[1]}"
        match = rows[(rows.config == config) & (rows.role == "student")]
        return None if match.empty else match.iloc[0]

    def retention_of(self, task: str, bits: str, shape: str) -> Retention | None:
        """The retention of such a student; None if not run."""
        student = self.shape(task, bits, shape)
        if student is None:
            return None
        rows = self.retention[(self.retention.task == task) & (self.retention.config == student.config)]
        row = rows[rows.preset == student.preset].iloc[0]
        return Retention(student.config, METRIC_NAMES[student.headline], row.retention, row.low, row.high)


@dataclass(frozen=True)
class Retention:
    """A student's share of its teacher's score, with its 95% interval; NaN where the teacher scores zero."""

    config: str
    metric: str
    part: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{percent(self.part)} ({100 * self.low:.1f} to {100 * self.high:.1f})" if self.decided else UNDECIDED

    @property
    def decided(self) -> bool:
        """Whether the teacher's score leaves something that a part could be kept of."""
        return not math.isnan(self.low)

    def at_least(self, least: float) -> bool | None:
        """Whether it is at least that much; None where the bar lies within the interval."""
        return True if self.low >= least else False if self.high < least else None


@dataclass(frozen=True)
class Verdict:
    """One line of the table of claims; ``agrees`` is None where the test documents do not decide."""

    claim: str
    task: str
    measured: str
    agrees: bool | None

    def row(self) -> dict[str, str]:
        """As text, for CSV and Markdown."""
        return {
            "claim": self.claim,
            "task": self.task,
            "measured": self.measured,
            "verdict": {True: "agrees", False: "does not agree", None: UNDECIDED}[self.agrees],
        }


def claims_table(tables: Tables) -> pandas.DataFrame:
    """Every claim that the tables have the rows for; columns ``claim``, ``task``, ``measured``, ``verdict``."""
    parts = (_joint, _headline, _limit, _translation, _accumulation, _similarity)
    return pandas.DataFrame(
        [verdict.row() for part in parts for verdict in part(tables)], columns=["claim", "task", "measured", "verdict"]
    )


def _joint(tables: Tables) -> Iterable[Verdict]:
    claim = "(a) Distilling and quantizing together beats quantization alone"
    for row, p_value in _corrected(tables.comparisons.itertuples()):
        scores = f"{row.score:.2f} against {row.baseline_score:.2f} {METRIC_NAMES[row.headline]}"
        more = row.score - row.baseline_score
        better = _significant(-more if row.headline in FALLING else more, p_value)
        yield Verdict(claim, row.task, f"{row.config}: {scores}, p = {_p(p_value)}", better)


def _headline(tables: Tables) -> Iterable[Verdict]:
    claims = {task: TASKS[task].claim for task in tables.tasks}
    for (who, loss), task in sorted((claim, task) for task, claim in claims.items() if claim):
        half, least = tables.retention_of(task, "2-2-8", "half"), LEAST[loss]
        if half is not None:
            claim = f"(b) At the shape of 16.5x, {who} {loss}"
            yield Verdict(claim, task, _against(half, least), half.at_least(least))


def _limit(tables: Tables) -> Iterable[Verdict]:
    by_task = _of_tasks(tables, "one")
    if len(by_task) > 1:
        decided = [each for each in by_task.values() if each.decided]
        apart = bool(decided) and max(each.low for each in decided) > min(each.high for each in decided)
        yield Verdict(
            "(c) At the shape of 27.7x, the loss differs by task", "all",
            f"2-2-8 1-1 keeps: {_listed(by_task)}; the bar: intervals of the best and the worst apart", apart or None,
        )  # fmt: skip


def _translation(tables: Tables) -> Iterable[Verdict]:
    by_task = _of_tasks(tables, "full")
    for translation in (task for task in tables.tasks if TASKS[task].translates):
        whole = tables.retention_of(translation, "8-8-8", "full")
        if whole is not None:
            claim = "(d) Translation keeps its quality at 8 bits"
            yield Verdict(claim, translation, _against(whole, NOTHING), whole.at_least(NOTHING))
        others = [each for task, each in by_task.items() if task != translation]
        if translation not in by_task or not others:
            continue
        ours = by_task[translation]
        more = all(ours.high < each.low for each in others)
        less = any(ours.low > each.high for each in others)
        yield Verdict(
            "(d) Translation loses more than the others at 2 bits", translation,
            f"2-2-8 at full depth keeps: {_listed(by_task)}", True if more else False if less else None,
        )  # fmt: skip


def _of_tasks(tables: Tables, shape: str) -> dict[str, Retention]:
    by_task = {task: tables.retention_of(task, "2-2-8", shape) for task in tables.tasks}
    return {task: retention for task, retention in by_task.items() if retention is not None}


def _accumulation(tables: Tables) -> Iterable[Verdict]:
    claim = "(e) Errors accumulate along the output"
    for row, p_value in _corrected(_of_two_bits(tables, tables.accumulation)):
        measured = (
            f"{row.config}: {row.early:.1f} points of recall lost in the first part of the reference, "
            f"{row.late:.1f} in the last, p = {_p(p_value)}"
        )
        yield Verdict(claim, row.task, measured, _significant(row.late - row.early, p_value))


def _similarity(tables: Tables) -> Iterable[Verdict]:
    claim = "(f) Few bits make representations of tokens alike"
    for row in _of_two_bits(tables, tables.similarity):
        measured = (
            f"{row.config}: mean cosine of different tokens {row.decoder:.3f} against {row.teacher:.3f} "
            f"in the teacher ({row.more_alike:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f})"
        )
        yield Verdict(claim, row.task, measured, True if row.low > 0 else False if row.high < 0 else None)


def _of_two_bits(tables: Tables, table: pandas.DataFrame) -> Iterable[Any]:
    """The row of each task's student of two bits with all layers, where it was run."""
    for task in tables.tasks:
        student = tables.shape(task, "2-2-8", "full")
        if student is not None:
            rows = table[(table.task == task) & (table.config == student.config) & (table.preset == student.preset)]
            yield from rows.itertuples()


def _corrected(rows: Iterable[Any]) -> Iterable[tuple[Any, float]]:
    """The rows of one claim, each with its p-value after Holm's correction over all of them."""
    family = list(rows)
    return zip(family, holm([row.p_value for row in family]), strict=True)


def _significant(difference: float, p_value: float) -> bool | None:
    """Whether a difference is above zero; None where that is not decided."""
    return bool(difference > 0) if p_value < SIGNIFICANT else None


def _against(retention: Retention, least: float) -> str:
    config, metric = retention.config, retention.metric
    if not retention.decided:
        return f"{config}: the teacher's {metric} is too near to zero for a part of it"
    return f"{config} keeps {retention} of the teacher's {metric}; the bar is {100 * least:.0f}%"


def _listed(by_task: dict[str, Retention]) -> str:
    return ", ".join(f"{task} {each}" for task, each in by_task.items())


def _p(value: float) -> str:
    return "under 0.001" if value < 0.001 else f"{value:.3f}"
