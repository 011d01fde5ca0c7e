"""What the bench of all methods shows: its table, its summary, its figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
import pandas
from matplotlib import pyplot
from matplotlib.figure import Figure

from dqlib.config import Config
from dqlib.files import write_text
from dqlib.presets import PRESETS, get_preset
from dqlib.storage.footprint import size_bytes
from dqlib.storage.reading import read_model
from dqlib.student import make_student
from dqlib.study.evaluation.records import COLUMNS, paired_p_value, read_record, write_metrics
from dqlib.study.params import settings as S
from dqlib.study.params.paths import LOG, TABLES, project_root
from dqlib.study.params.settings import Run
from dqlib.study.pipeline.benchmark import benchmark_of, folder_of, run_benchmark
from dqlib.study.pipeline.study import Study
from dqlib.study.report.claims import percent
from dqlib.study.report.figures import METRIC_NAMES, STYLE, TEACHER_COLOUR, colour_of, marker_of, save
from dqlib.study.report.longer import longer_figure, longer_for_reading, longer_table
from dqlib.study.report.pages import markdown_table
from dqlib.study.report.tables import Trained

METHODS, LONGER, VALIDATION = "methods.csv", "methods_longer.csv", "methods_validation.csv"
FOLDER = "methods"
#: The method that ablations take a part from.
WHOLE = "dqlib"
BENCH_COLUMNS = (*COLUMNS, "baseline", "p_value")


def presets_table(names: list[str] | None = None) -> pandas.DataFrame:
    """Presets side by side: a row a field, a column a preset; fields that all share are left out."""
    columns = {}
    for name in names or list(PRESETS):
        preset = get_preset(name)
        flat = {}
        for part in ("weights", "activations", "loss", "recipe"):
            flat |= {f"{part}.{field}": value for field, value in asdict(getattr(preset, part)).items()}
        bits = {f"recipe at {n} bits": _changes(asdict(preset.recipe), asdict(r)) for n, r in preset.by_bits.items()}
        rest = {
            field: getattr(preset, field)
            for field in ("quantize_head", "position_bits", "single_layer", "rate_of_fewer_layers")
        }
        columns[name] = flat | bits | rest
    table = pandas.DataFrame(columns).astype(object)
    table = table.where(table.notna(), "")
    return table[table.apply(lambda row: len(set(map(str, row))) > 1, axis=1)]


def bench_table(study: Study) -> pandas.DataFrame:
    """One row a run, in the columns of ``metrics.csv`` with ``baseline`` and ``p_value``.

    The p-value is that of a preset at a configuration, on each document's mean over the seeds, so its rows share
    it. An ablation is compared with the whole method from the same seeds.
    """
    bench = benchmark_of(study)
    seeds: dict[tuple[str, Config], list[int]] = {}
    for run in bench.runs_of_equal_steps():
        seeds.setdefault((run.preset, run.config), []).append(run.seed)
    compared = {key: _compared(study, *key, seeds) for key in seeds}
    sizes = _sizes(study, list(seeds))
    rows = []
    for run in sorted(bench.runs_of_equal_steps(), key=lambda run: _order(bench, run)):
        row = asdict(read_record(folder_of(study, run)))
        baseline, p_value = compared[run.preset, run.config]
        size = sizes[run.preset, run.config]
        row |= {"size_bytes": size, "compression": round(row["teacher_size_bytes"] / size, 2)}
        rows.append(row | {"baseline": baseline, "p_value": p_value})
    return pandas.DataFrame(rows, columns=BENCH_COLUMNS).astype({"retention": float})  # none beside a teacher of zero


def _sizes(study: Study, pairs: list[tuple[str, Config]]) -> dict[tuple[str, Config], int]:
    """Bytes of each student; they depend on shapes alone, so an untrained one is counted."""
    teacher = read_model(study.folders.teacher)
    return {pair: size_bytes(make_student(teacher, pair[1], pair[0])) for pair in pairs}


def _compared(
    study: Study, name: str, config: Config, seeds: dict[tuple[str, Config], list[int]]
) -> tuple[str | None, float | None]:
    """What a preset is compared with at a configuration, and the p-value; None where there is nothing."""
    bench = benchmark_of(study)
    candidates = (WHOLE,) if name in bench.ablations else (bench.baseline, bench.fallback)
    baseline = next((other for other in candidates if (other, config) in seeds), name)
    if baseline == name:
        return None, None
    theirs = seeds[name, config] if name in bench.ablations else seeds[baseline, config]
    scores = (
        _by_document(study, name, config, seeds[name, config]),
        _by_document(study, baseline, config, theirs),
    )
    return baseline, round(paired_p_value(*scores), 4)


def validation_table(study: Study) -> pandas.DataFrame:
    """The last validation loss of each run, in nats a token: what tells methods apart that test scores do not.

    Returns:
        Columns ``preset``, ``config``, ``seed``, ``validation_loss``.
    """
    rows, bench = [], benchmark_of(study)
    for run in sorted(bench.runs_of_equal_steps(), key=lambda run: _order(bench, run)):
        log = pandas.read_csv(folder_of(study, run) / LOG)
        rows.append((run.preset, str(run.config), run.seed, round(log.validation_loss.dropna().iloc[-1], 4)))
    return pandas.DataFrame(rows, columns=["preset", "config", "seed", "validation_loss"])


def bench_summary(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean over seeds of each preset at each configuration: score, retention, their spread, size and p-value.

    Args:
        table: :func:`bench_table`, and the losses of :func:`validation_table` where they are merged into it.

    Returns:
        Columns ``config``, ``preset``, ``score``, ``score_std`` (over seeds), ``retention``, ``size_bytes``,
        ``compression``, ``baseline``, ``p_value``, ``seeds`` and, where it is given, ``validation_loss``.
    """
    groups = table.groupby(["config", "preset"], sort=False)
    losses = {"validation_loss": ("validation_loss", "mean")} if "validation_loss" in table else {}
    return groups.agg(
        score=("score", "mean"),
        score_std=("score", "std"),
        retention=("retention", "mean"),
        size_bytes=("size_bytes", "first"),
        compression=("compression", "first"),
        baseline=("baseline", "first"),
        p_value=("p_value", "first"),
        seeds=("seed", "count"),
        **losses,
    ).reset_index()


