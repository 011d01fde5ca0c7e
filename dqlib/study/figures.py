"""Figures in one style: axes with units, the teacher's line, one colour a method, readable in grey."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import pandas
from matplotlib import pyplot
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
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "bleu": "BLEU",
    "chrf": "chrF",
}


def training_curves(curves: pandas.DataFrame, column: str = "logits") -> Figure:
    """A loss term over the steps, a line a model; by default the divergence from the teacher's next token.

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
        names = {"logits": "divergence from the teacher (nats a token)", "task": "task loss (nats a token)"}
        axes.set_ylabel(names.get(column, column.replace("_", " ")), fontsize=9)
        axes.set_ylim(0, 1.3 * curves.groupby("model")[column].nth(3).max())  # the first steps are far above
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
