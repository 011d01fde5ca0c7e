"""The tables of ``results/tables/``: all numbers are read from the folders of trained models, none is typed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

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
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.evaluation import bleu as translation_metrics
from dqlib.study.evaluation.bootstrap import interval, resampled_sums, two_sided
from dqlib.study.evaluation.perplexity import resampled_perplexity
from dqlib.study.evaluation.recall import Recall, accumulation, by_length, by_position, read_recall
from dqlib.study.evaluation.records import FALLING, ZERO, Line, Record, metrics_table, read_predictions, read_record
from dqlib.study.evaluation.similarity import held_out, similarity_table
from dqlib.study.params.paths import DETAILS, LOG
from dqlib.study.pipeline.jobs import quiet
from dqlib.study.pipeline.study import Study
from dqlib.study.report.claims import Tables, claims_table
from dqlib.study.training.task import calibration_batches

#: Columns that name a model in every table.
KEYS = ["task", "config", "preset"]

#: Draws of the test documents, the same for all models of a task.
RESAMPLES = 10_000


@dataclass(frozen=True)
class Trained:
    """A trained model of a study: its teacher (without a config) or one of its students."""

    study: Study
    folder: Path
    config: Config | None = None

    @cached_property
    def record(self) -> Record:
        """Its results."""
        return read_record(self.folder)

    @property
    def key(self) -> dict[str, str]:
        """What the rows of all tables name it by."""
        return {"task": self.record.task, "config": self.record.config, "preset": self.record.preset}

    @property
    def language(self) -> str | None:
        """The language that its headline is of; None where there are none."""
        languages = self.study.task.corpus.languages
        return languages[0] if languages else None

    @cached_property
    def recall(self) -> Recall:
        """How many words of the references it recalls, in the language of the headline."""
        return read_recall(self.folder, self.language)

    def scores(self) -> np.ndarray:
        """Score of each test document: the headline where documents have one of their own, else chrF."""
        lines = read_predictions(self.folder)
        name = self.record.headline if self.record.headline in lines[0] else "chrf"
        return np.array([line[name] for line in lines])

    @cached_property
    def resampled(self) -> np.ndarray:
        """Its headline score on test documents drawn again with replacement, (:data:`RESAMPLES`,).

        All models of a task get the same draws, so their differences and ratios are paired (Koehn 2004).
        """
        return resampled_headline(self.record.headline, read_predictions(self.folder, self.language))

    def model(self) -> PreTrainedModel:
        """The model itself, in evaluation mode."""
        if self.config is None:
            return read_model(self.folder)
        return load_student(self.folder)


def resampled_headline(headline: str, lines: Sequence[Line]) -> np.ndarray:
    """A headline score on the documents of some lines, drawn again with replacement, (:data:`RESAMPLES`,)."""
    if headline == "bleu":
        references, predictions = ([str(line[name]) for line in lines] for name in ("reference", "prediction"))
        return translation_metrics.resampled_bleu(references, predictions, RESAMPLES)
    if headline == "perplexity":
        return resampled_perplexity(lines, RESAMPLES)
    scores = np.array([[line[headline]] for line in lines], dtype=float)
    return resampled_sums(scores, RESAMPLES)[:, 0] / len(scores)


def trained(study: Study) -> list[Trained]:
    """The teacher, then the students in the order of the parameters; what is missing is made."""
    students = [Trained(study, study.student(str(config), preset), config) for config, preset in study.task.students()]
    return [Trained(study, study.teacher()), *students]


@dataclass(frozen=True)
class Collected:
    """All tables of a study, in the order in which they are collected."""

    metrics: pandas.DataFrame
    training: pandas.DataFrame
    details: pandas.DataFrame
    comparisons: pandas.DataFrame
    retention: pandas.DataFrame
    positions: pandas.DataFrame
    lengths: pandas.DataFrame
    accumulation: pandas.DataFrame
    similarity: pandas.DataFrame
    sizes: pandas.DataFrame
    sensitivity: pandas.DataFrame

    def claims(self) -> pandas.DataFrame:
        """The papers' claims, each with what was measured."""
        return claims_table(Tables(self.metrics, self.comparisons, self.retention, self.accumulation, self.similarity))

    def files(self) -> dict[str, pandas.DataFrame]:
        """Every table by the name of its file."""
        return {f"{name}.csv": table for name, table in vars(self).items()} | {"claims.csv": self.claims()}


def collect(studies: Sequence[Study]) -> Collected:
    """Read all tables from the folders of the trained models; models that are missing are made.

    What compares texts word by word, or tokens of a decoder that reads a source, is of tasks alone whose models write
    texts.
    """
    writing = [study for study in studies if study.task.form.writes]
    return Collected(
        metrics=collect_metrics(studies),
        training=collect_training(studies),
        details=collect_details(studies),
        comparisons=collect_comparisons(studies),
        retention=collect_retention(studies),
        positions=_beside_teacher(writing, by_position),
        lengths=_beside_teacher(writing, by_length),
        accumulation=collect_accumulation(writing),
        similarity=collect_similarity(writing),
        sizes=collect_sizes(studies),
        sensitivity=collect_sensitivity(studies),
    )


def collect_metrics(studies: Sequence[Study]) -> pandas.DataFrame:
    """One row per trained model, task by task, the teacher of a task first."""
    return metrics_table([model.record for study in studies for model in trained(study)])


