"""Tables that follow from the scores of documents alone: ``scores.parquet`` gives them again in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas

from dqlib.presets import QUANTIZATION_ONLY
from dqlib.study.evaluation.bootstrap import interval, two_sided
from dqlib.study.evaluation.records import FALLING, METRICS, ZERO, retained
from dqlib.study.params.paths import TABLES
from dqlib.study.params.tasks import TASKS, benchmark_file
from dqlib.study.pipeline.ledger import PARTS
from dqlib.study.report.claims import claims_table
from dqlib.study.report.names import MODEL_COLUMNS, is_model, key_of
from dqlib.study.report.scores import HELD_OUT, SCORES, ModelKey, Resampled, read_scores
from dqlib.study.report.verdicts import PRETRAINED, RUNS, Tables

#: By how much ``metrics.csv`` may differ from what scores give, as those of documents are rounded.
ROUNDED = 1e-3


def comparisons_table(drawn: Resampled) -> pandas.DataFrame:
    """Joint training against others at the same config, paired over the test documents.

    The others are quantization alone and, where a task stands beside whose teacher was pre-trained at the student's
    depth (:attr:`dqlib.study.params.tasks.KnownTask.beside`), that teacher. ``kept`` is the part of the other's score
    that is left, with its 95% interval, as in :func:`retention_table`.
    """
    rows, students = [], drawn.students()
    others = [(each, each.task, each.preset) for each in students if each.preset == QUANTIZATION_ONLY.name]
    beside = [(each, TASKS[each.task].beside) for each in drawn.models if each.role == "teacher" and each.task in TASKS]
    others += [(each, task, PRETRAINED) for each, task in beside if task]
    for other, task, baseline in others:
        twins = [each for each in students if (each.task, each.config) == (task, other.config)]
        joint = next((each for each in twins if each.preset != QUANTIZATION_ONLY.name), None)
        if joint is not None:
            p_value = two_sided(drawn.drawn(joint) - drawn.drawn(other))
            scores = drawn.score(joint), baseline, drawn.score(other), p_value, *_kept(drawn, joint, other)
            rows.append((*key_of(joint), drawn.headline(joint), *scores))
    columns = [*MODEL_COLUMNS, "headline", "score", "baseline", "baseline_score", "p_value", "kept", "low", "high"]
    return pandas.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[-3:], float)).round(4)


def retention_table(drawn: Resampled) -> pandas.DataFrame:
    """The part of the teacher's score that is left to each student, with its 95% interval over documents and seeds.

    There is no interval where the teacher's own reaches down to zero.
    """
    rows = [(*key_of(each), *_kept(drawn, each, drawn.teacher(each.task))) for each in drawn.students()]
    columns = ["retention", "low", "high"]
    return pandas.DataFrame(rows, columns=[*MODEL_COLUMNS, *columns]).astype(dict.fromkeys(columns, float)).round(4)


def _kept(drawn: Resampled, model: ModelKey, other: ModelKey) -> tuple[float | None, float, float]:
    """The part of another model's score that is left to a model, and its 95% interval."""
    headline, low, high = drawn.headline(model), np.nan, np.nan
    ours, theirs = drawn.drawn(model), drawn.drawn(other)
    if interval(theirs)[0] >= ZERO:
        part, whole = (theirs, ours) if headline in FALLING else (ours, theirs)
        low, high = interval(part / np.maximum(whole, ZERO))
    return retained(drawn.score(model), drawn.score(other), headline), low, high


def over_seeds(seeds: pandas.DataFrame, drawn: Resampled) -> pandas.DataFrame:
    """One row per model: its metrics and its retention are means over its seeds, the interval is over those, too.

    The columns are those of ``seeds``, a row per model and seed; ``seed`` is the first one, ``seeds`` their number.
    """
    table = seeds.drop_duplicates(MODEL_COLUMNS, ignore_index=True).assign(seeds=1)
    for model in drawn.models:
        own = seeds[is_model(seeds, model)]
        if len(own) < 2:
            continue
        means = own[[name for name in METRICS if name in own]].astype(float).mean().round(4)
        headline, (low, high) = drawn.headline(model), interval(drawn.drawn(model))
        kept = retained(means[headline], drawn.score(drawn.teacher(model.task)), headline)
        place = is_model(table, model)
        table.loc[place, means.index] = means.to_numpy()
        table.loc[place, ["score", "score_low", "score_high"]] = means[headline], round(low, 4), round(high, 4)
        table.loc[place, ["retention", "seeds"]] = kept, len(own)
    return table


