"""Tables of the benchmark of presets: one row per run, their summary, ablations, and what longer training is worth."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from dqlib.config import Config
from dqlib.presets import PRESETS, get_preset
from dqlib.storage.footprint import size_bytes
from dqlib.storage.reading import read_model
from dqlib.student import make_student
from dqlib.study.evaluation.bootstrap import paired_p_value, welch_p_value
from dqlib.study.evaluation.records import columns_of, read_record
from dqlib.study.params import settings as S
from dqlib.study.params.paths import COST, LOG
from dqlib.study.params.settings import Run
from dqlib.study.pipeline.benchmark import benchmark_of, folder_of
from dqlib.study.pipeline.study import Study
from dqlib.study.report.tables import Trained

#: The preset that ablations change one part of.
WHOLE = "dqlib"
#: Columns of the table of runs beside those of a record.
COMPARED = ("baseline", "p_value")


def presets_table(names: list[str] | None = None) -> pandas.DataFrame:
    """Presets side by side: one row per field, one column per preset; fields that all share are left out."""
    columns = {}
    for name in names or list(PRESETS):
        preset = get_preset(name)
        flat: dict[str, Any] = {}
        for part in ("weights", "activations", "loss", "recipe"):
            flat |= {f"{part}.{field}": value for field, value in asdict(getattr(preset, part)).items()}
        bits = {f"recipe at {n} bits": _changes(asdict(preset.recipe), asdict(r)) for n, r in preset.by_bits.items()}
        rest = ("quantize_head", "position_bits", "single_layer", "rate_exponent")
        columns[name] = flat | bits | {field: getattr(preset, field) for field in rest}
    table = pandas.DataFrame(columns).astype(object)
    table = table.where(table.notna(), "")
    return table[table.apply(lambda row: len(set(map(str, row))) > 1, axis=1)]


def benchmark_table(study: Study) -> pandas.DataFrame:
    """One row per run, in the columns of ``metrics.csv`` with ``baseline`` and ``p_value``.

    The p-value is that of a preset at a config, on each document's mean over the seeds, so its rows share
    it. An ablation is compared with the whole preset from the same seeds.
    """
    benchmark = benchmark_of(study)
    seeds: dict[tuple[str, Config], list[int]] = {}
    for run in benchmark.runs_of_equal_steps():
        seeds.setdefault((run.preset, run.config), []).append(run.seed)
    compared = {key: _compared(study, *key, seeds) for key in seeds}
    sizes = _sizes(study, list(seeds))
    rows = []
    for run in sorted(benchmark.runs_of_equal_steps(), key=lambda run: _order(benchmark, run)):
        row = asdict(read_record(folder_of(study, run)))
        baseline, p_value = compared[run.preset, run.config]
        size = sizes.get((run.preset, run.config), row["size_bytes"])
        row |= {"size_bytes": size, "compression": round(row["teacher_size_bytes"] / size, 2)}
        rows.append(row | {"baseline": baseline, "p_value": p_value})
    table = pandas.DataFrame(rows, columns=[*columns_of(study.name), *COMPARED])
    return table.astype({"retention": float})  # it is None beside a teacher of zero


def _sizes(study: Study, pairs: list[tuple[str, Config]]) -> dict[tuple[str, Config], int]:
    """Bytes of each student; they depend on shapes alone, so an untrained one is counted, but where bits are chosen."""
    teacher = read_model(study.folders.teacher)
    return {pair: size_bytes(make_student(teacher, pair[1], pair[0])) for pair in pairs if not pair[1].is_open}


def _compared(
    study: Study, name: str, config: Config, seeds: dict[tuple[str, Config], list[int]]
) -> tuple[str | None, float | None]:
    """What a preset is compared with at a config, and the p-value; None where there is nothing."""
    benchmark = benchmark_of(study)
    candidates = (WHOLE,) if name in benchmark.ablations else (benchmark.baseline, benchmark.fallback)
    baseline = next((other for other in candidates if (other, config) in seeds), name)
    if baseline == name:
        return None, None
    theirs = seeds[name, config] if name in benchmark.ablations else seeds[baseline, config]
    scores = (
        _by_document(study, name, config, seeds[name, config]),
        _by_document(study, baseline, config, theirs),
    )
    return baseline, round(paired_p_value(*scores), 4)


def parts_table(study: Study) -> pandas.DataFrame:
    """The validation loss of each run and its teacher, in nats per token, and what the run cost.

    It tells methods and their parts apart where test scores do not: over seeds it spreads by a hundredth of a nat.

    Returns:
        Columns ``part`` (a preset, whole or with one part changed), ``config``, ``seed``, ``steps``,
        ``validation_loss``, ``teacher_loss``, ``size_bytes``, ``minutes`` (of one core, for the training).
    """
    rows, benchmark = [], benchmark_of(study)
    runs = sorted(benchmark.runs_of_equal_steps(), key=lambda run: _order(benchmark, run)) + benchmark.longer_runs()
    sizes = _sizes(study, list(dict.fromkeys((run.preset, run.config) for run in runs)))
    teacher_loss = _best_validation(study.folders.teacher)
    for run in runs:
        folder = folder_of(study, run)
        minutes = json.loads((folder / COST).read_text())["minutes"]
        steps, size = run.steps or benchmark.distill.steps, sizes[run.preset, run.config]
        losses = _best_validation(folder), teacher_loss
        rows.append((run.preset, str(run.config), run.seed, steps, *losses, size, minutes))
    names = ["part", "config", "seed", "steps", "validation_loss", "teacher_loss", "size_bytes", "minutes"]
    return pandas.DataFrame(rows, columns=names)


def _best_validation(folder: Path) -> float:
    """Validation loss of the weights that a training kept."""
    return round(pandas.read_csv(folder / LOG).validation_loss.min(), 4)


def gap_table(parts: pandas.DataFrame, against: str = WHOLE) -> pandas.DataFrame:
    """Gap of each part to the teacher, in nats per token, beside that of the whole preset after equal steps.

    Args:
        parts: :func:`parts_table`.
        against: the whole preset.

    Returns:
        Columns ``config``, ``steps``, ``part``, ``gap`` and ``gap_std`` (mean and spread over seeds), ``ratio`` to the
        whole preset's gap, ``p_value`` of the difference over seeds (Welch's test; None with one seed), ``seeds``,
        ``size_bytes``, ``minutes``.
    """
    rows = []
    for (config, steps), group in parts.assign(gap=parts.validation_loss - parts.teacher_loss).groupby(
        ["config", "steps"], sort=False
    ):
        whole = group[group.part == against].gap.to_numpy()
        for part, runs in group.groupby("part", sort=False):
            gaps = runs.gap.to_numpy()
            ratio = gaps.mean() / whole.mean() if len(whole) else None
            p_value = welch_p_value(gaps, whole) if part != against else None
            spread = gaps.std(ddof=1) if len(gaps) > 1 else None
            rows.append((config, steps, part, gaps.mean(), spread, ratio, p_value, len(gaps),
                         runs.size_bytes.iloc[0], runs.minutes.mean()))  # fmt: skip
    names = ["config", "steps", "part", "gap", "gap_std", "ratio", "p_value", "seeds", "size_bytes", "minutes"]
    return pandas.DataFrame(rows, columns=names)


def benchmark_summary(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean over seeds of each preset at each config: score, retention, their spread, size and p-value.

    Args:
        table: :func:`benchmark_table`, and the losses of :func:`parts_table` where they are merged into it.

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


def _order(benchmark: S.Methods, run: Run) -> tuple[int, int, int]:
    configs = [Config.parse(text) for text in (*benchmark.configs, *benchmark.ablation_configs)]
    names = [*benchmark.presets, *benchmark.ablations]
    return configs.index(run.config), names.index(run.preset), benchmark.seeds.index(run.seed)


def ablation_table(table: pandas.DataFrame, benchmark: S.Methods, against: str = WHOLE) -> pandas.DataFrame:
    """Scores with one part of a preset changed, and how far they are from the whole preset's.

    Args:
        table: :func:`benchmark_table`.
        benchmark: its parameters.
        against: the whole preset.

    Returns:
        Columns ``config``, ``changed``, ``score``, ``score_std`` and ``difference``, and ``validation loss`` and ``its
        difference`` where the table has losses; empty without ablations.
    """
    summary = benchmark_summary(table)
    same = table[table.seed.isin(benchmark.ablation_seeds or benchmark.seeds)]
    whole = benchmark_summary(same[same.preset == against]).set_index("config")
    rows = summary[summary.preset.isin(benchmark.ablations)]
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


def longer_table(study: Study) -> pandas.DataFrame:
    """One row per run in the columns of ``metrics.csv``: the benchmark's own steps first, then more.

    Empty where the benchmark has no longer runs.
    """
    benchmark = benchmark_of(study)
    long = benchmark.longer_runs()
    short = dict.fromkeys(replace(run, steps=None) for run in long)
    runs = [run for run in short if run in benchmark.runs_of_equal_steps()] + long
    rows = [asdict(read_record(folder_of(study, run))) for run in runs]
    table = pandas.DataFrame(rows, columns=list(columns_of(study.name)))
    order = {config: i for i, config in enumerate(dict.fromkeys(str(run.config) for run in long))}
    return table.sort_values(["config", "train_steps"], key=lambda c: c.map(order) if c.name == "config" else c)


def _changes(base: dict, other: dict) -> str:
    return ", ".join(f"{field} {value}" for field, value in other.items() if base[field] != value)
