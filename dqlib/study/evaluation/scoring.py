"""The test of a trained model: it writes its answers to every test set, and they are scored as the task asks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from transformers import PreTrainedModel

from dqlib.errors import InputError
from dqlib.study.corpora.rows import Row
from dqlib.study.evaluation import bleu as translation_metrics
from dqlib.study.evaluation.bootstrap import bootstrap_interval, interval, resampled_sums
from dqlib.study.evaluation.generation import generate
from dqlib.study.evaluation.records import Detail, Line, Scored, key_of, places, scores_of
from dqlib.study.evaluation.rouge import ROUGE, rouge
from dqlib.study.params import settings as S
from dqlib.study.training.batches import encode
from dqlib.study.training.task import TaskTraining


def score(training: TaskTraining, model: PreTrainedModel, evaluation: S.Evaluation, name: str) -> Scored | None:
    """Write an answer to each text of the test sets, and score them.

    Returns:
        Scores and a line for each text on the main process, None on the others.

    Raises:
        InputError: the test has no pair in the language that is judged.
    """
    spec, corpus, accelerator = training.spec, training.corpus, training.accelerator
    rows = corpus.test_rows(evaluation.documents)
    language = spec.corpus.languages[0] if spec.corpus.languages else None
    if language and ("test", language) not in {key_of(row) for row in rows}:
        raise InputError("corpus.languages", language, "a language of the first pairs of the test split")
    examples = encode(rows, corpus.tokenizer, spec.corpus)
    tokens = spec.corpus.target_tokens
    predictions = generate(model, examples, corpus.tokenizer, evaluation, tokens, accelerator, name)
    if not accelerator.is_main_process:
        return None
    if language:
        return translation_scores(rows, predictions, evaluation.bootstrap, language)
    return text_scores(rows, predictions, evaluation.bootstrap)


def text_scores(rows: Sequence[Row], predictions: Sequence[str], resamples: int) -> Scored:
    """ROUGE and lengths of summaries or answers, one per row; ROUGE-L, the headline, for each document.

    The scores are those of the test set ``test``, which rows have as their ``test_set``.
    """
    by_document = rouge([row["target"] for row in rows], predictions)
    details: list[Detail] = []
    signature = f"rouge-score {version('rouge-score')}|stemmer:porter|f-measure"
    for test_set, where in places(rows, lambda row: row["test_set"]).items():
        for kind, values in by_document.items():
            details.append(_mean_of(kind, values[where], test_set, None, resamples, signature))
        details += _lengths(test_set, None, [rows[i] for i in where], [predictions[i] for i in where], resamples)
    lines = [
        _line(row, prediction) | {"rougeL": round(value, 2)}
        for row, prediction, value in zip(rows, predictions, by_document["rougeL"].tolist(), strict=True)
    ]
    if len({row["test_set"] for row in rows}) > 1:
        lines = [line | {"test_set": row["test_set"]} for line, row in zip(lines, rows, strict=True)]
    return scores_of(details, rows, "rougeL", ROUGE), lines


def translation_scores(rows: Sequence[Row], predictions: Sequence[str], resamples: int, language: str) -> Scored:
    """BLEU (the headline), chrF, exact matches and lengths by test set and language; chrF and match of each sentence.

    The scores are those of the ``language`` that is judged on the test set ``test``; there is one prediction per row.
    """
    references = [row["target"] for row in rows]
    sentences = translation_metrics.sentence_chrf(references, predictions)
    matches = translation_metrics.exact(references, predictions)
    details: list[Detail] = []
    for (test_set, code), where in places(rows, key_of).items():
        ours, theirs = [predictions[i] for i in where], [references[i] for i in where]
        for metric, score_of in (("bleu", translation_metrics.bleu), ("chrf", translation_metrics.chrf)):
            details.append(Detail(test_set, code, metric, *score_of(theirs, ours, resamples)))
        details.append(_mean_of("exact", matches[where], test_set, code, resamples, "whole text"))
        details += _lengths(test_set, code, [rows[i] for i in where], ours, resamples)
    lines = [
        _line(row, prediction)
        | {"language": row["language"], "test_set": row["test_set"], "chrf": round(value, 2), "exact": match > 0}
        for row, prediction, value, match in zip(rows, predictions, sentences.tolist(), matches.tolist(), strict=True)
    ]
    return scores_of(details, rows, "bleu", ("bleu", "chrf"), language), lines


def _mean_of(
    metric: str, values: np.ndarray, test_set: str, language: str | None, resamples: int, signature: str
) -> Detail:
    """The mean of a metric over documents, (documents,), with its interval."""
    return Detail(test_set, language, metric, float(values.mean()), *bootstrap_interval(values, resamples), signature)


def _lengths(
    test_set: str, language: str | None, rows: Sequence[Row], predictions: Sequence[str], resamples: int
) -> list[Detail]:
    """Mean words of predictions and of references, and their ratio."""
    texts = zip(predictions, (row["target"] for row in rows), strict=True)
    both = np.array([[len(text.split()) for text in pair] for pair in texts], dtype=float)  # (documents, 2)
    every = np.concatenate([both.sum(axis=0, keepdims=True), resampled_sums(both, resamples)])
    measured = {
        "words": every[:, 0] / len(both),
        "reference_words": every[:, 1] / len(both),
        "length_ratio": every[:, 0] / every[:, 1],
    }
    return [
        Detail(test_set, language, metric, float(values[0]), *interval(values[1:]), "words between spaces")
        for metric, values in measured.items()
    ]


def _line(row: Row, prediction: str) -> Line:
    return {"source": row["source"], "reference": row["target"], "prediction": prediction}