def _by_document(study: Study, name: str, config: Config, seeds: list[int]) -> np.ndarray:
    """Score of each test document, mean over the seeds; see :meth:`dqlib.study.report.tables.Trained.scores`."""
    folders = [folder_of(study, Run(name, config, seed)) for seed in seeds]
    return np.array([Trained(study, folder).scores() for folder in folders]).mean(axis=0)


def _order(bench: S.Methods, run: Run) -> tuple[int, int, int]:
    configs = [Config.parse(text) for text in (*bench.configs, *bench.ablation_configs)]
    names = [*bench.presets, *bench.ablations]
    return configs.index(run.config), names.index(run.preset), bench.seeds.index(run.seed)


def summary_for_reading(summary: pandas.DataFrame) -> pandas.DataFrame:
    """The summary with readable numbers, for a screen or a page."""
    spread = summary.score_std.map(lambda x: "" if pandas.isna(x) else f" ± {x:.2f}")
    losses = {"validation loss": summary.validation_loss.map("{:.3f}".format)} if "validation_loss" in summary else {}
    return pandas.DataFrame(
        {
            "config": summary.config,
            "preset": summary.preset,
            "score": summary.score.map("{:.2f}".format) + spread,
            "of teacher": summary.retention.map(percent),
            "smaller": summary.compression.map("{:.1f}x".format),
            "against": summary.baseline.map(lambda x: "" if pandas.isna(x) else x),
            "p": summary.p_value.map(lambda x: "" if pandas.isna(x) else f"{x:.4f}"),
            **losses,
        }
    )