def accumulation_table(drawn: Resampled) -> pandas.DataFrame:
    """What is lost early and late in the reference, in points of recall, one row per student that writes texts.

    Documents too short to have both are left out; the p-value is of the difference.
    """
    rows = []
    for student in (each for each in drawn.having("late") if each.role == "student"):
        teacher = drawn.teacher(student.task)
        early, late = (100 * (drawn.score(teacher, part) - drawn.score(student, part)) for part in ("early", "late"))
        more = [drawn.drawn(each, "late") - drawn.drawn(each, "early") for each in (teacher, student)]
        rows.append((*key_of(student), early, late, two_sided(more[0] - more[1])))
    return pandas.DataFrame(rows, columns=[*MODEL_COLUMNS, "early", "late", "p_value"]).round(4)


def more_alike_table(drawn: Resampled) -> pandas.DataFrame:
    """Mean cosine of different tokens in each decoder (``decoder``), beside the teacher's and less it, text by text.

    ``low`` and ``high`` are the 95% interval of the difference over held-out texts and seeds.
    """
    rows = []
    for model in drawn.having("cosine", HELD_OUT):
        both = model, drawn.teacher(model.task)
        ours, theirs = (drawn.score(each, "cosine", HELD_OUT) for each in both)
        more, less = (drawn.drawn(each, "cosine", HELD_OUT) for each in both)
        rows.append((*key_of(model), ours, theirs, ours - theirs, *interval(more - less)))
    columns = ["decoder", "teacher", "more_alike", "low", "high"]
    table = pandas.DataFrame(rows, columns=[*MODEL_COLUMNS, *columns])
    table[columns] = table[columns].astype(float).round(3) + 0.0  # no minus zero
    return table


def tables_of(drawn: Resampled) -> dict[str, pandas.DataFrame]:
    """All of these tables, by their names."""
    tables = {"comparisons": comparisons_table(drawn), "retention": retention_table(drawn)}
    return tables | {"accumulation": accumulation_table(drawn), "similarity": more_alike_table(drawn)}


def metrics_of(drawn: Resampled) -> pandas.DataFrame:
    """The columns of ``metrics.csv`` that follow from scores: one row per model, mean over its seeds."""
    rows = []
    for model in drawn.models:
        headline, score = drawn.headline(model), drawn.score(model)
        kept = retained(score, drawn.score(drawn.teacher(model.task)), headline)
        rows.append((*key_of(model), headline, score, kept))
    return pandas.DataFrame(rows, columns=[*MODEL_COLUMNS, "headline", "score", "retention"]).round(4)


def recomputed(folder: Path) -> tuple[pandas.DataFrame, list[str]]:
    """Compute every claim of a folder of results again from its scores.

    Returns:
        The claims, and what the tables that stand there have otherwise: a line for each.

    Raises:
        InputError: there are no scores.
        OSError: there is no ``metrics.csv``, which has what does not follow from scores.
    """
    drawn, written = Resampled(read_scores(folder / SCORES)), pandas.read_csv(folder / TABLES / "metrics.csv")
    tables, metrics = tables_of(drawn), metrics_of(drawn)
    metrics = metrics[metrics.task.isin(written.task)].reset_index(drop=True)  # not those that only stand beside one
    more = [*MODEL_COLUMNS, *written.columns.difference(metrics.columns, sort=False)]
    whole = metrics.merge(written[more], on=MODEL_COLUMNS, how="left")
    tables["claims"] = claims_table(Tables(whole, **tables, runs=runs_in(folder)))
    differences = [line for name, table in tables.items() for line in _differences(folder, name, table)]
    return tables["claims"], _differences(folder, "metrics", metrics, ROUNDED) + differences


def runs_in(folder: Path) -> pandas.DataFrame:
    """The runs of every benchmark that a folder of results has, in the columns :data:`RUNS`."""
    files = {task: folder / TABLES / benchmark_file(PARTS, task) for task in TASKS}
    tables = [pandas.read_csv(file).assign(task=task)[list(RUNS)] for task, file in files.items() if file.is_file()]
    return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame(columns=list(RUNS))


def _differences(folder: Path, name: str, table: pandas.DataFrame, least: float = 1e-6) -> list[str]:
    """Where a table that stands in a folder is another one; numbers differ by at least ``least``."""
    file = folder / TABLES / f"{name}.csv"
    if not file.is_file():
        return [f"{file.name} is missing"]
    written, lines = pandas.read_csv(file), []
    if len(written) != len(table):
        return [f"{file.name} has {len(written)} rows, and the scores give {len(table)}"]
    for column in table:
        ours, theirs = table[column], written[column]
        if pandas.api.types.is_numeric_dtype(theirs):
            same = np.isclose(ours.astype(float), theirs, rtol=1e-5, atol=least, equal_nan=True)
        else:
            same = (ours.fillna("") == theirs.fillna("")).to_numpy()
        lines += [f"{file.name}, row {row + 1}, {column}: {theirs[row]}, and the scores give {ours[row]}"
                  for row in np.flatnonzero(~same)]  # fmt: skip
    return lines
