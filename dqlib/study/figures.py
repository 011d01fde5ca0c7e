"""Figures in one style: axes with units, the teacher's line, one colour a method, readable in grey."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import pandas
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dqlib.study.paths import write_bytes

#: One colour a method, in all figures (Okabe and Ito's palette, told apart by the colour-blind and in grey).
METHOD_COLOURS = {
    "dqlib": "#0072B2",
    "dq-bart-faithful": "#D55E00",
    "dq-bart": "#E69F00",
    "xtc": "#009E73",
    "quantgpt": "#CC79A7",
}
TEACHER_COLOUR = "#444444"
#: One line style and colour for each line of a figure, in order.
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#999933", "#882255")

STYLE = {
    "figure.dpi": 120,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "dqlib",  # the same ids in the same SVG
    "svg.fonttype": "none",
}

METRIC_NAMES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "rougeL": "ROUGE-L",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeLsum": "ROUGE-Lsum",
}


def tradeoff(metrics: pandas.DataFrame, task: str) -> Figure:
    """Quality against size: a point a student with its 95% interval, and the teacher's line.

    Args:
        metrics: rows of ``metrics.csv``.
        task: the task to draw.
    """
    rows = metrics[metrics.task == task]
    teacher = rows[rows.role == "teacher"].iloc[0]
    students = rows[rows.role == "student"].sort_values("size_bytes").reset_index(drop=True)
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
        _teacher_line(axes, teacher)
        for method, group in students.groupby("method", sort=True):
            axes.errorbar(
                group.size_bytes / 1e6,
                group.score,
                yerr=[group.score - group.score_low, group.score_high - group.score],
                fmt="o",
                capsize=3,
                color=METHOD_COLOURS.get(method, TEACHER_COLOUR),
                label=f"student ({method})",
            )
        low, high = rows.score_low.min(), rows.score_high.max()
        room = max(high - low, 1e-9)
        axes.set_ylim(low - 0.12 * room, high + 0.12 * room)
        for _, row in students.iterrows():
            axes.annotate(
                f"{row.config}\n{row.compression:.1f}x",
                (row.size_bytes / 1e6, row.score),
                xytext=(-5, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=8,
            )
        axes.set_xscale("log")
        axes.set_xlim(students.size_bytes.min() / 1e6 / 1.5, students.size_bytes.max() / 1e6 * 1.5)
        axes.set_xlabel("size of the model (MB, logarithmic)")
        axes.set_ylabel(f"{METRIC_NAMES.get(teacher.headline, teacher.headline)} (%)")
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.set_xticks([x for x in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if _within(axes, x)])
        axes.set_title(f"{task}: quality against size, with 95% intervals", fontsize=10)
        axes.legend(loc="lower right", fontsize=8)
    pyplot.close(figure)  # kept from being drawn a second time at the end of a notebook's cell
    return figure


def training_curves(curves: pandas.DataFrame, column: str = "task") -> Figure:
    """A loss term over the steps, a line a model.

    Args:
        curves: columns ``model``, ``step`` and the loss terms.
        column: the term to draw.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
        for i, (model, group) in enumerate(curves.dropna(subset=[column]).groupby("model", sort=False)):
            axes.plot(
                group.step,
                group[column],
                linestyle=DASHES[i % len(DASHES)],
                color=COLOURS[i % len(COLOURS)],
                label=model,
                linewidth=1.4,
            )
        axes.set_xlabel("training step")
        axes.set_ylabel(f"{column.replace('_', ' ')} loss (nats a token)" if column == "task" else column)
        axes.legend(fontsize=8, ncols=2)
    pyplot.close(figure)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Save as SVG and PNG, without the date, so that the same figure gives the same bytes."""
    paths = []
    with matplotlib.rc_context(STYLE):
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            paths.append(folder / f"{name}.{kind}")
            write_bytes(paths[-1], buffer.getvalue())
    return paths


def _teacher_line(axes: Axes, teacher: pandas.Series) -> None:
    axes.axhline(
        teacher.score, color=TEACHER_COLOUR, linestyle="--", linewidth=1.2,
        label=f"teacher ({teacher.config}, {teacher.size_bytes / 1e6:.1f} MB)",
    )  # fmt: skip
    axes.axhspan(teacher.score_low, teacher.score_high, color=TEACHER_COLOUR, alpha=0.12, linewidth=0)


def _within(axes: Axes, x: float) -> bool:
    low, high = axes.get_xlim()
    return low <= x <= high
