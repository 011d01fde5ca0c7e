"""Style of all figures: colours, markers and dashes, and how a figure is saved."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, pyplot, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dqlib.files import write_bytes

#: The colour of each preset, precision (``W-E-A``) and scheme, in all figures (Okabe and Ito's palette, told apart by
#: the colour-blind and in grey); :func:`colour_of` has one for every other name.
NAMED_COLOURS = {
    "dqlib": "#0072B2", "dq-bart-faithful": "#D55E00", "dq-bart": "#E69F00", "xtc": "#009E73", "quantgpt": "#CC79A7",
    "32-32-32": "#777777", "8-8-8": "#0072B2", "4-4-8": "#009E73", "2-2-8": "#D55E00", "1-1-8": "#CC79A7",
    "symmetric": "#0072B2", "asymmetric": "#56B4E9", "dynamic": "#D55E00", "lsq": "#E69F00",
    "ternary": "#009E73", "four_level": "#000000", "stretched": "#882255", "binary": "#CC79A7",
}  # fmt: skip
#: Markers of presets and of granularities, which differ without colour, too; :func:`marker_of` has the others'.
NAMED_MARKERS = {
    "dqlib": "o", "dq-bart-faithful": "v", "dq-bart": "s", "xtc": "^", "quantgpt": "D",
    "per_tensor": "o", "per_row": "s", "per_group_32": "^", "per_group_16": "D",
}  # fmt: skip
_SPARE_MARKERS = "PX*ph<>d8"
TEACHER_COLOUR, GREY = "#444444", "#999999"
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


@contextmanager
def subplots(*grid: int, style: Mapping[str, Any] | None = None, **options: Any) -> Iterator[tuple[Figure, Any]]:
    """``pyplot.subplots`` in the style of all figures, closed, so that a notebook displays the figure once, not twice.

    ``style`` is what is other than in :data:`STYLE`.
    """
    with matplotlib.rc_context({**STYLE, **(style or {})}):
        figure, axes = pyplot.subplots(*grid, layout="constrained", **options)
        pyplot.close(figure)
        yield figure, axes


@cache
def colour_of(name: str) -> str:
    """The colour of a preset, precision or scheme, the same in every figure, whatever else that shows.

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
    raise AssertionError("count() has no end")


def marker_of(name: str) -> str:
    """The marker of a preset or granularity; other names get one from their name alone."""
    spare = hashlib.sha256(name.encode()).digest()[0] % len(_SPARE_MARKERS)
    return NAMED_MARKERS.get(name, _SPARE_MARKERS[spare])


def line_styles(configs: list[str]) -> dict[str, dict[str, Any]]:
    """How to draw each config: colour by its bits, as everywhere; dashes of its own, for a page in grey."""
    return {
        name: {"color": colour_of(name.partition(" ")[0]), "linestyle": DASHES[i % len(DASHES)]}
        for i, name in enumerate(configs)
    }


def heat_map(
    axes: Axes,
    grid: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[str]] = (),
    light_from: float = 0.0,
    **look: Any,
) -> AxesImage:
    """A matrix as colours, with names of its rows and columns, or none.

    Args:
        grid: (rows, columns); a number may be missing.
        cells: text of each number, small where it is missing.
        light_from: the least number whose colour is light enough for black text.
        look: of ``axes.imshow``.
    """
    image = axes.imshow(grid, cmap="cividis", **look)
    for (i, j), text in np.ndenumerate(np.array(cells, dtype=object)):
        missing = np.isnan(grid[i, j])
        colour = TEACHER_COLOUR if missing else "white" if grid[i, j] < light_from else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=7 if missing else None, color=colour)
    axes.set_xticks(range(grid.shape[1]), columns)
    axes.set_yticks(range(grid.shape[0]), rows)
    axes.grid(False)
    return image


def plain_log_scale(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers, at least two of them however short it is."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def save(figure: Figure, folder: Path, name: str) -> None:
    """Save as SVG and PNG, without the date, so that the same figure gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            write_bytes(folder / f"{name}.{kind}", buffer.getvalue())
