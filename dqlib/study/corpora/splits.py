"""Splits of a corpus: which one a pair goes to, and what is measured of them."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerFast

from dqlib.study.corpora.rows import Row
from dqlib.study.params import settings as S

SPLITS = ("train", "validation", "test")
#: A second test set, which only some corpora have; that of CLDR has names that training has never seen.
UNSEEN = "test_unseen"

#: Of a hundred groups of an embedded corpus, this many go to validation and to test.
VALIDATION_PERCENT, TEST_PERCENT = 4, 5

#: Texts that are tokenized at a time to be counted.
COUNTED = 500


def split_of(group: str) -> str:
    """Split of a content group: a hash decides, so that a module is in one split, here and everywhere."""
    percent = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) % 100
    if percent < TEST_PERCENT:
        return "test"
    return "validation" if percent < TEST_PERCENT + VALIDATION_PERCENT else "train"


def truncated(
    splits: Mapping[str, Sequence[Row]], tokenizer: PreTrainedTokenizerFast, corpus: S.Corpus
) -> dict[str, dict[str, int]]:
    """How many sources and targets of each split are longer than the model reads."""

    def longer(rows: Sequence[Row], column: str, most: int) -> int:
        texts, count = (row[column] for row in rows), 0
        while some := list(itertools.islice(texts, COUNTED)):
            count += sum(len(ids) > most for ids in tokenizer(some, verbose=False)["input_ids"])
        return count

    return {
        split: {
            "sources": longer(rows, "source", corpus.source_tokens),
            "targets": longer(rows, "target", corpus.target_tokens),
        }
        for split, rows in splits.items()
    }


def overlap(splits: Mapping[str, Sequence[Row]], column: str, n: int = 8) -> float:
    """Part of the test texts that share a run of ``n`` words with a train text at half or more of theirs."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = [sys.intern(word) for word in text.lower().split(": ", 1)[-1].split()]
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    own = [runs(row[column]) for row in splits["test"]]
    wanted = set().union(*own)
    train: set[tuple[str, ...]] = set()
    for row in splits["train"]:
        train |= runs(row[column]) & wanted
    shared = sum(bool(each) and len(each & train) >= len(each) / 2 for each in own)
    return round(shared / len(own), 4)