def methods_figure(table: pandas.DataFrame, bench: S.Methods, task: str) -> Figure:
    """Part of the teacher's score that is left: a group of points a configuration, a point a seed, a bar the mean.

    Args:
        table: :func:`bench_table`.
        bench: its parameters, for the order.
        task: name of the task, for the title.
    """
    configs = [str(Config.parse(text)) for text in bench.configs]
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(7.2, 4.0), layout="constrained")
        axes.axhline(100, color=TEACHER_COLOUR, linestyle="--", linewidth=1.2, label="teacher")
        for i, name in enumerate(bench.presets):
            look, places, means = {"marker": marker_of(name), "color": colour_of(name), "linestyle": ""}, [], []
            for place, config in enumerate(configs):
                rows = table[(table.config == config) & (table.preset == name)]
                x = place + 0.14 * (i - (len(bench.presets) - 1) / 2)
                axes.plot([x] * len(rows), 100 * rows.retention, ms=4, alpha=0.6, **look)
                if len(rows):
                    places.append(x)
                    means.append(100 * rows.retention.mean())
            axes.plot(places, means, "_", ms=12, mew=2.2, color=look["color"])
            axes.plot([], [], ms=5, label=name, **look)
        axes.set_xlim(-0.5, len(configs) - 0.5)
        axes.set_xticks(range(len(configs)), [config.replace(" ", "\n") for config in configs])
        axes.set_xlabel("bits of weights-embeddings-activations, encoder-decoder layers")
        axes.set_ylabel(f"{METRIC_NAMES.get(table.headline.iloc[0], table.headline.iloc[0])}, % of the teacher's")
        axes.grid(axis="x", visible=False)
        seeds = f"{len(bench.seeds)} seeds and their mean" if len(bench.seeds) > 1 else "one seed"
        axes.set_title(f"{task}: every method after {table.train_steps.iloc[0]} steps, {seeds}", fontsize=10)
        figure.legend(fontsize=8, ncols=6, loc="outside upper center", handletextpad=0.3, columnspacing=1.2)
    pyplot.close(figure)
    return figure


def ablation_table(table: pandas.DataFrame, bench: S.Methods, against: str = WHOLE) -> pandas.DataFrame:
    """Scores with one part of a method changed, and how far they are from the whole method's.

    Args:
        table: :func:`bench_table`.
        bench: its parameters.
        against: the whole method.

    Returns:
        Columns ``config``, ``changed``, ``score``, ``score_std`` and ``difference``, and ``validation loss`` and ``its
        difference`` where the table has losses; empty without ablations.
    """
    summary = bench_summary(table)
    same = table[table.seed.isin(bench.ablation_seeds or bench.seeds)]
    whole = bench_summary(same[same.preset == against]).set_index("config")
    rows = summary[summary.preset.isin(bench.ablations)]
    if rows.empty:
        return pandas.DataFrame(columns=["config", "changed", "score", "score_std", "difference"])
    columns = {
        "config": rows.config,
        "changed": rows.preset.map(lambda name: name.removeprefix(f"{against}-")),
        "score": rows.score.round(2),
        "score_std": rows.score_std.round(2),
        "difference": (rows.score - rows.config.map(whole.score)).round(2),
    }
    if "validation_loss" in rows:
        columns["validation loss"] = rows.validation_loss.round(3)
        columns["its difference"] = (rows.validation_loss - rows.config.map(whole.validation_loss)).round(3)
    return pandas.DataFrame(columns).dropna(axis=1, how="all").reset_index(drop=True)  # one seed has no spread


