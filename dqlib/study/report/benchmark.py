"""Tables of the benchmark of presets: one row per run, their summary, ablations, and what longer training is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas

from dqlib.config import Config
from dqlib.presets import get_preset
from dqlib.storage.footprint import size_bytes
from dqlib.storage.reading import read_model
from dqlib.student import make_student
from dqlib.study.evaluation.bootstrap import holm, two_sided, welch_p_value
from dqlib.study.evaluation.records import columns_of, retained
from dqlib.study.params import settings as S
from dqlib.study.params.paths import COST, LOG, project_root
from dqlib.study.params.settings import Run
from dqlib.study.params.tasks import benchmark_file
from dqlib.study.pipeline.benchmark import benchmark_of, place_of
from dqlib.study.pipeline.ledger import IDENTITY, Row, read_ledger, run_ids
from dqlib.study.pipeline.study import Study
from dqlib.study.report.scores import SCORES, ModelKey, Resampled, joined, read_scores, rows_of
from dqlib.study.report.tables import Trained

#: The preset that ablations change one part of.
WHOLE = "dqlib"
#: The folder of its page, figures and scores.
FOLDER = "methods"
#: Columns of the table of runs beside those of a record.
COMPARED = ("baseline", "p_value")


def presets_table(names: Sequence[str]) -> pandas.DataFrame:
    """Presets side by side: one row per field, one column per preset; fields that all share are left out."""
    columns = {}
    for name in names:
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


@dataclass(frozen=True)
class Finished:
    """A finished run, made here or held by the committed tables.

    ``row`` is that of ``metrics.csv``, with ``validation_loss`` (of its best weights, in nats per token), ``minutes``
    (None where it went on from a checkpoint) and the two ids; ``scores`` are those of its test documents, None where
    they are not committed with its row.
    """

    run: Run
    row: Row
    scores: pandas.DataFrame | None


def finished(study: Study) -> list[Finished]:
    """Every finished run of a benchmark, in the order of its parameters; those that are missing are left out.

    The teacher must be there.
    """
    benchmark, ledger, found = benchmark_of(study), read_ledger(study), []
    file = project_root() / study.settings.results / benchmark_file(FOLDER, study.name) / SCORES
    named = ["preset", "config", "seed", "steps"]
    committed = dict(list(read_scores(file).groupby(named))) if ledger.rows and file.is_file() else {}
    teacher = Trained(study, study.folders.teacher)
    runs = sorted(benchmark.runs_of_equal_steps(), key=lambda run: _order(benchmark, run)) + benchmark.longer_runs()
    for run in runs:
        place = place_of(study, run, ledger)
        if isinstance(place, Path):
            model = Trained(study, place, run.config)
            row = _row(model, teacher) | run_ids(study, run, ledger.teacher)
            found.append(Finished(run, row, rows_of(model.record, model.lines)))
        elif place is not None:
            key = tuple(place[name] for name in ("preset", "config", "seed", "train_steps"))
            found.append(Finished(run, place, committed.get(key)))
    return found


def _row(model: Trained, teacher: Trained) -> dict[str, Any]:
    """The row of a run that was made here but for its ids; what it retains is told on the documents of its test."""
    kept = retained(model.record.score, teacher.score_on(len(model.lines)), model.record.headline)
    cost = json.loads((model.folder / COST).read_text())
    measured = {"retention": kept, "validation_loss": _best_validation(model.folder), "minutes": cost["minutes"]}
    return asdict(model.record) | measured


def teacher_score(study: Study, runs: Sequence[Finished]) -> float:
    """The teacher's score on the documents that runs are tested on, the first ones of its own test."""
    tested = [len(each.scores) for each in runs if each.scores is not None]
    documents = max(tested, default=benchmark_of(study).evaluate.documents)
    return Trained(study, study.folders.teacher).score_on(documents)


def missing(study: Study, runs: Sequence[Finished]) -> list[str]:
    """What a benchmark still has to run: the presets of each config, with how many of their seeds, if not all."""
    done = {each.run for each in runs}
    groups: dict[str, dict[str, list[bool]]] = {}
    for run in benchmark_of(study).runs():
        steps = "" if run.steps is None else f", {run.steps:,} steps"
        groups.setdefault(f"`{run.config}`{steps}", {}).setdefault(run.preset, []).append(run not in done)
    left: dict[str, list[str]] = {}
    for name, presets in groups.items():
        for preset, seeds in presets.items():
            some = "" if all(seeds) else f" ({sum(seeds)} of {len(seeds)} seeds)"
            if any(seeds):
                left.setdefault(name, []).append(f"`{preset}`{some}")
    return [f"{name}: {', '.join(presets)}" for name, presets in left.items()]


def scores_table(runs: Sequence[Finished]) -> pandas.DataFrame:
    """The scores of the test documents of all runs, in the columns of :mod:`dqlib.study.report.scores`."""
    return joined(each.scores for each in runs if each.scores is not None)


