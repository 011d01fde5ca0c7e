"""Figures of the study: all tasks side by side, colour for bits, marker for layers; and training curves."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise, product
from typing import Any

import matplotlib
import numpy as np
import pandas
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dqlib.config import Config
from dqlib.study.evaluation.records import FALLING
from dqlib.study.params.tasks import kind_of
from dqlib.study.report import style
from dqlib.study.report.names import (
    QUANTIZATION_ALONE,
    SHAPES,
    axis_name,
    bits_of,
    in_bits,
    is_model,
    layers_of,
    named_shape,
    percent,
    quantity_of,
    teachers_of,
)
from dqlib.study.report.style import COLOURS, STYLE, TEACHER_COLOUR, colour_of, line_styles, plain_log_scale, subplots

#: Marker and line of each shape.
SHAPE_STYLES = {
    "full": ("o", "-"), "half": ("s", "--"), "one": ("^", ":"), "half_stack": ("s", "--"),
    "one_layer": ("^", ":"), "other": ("D", "-."), "narrow": ("v", "-."),
}  # fmt: skip
#: The papers' two shapes at 2 bits, by what BART becomes smaller.
PAPERS = {"half": "16.5x in BART", "one": "27.7x in BART"}
#: As wide as a page shows at 600 pixels without shrinking text below what can be read; a single panel.
WIDTH, NARROW = 7.5, 4.5
#: Panels side by side.
COLUMNS = 3


def joint(metrics: pandas.DataFrame) -> pandas.DataFrame:
    """Students that were trained against their teacher."""
    return metrics[(metrics.role == "student") & (metrics.preset != QUANTIZATION_ALONE)]


def _bits_in(students: pandas.DataFrame) -> list[str]:
    """``W-E-A`` of all students, most bits first, then budgets, most bytes first."""
    known = {bits_of(row): Config.parse(row.config) for row in students.itertuples()}
    order = {
        bits: (config.budget is not None, -(config.budget or 0), -config.w_bits, -config.e_bits, -config.a_bits)
        for bits, config in known.items()
    }
    return sorted(order, key=lambda bits: order[bits])


def scores_axis(axes: Axes, teacher: Any, label: str | None = None) -> None:
    """A vertical axis of the headline, up being better, with the line and the interval of a teacher, a row."""
    axes.axhline(teacher.score, color=TEACHER_COLOUR, linestyle="--", linewidth=1.1, label=label)
    axes.axhspan(teacher.score_low, teacher.score_high, color=TEACHER_COLOUR, alpha=0.12, linewidth=0)
    axes.set_ylabel(axis_name(teacher.headline), fontsize=9)
    if teacher.headline in FALLING:
        plain_log_scale(axes)
        axes.invert_yaxis()


def tradeoffs(metrics: pandas.DataFrame) -> Figure:
    """Quality against size, one panel per task: each student with its 95% interval, and the teacher's line."""
    students, teachers = metrics[metrics.role == "student"], teachers_of(metrics)

    def draw(axes: Axes, rows: pandas.DataFrame) -> None:
        teacher = teachers[rows.task.iloc[0]]
        scores_axis(axes, teacher)
        for row in rows[rows.role == "student"].itertuples():
            bits, shape, alone = bits_of(row), named_shape(row, teacher), row.preset == QUANTIZATION_ALONE
            place, reach = (row.compression, row.score), [[row.score - row.score_low], [row.score_high - row.score]]
            axes.errorbar(
                *place, yerr=reach, fmt=SHAPE_STYLES[shape][0], color=colour_of(bits), capsize=2, linewidth=1,
                markersize=9 if alone else 6, markerfacecolor="white" if alone else colour_of(bits),
                zorder=2 if alone else 3,  # where both are at one place, both are seen
            )  # fmt: skip
            if shape in PAPERS and bits == "2-2-8" and not alone:
                axes.plot(*place, "o", markersize=13, markerfacecolor="none", color="black", mew=0.8)
                axes.annotate(PAPERS[shape], place, (-9, -12), ha="right", textcoords="offset points", fontsize=7)
        axes.set_xscale("log")
        axes.set_xlim(right=1.25 * rows.compression.max())  # room for the ring of the smallest
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        ticks = [x for x in (1, 2, 5, 10, 20, 50) if x <= 1.3 * rows.compression.max()]
        axes.set_xticks(ticks, [f"{x}x" for x in ticks])
        axes.set_xlabel("times smaller")

    figure = _panels(metrics, draw, height=3.5)
    _legend(figure, students, teachers)
    return figure


