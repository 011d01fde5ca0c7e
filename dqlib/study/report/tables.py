"""The tables of ``results/tables/``: all numbers are read from the folders of trained models, none is typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from transformers import PreTrainedModel

from dqlib.architectures import architecture_of
from dqlib.config import Config
from dqlib.presets import QUANTIZATION_ONLY, get_preset
from dqlib.sensitivity import sensitivities
from dqlib.storage.budget import module_entries
from dqlib.storage.footprint import footprint
from dqlib.storage.reading import read_model
from dqlib.storage.students import load_student
from dqlib.study.corpora.corpus import load_corpus, load_info
from dqlib.study.evaluation.recall import Recall, by_length, by_position, read_recall
from dqlib.study.evaluation.records import Detail, Record, metrics_table, read_details, read_predictions, read_record
from dqlib.study.evaluation.similarity import Similarity, held_out, similarity
from dqlib.study.params.paths import DETAILS, LOG, TABLES, project_root
from dqlib.study.params.tasks import TASKS
from dqlib.study.pipeline.jobs import quiet
from dqlib.study.pipeline.study import Study
from dqlib.study.report.claims import claims_table
from dqlib.study.report.names import MODEL_COLUMNS
from dqlib.study.report.recompute import over_seeds, retention_table, runs_in, tables_of
from dqlib.study.report.scores import (
    HELD_OUT,
    SCORES,
    Resampled,
    joined,
    numbered_rows,
    read_scores,
    resampled_headline,
    rows_of,
    score_of,
    statistics_of,
)
from dqlib.study.report.verdicts import Tables
from dqlib.study.training.task import calibration_batches

#: Columns of the table of similarities that only the models show, not the scores of texts.
_OF_MODELS = ("encoder", "embedding", "divergence")


@dataclass(frozen=True)
class Trained:
    """A trained model of a study: its teacher (without a config) or one of its students, from one seed."""

    study: Study
    folder: Path
    config: Config | None = None

    @cached_property
    def record(self) -> Record:
        return read_record(self.folder)

    @property
    def key(self) -> dict[str, str]:
        """What the rows of all tables name it by."""
        return {name: getattr(self.record, name) for name in MODEL_COLUMNS}

    @property
    def language(self) -> str | None:
        """The language that its headline is of; None where there are none."""
        return next(iter(self.study.task.corpus.languages), None)

    @cached_property
    def recall(self) -> Recall:
        """How many words of the references it recalls, in the language of the headline."""
        return read_recall(self.folder, self.language)

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """What it did with each test document, in the language of the headline."""
        return read_predictions(self.folder, self.language)

    def scores(self) -> pandas.DataFrame:
        return rows_of(self.record, self.lines, self.recall if self.study.task.form.writes else None)

    @cached_property
    def resampled(self) -> np.ndarray:
        """Its headline score on test documents drawn again; see :func:`resampled_headline`."""
        return resampled_headline(self.record.headline, self.lines)

    def score_on(self, documents: int | None) -> float:
        """Its headline score on the first documents of its test; on all, when None."""
        lines, headline = self.lines[:documents], self.record.headline
        return float(score_of(headline, statistics_of(headline, lines).sum(axis=0, keepdims=True), len(lines))[0])

    def model(self) -> PreTrainedModel:
        """The model itself, in evaluation mode."""
        return read_model(self.folder) if self.config is None else load_student(self.folder)


def trained(*studies: Study) -> list[Trained]:
    """Of each study the teacher, then the students in the order of the parameters; what is missing is made.

    All students come from the task's own seed first, then those that are repeated, seed by seed.
    """
    models = []
    for study in studies:
        models.append(Trained(study, study.teacher()))
        for config, preset, seed in study.task.seeded_students():
            models.append(Trained(study, study.student(config, preset, seed), config))
    return models


@dataclass(frozen=True, kw_only=True)
class Collected(Tables):
    """All tables of a study: those that claims and findings are read from, and these."""

    seeds: pandas.DataFrame
    training: pandas.DataFrame
    details: pandas.DataFrame
    positions: pandas.DataFrame
    lengths: pandas.DataFrame
    sizes: pandas.DataFrame
    sensitivity: pandas.DataFrame
    scores: pandas.DataFrame

    def claims(self) -> pandas.DataFrame:
        """The papers' claims, each with what was measured."""
        return claims_table(self)

    def files(self) -> dict[str, pandas.DataFrame]:
        """Every table by its file's name, but the scores of documents, and runs, which the benchmark has written."""
        tables = {f"{name}.csv": table for name, table in vars(self).items() if name not in ("scores", "runs")}
        return tables | {"claims.csv": self.claims()}


