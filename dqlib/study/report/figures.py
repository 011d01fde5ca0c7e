"""Figures in one style: axes with units, the teacher's line, one colour a name, readable in grey."""

from __future__ import annotations

import hashlib
import io
from functools import cache
from itertools import count
from pathlib import Path

import matplotlib
import numpy as np
import pandas
from matplotlib import colors, pyplot, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dqlib.files import write_bytes
from dqlib.presets import PRESETS, VARIANTS

#: The colour of each method, precision (``W-E-A``) and scheme, in all figures (Okabe and Ito's palette, told apart by
#: the colour-blind and in grey); :func:`colour_of` has one for every other name.
NAMED_COLOURS = {
    "dqlib": "#0072B2",
    "dq-bart-faithful": "#D55E00",
    "dq-bart": "#E69F00",
    "xtc": "#009E73",
    "quantgpt": "#CC79A7",
    "32-32-32": "#777777",
    "8-8-8": "#0072B2",
    "4-4-8": "#009E73",
    "2-2-8": "#D55E00",
    "1-1-8": "#CC79A7",
    "symmetric": "#0072B2",
    "asymmetric": "#56B4E9",
    "dynamic": "#D55E00",
    "lsq": "#E69F00",
    "ternary": "#009E73",
    "binary": "#CC79A7",
}
#: Markers of methods and of granularities, which tell them apart without colour; :func:`marker_of` has the others'.
NAMED_MARKERS = {
    "dqlib": "o",
    "dq-bart-faithful": "v",
    "dq-bart": "s",
    "xtc": "^",
    "quantgpt": "D",
    "per_tensor": "o",
    "per_row": "s",
    "per_group_32": "^",
    "per_group_16": "D",
}
_SPARE_MARKERS = "PX*ph<>d8"
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


@cache
def colour_of(name: str) -> str:
    """The colour of a method, precision or scheme, the same in every figure, whatever else that shows.

    What is not built in gets a colour from its name alone, unlike those of :data:`NAMED_COLOURS` and the greys.
    """
    if name in NAMED_COLOURS:
        return NAMED_COLOURS[name]
    taken = np.array([colors.to_rgb(colour) for colour in NAMED_COLOURS.values()])
    for attempt in count():
        hue, saturation, value = (byte / 255 for byte in hashlib.sha256(f"{name} {attempt}".encode()).digest()[:3])
        rgb = colors.hsv_to_rgb((hue, 0.6 + 0.4 * saturation, 0.4 + 0.45 * value))
        if np.linalg.norm(taken - rgb, axis=1).min() > 0.2:
            return colors.to_hex(rgb)


def marker_of(name: str) -> str:
    """The marker of a method or granularity, for other names one from their name alone."""
    spare = _SPARE_MARKERS[hashlib.sha256(name.encode()).digest()[0] % len(_SPARE_MARKERS)]
    return NAMED_MARKERS.get(name, spare)


def line_styles(configurations: list[str]) -> dict[str, dict[str, object]]:
    """How to draw each configuration: colour by its bits, as everywhere; dashes tell all apart, in grey too."""
    return {
        name: {"color": colour_of(name.partition(" ")[0]), "linestyle": DASHES[i % len(DASHES)]}
        for i, name in enumerate(configurations)
    }


def quantity_of(term: str, preset: str = "") -> str:
    """What a column of a training log measures, with its unit, for an axis.

    Args:
        term: name of the column.
        preset: preset of the training, which decides how logits are compared.
    """
    known = PRESETS | VARIANTS
    logits = known[preset].loss.logits_loss if preset in known else ""
    if term in ("task", "validation_loss"):
        return "loss (nats a token)"
    if term == "logits" and logits == "kl":
        return "divergence from the teacher (nats a token)"
    if term == "logits" and logits == "mse":
        return "squared difference from the teacher's logits"
    return "weighted sum of all terms" if term == "loss" else term.replace("_", " ")


def training_curves(curves: pandas.DataFrame, column: str = "logits") -> Figure:
    """A loss term from the first row of the log on, a line a model; by default the distance from the teacher's logits.

    The axis is logarithmic: the terms of a student of 8 bits and of one of 1 bit are orders of magnitude apart.

    Args:
        curves: columns ``model``, ``preset``, ``step`` and the loss terms.
        column: the term to draw.
    """
    drawn = curves.dropna(subset=[column])
    styles = line_styles(list(dict.fromkeys(drawn.model)))
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
        for model, group in drawn.groupby("model", sort=False):
            axes.plot(group.step, group[column], label=model, linewidth=1.4, **styles[model])
        axes.set_xlabel("training step")
        axes.set_ylabel(quantity_of(column, drawn.preset.iloc[0] if len(drawn) else ""), fontsize=9)
        plain_log_scale(axes)
        figure.legend(loc="outside upper center", fontsize=8, ncols=4)
    pyplot.close(figure)
    return figure


def plain_log_scale(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers, at least two of them however short it is."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


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