def heat_map(metrics: pandas.DataFrame) -> Figure:
    """Part of the teacher's score that is left, over bits (rows) and layers (columns), one panel per task."""
    bits = _bits_in(joint(metrics))
    first = list(dict.fromkeys(metrics.task))[::COLUMNS]  # of each row of panels

    def draw(axes: Axes, rows: pandas.DataFrame) -> None:
        students = list(joint(rows).itertuples())
        found = sorted({(-row.encoder_layers, -row.decoder_layers, layers_of(row)) for row in students})
        layers = [text for *_, text in found]
        grid, cells = np.full((len(bits), len(layers)), np.nan), [["not run" for _ in layers] for _ in bits]
        for row in students:
            i, j = bits.index(bits_of(row)), layers.index(layers_of(row))
            grid[i, j], cells[i][j] = 100 * row.retention, percent(row.retention).rstrip("%")
        names, columns = bits if rows.task.iloc[0] in first else [], [text.replace(" ", "\n", 1) for text in layers]
        style.heat_map(axes, grid, names, columns, cells, light_from=82, vmin=60, vmax=100, aspect="auto")
        axes.set_xlabel("layers")
        axes.spines[:].set_visible(False)

    figure = _panels(metrics, draw, height=2.9)
    figure.suptitle("Part of the teacher's score that is left (%)", fontsize=10)
    return figure


def accumulation(positions: pandas.DataFrame, lengths: pandas.DataFrame, metrics: pandas.DataFrame) -> Figure:
    """Recall of the reference's words along the reference (above) and by its length (below), one column per task.

    Each group of lengths has a place of its own, though two may end at the same number of words.
    Students of 32 and 4 bits, whose lines are those of 8 bits, are left out, and so are tasks whose models write no
    texts. The arguments are the tables of these names.
    """
    metrics = metrics[metrics.task.isin(positions.task)]
    students = joint(metrics)
    students, teachers = students[~students.config.str.match("32-32-32|4-4-8")], teachers_of(metrics)
    with subplots(2, len(teachers), figsize=(WIDTH, 5), squeeze=False, style={"font.size": 9}) as (figure, grid):
        for column, (task, teacher) in enumerate(teachers.items()):
            grid[0, column].set_title(task, fontsize=10)
            for axes, table in zip(grid[:, column], (positions, lengths), strict=True):
                rows = table[table.task == task]
                first = rows[is_model(rows, rows.iloc[0])]
                places = range(1, len(first) + 1)
                for student in students[students.task == task].itertuples():
                    marker, line = SHAPE_STYLES[named_shape(student, teacher)]
                    recall, colour = rows[is_model(rows, student)].recall, colour_of(bits_of(student))
                    axes.plot(places, recall, line, marker=marker, markersize=4, color=colour, linewidth=1.2)
                axes.plot(places, first.recall_of_teacher, color=TEACHER_COLOUR, linestyle="--", linewidth=1.8)
                axes.set_xticks(places, first.part if table is positions else _spans(list(first.longest)))
                axes.set_xlabel("fifth of the reference" if table is positions else "words of the reference")
        for axes in grid[:, 0]:
            axes.set_ylabel("recall of words (%)")
    _legend(figure, students, teachers)
    return figure


