"""Figures of the benchmark of presets."""

from __future__ import annotations

import pandas
from matplotlib.figure import Figure

from dqlib.config import Config
from dqlib.study.params import settings as S
from dqlib.study.params.tasks import kind_of
from dqlib.study.report.benchmark import WHOLE, changes
from dqlib.study.report.names import METRIC_NAMES
from dqlib.study.report.style import TEACHER_COLOUR, colour_of, marker_of, subplots


def presets_figure(table: pandas.DataFrame, benchmark: S.Methods, task: str) -> Figure:
    """Part of the teacher's score that is left: one group of points per config, one point per seed, a bar for the mean.

    ``table`` is :func:`dqlib.study.report.benchmark.benchmark_table`; the order is that of the parameters.
    """
    configs = [text for text in map(str, map(Config.parse, benchmark.configs)) if (table.config == text).any()]
    presets = [name for name in benchmark.presets if (table.preset == name).any()]
    with subplots(figsize=(7.2, 4.0)) as (figure, axes):
        axes.axhline(100, color=TEACHER_COLOUR, linestyle="--", linewidth=1.2, label="teacher")
        for i, name in enumerate(presets):
            look = {"marker": marker_of(name), "color": colour_of(name), "linestyle": ""}
            kept = 100 * table[table.preset == name].set_index("config").retention
            places = {config: place + 0.8 * ((i + 0.5) / len(presets) - 0.5) for place, config in enumerate(configs)}
            for config, x in places.items():
                own = kept[kept.index == config]
                axes.plot([x] * len(own), own, ms=4, alpha=0.6, **look)
            means = kept.groupby(level=0).mean().reindex(configs).dropna()
            axes.plot([places[config] for config in means.index], means, "_", ms=12, mew=2.2, color=look["color"])
            axes.plot([], [], ms=5, label=name, **look)
        axes.set_xlim(-0.5, len(configs) - 0.5)
        axes.set_xticks(range(len(configs)), [config.replace(" ", "\n") for config in configs])
        axes.set_xlabel("bits of weights-embeddings-activations, encoder-decoder layers")
        axes.set_ylabel(f"{METRIC_NAMES[table.headline.iloc[0]]}, % of the teacher's")
        axes.grid(axis="x", visible=False)
        seeds = f"up to {len(benchmark.seeds)} seeds and their mean" if len(benchmark.seeds) > 1 else "one seed"
        axes.set_title(f"{task}: every preset after {table.train_steps.iloc[0]} steps, {seeds}", fontsize=10)
        figure.legend(fontsize=8, ncols=6, loc="outside upper center", handletextpad=0.3, columnspacing=1.2)
    return figure


def ablation_figure(table: pandas.DataFrame, benchmark: S.Methods) -> Figure:
    """Change of the validation loss where one part of a preset is changed, with its seeds.

    Drawn is the first configuration of ``ablations``; ``table`` is as in :func:`dqlib.study.report.benchmark.changes`.
    """
    config = str(Config.parse(next(iter(benchmark.ablations))))
    rows = changes(table[table.config == config], benchmark)
    names = list(rows.changed.unique())
    with subplots(figsize=(6.4, 0.6 + 0.42 * max(2, len(names)))) as (figure, axes):
        axes.axvline(0, color=colour_of(WHOLE), linestyle="--", linewidth=1.2)
        for place, name in enumerate(names):
            change = rows[rows.changed == name].loss_change
            axes.plot(change, [place] * len(change), "o", ms=4, alpha=0.6, color=TEACHER_COLOUR)
            axes.plot([change.mean()], [place], "|", ms=14, mew=2.4, color=TEACHER_COLOUR)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        measured = f"change of the validation loss (nats per {kind_of(table.task.iloc[0]).unit}; left is better)"
        axes.set_xlabel(f"{measured}\nagainst {WHOLE} at {config}; dots: seeds, bar: their mean")
    return figure


def longer_figure(table: pandas.DataFrame, benchmark: S.Methods) -> Figure:
    """Gap of the validation loss to the teacher's over the steps: a panel per config, a line per preset, its seeds.

    ``table`` is :func:`dqlib.study.report.benchmark.longer_table`, not empty, with the losses of
    :func:`dqlib.study.report.benchmark_page.with_losses`.
    """
    configs, presets, steps = table.config.unique(), list(table.preset.unique()), sorted(set(table.train_steps))
    width = max(4.4, 2.4 + 2.2 * len(configs))
    with subplots(1, len(configs), figsize=(width, 3.6), sharey=True, squeeze=False) as (figure, (panels,)):
        for axes, config in zip(panels, configs, strict=True):
            axes.axhline(0, color=TEACHER_COLOUR, linestyle="--", linewidth=1.2)
            for name, rows in table[table.config == config].groupby("preset", sort=False):
                look = {"marker": marker_of(name), "color": colour_of(name), "ms": 4}
                axes.plot(rows.train_steps, rows.gap, alpha=0.5, linestyle="", **look)
                means = rows.groupby("train_steps").gap.mean()
                axes.plot(means.index, means, **look)
            axes.set_xscale("log")
            axes.set_xticks(steps, [f"{n:,}" for n in steps])
            axes.minorticks_off()
            axes.margins(x=0.15)
            axes.set_title(config, fontsize=9)
        panels[0].plot([], [], color=TEACHER_COLOUR, linestyle="--", label="teacher")
        for name in presets:
            panels[0].plot([], [], marker=marker_of(name), color=colour_of(name), ms=4, label=name)
        figure.supxlabel(f"training steps of {benchmark.distill.batch_tokens:,} tokens, log scale", fontsize=10)
        panels[0].set_ylabel(f"gap to the teacher (nats per {kind_of(table.task.iloc[0]).unit})")
        figure.legend(fontsize=8, ncols=5, loc="outside upper center")
    return figure