def benchmark_table(study: Study, runs: Sequence[Finished]) -> pandas.DataFrame:
    """One row per finished run of equal steps: the columns of ``metrics.csv``, ``baseline``, ``p_value`` and its ids.

    The p-value is that of a preset at a config, over documents and seeds, so its rows share it. An ablation is compared
    with the whole preset from the same seeds.
    """
    runs = [each for each in runs if each.run.steps is None]
    drawn, rows = Resampled(scores_table(runs)), []
    compared = {(model.preset, model.config): _compared(study, model, drawn) for model in drawn.models}
    for each, size in zip(runs, _sizes(study, runs), strict=True):
        baseline, p_value = compared.get((each.run.preset, str(each.run.config)), (None, None))
        counted = {"size_bytes": size, "compression": round(each.row["teacher_size_bytes"] / size, 2)}
        rows.append({**each.row, "baseline": baseline, "p_value": p_value, **counted})
    table = pandas.DataFrame(rows, columns=[*columns_of(study.name), *COMPARED, *IDENTITY])
    return table.astype({"retention": float})  # it is None beside a teacher of zero


def _sizes(study: Study, runs: Sequence[Finished]) -> list[int]:
    """Bytes of each run's student; they depend on shapes alone, so an untrained one is counted.

    Of those whose bits, heads or neurons are chosen on a calibration set, the record says it.
    """
    teacher = read_model(study.folders.teacher)

    @cache
    def counted(preset: str, config: Config) -> int:
        return size_bytes(make_student(teacher, config, preset))

    def size(row: Row, run: Run) -> int:
        chosen = run.config.is_open or run.config.narrow
        return row["size_bytes"] if chosen else counted(run.preset, run.config)

    return [size(each.row, each.run) for each in runs]


def _compared(study: Study, model: ModelKey, drawn: Resampled) -> tuple[str | None, float | None]:
    """The preset that a model is compared with, and the p-value; None where there is nothing."""
    benchmark = benchmark_of(study)
    names = (WHOLE,) if model.preset in benchmark.ablation_presets else (benchmark.baseline, benchmark.fallback)
    others = [other for other in (model._replace(preset=name) for name in names) if other in drawn.models]
    common = [seed for seed in drawn.seeds(model) if others and seed in drawn.seeds(others[0])]
    if not common or others[0] == model:
        return None, None
    ours, theirs = (drawn.drawn(each, seeds=common) for each in (model, others[0]))
    return others[0].preset, round(two_sided(ours - theirs), 4)


def parts_table(study: Study, runs: Sequence[Finished]) -> pandas.DataFrame:
    """The validation loss of each finished run and its teacher, in nats per token, and what the run cost.

    It shows differences of methods and parts where test scores do not: over seeds it spreads by a hundredth of a nat.

    Returns:
        Columns ``part`` (a preset, whole or with one part changed), ``config``, ``seed``, ``steps``,
        ``validation_loss``, ``teacher_loss``, ``size_bytes``, ``minutes`` (of one core, for the training; None of one
        that went on from a checkpoint) and the ids.
    """
    teacher_loss, rows = _best_validation(study.folders.teacher), []
    for each, size in zip(runs, _sizes(study, runs), strict=True):
        run, steps = each.run, each.run.steps or benchmark_of(study).distill.steps
        costs = each.row["validation_loss"], teacher_loss, size, each.row["minutes"]
        rows.append((run.preset, str(run.config), run.seed, steps, *costs, *(each.row[name] for name in IDENTITY)))
    names = ["part", "config", "seed", "steps", "validation_loss", "teacher_loss", "size_bytes", "minutes"]
    return pandas.DataFrame(rows, columns=[*names, *IDENTITY])


def _best_validation(folder: Path) -> float:
    """Validation loss of the weights that a training kept."""
    return round(pandas.read_csv(folder / LOG).validation_loss.min(), 4)


def gap_table(parts: pandas.DataFrame) -> pandas.DataFrame:
    """Gap of each part of :func:`parts_table` to the teacher, in nats per token, beside the whole preset's.

    Returns:
        Columns ``config``, ``steps``, ``part``, ``gap`` and ``gap_std`` (mean and spread over seeds), ``ratio`` to the
        whole preset's gap (None where it is level with its teacher, or better), ``p_value`` of the difference over
        seeds (Welch's test; None with one seed), ``seeds``, ``size_bytes``, ``minutes``.
    """
    rows = []
    parts = parts.assign(gap=parts.validation_loss - parts.teacher_loss)
    for (config, steps), group in parts.groupby(["config", "steps"], sort=False):
        whole = group[group.part == WHOLE].gap.to_numpy()
        for part, runs in group.groupby("part", sort=False):
            gaps = runs.gap.to_numpy()
            ratio = gaps.mean() / whole.mean() if len(whole) and whole.mean() > 0 else None
            p_value = welch_p_value(gaps, whole) if part != WHOLE else None
            spread = gaps.std(ddof=1) if len(gaps) > 1 else None
            costs = len(gaps), runs.size_bytes.iloc[0], runs.minutes.astype(float).mean()
            rows.append((config, steps, part, gaps.mean(), spread, ratio, p_value, *costs))
    names = ["config", "steps", "part", "gap", "gap_std", "ratio", "p_value", "seeds", "size_bytes", "minutes"]
    return pandas.DataFrame(rows, columns=names)


