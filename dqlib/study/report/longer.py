"""What longer training is worth: one preset at several configurations, its score over the steps."""

from __future__ import annotations

from dataclasses import asdict, replace

import matplotlib
import pandas
from matplotlib import pyplot
from matplotlib.figure import Figure

from dqlib.study.evaluation.records import COLUMNS, read_record
from dqlib.study.params import settings as S
from dqlib.study.pipeline.benchmark import benchmark_of, folder_of
from dqlib.study.pipeline.study import Study
from dqlib.study.report.claims import percent
from dqlib.study.report.figures import METRIC_NAMES, STYLE, TEACHER_COLOUR, line_styles


def longer_table(study: Study) -> pandas.DataFrame:
    """One row a run in the columns of ``metrics.csv``: the bench's own number of steps first, then the longer ones.

    Empty where the bench has no longer runs.
    """
    bench = benchmark_of(study)
    long = bench.longer_runs()
    short = dict.fromkeys(replace(run, steps=None) for run in long)
    runs = [run for run in short if run in bench.runs_of_equal_steps()] + long
    rows = [asdict(read_record(folder_of(study, run))) for run in runs]
    table = pandas.DataFrame(rows, columns=list(COLUMNS))
    order = {config: i for i, config in enumerate(dict.fromkeys(str(run.config) for run in long))}
    return table.sort_values(["config", "train_steps"], key=lambda c: c.map(order) if c.name == "config" else c)


def longer_for_reading(table: pandas.DataFrame) -> pandas.DataFrame:
    """Part of the teacher's score that is left: a row a configuration, a column a number of steps."""
    shown = table.assign(retention=table.retention.map(percent))
    wide = shown.pivot(index="config", columns="train_steps", values="retention").reindex(table.config.unique())
    wide.columns = [f"{steps:,} steps" for steps in wide.columns]
    return wide.fillna("").reset_index()


def longer_figure(table: pandas.DataFrame, bench: S.Methods, teacher: float) -> Figure:
    """Retention over the steps, a line a configuration, with 95% intervals over the test documents.

    Args:
        table: :func:`longer_table`, not empty.
        bench: its parameters.
        teacher: score of the teacher.
    """
    percent = 100 / teacher if teacher else 0.0
    metric = METRIC_NAMES.get(table.headline.iloc[0], table.headline.iloc[0])
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
        axes.axhline(100, color=TEACHER_COLOUR, linestyle="--", linewidth=1.2, label="teacher")
        styles = line_styles(list(table.config.unique()))
        for i, (config, rows) in enumerate(table.groupby("config", sort=False)):
            below, above = rows.score - rows.score_low, rows.score_high - rows.score
            axes.errorbar(
                rows.train_steps * (1 + 0.012 * (i - (len(styles) - 1) / 2)), percent * rows.score,
                yerr=[percent * below, percent * above],
                marker="o", ms=4, capsize=2, elinewidth=0.8, label=config, **styles[config],
            )  # fmt: skip
        axes.set_xscale("log")
        steps = sorted(set(table.train_steps))
        axes.set_xticks(steps, [f"{n:,}" for n in steps])
        axes.minorticks_off()
        axes.set_xlabel(f"training steps of {bench.distill.batch_tokens:,} tokens ({bench.longer_preset}), log scale")
        axes.set_ylabel(f"{metric}, % of the teacher's")
        axes.legend(fontsize=8, loc="lower right")
    pyplot.close(figure)
    return figure
