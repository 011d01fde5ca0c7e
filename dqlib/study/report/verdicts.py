"""What claims are read from, and what is said of them: tables, what is left of a score, a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, NamedTuple

import pandas

from dqlib.study.evaluation.bootstrap import holm
from dqlib.study.evaluation.records import FALLING
from dqlib.study.params.kinds import KINDS
from dqlib.study.params.tasks import TASKS, kind_of
from dqlib.study.report.names import METRIC_NAMES, QUANTIZATION_ALONE, UNDECIDED, is_model, named_shapes, percent

#: A difference is decided where its p-value is smaller.
SIGNIFICANT = 0.05
#: Where more documents would be needed to decide a claim, their number says no more than that.
MOST_NEEDED = 1_000_000
#: No p-value is taken to be smaller, as quantiles end somewhere.
LEAST_P = 1e-300
#: A claim whose models or runs are missing.
NOT_RUN = "not run"
#: Baseline of a comparison: a model of the same layers that was pre-trained and fine-tuned at that depth.
PRETRAINED = "pre-trained"
#: Columns of the table of the benchmark's runs.
RUNS = ("task", "part", "config", "seed", "steps", "validation_loss", "teacher_loss")


class Basis(NamedTuple):
    """What an interval or p-value is over: documents (or other ``what``), and seeds of the model."""

    number: int
    seeds: int = 1
    what: str = "documents"


@dataclass(frozen=True)
class Tables:
    """The tables that claims are read from, each as in ``results/tables/``.

    ``runs`` are those of the benchmark: ``parts.csv`` of every task that has one, with a column ``task``.
    """

    metrics: pandas.DataFrame
    comparisons: pandas.DataFrame
    retention: pandas.DataFrame
    accumulation: pandas.DataFrame
    similarity: pandas.DataFrame
    runs: pandas.DataFrame = field(default_factory=lambda: pandas.DataFrame(columns=RUNS))

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order of the table; those that stand beside another are none."""
        return [task for task in dict.fromkeys(self.metrics.task) if task not in TASKS or TASKS[task].compared]

    def of_kind(self, kind: str) -> list[str]:
        """Tasks of a kind, in the order of the table."""
        return [task for task in self.tasks if kind_of(task) is KINDS[kind]]

    def models(self, task: str) -> tuple[pandas.Series, pandas.DataFrame]:
        """The teacher of a task, and the students that were trained with it."""
        rows = self.metrics[(self.metrics.task == task) & (self.metrics.preset != QUANTIZATION_ALONE)]
        return rows[rows.role == "teacher"].iloc[0], rows[rows.role == "student"]

    def shape(self, task: str, bits: str, shape: str) -> pandas.Series | None:
        """The student of a task with these bits and a shape of :func:`named_shapes`; None if not run."""
        teacher, students = self.models(task)
        encoder, decoder = named_shapes(teacher).get(shape, ("", ""))
        match = students[students.config == f"{bits} {encoder}-{decoder}"]
        return None if match.empty else match.iloc[0]

    def basis(self, model: Any) -> Basis:
        """What the score of the model of a row rests on."""
        row = self.metrics[is_model(self.metrics, model)].iloc[0]
        return Basis(int(row.n_test), int(row.get("seeds", 1)))

    def retention_of(self, task: str, bits: str, shape: str) -> Retention | None:
        """The retention of such a student; None if not run."""
        student = self.shape(task, bits, shape)
        return None if student is None else self.retention_in(student)

    def retentions(self, tasks: Iterable[str], bits: str, shape: str) -> dict[str, Retention]:
        """The same of each of these tasks where it was run."""
        return {task: kept for task in tasks if (kept := self.retention_of(task, bits, shape))}

    def retention_in(self, student: pandas.Series) -> Retention:
        """The retention of the student of a row of the metrics."""
        row = self.retention[is_model(self.retention, student)].iloc[0]
        metric = METRIC_NAMES[student.headline]
        return Retention(student.config, metric, row.retention, row.low, row.high, self.basis(student))


