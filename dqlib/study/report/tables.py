"""The tables of ``results/``: each read from the folders of trained models, none typed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas
from transformers import PreTrainedModel

from dqlib.config import Config
from dqlib.presets import QUANTIZATION_ONLY
from dqlib.storage.footprint import footprint
from dqlib.storage.reading import read_model
from dqlib.storage.students import load_student
from dqlib.study.evaluation import bleu as translation_metrics
from dqlib.study.evaluation import positions
from dqlib.study.evaluation.generation import interval, resampled_sums
from dqlib.study.evaluation.records import ZERO, Record, metrics_table, read_predictions, read_record, two_sided
from dqlib.study.notebooks import tutorial
from dqlib.study.params.paths import DETAILS, LOG
from dqlib.study.pipeline.study import Study

#: Draws of the test documents, the same for all models of a task.
RESAMPLES = 10_000


@dataclass(frozen=True)
class Trained:
    """A trained model of a study: its teacher (without configuration) or one of its students."""

    study: Study
    folder: Path
    config: Config | None = None

    @cached_property
    def row(self) -> Record:
        """Its line of ``metrics.csv``."""
        return read_record(self.folder)

    @property
    def key(self) -> dict[str, str]:
        """What a line of another table names it by."""
        return {"task": self.row.task, "config": self.row.config, "preset": self.row.preset}

    @property
    def language(self) -> str | None:
        """The language that its headline is of; None where there are none."""
        languages = self.study.task.corpus.languages
        return languages[0] if languages else None

    @cached_property
    def found(self) -> positions.Found:
        """Words of the references that it found, in the language of the headline."""
        return positions.read_found(self.folder, self.language)

    def scores(self) -> np.ndarray:
        """Score of each test document: the headline where documents have one of their own, else chrF."""
        lines = read_predictions(self.folder)
        name = self.row.headline if self.row.headline in lines[0] else "chrf"
        return np.array([line[name] for line in lines])

    @cached_property
    def resampled(self) -> np.ndarray:
        """Its headline score on test documents drawn again with replacement, (:data:`RESAMPLES`,).

        All models of a task get the same draws, so their differences and ratios are paired (Koehn 2004).
        """
        lines = read_predictions(self.folder, self.language)
        if self.row.headline == "bleu":
            references, predictions = ([line[name] for line in lines] for name in ("reference", "prediction"))
            return translation_metrics.resampled_bleu(references, predictions, RESAMPLES)
        scores = np.array([[line[self.row.headline]] for line in lines])
        return resampled_sums(scores, RESAMPLES)[:, 0] / len(scores)

    def model(self) -> PreTrainedModel:
        """The model itself, in evaluation mode."""
        if self.config is None:
            return read_model(self.folder)
        return load_student(self.folder)


def trained(study: Study) -> list[Trained]:
    """The teacher, then the students in the order of the parameters; what is missing is made."""
    students = [Trained(study, study.student(str(config), preset), config) for config, preset in study.task.students()]
    return [Trained(study, study.teacher()), *students]


def collect_metrics(studies: Sequence[Study]) -> pandas.DataFrame:
    """One row a trained model, task by task, the teacher of a task first."""
    return metrics_table([model.row for study in studies for model in trained(study)])


def collect_training(studies: Sequence[Study]) -> pandas.DataFrame:
    """The training logs of all models in one table, with columns ``task_name``, ``model`` and ``preset``."""
    logs = []
    for study in studies:
        folder = study.settings.pretrained_folder(study.name)
        own = study.task.pretrain is not None and folder is not None
        named = [("pre-training", "", study.pretrained())] if own else []
        named += [("teacher" if m.config is None else m.row.config, m.row.preset, m.folder) for m in trained(study)]
        logs += [
            pandas.read_csv(folder / LOG).assign(task_name=study.name, model=model, preset=preset)
            for model, preset, folder in named
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
    """Joint training against quantization alone at the same configuration, paired over the test documents."""
    rows = []
    for study in studies:
        models = {(m.row.config, m.row.preset): m for m in trained(study)}
        for (config, preset), alone in models.items():
            joint = models.get((config, study.task.distill.preset))
            if preset == QUANTIZATION_ONLY.name and joint is not None:
                row = joint.key | {"headline": joint.row.headline, "score": joint.row.score}
                row |= {"baseline": preset, "baseline_score": alone.row.score}
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
            low, high = interval(student.resampled / np.maximum(teacher.resampled, ZERO))
        rows.append(student.key | {"retention": student.row.retention, "low": low, "high": high})
    return pandas.DataFrame(rows).astype({"retention": float}).round(4)


def collect_positions(studies: Sequence[Study]) -> pandas.DataFrame:
    """Recall along the reference, a row a model and part; see :func:`dqlib.study.evaluation.positions.by_position`."""
    return _beside_teacher(studies, positions.by_position)


def collect_lengths(studies: Sequence[Study]) -> pandas.DataFrame:
    """Recall by length of the reference; see :func:`dqlib.study.evaluation.positions.by_length`."""
    return _beside_teacher(studies, positions.by_length)


def collect_accumulation(studies: Sequence[Study]) -> pandas.DataFrame:
    """What is lost early and late in the reference, a row a student."""
    rows = []
    for teacher, student in _pairs(studies):
        measured = positions.accumulation(student.found, teacher.found)
        rows.append(student.key | {"early": measured.early, "late": measured.late, "p_value": measured.p_value})
    return pandas.DataFrame(rows).round(4)


def collect_similarity(studies: Sequence[Study]) -> pandas.DataFrame:
    """How alike tokens are in each student; see :func:`dqlib.study.notebooks.tutorial.similarity_table`."""
    tables = []
    for study in studies:
        teacher, *students = trained(study)
        material = tutorial.material(study)
        models = {"teacher": material.teacher} | {str(i): m.model() for i, m in enumerate(students)}
        table = tutorial.similarity_table(models, material.teacher, material.batch())
        keys = pandas.DataFrame([m.key for m in (teacher, *students)])
        columns = {"more alike": "more_alike", "divergence (nats)": "divergence"}
        table = table.reset_index(drop=True).rename(columns=columns)
        table["teacher"] = table.decoder.iloc[0]
        wanted = ["decoder", "teacher", "more_alike", "low", "high", "encoder", "embedding", "divergence"]
        tables.append(pandas.concat([keys, table[wanted]], axis=1))
    return pandas.concat(tables, ignore_index=True)


def collect_sizes(studies: Sequence[Study]) -> pandas.DataFrame:
    """Bytes of each student by kind of parameter; columns ``part`` and ``bytes``."""
    rows = []
    for _, student in _pairs(studies):
        if student.row.preset == QUANTIZATION_ONLY.name:
            continue  # the same bytes as its joint twin
        entries = footprint(student.model())
        for part in ("weights", "embedding", "positions", "rest"):
            codes = sum(entry.code_bytes for entry in entries if entry.kind == part)
            rows.append(student.key | {"part": part, "bytes": codes})
        rows.append(student.key | {"part": "scales", "bytes": sum(entry.scale_bytes for entry in entries)})
    return pandas.DataFrame(rows)


def _pairs(studies: Sequence[Study]) -> Iterator[tuple[Trained, Trained]]:
    for study in studies:
        teacher, *students = trained(study)
        yield from ((teacher, student) for student in students)


def _beside_teacher(
    studies: Sequence[Study], measure: Callable[[positions.Found, positions.Found], pandas.DataFrame]
) -> pandas.DataFrame:
    tables = [
        measure(student.found, teacher.found).assign(**student.key).round(4) for teacher, student in _pairs(studies)
    ]
    table = pandas.concat(tables, ignore_index=True)
    keys = ["task", "config", "preset"]
    return table[[*keys, *(column for column in table if column not in keys)]]