def collect(studies: Sequence[Study]) -> Collected:
    """Read all tables from the folders of the trained models; models that are missing are made.

    What compares texts word by word is of tasks alone whose models write texts, and what compares the tokens of a
    decoder of those whose models have one.
    """
    writing = [study for study in studies if study.task.form.writes]
    similarities = [each for study in studies if study.task.form.decoder for each in _similarities(study)]
    tested = [model.scores() for study in studies for model in [*trained(study), *_beside(study)]]
    alike = [numbered_rows(each.record, HELD_OUT, {"cosine": found.decoder}) for each, found in similarities]
    scores = joined(tested + alike)
    drawn, seeds = Resampled(scores), collect_seeds(studies)
    decided = tables_of(drawn)
    decided["similarity"] = _with_models(decided["similarity"], similarities)
    return Collected(
        metrics=over_seeds(seeds, drawn),
        **decided,
        seeds=seeds,
        training=collect_training(studies),
        details=collect_details(studies),
        positions=_beside_teacher(writing, by_position),
        lengths=_beside_teacher(writing, by_length),
        sizes=collect_sizes(studies),
        sensitivity=collect_sensitivity(studies),
        scores=scores,
        runs=runs_in(project_root() / studies[0].settings.results),
    )


def read_collected(folder: Path) -> Collected:
    """The tables of a folder of results; what follows from the scores of documents is computed again.

    Raises:
        InputError: there are no scores.
        OSError: a table is missing.
    """
    names = ("seeds", "training", "details", "positions", "lengths", "sizes", "sensitivity", "similarity")
    tables = {name: pandas.read_csv(folder / TABLES / f"{name}.csv") for name in names}
    scores = read_scores(folder / SCORES)
    drawn, of_models = Resampled(scores), tables.pop("similarity")[[*MODEL_COLUMNS, *_OF_MODELS]]
    decided = tables_of(drawn)
    decided["similarity"] = decided["similarity"].merge(of_models, on=MODEL_COLUMNS)
    tables["training"] = tables["training"].fillna({"preset": ""})  # as of pre-training, which has none
    return Collected(
        metrics=over_seeds(tables["seeds"], drawn), **decided, **tables, scores=scores, runs=runs_in(folder)
    )


def collect_seeds(studies: Sequence[Study]) -> pandas.DataFrame:
    """One row per trained model and seed, task by task, the teacher of a task first."""
    return metrics_table([model.record for model in trained(*studies)])


def collect_metrics(studies: Sequence[Study]) -> pandas.DataFrame:
    """One row per trained model, mean over its seeds, task by task, the teacher of a task first."""
    scores = joined(model.scores() for model in trained(*studies))
    return over_seeds(collect_seeds(studies), Resampled(scores))


def collect_training(studies: Sequence[Study]) -> pandas.DataFrame:
    """The training logs of all models in one table; columns ``task_name``, ``model``, ``preset`` and ``seed``."""
    logs = []
    for study in studies:
        pretrained = study.folders.pretrained / LOG  # which a committed teacher does not need
        if study.task.pretrain and pretrained.is_file():
            about = {"model": "pre-training", "preset": "", "seed": study.task.pretrain.seed}
            logs.append(pandas.read_csv(pretrained).assign(task_name=study.name, **about))
        for model in trained(study):
            name = "teacher" if model.config is None else model.record.config
            about = {"model": name, "preset": model.record.preset, "seed": model.record.seed}
            logs.append(pandas.read_csv(model.folder / LOG).assign(task_name=study.name, **about))
    return pandas.concat(logs, ignore_index=True)


def collect_details(studies: Sequence[Study]) -> pandas.DataFrame:
    """Everything measured beyond ``metrics.csv``: lengths, other test sets, each language, signatures."""
    rows = []
    for model in trained(*studies):
        if (model.folder / DETAILS).is_file():
            named = model.key | {"seed": model.record.seed}
            rows += [named | asdict(detail) for detail in read_details(model.folder)]
    return pandas.DataFrame(rows, columns=[*MODEL_COLUMNS, "seed", *(field.name for field in fields(Detail))])


