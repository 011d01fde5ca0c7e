"""The papers' claims, each beside what this study measured. Every number is read from the tables in ``results/``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas

from dqlib.study.figures import METRIC_NAMES

#: A claim of "little loss" holds where at least this part of the teacher's score is left.
LITTLE = 0.95
#: A claim of "no loss" holds where at least this part is left.
NOTHING = 0.99
#: Losses differ between tasks where the retention of the best and of the worst are this far apart.
APART = 0.05
SIGNIFICANT = 0.05

QUANTIZATION_ALONE = "quantization-only"


@dataclass(frozen=True)
class Tables:
    """What claims are read from.

    Attributes:
        metrics: rows of ``metrics.csv``, all tasks.
        comparisons: rows of ``comparisons.csv``: joint training against quantization alone.
        accumulation: rows of ``accumulation.csv``.
        likeness: rows of ``likeness.csv``.
    """

    metrics: pandas.DataFrame
    comparisons: pandas.DataFrame
    accumulation: pandas.DataFrame
    likeness: pandas.DataFrame

    @property
    def tasks(self) -> list[str]:
        """Tasks in the order of the table."""
        return list(dict.fromkeys(self.metrics.task))

    def shape(self, task: str, bits: str, shape: str) -> pandas.Series | None:
        """The student of a task with these bits and the shape ``full``, ``half`` or ``one``; None if not run."""
        rows = self.metrics[(self.metrics.task == task) & (self.metrics.method != QUANTIZATION_ALONE)]
        teacher = rows[rows.role == "teacher"].iloc[0]
        encoder, decoder = teacher.encoder_layers, teacher.decoder_layers
        layers = {"full": (encoder, decoder), "half": (encoder, decoder // 2), "one": (1, 1)}[shape]
        config = f"{bits} {layers[0]}-{layers[1]}"
        match = rows[(rows.config == config) & (rows.role == "student")]
        return None if match.empty else match.iloc[0]


@dataclass(frozen=True)
class Verdict:
    """One line of the table of claims."""

    claim: str
    task: str
    measured: str
    agrees: bool

    def row(self) -> dict[str, str]:
        """As text, for CSV and Markdown."""
        return {
            "claim": self.claim,
            "task": self.task,
            "measured": self.measured,
            "verdict": "agrees" if self.agrees else "does not agree",
        }


def claims_table(tables: Tables) -> pandas.DataFrame:
    """Every claim that the tables have the rows for; columns ``claim``, ``task``, ``measured``, ``verdict``."""
    parts = (_joint, _headline, _limit, _translation, _accumulation, _likeness)
    return pandas.DataFrame(
        [verdict.row() for part in parts for verdict in part(tables)], columns=["claim", "task", "measured", "verdict"]
    )


def _joint(tables: Tables) -> Iterable[Verdict]:
    claim = "(a) Distilling and quantizing together beats quantization alone"
    for row in tables.comparisons.itertuples():
        scores = f"{row.score:.2f} against {row.baseline_score:.2f} {METRIC_NAMES[row.headline]}"
        better = row.score > row.baseline_score and row.p_value < SIGNIFICANT
        yield Verdict(claim, row.task, f"{row.config}: {scores}, p = {_p(row.p_value)}", better)


def _headline(tables: Tables) -> Iterable[Verdict]:
    wanted = {
        "eli5": ("(b) At the shape of 16.5x, long-form answers lose nothing", NOTHING),
        "summarization": ("(b) At the shape of 16.5x, summarization loses little", LITTLE),
    }
    for task, (claim, least) in wanted.items():
        row = tables.shape(task, "2-2-8", "half") if task in tables.tasks else None
        if row is not None:
            measured = f"{row.config}, {row.compression:.1f}x smaller: {_kept(row)} (counts from {100 * least:.0f}%)"
            yield Verdict(claim, task, measured, row.retention >= least)


def _limit(tables: Tables) -> Iterable[Verdict]:
    rows = {task: tables.shape(task, "2-2-8", "one") for task in tables.tasks}
    kept = {task: row.retention for task, row in rows.items() if row is not None}
    if len(kept) > 1:
        measured = ", ".join(f"{task} {100 * part:.1f}%" for task, part in kept.items())
        apart = max(kept.values()) - min(kept.values())
        yield Verdict(
            "(c) At the shape of 27.7x, the loss differs by task", "all",
            f"2-2-8 1-1 keeps: {measured}; {100 * apart:.1f} points apart (counts from {100 * APART:.0f})",
            apart >= APART,
        )  # fmt: skip


def _translation(tables: Tables) -> Iterable[Verdict]:
    if "translation" not in tables.tasks:
        return
    row = tables.shape("translation", "8-8-8", "full")
    if row is not None:
        yield Verdict(
            "(d) Translation keeps its quality at 8 bits", "translation",
            f"{row.config}: {_kept(row)} (counts from {100 * NOTHING:.0f}%)", row.retention >= NOTHING,
        )  # fmt: skip
    rows = {task: tables.shape(task, "2-2-8", "full") for task in tables.tasks}
    kept = {task: row.retention for task, row in rows.items() if row is not None}
    if "translation" in kept and len(kept) > 1:
        yield Verdict(
            "(d) Translation loses more than the others at 2 bits", "translation",
            "2-2-8 at full depth keeps: " + ", ".join(f"{task} {100 * part:.1f}%" for task, part in kept.items()),
            kept["translation"] == min(kept.values()),
        )  # fmt: skip


def _accumulation(tables: Tables) -> Iterable[Verdict]:
    claim = "(e) Errors accumulate along the output"
    for task in tables.tasks:
        student = tables.shape(task, "2-2-8", "full")
        rows = tables.accumulation[tables.accumulation.task == task]
        match = rows[rows.config == student.config] if student is not None else rows.iloc[:0]
        for row in match[match.method == getattr(student, "method", None)].itertuples():
            measured = (
                f"{row.config}: {row.early:.1f} points of recall lost in the first part of the reference, "
                f"{row.late:.1f} in the last, p = {_p(row.p_value)}"
            )
            yield Verdict(claim, task, measured, row.late > row.early and row.p_value < SIGNIFICANT)


def _likeness(tables: Tables) -> Iterable[Verdict]:
    claim = "(f) Few bits make representations of tokens alike"
    for task in tables.tasks:
        student = tables.shape(task, "2-2-8", "full")
        if student is None:
            continue
        rows = tables.likeness[(tables.likeness.task == task) & (tables.likeness.config == student.config)]
        for row in rows[rows.method == student.method].itertuples():
            measured = (
                f"{row.config}: mean cosine of different tokens {row.decoder:.3f} against {row.teacher:.3f} "
                f"in the teacher ({row.more_alike:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f})"
            )
            yield Verdict(claim, task, measured, row.low > 0)


def _kept(row: pandas.Series) -> str:
    return f"{100 * row.retention:.1f}% of the teacher's {METRIC_NAMES[row.headline]} is left"


def _p(value: float) -> str:
    return "under 0.001" if value < 0.001 else f"{value:.3f}"
