"""What simpler methods reach on a classification: a classifier that does not beat them has learnt nothing of its own.

* ``majority``: the most frequent class of train.
* ``overlap``, of pairs of texts: the share of the first text's words that the second has, above a threshold of train.
* ``bag_of_words``: logistic regression on the words that a text has; of a pair, also on those that both have and on how
  many. The strength of its penalty is the best of :data:`PENALTIES` on validation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.splits import SPLITS
from dqlib.study.evaluation.classification import class_details
from dqlib.study.evaluation.records import Detail, renamed
from dqlib.study.params import settings as S

#: Words that are features: at most so many, the most frequent ones, and those of two texts or more.
FEATURES, FEWEST = 50_000, 2

#: Weights of the squared coefficients, in a loss that is a mean over texts; of equally good ones the first is taken.
PENALTIES = (1e-6, 1e-5, 1e-4, 1e-7, 1e-8)

#: Steps, texts and rate of the regression.
STEPS, BATCH, RATE = 2000, 256, 0.02

#: Parts of its words that a text shares with another: the features are how many tenths.
TENTHS = 10

_WORD = re.compile(r"\w+|[^\w\s]")


def baselines(evaluation: S.Evaluation, spec: S.Task, corpus: LoadedCorpus) -> list[Detail]:
    """Metrics of each method on the test texts that a model is tested on."""
    rows = {split: list(corpus.splits[split]) for split in SPLITS}
    rows["test"] = rows["test"][: evaluation.documents]
    number = {label: i for i, label in enumerate(corpus.labels)}
    truth = {split: np.array([number[row["target"]] for row in each]) for split, each in rows.items()}
    majority = np.bincount(truth["train"]).argmax()
    predicted = {"majority": np.full(len(truth["test"]), majority)}
    if "second" in rows["train"][0]:
        predicted["overlap"] = by_overlap(rows["train"], truth["train"], rows["test"])
    predicted["bag_of_words"] = by_words(rows, truth, len(corpus.labels))
    return [
        detail
        for method, each in predicted.items()
        for detail in renamed(class_details(truth["test"], each, corpus.labels, evaluation.bootstrap), method)
    ]


def word_set(text: str) -> set[str]:
    """Words and marks of a text, in lower case."""
    return set(_WORD.findall(text.lower()))


def overlap(rows: Sequence[Row]) -> np.ndarray:
    """Of the first text's words, the share that the second text has, (rows,)."""
    pairs = ((word_set(row["source"]), word_set(row["second"])) for row in rows)
    return np.array([len(one & other) / max(len(one), 1) for one, other in pairs])


def by_overlap(train: Sequence[Row], truth: np.ndarray, test: Sequence[Row]) -> np.ndarray:
    """The class of each test pair by one threshold of :func:`overlap`, each side the class most frequent there."""
    shares, classes = overlap(train), int(truth.max()) + 1
    best = (0, 0.0, 0, 0)
    for threshold in np.unique(shares.round(3)):
        above, below = (
            np.bincount(truth[side], minlength=classes) for side in (shares > threshold, shares <= threshold)
        )
        best = max(best, (int(above.max() + below.max()), float(threshold), int(above.argmax()), int(below.argmax())))
    _, threshold, above, below = best
    return np.where(overlap(test) > threshold, above, below)


def by_words(rows: dict[str, list[Row]], truth: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """The class of each test text by logistic regression on words, (texts,)."""
    features = {split: [features_of(row) for row in each] for split, each in rows.items()}
    counts = Counter(name for each in features["train"] for name in each)
    known = {name: i for i, (name, count) in enumerate(counts.most_common(FEATURES)) if count >= FEWEST}
    bags = {split: [[known[name] for name in each if name in known] for each in of] for split, of in features.items()}
    fitted = [_regression(bags["train"], truth["train"], len(known), classes, penalty) for penalty in PENALTIES]
    right = [(_classes(model, bags["validation"]) == truth["validation"]).mean() for model in fitted]
    return _classes(fitted[int(np.argmax(right))], bags["test"])


def features_of(row: Row) -> list[str]:
    """Names of what a text has: its words; of a pair the words of each text, of both, and how many those are."""
    one = word_set(row["source"])
    if "second" not in row:
        return sorted(one)
    other = word_set(row["second"])
    both = one & other
    names = [f"1 {word}" for word in one] + [f"2 {word}" for word in other] + [f"both {word}" for word in both]
    return sorted([*names, f"tenths {int(TENTHS * len(both) / max(len(one), 1))}"])


def _regression(bags: list[list[int]], truth: np.ndarray, features: int, classes: int, penalty: float) -> Tensor:
    """Coefficients, (features + 1, classes), the last row for texts of any words."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.zeros(features + 1, classes, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, STEPS)
    labels = torch.from_numpy(truth)
    for _ in range(STEPS):
        picked = torch.randint(len(bags), (min(BATCH, len(bags)),), generator=generator)
        logits = _logits(weights, [bags[i] for i in picked.tolist()])
        loss = torch.nn.functional.cross_entropy(logits, labels[picked]) + penalty * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return weights.detach()


def _logits(weights: Tensor, bags: Sequence[Sequence[int]]) -> Tensor:
    """(texts, classes); each text's features weigh together as much as one over the root of their number each."""
    ids = torch.tensor([i for bag in bags for i in (*bag, len(weights) - 1)])
    sizes = torch.tensor([len(bag) + 1 for bag in bags])
    shares = torch.repeat_interleave(sizes.float().rsqrt(), sizes)
    starts = sizes.cumsum(dim=0) - sizes
    return torch.nn.functional.embedding_bag(ids, weights, starts, mode="sum", per_sample_weights=shares)


def _classes(weights: Tensor, bags: list[list[int]]) -> np.ndarray:
    parts = [_logits(weights, bags[i : i + 4096]).argmax(dim=-1) for i in range(0, len(bags), 4096)]
    return torch.cat(parts).numpy()