def benchmark_summary(table: pandas.DataFrame) -> pandas.DataFrame:
    """Mean over seeds of each preset at each config: score, retention, their spread, size and p-value.

    The p-values of what is compared with one preset at one config are corrected by Holm's method. The table is that of
    :func:`benchmark_table` with the losses of :func:`dqlib.study.report.benchmark_page.with_losses`.

    Returns:
        Columns ``config``, ``preset``, ``score``, ``score_std`` (over seeds), ``retention``, ``size_bytes``,
        ``compression``, ``baseline``, ``p_value``, ``seeds`` and ``validation_loss``.
    """
    groups = table.groupby(["config", "preset"], sort=False)
    first = {name: (name, "first") for name in ("size_bytes", "compression", "baseline", "p_value")}
    mean = {name: (name, "mean") for name in ("score", "retention", "validation_loss")}
    summary = groups.agg(**mean, score_std=("score", "std"), **first, seeds=("seed", "count")).reset_index()
    for _, family in summary[summary.p_value.notna()].groupby(["config", "baseline"], sort=False):
        summary.loc[family.index, "p_value"] = holm(family.p_value.tolist())
    return summary


def _order(benchmark: S.Methods, run: Run) -> tuple[int, int, int]:
    configs = [Config.parse(text) for text in (*benchmark.configs, *benchmark.own_configs, *benchmark.ablations)]
    own = (name for names in benchmark.own_configs.values() for name in names)
    names = [*benchmark.presets, *own, *benchmark.ablation_presets]  # of which some are in two
    return configs.index(run.config), names.index(run.preset), benchmark.seeds.index(run.seed)


def ablation_table(table: pandas.DataFrame, benchmark: S.Methods) -> pandas.DataFrame:
    """Means with one part of a preset changed, and how far they are from the whole preset's.

    Returns:
        Columns ``config``, ``changed``, ``score``, ``score_std``, ``difference``, ``validation loss``, ``its
        difference`` and ``seeds``; both differences are from the whole preset's runs of the same seeds. Empty
        without ablations.
    """
    rows = changes(table, benchmark)
    if rows.empty:
        return pandas.DataFrame()
    named = {
        "score": ("score", "mean"),
        "score_std": ("score", "std"),
        "difference": ("score_change", "mean"),
        "validation loss": ("validation_loss", "mean"),
        "its difference": ("loss_change", "mean"),
        "seeds": ("seed", "count"),
    }
    means = rows.groupby(["config", "changed"], sort=False).agg(**named).reset_index()
    digits = {"score": 2, "score_std": 2, "difference": 2, "validation loss": 3, "its difference": 3}
    return means.round(digits).dropna(axis=1, how="all")  # one seed has no spread


def changes(table: pandas.DataFrame, benchmark: S.Methods) -> pandas.DataFrame:
    """One row per run of a preset with one part changed, beside the whole preset's run of the same config and seed.

    Of a table as :func:`benchmark_summary` has it, its columns with ``changed`` (the part), ``score_change`` and
    ``loss_change`` (not a number without that run).
    """
    whole = table[table.preset == WHOLE][["config", "seed", "score", "validation_loss"]]
    rows = table[table.preset.isin(benchmark.ablation_presets)]
    rows = rows.merge(whole, on=["config", "seed"], how="left", suffixes=("", "_whole"))
    return rows.assign(
        changed=rows.preset.str.removeprefix(f"{WHOLE}-"),
        score_change=rows.score - rows.score_whole,
        loss_change=rows.validation_loss - rows.validation_loss_whole,
    )


def longer_table(study: Study, runs: Sequence[Finished]) -> pandas.DataFrame:
    """One row per finished run, the columns of ``metrics.csv`` and its ids: the benchmark's own steps first, then more.

    Empty where the benchmark has no longer runs, or none is finished.
    """
    found = {each.run: each for each in runs}
    long = [run for run in benchmark_of(study).longer_runs() if run in found]
    short = [run for run in dict.fromkeys(replace(run, steps=None) for run in long) if run in found]
    series = list(dict.fromkeys((run.config, run.preset) for run in long))
    ordered = sorted(short + long, key=lambda run: (series.index((run.config, run.preset)), run.steps or 0))
    return pandas.DataFrame([found[run].row for run in ordered], columns=[*columns_of(study.name), *IDENTITY])


def _changes(base: dict, other: dict) -> str:
    return ", ".join(f"{field} {value}" for field, value in other.items() if base[field] != value)