def collect_retention(studies: Sequence[Study]) -> pandas.DataFrame:
    """:func:`retention_table` of the models of some studies."""
    return retention_table(Resampled(joined(model.scores() for model in trained(*studies))))


def _beside(study: Study) -> list[Trained]:
    """Teachers of fewer layers that stand beside a task's students, where they are tested on the same texts."""
    ours, others = load_info(study.corpus())["sha256"], study.settings.tasks
    beside = [Study(study.params, name, study.settings) for name in others if TASKS[name].beside == study.name]
    return [Trained(other, other.teacher()) for other in beside if load_info(other.corpus())["sha256"] == ours]


def _similarities(study: Study) -> list[tuple[Trained, Similarity]]:
    """How alike the tokens of held-out texts are in each model of a study."""
    quiet()
    models, batch = trained(study), held_out(load_corpus(study.folders.corpus), study.task)
    teacher = models[0].model()
    return [(each, similarity(each.model(), teacher, batch)) for each in models]


def _with_models(table: pandas.DataFrame, similarities: Sequence[tuple[Trained, Similarity]]) -> pandas.DataFrame:
    """The table with what only the models show, mean over seeds: of encoder and embedding, and the divergence."""
    rows = [
        model.key | {"encoder": each.encoder.mean(), "embedding": each.embedding, "divergence": each.divergence}
        for model, each in similarities
    ]
    more = pandas.DataFrame(rows, columns=[*MODEL_COLUMNS, *_OF_MODELS])
    means = more.groupby(MODEL_COLUMNS, sort=False).mean().astype(float).round(3) + 0.0
    return table.merge(means.reset_index(), on=MODEL_COLUMNS)


def collect_sizes(studies: Sequence[Study]) -> pandas.DataFrame:
    """Bytes of each student by kind of parameter; columns ``part`` and ``bytes``."""
    rows = []
    for student in trained(*studies):
        own = student.study.task.distill.seed
        if student.config is None or student.record.preset == QUANTIZATION_ONLY.name or student.record.seed != own:
            continue  # the same bytes as its joint twin, or as from another seed
        sizes = dict.fromkeys(("weights", "embedding", "positions", "rest", "scales"), 0)
        for entry in footprint(student.model()):
            sizes[entry.kind] += entry.code_bytes
            sizes["scales"] += entry.scale_bytes
        rows += [student.key | {"part": part, "bytes": size} for part, size in sizes.items()]
    return pandas.DataFrame(rows, columns=["task", "config", "preset", "part", "bytes"])


def collect_sensitivity(studies: Sequence[Study]) -> pandas.DataFrame:
    """What each module of each teacher loses when it alone has few bits, by the quantizers of the task's preset.

    Returns:
        Columns ``task``, ``preset``, ``module``, ``bits``, ``size_bytes`` (of the module at these bits) and
        ``loss_increase`` (nats per token, see :mod:`dqlib.sensitivity`).
    """
    quiet()
    rows = []
    for study in studies:
        teacher, preset = read_model(study.teacher()), get_preset(study.task.distill.preset)
        calibration = calibration_batches(load_corpus(study.folders.corpus), study.task)[:1]  # enough for a picture
        whole = Config.parse("auto:0MB").with_layers_of(*architecture_of(teacher.config).depths(teacher.config))
        entries, _ = module_entries(teacher, whole, preset)
        for module, losses in sensitivities(teacher, calibration, preset).items():
            for bits, loss in losses.items():
                size = entries[module][bits].size_bytes
                rows.append((study.name, preset.name, module, bits, size, round(loss, 6)))
    return pandas.DataFrame(rows, columns=["task", "preset", "module", "bits", "size_bytes", "loss_increase"])


def _beside_teacher(
    studies: Sequence[Study], measure: Callable[[Recall, Recall], pandas.DataFrame]
) -> pandas.DataFrame:
    """Recall of each student, mean over its seeds, beside its teacher's, by parts of the reference or by its length."""
    tables = [
        measure(student.recall, teacher.recall).assign(**student.key)
        for study in studies
        for teacher, *students in [trained(study)]
        for student in students
    ]
    if not tables:
        return pandas.DataFrame(columns=MODEL_COLUMNS)
    table = pandas.concat(tables, ignore_index=True)
    means = table.groupby([*MODEL_COLUMNS, table.columns[0]], sort=False).mean().round(4).reset_index()
    return means.astype(table.dtypes)