@dataclass(frozen=True)
class Retention:
    """A student's share of its teacher's score, with its 95% interval; NaN where the teacher scores zero."""

    config: str
    metric: str
    part: float
    low: float
    high: float
    basis: Basis

    def __str__(self) -> str:
        return f"{percent(self.part)} ({100 * self.low:.1f} to {100 * self.high:.1f})" if self.decided else UNDECIDED

    @property
    def decided(self) -> bool:
        """Whether the teacher's score leaves something to keep a part of."""
        return not math.isnan(self.low)

    def at_least(self, least: float) -> bool | None:
        """Whether it is at least that much; None where the bar lies within the interval."""
        return True if self.low >= least else False if self.high < least else None

    def against(self, least: float) -> str:
        """What it is, and what it is held against."""
        if not self.decided:
            return f"{self.config}: the teacher's {self.metric} is too near to zero for a part of it"
        return f"{self.config} keeps {self} of the teacher's {self.metric}; the bar is {100 * least:.0f}%"

    def verdict(self, claim: str, task: str, least: float, measured: str | None = None) -> Verdict:
        """The line of a claim that at least that much is kept; ``measured`` stands in place of :meth:`against`."""
        more = needed(self.basis, (self.part, self.low, self.high), least) if self.decided else ""
        return decided(claim, task, measured or self.against(least), self.at_least(least), more)


class Verdict(NamedTuple):
    """One line of the table of claims."""

    claim: str
    task: str
    measured: str
    verdict: str


def decided(claim: str, task: str, measured: str, agrees: bool | None, more: str = "") -> Verdict:
    """The line of a claim; ``agrees`` is None where the data do not decide, and ``more`` then says what would."""
    measured += more if agrees is None else ""
    return Verdict(claim, task, measured, {True: "agrees", False: "does not agree", None: UNDECIDED}[agrees])


def not_run(claim: str, task: str, needed: str) -> Verdict:
    """The line of a claim whose models or runs are missing, and what it needs."""
    return Verdict(claim, task, f"needs {needed}", NOT_RUN)


def needed(basis: Basis, measured: tuple[float, float, float], bar: float) -> str:
    """What would decide on which side of a bar a value is, as the end of a line that is not decided.

    Intervals narrow with the root of the number of documents, and of seeds where there are several: with that many
    times both, they end at the bar if what was measured stays. ``measured`` is the value, and both ends of its 95%
    interval; the bar lies between these.
    """
    value, low, high = measured
    width = value - low if bar < value else high - value
    return _needed(basis, width / abs(value - bar) if value != bar else math.inf)


def needed_by_p(basis: Basis, p_value: float, tests: int) -> str:
    """The same of a difference that is tested: so many that its p-value is below :data:`SIGNIFICANT`.

    ``p_value`` is two-sided, before Holm's correction over the ``tests`` of a claim, which asks the most of the first.
    """
    there, needs = (-NormalDist().inv_cdf(max(p, LEAST_P) / 2) for p in (p_value, SIGNIFICANT / tests))
    return _needed(basis, needs / there if there > 0 else math.inf)


def _needed(basis: Basis, times: float) -> str:
    most = basis.number * times**2
    if most > MOST_NEEDED:
        return f"; more than {MOST_NEEDED:,} {basis.what} would be needed to decide it"
    digits = max(0, math.floor(math.log10(most)) - 1) if most >= 1 else 0
    seeds = f" from {math.ceil(basis.seeds * times**2):,} seeds" if basis.seeds > 1 else ""
    return f"; about {math.ceil(most / 10**digits) * 10**digits:,} {basis.what}{seeds} would decide it"


def corrected(rows: Sequence[Any]) -> list[tuple[Any, float]]:
    """The rows of one claim, each with its p-value after Holm's correction over all of them."""
    return list(zip(rows, holm([row.p_value for row in rows]), strict=True))


def ahead(row: Any, p_value: float) -> bool | None:
    """Whether a row of the comparisons is better than its baseline; None where that is not decided."""
    more = row.score - row.baseline_score
    return significant(-more if row.headline in FALLING else more, p_value)


def listed(by_task: dict[str, Retention]) -> str:
    """Tasks with what is kept in each."""
    return ", ".join(f"{task} {kept}" for task, kept in by_task.items())


def significant(difference: float, p_value: float) -> bool | None:
    """Whether a difference is above zero; None where that is not decided."""
    return bool(difference > 0) if p_value < SIGNIFICANT else None


def written_p(value: float) -> str:
    """A p-value as the table has it."""
    return "under 0.001" if value < 0.001 else f"{value:.3f}"