def _spans(longest: list[int]) -> list[str]:
    """Lengths in each group: of ``[3, 4, 4, 13]`` up to 3, 3 to 4, 4 alone, and 4 to 13."""
    return [f"≤{longest[0]}", *(f"{a}" if a == b else f"{a}-{b}" for a, b in pairwise(longest))]


def drawn_sizes(accounts: pandas.DataFrame) -> pandas.DataFrame:
    """Of the rows of :func:`sizes`, those that it draws."""
    return accounts[~accounts.config.str.startswith("32-")]


def sizes(accounts: pandas.DataFrame) -> Figure:
    """Bytes of every quantized config by kind of parameter, one panel per task, of ``sizes.csv``."""

    def draw(axes: Axes, rows: pandas.DataFrame) -> None:
        wide = rows.pivot_table(index="config", columns="part", values="bytes", sort=False) / 1e6
        left = np.zeros(len(wide))
        for i, part in enumerate(accounts.part.unique()):
            width, hatch = wide[part].to_numpy(), ("", "//", "..", "xx", "--")[i % 5]
            axes.barh(wide.index, width, left=left, color=COLOURS[i], label=part, hatch=hatch, edgecolor="white")
            left = left + width
        axes.invert_yaxis()
        axes.set_xlabel("size (MB)")
        axes.tick_params(axis="y", labelsize=7)
        axes.grid(axis="y", visible=False)

    figure = _panels(drawn_sizes(accounts), draw, height=3.2)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=_legend_columns(figure), fontsize=8)
    return figure


def sensitivity(table: pandas.DataFrame) -> Figure:
    """What each module loses when it alone has few bits: a map of layers and modules per task and number of bits.

    A table that is not in a layer (the embedding, which is the head too) fills a row of its own.
    """
    tasks, widths = list(table.task.unique()), sorted(set(table.bits))
    shown = table.assign(loss=table.loss_increase.clip(lower=LEAST_LOSS))
    norm = matplotlib.colors.LogNorm(LEAST_LOSS, max(float(shown.loss.max()), 10 * LEAST_LOSS))
    units = " or ".join(dict.fromkeys(kind_of(task).unit for task in tasks))
    lines, columns = -(-len(tasks) // COLUMNS) * len(widths), min(len(tasks), COLUMNS)
    size = WIDTH, 1.0 + 1.55 * lines
    with subplots(lines, columns, figsize=size, squeeze=False, style={"font.size": 8}) as (figure, panels):
        for panel in panels.flat:
            panel.set_visible(False)
        for (number, task), (place, bits) in product(enumerate(tasks), enumerate(widths)):
            block, column = divmod(number, COLUMNS)
            axes = panels[block * len(widths) + place, column]
            axes.set(visible=True, title=task if bits == widths[0] else "", ylabel="" if column else in_bits(bits))
            axes.title.set_fontsize(9)
            grid, layers, modules = _by_layer(shown[(shown.task == task) & (shown.bits == bits)])
            rows, names = layers if column == 0 else [], modules if bits == widths[-1] else []
            image = style.heat_map(axes, grid, rows, names, norm=norm, aspect="auto", interpolation="none")
            pyplot.setp(axes.get_yticklabels(), fontsize=6)
            pyplot.setp(axes.get_xticklabels(), fontsize=6, rotation=90)
            axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=panels, label=f"loss added (nats per {units})", shrink=0.6)
    return figure


#: Losses below are drawn as this, in nats per token.
LEAST_LOSS = 1e-5