def ablation_figure(table: pandas.DataFrame, bench: S.Methods, against: str = WHOLE) -> Figure:
    """Change of the score where one part of a method is changed, with its seeds.

    Args:
        table: :func:`bench_table`.
        bench: its parameters; the first of its ``ablation_configs`` is drawn.
        against: the whole method.
    """
    config = str(Config.parse(bench.ablation_configs[0]))
    rows = table[(table.config == config) & table.seed.isin(bench.ablation_seeds or bench.seeds)]
    whole = rows[rows.preset == against].score.mean()
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(6.4, 0.6 + 0.42 * max(2, len(bench.ablations))), layout="constrained")
        axes.axvline(0, color=colour_of(against), linestyle="--", linewidth=1.2)
        for place, name in enumerate(bench.ablations):
            changes = rows[rows.preset == name].score - whole
            axes.plot(changes, [place] * len(changes), "o", ms=4, alpha=0.6, color=TEACHER_COLOUR)
            axes.plot([changes.mean()], [place], "|", ms=14, mew=2.4, color=TEACHER_COLOUR)
        axes.set_yticks(range(len(bench.ablations)), [name.removeprefix(f"{against}-") for name in bench.ablations])
        axes.set_ylim(len(bench.ablations) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        metric = METRIC_NAMES.get(table.headline.iloc[0], table.headline.iloc[0])
        axes.set_xlabel(f"change of {metric} (points) against {against} at {config}\ndots: seeds, bar: their mean")
    pyplot.close(figure)
    return figure


def write_bench(study: Study) -> Path:
    """Write ``methods.csv`` and the folder ``methods`` with the figures and the page, and return that folder."""
    run_benchmark(study)
    bench, table, losses = benchmark_of(study), bench_table(study), validation_table(study)
    results = project_root() / study.settings.results
    folder = results / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(table, results / TABLES / METHODS)
    write_metrics(losses, results / TABLES / VALIDATION)
    save(methods_figure(table, bench, study.name), folder, "methods")
    if bench.ablations:
        save(ablation_figure(table, bench), folder, "ablation")
    if bench.longer_runs():
        longer = longer_table(study)
        write_metrics(longer, results / TABLES / LONGER)
        save(longer_figure(longer, bench, read_record(study.folders.teacher).score), folder, "longer")
    write_text(folder / "README.md", _page(study, table.merge(losses)))
    return folder


def _page(study: Study, table: pandas.DataFrame) -> str:
    bench, teacher = benchmark_of(study), read_record(study.folders.teacher)
    summary = summary_for_reading(bench_summary(table))
    ours = summary[~summary.preset.isin(bench.ablations)]
    ablation = f"""
## What each part of ours is worth

{markdown_table(ablation_table(table, bench))}
![Ablation](ablation.svg)
"""
    return f"""# All methods on one bench

Generated by the notebook `methods` (profile `{study.settings.profile}`); do not edit. Every number comes from
[`{METHODS}`](../{TABLES}/{METHODS}), one row a run. Every run: {bench.distill.steps} steps of {bench.distill.batch_tokens}
tokens, the same teacher ({teacher.headline} {teacher.score:.2f}), {teacher.n_test} test documents; seeds
{", ".join(map(str, bench.seeds))}.

{markdown_table(ours)}
Score: {teacher.headline}, mean over seeds ± their standard deviation. p: two-sided paired bootstrap over the test
documents, on each document's mean over the seeds, against the method named beside it. Validation loss: of the task, in
nats a token, on pairs of the validation split ([`{VALIDATION}`](../{TABLES}/{VALIDATION})).

![All methods](methods.svg)
{ablation if bench.ablations else ""}{_longer(study) if bench.longer_runs() else ""}"""


def _longer(study: Study) -> str:
    bench = benchmark_of(study)
    return f"""
## What longer training is worth

{markdown_table(longer_for_reading(longer_table(study)))}
`{bench.longer_preset}`, seed {bench.seeds[0]}: part of the teacher's score after so many steps
([`{LONGER}`](../{TABLES}/{LONGER})).

![Longer training](longer.svg)
"""


def _changes(base: dict, other: dict) -> str:
    return ", ".join(f"{field} {value}" for field, value in other.items() if base[field] != value)
