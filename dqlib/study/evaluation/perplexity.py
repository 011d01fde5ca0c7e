"""The test of a language model: perplexity of a token and bits per byte, document by document.

A document is read in windows of ``source_tokens`` that go on by half of that, the stride, and the new tokens of each
window count: each token of the text counts once, and but for the first window it is predicted from at least half a
window of text. A document is read on its own, after the token that ends texts.

Perplexity depends on how a tokenizer cuts texts; bits per byte of the text (UTF-8) do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dqlib.losses import IGNORED_LABEL
from dqlib.study.corpora.rows import Row
from dqlib.study.evaluation.bootstrap import interval, resampled_sums
from dqlib.study.evaluation.generation import answers
from dqlib.study.evaluation.records import Detail, Line, Scored, places, scores_of
from dqlib.study.params import settings as S
from dqlib.study.training.batches import Batch
from dqlib.study.training.examples import Example
from dqlib.study.training.language_modelling import TRAINING, stream
from dqlib.study.training.task import TaskTraining


def stride_of(length: int) -> int:
    """Tokens that one window of ``length`` begins after the one before it: half of them."""
    return length // 2


def score(training: TaskTraining, model: PreTrainedModel, evaluation: S.Evaluation, name: str) -> Scored | None:
    """Measure the documents of the test sets, and score all together.

    Returns:
        Scores and a line for each text on the main process, None on the others.
    """
    corpus, accelerator, length = training.corpus, training.accelerator, training.spec.corpus.source_tokens
    rows = corpus.test_rows(evaluation.documents)
    measured = document_losses(model, rows, corpus.tokenizer, length, evaluation.batch_size, accelerator, name)
    if not accelerator.is_main_process:
        return None
    signature = f"windows of {length} tokens, stride {stride_of(length)}"
    return perplexity_scores(rows, measured, evaluation.bootstrap, signature)


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a document: ``example`` is read, and its last ``new`` tokens count."""

    document: int
    example: Example
    new: int


def windows(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, length: int, stride: int) -> list[Window]:
    """Windows in which each token of each document counts once."""
    found = []
    for number, row in enumerate(rows):
        ids = stream(row["source"], tokenizer)[:-1]  # the token that ends a text is none of it
        done = 0  # tokens that were predicted
        for start in range(0, max(len(ids) - 1, 1), stride):
            block = ids[start : start + length + 1]
            new = start + len(block) - 1 - done
            if new > 0:
                found.append(Window(number, Example(block[:-1], block[1:]), new))
            done += max(new, 0)
    return found


def document_losses(
    model: PreTrainedModel,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    batch_size: int,
    accelerator: Accelerator,
    name: str,
) -> np.ndarray:
    """Nats, tokens and bytes of each document, (documents, 3); shared by the processes, all of them get the whole."""
    every = windows(rows, tokenizer, length, stride_of(length))

    def losses(indices: list[int], batch: Batch) -> list[tuple[int, float, int]]:
        logits = model(**batch.inputs()).logits.float()
        nats = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), batch.labels, ignore_index=IGNORED_LABEL, reduction="none"
        )
        ends = [len(every[i].example.source) for i in indices]
        sums = [each[end - every[i].new : end].sum() for i, end, each in zip(indices, ends, nats.double(), strict=True)]
        return [(every[i].document, float(total), every[i].new) for i, total in zip(indices, sums, strict=True)]

    examples, collate = [window.example for window in every], TRAINING.collate(tokenizer)
    found = answers(model, examples, collate, batch_size, accelerator, name, losses)
    measured: np.ndarray = np.zeros((len(rows), 3))
    for document, loss, tokens in sorted(found):
        measured[document, :2] += loss, tokens
    measured[:, 2] = [len(row["source"].encode()) for row in rows]
    return measured


def perplexity_scores(rows: Sequence[Row], measured: np.ndarray, resamples: int, signature: str) -> Scored:
    """Perplexity of a token (the headline) and bits per byte of all documents together.

    The scores are those of the test set ``test``, which rows have as their ``test_set``. ``measured`` has nats, tokens
    and bytes of each document, (documents, 3), and ``signature`` says how.
    """
    details: list[Detail] = []
    for test_set, where in places(rows, lambda row: row["test_set"]).items():
        details += perplexity_details(measured[where], resamples, signature, test_set)
    lines: list[Line] = [
        {"source": row["source"][:200], "nats": round(nats, 4), "tokens": int(tokens), "bytes": int(size)}
        | ({"name": row["name"]} if "name" in row else {})
        | ({"test_set": row["test_set"]} if row["test_set"] != "test" else {})
        for row, (nats, tokens, size) in zip(rows, measured.tolist(), strict=True)
    ]
    return scores_of(details, rows, "perplexity", ("perplexity", "bits_per_byte")), lines


def perplexity_of(line: Mapping[str, Any]) -> float:
    """Perplexity of a token of one document."""
    return math.exp(line["nats"] / max(line["tokens"], 1))


def perplexity_details(measured: np.ndarray, resamples: int, signature: str, test_set: str = "test") -> list[Detail]:
    """Both metrics, with their intervals over the documents, as :func:`perplexity_scores` takes them."""
    sums = np.concatenate([measured.sum(axis=0, keepdims=True), resampled_sums(measured, resamples)])
    return [
        Detail(test_set, None, metric, float(values[0]), *interval(values[1:]), signature)
        for metric, values in metrics(sums).items()
    ]


def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of sums of nats, tokens and bytes over documents: (sums, 3) to (sums,) each."""
    nats, tokens, size = sums.T
    return {"perplexity": np.exp(nats / tokens), "bits_per_byte": nats / math.log(2) / size}
