"""What a search may not write, as transformers' processors of logits have it, on arrays and without torch."""

from __future__ import annotations

import numpy as np

from dqlib.engines.base import Decoding


def apply(scores: np.ndarray, written: np.ndarray, decoding: Decoding) -> None:
    """Change the scores of the next token, in place, in transformers' order.

    Args:
        scores: logits in greedy search, log-probabilities in beam search, (rows, vocabulary).
        written: ids so far, from the one that the decoder starts from on, (rows, length).
    """
    penalty, size = decoding.repetition_penalty, decoding.no_repeat_ngram_size
    if penalty != 1:  # https://arxiv.org/abs/1909.05858, section 4.1
        there = np.take_along_axis(scores, written, 1)
        np.put_along_axis(scores, written, np.where(there < 0, there * penalty, there / penalty), 1)
    if 0 < size <= written.shape[1]:
        grams = np.lib.stride_tricks.sliding_window_view(written, size, axis=1)  # (rows, places, size)
        last = written[:, None, written.shape[1] - size + 1 :]
        rows, places = (grams[:, :, :-1] == last).all(-1).nonzero()
        scores[rows, grams[rows, places, -1]] = -np.inf
    for *before, word in decoding.suppressed:
        if (not before and word in decoding.ends) or len(before) > written.shape[1]:  # an end may always be written
            continue
        rows = (written[:, written.shape[1] - len(before) :] == before).all(-1) if before else slice(None)
        scores[rows, word] = -np.inf


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Of logits (rows, vocabulary)."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def best(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best scores of each row and their tokens, (rows, count), best first."""
    tokens = np.argpartition(-scores, count - 1, axis=-1)[:, :count]
    values = np.take_along_axis(scores, tokens, 1)
    order = np.argsort(-values, axis=-1, kind="stable")
    return np.take_along_axis(values, order, 1), np.take_along_axis(tokens, order, 1)