def collect_training(studies: Sequence[Study]) -> pandas.DataFrame:
    """The training logs of all models in one table, with columns ``task_name``, ``model`` and ``preset``."""
    logs = []
    for study in studies:
        pretrained = study.pretrained() if study.task.pretrain is not None else None
        named = [] if pretrained is None else [("pre-training", "", pretrained)]
        named += [
            ("teacher" if m.config is None else m.record.config, m.record.preset, m.folder) for m in trained(study)
        ]
        logs += [
            pandas.read_csv(folder / LOG).assign(task_name=study.name, model=name, preset=preset)
            for name, preset, folder in named
        ]
    return pandas.concat(logs, ignore_index=True)


def collect_details(studies: Sequence[Study]) -> pandas.DataFrame:
    """Everything measured beyond ``metrics.csv``: lengths, other test sets, each language, signatures."""
    rows = [
        model.key | record
        for study in studies
        for model in trained(study)
        if (model.folder / DETAILS).is_file()
        for record in json.loads((model.folder / DETAILS).read_text())
    ]
    return pandas.DataFrame(rows)


def collect_comparisons(studies: Sequence[Study]) -> pandas.DataFrame:
    """Joint training against quantization alone at the same config, paired over the test documents."""
    rows = []
    for study in studies:
        models = {(m.record.config, m.record.preset): m for m in trained(study)}
        for (config, preset), alone in models.items():
            joint = models.get((config, study.task.distill.preset))
            if preset == QUANTIZATION_ONLY.name and joint is not None:
                row = joint.key | {"headline": joint.record.headline, "score": joint.record.score}
                row |= {"baseline": preset, "baseline_score": alone.record.score}
                rows.append(row | {"p_value": round(two_sided(joint.resampled - alone.resampled), 4)})
    columns = ["task", "config", "preset", "headline", "score", "baseline", "baseline_score", "p_value"]
    return pandas.DataFrame(rows, columns=columns)


def collect_retention(studies: Sequence[Study]) -> pandas.DataFrame:
    """The part of the teacher's score that is left to each student, with its 95% interval over the test documents.

    There is no interval where the teacher's own reaches down to zero.
    """
    rows = []
    for teacher, student in _pairs(studies):
        low = high = np.nan
        if interval(teacher.resampled)[0] >= ZERO:
            ours, theirs = student.resampled, teacher.resampled
            if student.record.headline in FALLING:
                ours, theirs = theirs, ours
            low, high = interval(ours / np.maximum(theirs, ZERO))
        rows.append(student.key | {"retention": student.record.retention, "low": low, "high": high})
    return pandas.DataFrame(rows).astype({"retention": float}).round(4)


def collect_accumulation(studies: Sequence[Study]) -> pandas.DataFrame:
    """What is lost early and late in the reference, one row per student."""
    rows = []
    for teacher, student in _pairs(studies):
        measured = accumulation(student.recall, teacher.recall)
        rows.append(student.key | {"early": measured.early, "late": measured.late, "p_value": measured.p_value})
    return pandas.DataFrame(rows).round(4)


def collect_similarity(studies: Sequence[Study]) -> pandas.DataFrame:
    """Similarity of tokens in each student; see :func:`dqlib.study.evaluation.similarity.similarity_table`."""
    quiet()
    tables = []
    for study in studies:
        teacher, *students = trained(study)
        batch = held_out(load_corpus(study.folders.corpus), study.task.corpus)
        model = teacher.model()
        models = {"teacher": model} | {str(i): student.model() for i, student in enumerate(students)}
        table = similarity_table(models, model, batch).reset_index(drop=True)
        keys = pandas.DataFrame([each.key for each in (teacher, *students)])
        table["teacher"] = table.decoder.iloc[0]
        wanted = ["decoder", "teacher", "more_alike", "low", "high", "encoder", "embedding", "divergence"]
        tables.append(pandas.concat([keys, table[wanted]], axis=1))
    return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame(columns=KEYS)


def collect_sizes(studies: Sequence[Study]) -> pandas.DataFrame:
    """Bytes of each student by kind of parameter; columns ``part`` and ``bytes``."""
    rows: list[dict[str, str | int]] = []
    for _, student in _pairs(studies):
        if student.record.preset == QUANTIZATION_ONLY.name:
            continue  # the same bytes as its joint twin
        entries = footprint(student.model())
        for part in ("weights", "embedding", "positions", "rest"):
            codes = sum(entry.code_bytes for entry in entries if entry.kind == part)
            rows.append({**student.key, "part": part, "bytes": codes})
        rows.append({**student.key, "part": "scales", "bytes": sum(entry.scale_bytes for entry in entries)})
    return pandas.DataFrame(rows)


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


def _pairs(studies: Sequence[Study]) -> Iterator[tuple[Trained, Trained]]:
    for study in studies:
        teacher, *students = trained(study)
        yield from ((teacher, student) for student in students)


def _beside_teacher(
    studies: Sequence[Study], measure: Callable[[Recall, Recall], pandas.DataFrame]
) -> pandas.DataFrame:
    """Recall of each student beside its teacher's, by parts of the reference or by its length."""
    tables = [
        measure(student.recall, teacher.recall).assign(**student.key).round(4) for teacher, student in _pairs(studies)
    ]
    if not tables:
        return pandas.DataFrame(columns=KEYS)
    table = pandas.concat(tables, ignore_index=True)
    return table[[*KEYS, *(column for column in table if column not in KEYS)]]