def _by_layer(table: pandas.DataFrame) -> tuple[np.ndarray, list[str], list[str]]:
    """Losses of the modules of one model: a row per layer and a column per module, with the names of both."""
    cells = []
    for module, loss in zip(table.module, table.loss, strict=True):
        found = _LAYER.search(module)
        layer = f"{found['side'] or 'layer'} {found['layer']}" if found else module.rpartition(".")[2]
        name = found["module"] if found else ""
        for long, short in _SHORT.items():
            name = name.replace(long, short)
        cells.append((layer, name, loss))
    rows, columns = (list(dict.fromkeys(cell[i] for cell in cells if cell[i])) for i in (0, 1))
    grid = np.full((len(rows), len(columns)), np.nan)
    for layer, name, loss in cells:
        grid[rows.index(layer), columns.index(name) if name else slice(None)] = loss
    return grid, rows, columns


_LAYER = re.compile(r"(?:(?P<side>encoder|decoder)\.(?:layers|block|layer)|h)\.(?P<layer>\d+)\.(?P<module>.+)")
#: Names of modules as the figure has them.
_SHORT = {"encoder_attn": "cross", "self_attn": "self", "_proj": "", "attention.self": "self", ".dense": ""}


def training_curves(curves: pandas.DataFrame, column: str = "logits") -> Figure:
    """A loss term of ``training.csv``, one line per model, mean over seeds; by default of the teacher's logits.

    The axis is logarithmic: the terms of a student of 8 bits and of one of 1 bit are orders of magnitude apart.
    """
    column = column if column in curves else "loss"  # of a preset without a loss of logits
    drawn = curves.dropna(subset=[column])
    styles = line_styles(list(drawn.model.unique()))
    with subplots(figsize=(6.4, 3.6)) as (figure, axes):
        for model, group in drawn.groupby("model", sort=False):
            means = group.groupby("step")[column].mean()
            axes.plot(means.index, means, label=model, linewidth=1.4, **styles[model])
        axes.set_xlabel("training step")
        preset, task = drawn[["preset", "task_name"]].iloc[0] if len(drawn) else ("", "")
        axes.set_ylabel(quantity_of(column, preset, kind_of(task).unit), fontsize=9)
        plain_log_scale(axes)
        figure.legend(loc="outside upper center", fontsize=8, ncols=4)
    return figure


def _panels(table: pandas.DataFrame, draw: Callable[[Axes, pandas.DataFrame], None], height: float) -> Figure:
    """Rows of panels, one per task."""
    tasks = list(dict.fromkeys(table.task))
    columns, rows = min(len(tasks), COLUMNS), -(-len(tasks) // COLUMNS)
    size = WIDTH if len(tasks) > 1 else NARROW, rows * height
    with subplots(rows, columns, figsize=size, squeeze=False, style={"font.size": 9}) as (figure, panels):
        for task, axes in zip(tasks, panels.flat, strict=False):
            draw(axes, table[table.task == task])
            axes.set_title(task, fontsize=10)
        for axes in panels.flat[len(tasks) :]:
            axes.remove()
    return figure


def _legend(figure: Figure, students: pandas.DataFrame, teachers: Mapping[str, Any]) -> None:
    """Below the panels: what colours, markers and hollow markers stand for."""

    def entry(label: str, color: str, marker: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, color=color, marker=marker, linestyle="", **look)

    shapes = {named_shape(row, teachers[row.task]) for row in students.itertuples()}
    handles = [Line2D([], [], label="teacher, fp32", color=TEACHER_COLOUR, linestyle="--")]
    handles += [entry(bits, colour_of(bits), "s", markersize=7) for bits in _bits_in(students)]
    handles += [entry(SHAPES[shape], "black", look[0]) for shape, look in SHAPE_STYLES.items() if shape in shapes]
    if (students.preset == QUANTIZATION_ALONE).any():
        handles.append(entry("hollow: quantization alone", "black", "o", markerfacecolor="white"))
    with matplotlib.rc_context(STYLE):
        figure.legend(handles=handles, loc="outside lower center", ncols=_legend_columns(figure), fontsize=8)


def _legend_columns(figure: Figure) -> int:
    """As many entries as stand side by side below a figure."""
    return 5 if figure.get_figwidth() > NARROW else 3
