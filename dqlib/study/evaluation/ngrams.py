"""What an n-gram model with Kneser-Ney smoothing reaches, beside which a language model's perplexity is read.

Interpolated Kneser-Ney (Kneser & Ney 1995, as Chen & Goodman 1999, section 3, write it) over the tokens of the models'
own tokenizer: the highest order counts how often a token follows its context, the lower orders in how many contexts it
occurs. One discount per order, ``n1 / (n1 + 2 n2)`` of the n-grams that occur once and twice. Below unigrams all tokens
are alike, so none is impossible.

nltk has the same model in dictionaries (a test compares both), which take minutes for what NumPy sorts in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.rows import Row
from dqlib.study.evaluation.perplexity import perplexity_details
from dqlib.study.evaluation.records import Detail, renamed
from dqlib.study.params import settings as S
from dqlib.study.training.language_modelling import stream

#: Tokens of an n-gram.
ORDER = 5


def baselines(evaluation: S.Evaluation, spec: S.Task, corpus: LoadedCorpus) -> list[Detail]:
    """Perplexity and bits per byte of the test documents by a 5-gram of the train documents."""
    rows = corpus.splits["test"][: evaluation.documents]
    model = KneserNey.of(_streams(corpus.splits["train"], corpus.tokenizer), ORDER, len(corpus.tokenizer))
    measured: np.ndarray = np.zeros((len(rows), 3))
    for number, (row, ids) in enumerate(zip(rows, _streams(rows, corpus.tokenizer), strict=True)):
        probabilities = model.probabilities(ids)
        measured[number] = -np.log(probabilities).sum(), len(probabilities), len(row["source"].encode())
    signature = f"interpolated Kneser-Ney of order {ORDER}, one discount per order, on the train split"
    return renamed(perplexity_details(measured, evaluation.bootstrap, signature), f"{ORDER}-gram")


def _streams(rows: Iterable[Row], tokenizer: PreTrainedTokenizerFast) -> Iterable[np.ndarray]:
    """Tokens of each document, after as many tokens that end texts as an n-gram has context."""
    for row in rows:
        start, *ids, _ = stream(row["source"], tokenizer)
        yield np.array([start] * (ORDER - 1) + ids)


@dataclass(frozen=True)
class Order:
    """N-grams of one length; the number of one is its place among the ``keys``."""

    keys: np.ndarray  # number of the context times the vocabulary's size, plus the last token; sorted, (n-grams,)
    # of each n-gram: how often it occurs, or in lower orders after how many different tokens, (n-grams,)
    counts: np.ndarray
    totals: np.ndarray  # sum of the counts after each context, (contexts,)
    kinds: np.ndarray  # different tokens after each context, (contexts,)
    discount: float  # taken from each count


@dataclass(frozen=True)
class KneserNey:
    """An interpolated Kneser-Ney model over token ids."""

    orders: tuple[Order, ...]  # unigrams first
    vocabulary: int  # number of tokens

    @classmethod
    def of(
        cls, streams: Iterable[np.ndarray], order: int, vocabulary: int, discounts: Sequence[float] | None = None
    ) -> KneserNey:
        """Count the n-grams of some streams of token ids; none crosses from one stream to the next.

        The first ``order - 1`` tokens of a stream, (tokens,), are context alone. ``discounts`` of each order, from
        unigrams, are estimated, when None.
        """
        parts = [np.asarray(ids, dtype=np.int64) for ids in streams]
        tokens = np.concatenate(parts)
        place = np.concatenate([np.arange(len(ids)) for ids in parts])  # of each token in its stream
        # Of the n-gram that ends at each token, its number; of the empty one, to begin with.
        numbers: np.ndarray = np.zeros(len(tokens), dtype=np.int64)
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        # Of one occurrence of each n-gram, the number of the n-gram without its first token.
        shorter: list[np.ndarray] = []
        for n in range(1, order + 1):
            ends = np.flatnonzero(place >= n - 1)
            contexts = numbers[ends - 1] if n > 1 else np.zeros(len(ends), dtype=np.int64)
            keys, first, inverse, often = np.unique(
                contexts * vocabulary + tokens[ends], return_index=True, return_inverse=True, return_counts=True
            )
            shorter.append(numbers[ends[first]])
            numbers = np.full(len(tokens), -1)
            numbers[ends] = inverse
            found.append((keys, often, keys // vocabulary))
        orders = []
        for n, (keys, often, contexts) in enumerate(found, start=1):
            counts = often if n == order else np.bincount(shorter[n], minlength=len(keys))
            size = 1 if n == 1 else len(found[n - 2][0])
            totals = np.bincount(contexts, counts, minlength=size)
            kinds = np.bincount(contexts, counts > 0, minlength=size)
            discount = _discount(counts) if discounts is None else discounts[n - 1]
            orders.append(Order(keys, counts, totals, kinds, discount))
        return cls(tuple(orders), vocabulary)

    def probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Probability of each token of a stream after the first ``order - 1``, (tokens - order + 1,)."""
        ids = np.asarray(ids, dtype=np.int64)
        wanted = np.arange(len(self.orders) - 1, len(ids))
        probability = np.full(len(wanted), 1 / self.vocabulary)
        # Of the n-gram that ends at each token, its number; -1 where it was not seen.
        numbers: np.ndarray = np.zeros(len(ids), dtype=np.int64)
        for n, order in enumerate(self.orders, start=1):
            contexts = numbers if n == 1 else np.concatenate([[-1], numbers[:-1]])
            keys = contexts * self.vocabulary + ids
            at = np.minimum(np.searchsorted(order.keys, keys), len(order.keys) - 1)
            seen = (contexts >= 0) & (order.keys[at] == keys)
            known = contexts[wanted]
            total = np.where(known >= 0, order.totals[known], 0)
            counts = np.where(seen[wanted], order.counts[at[wanted]], 0)
            share = np.maximum(counts - order.discount, 0) + order.discount * order.kinds[known] * probability
            probability = np.divide(share, total, out=probability.copy(), where=total > 0)
            numbers = np.where(seen, at, -1)
        return probability


def _discount(counts: np.ndarray) -> float:
    """``n1 / (n1 + 2 n2)`` of the n-grams that count once and twice (Ney, Essen & Kneser 1994); a half without any."""
    once, twice = (int((counts == times).sum()) for times in (1, 2))
    return once / (once + 2 * twice) if once and twice else 0.5
