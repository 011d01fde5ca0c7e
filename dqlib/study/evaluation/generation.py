"""Evaluation: beam search, ROUGE, lengths, and bootstrap intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rouge_score import rouge_scorer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dqlib.generation import OneSourceCache
from dqlib.study.params import settings as S
from dqlib.study.process.progress import report
from dqlib.study.training.batches import Example, collate

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'`(])")


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    evaluation: S.Evaluation,
    max_tokens: int,
    accelerator: Accelerator,
    name: str,
) -> list[str]:
    """Text for each example by beam search, shared by the processes; all of them get the whole list.

    Each text starts from its example's own token, so one batch may hold several languages.
    """
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].source))
    batches = [order[i : i + evaluation.batch_size] for i in range(0, len(order), evaluation.batch_size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    produced: list[tuple[int, str]] = []
    for number, indices in enumerate(mine, start=1):
        batch = collate([examples[i] for i in indices]).to(accelerator.device)
        output = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_start_token_id=batch.decoder_input_ids[:, 0].tolist(),
            past_key_values=OneSourceCache(),
            num_beams=evaluation.beams,
            max_new_tokens=max_tokens,
            do_sample=False,
        )
        produced += zip(indices, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True)
        if accelerator.is_main_process:
            report(name, number, len(mine))
    return [text.strip() for _, text in sorted(gather_object(produced))]


def rouge(references: Sequence[str], predictions: Sequence[str]) -> dict[str, np.ndarray]:
    """F-measures of each document in percent, with Porter stemming (Lin 2004).

    ROUGE-Lsum compares sentence by sentence; sentences are split at ``.``, ``!`` or ``?`` before a capital.

    Returns:
        An array (documents,) for each of :data:`ROUGE`.
    """
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)
    scores = [
        scorer.score(sentences(reference), sentences(prediction))
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    return {kind: np.array([100 * score[kind].fmeasure for score in scores]) for kind in ROUGE}


def sentences(text: str) -> str:
    """The text with one sentence a line, as ROUGE-Lsum reads it."""
    return _SENTENCE_END.sub("\n", text)


def words(texts: Sequence[str]) -> np.ndarray:
    """Words of each text, (texts,)."""
    return np.array([len(text.split()) for text in texts], dtype=float)


def resampled_sums(statistics: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Sums of statistics over documents drawn again with replacement: what a corpus-level score needs.

    Args:
        statistics: (documents, statistics).
        resamples: how many times all documents are drawn.
        seed: of the draws.

    Returns:
        (resamples, statistics).
    """
    count = len(statistics)
    times_drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    return times_drawn @ statistics


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95% interval of resampled scores: their percentiles."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_interval(scores: np.ndarray, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean over documents: percentiles of resampled means (Efron 1979).

    Args:
        scores: (documents,), one score a document.
        resamples: how many times documents are drawn with replacement.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    means = np.array([scores[generator.integers(0, len(scores), len(scores))].mean() for _ in range(resamples)])
    return interval(means)
