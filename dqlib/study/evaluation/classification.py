"""The test of a classifier: accuracy, F1 and the correlation of Matthews, from the confusion of classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from dqlib.study.corpora.rows import Row
from dqlib.study.evaluation.bootstrap import interval, resampled_sums
from dqlib.study.evaluation.generation import answers
from dqlib.study.evaluation.records import Detail, Line, Scored, places, scores_of
from dqlib.study.params import settings as S
from dqlib.study.training.batches import Batch
from dqlib.study.training.classification import TRAINING
from dqlib.study.training.task import TaskTraining

#: What each metric is, as details have it.
SIGNATURES = {
    "accuracy": "share of the texts",
    "f1": "mean over the classes that occur (macro)",
    "mcc": "Matthews correlation of several classes (Gorodkin 2004)",
}


def score(training: TaskTraining, model: PreTrainedModel, evaluation: S.Evaluation, name: str) -> Scored | None:
    """Classify the texts of the test sets, and score the classes.

    Returns:
        Scores and a line for each text on the main process, None on the others.
    """
    spec, corpus, accelerator = training.spec, training.corpus, training.accelerator
    rows = corpus.test_rows(evaluation.documents)
    examples = TRAINING.encode(rows, corpus, spec.corpus)

    def probabilities(_: list[int], batch: Batch) -> list[list[float]]:
        return torch.softmax(model(**batch.inputs()).logits.float(), dim=-1).tolist()

    collate = TRAINING.collate(corpus.tokenizer)
    chances = answers(model, examples, collate, evaluation.batch_size, accelerator, name, probabilities)
    if not accelerator.is_main_process:
        return None
    positive = spec.corpus.labels[1] if len(spec.corpus.labels) == 2 else None
    return class_scores(rows, np.array(chances), corpus.labels, evaluation.bootstrap, positive)


def class_scores(
    rows: Sequence[Row], chances: np.ndarray, labels: Sequence[str], resamples: int, positive: str | None = None
) -> Scored:
    """Accuracy (the headline), macro-F1 and Matthews' correlation, in percent; accuracy of each text is 0 or 100.

    The scores are those of the test set ``test``, which rows have as their ``test_set``. ``chances`` are (rows,
    classes). The F1 of a class ``positive`` is among the details, as GLUE has it of MRPC and QQP.
    """
    number = {label: i for i, label in enumerate(labels)}
    truth = np.array([number[row["target"]] for row in rows])
    predicted = chances.argmax(axis=1)
    details: list[Detail] = []
    for test_set, where in places(rows, lambda row: row["test_set"]).items():
        details += class_details(truth[where], predicted[where], labels, resamples, test_set, positive)
    lines: list[Line] = [
        {name: row[name] for name in ("source", "second") if name in row}
        | {"reference": row["target"], "prediction": labels[guess], "probability": round(float(chance[guess]), 4)}
        | {"accuracy": 100.0 * (labels[guess] == row["target"])}
        | ({"test_set": row["test_set"]} if row["test_set"] != "test" else {})
        for row, guess, chance in zip(rows, predicted.tolist(), chances, strict=True)
    ]
    return scores_of(details, rows, "accuracy", tuple(SIGNATURES)), lines


def class_details(
    truth: np.ndarray, predicted: np.ndarray, labels: Sequence[str], resamples: int, test_set: str = "test",
    positive: str | None = None,
) -> list[Detail]:  # fmt: skip
    """Every metric with its interval over the texts, of the numbers of their classes, (texts,) each.

    The F1 of the class ``positive`` is the last one, if it is asked for.
    """
    classes = len(labels)
    found, cell = np.unique(truth * classes + predicted, return_inverse=True)  # of many classes most cells are empty
    cells = np.eye(len(found))[cell]  # (texts, cells found), as floats: BLAS has no integers, and the sums are exact
    sums = np.zeros((1 + resamples, classes * classes))
    sums[0, found], sums[1:, found] = cells.sum(axis=0), resampled_sums(cells, resamples)
    confusion = sums.reshape(-1, classes, classes)
    measured = [(metric, values, SIGNATURES[metric]) for metric, values in metrics(confusion).items()]
    if positive is not None:
        place = list(labels).index(positive)
        either = confusion[:, place].sum(axis=1) + confusion[:, :, place].sum(axis=1)
        f1 = np.divide(2 * confusion[:, place, place], either, out=np.zeros(len(sums)), where=either > 0)
        measured.append(("f1_positive", 100 * f1, f"F1 of the class '{positive}'"))
    return [
        Detail(test_set, None, metric, float(values[0]), *interval(values[1:]), signature)
        for metric, values, signature in measured
    ]


def metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of confusion matrices in percent, (matrices,) each.

    F1 is averaged over the classes that occur, in truth or prediction. The correlation is that of several classes; it
    is 0 where truth or prediction is one class alone. Matrices have texts by class (rows) and prediction (columns).
    """
    confusion = confusion.astype(float)
    right = np.diagonal(confusion, axis1=1, axis2=2)  # (matrices, classes)
    true, predicted, texts = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    both = true + predicted
    f1 = np.divide(2 * right, both, out=np.zeros_like(right), where=both > 0)
    f1 = f1.sum(axis=1) / (both > 0).sum(axis=1)
    hits = right.sum(axis=1)
    covariance = hits * texts - (true * predicted).sum(axis=1)
    spread = (texts**2 - (true**2).sum(axis=1)) * (texts**2 - (predicted**2).sum(axis=1))
    mcc = np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)
    return {"accuracy": 100 * hits / texts, "f1": 100 * f1, "mcc": 100 * mcc}
