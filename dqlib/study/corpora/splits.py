"""Splits of a corpus: which one a pair goes to, and what is measured of them."""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from transformers import PreTrainedTokenizerFast

from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.tokenizer import beginning
from dqlib.study.params import settings as S

SPLITS = ("train", "validation", "test")
#: A second test set, which only some corpora have; that of CLDR has names that training has never seen.
UNSEEN = "test_unseen"

#: Of a hundred groups of an embedded corpus, this many go to validation and to test.
VALIDATION_PERCENT, TEST_PERCENT = 4, 5

#: Words of the runs by which texts are compared. Where a script has no spaces, a character counts as a word.
RUN = 8
_NO_SPACES = "\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\s{_NO_SPACES}]+")

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
            read = [beginning(text, most) for text in some]
            ids = tokenizer(read, verbose=False)["input_ids"]
            count += sum(len(ids[i]) > most or len(read[i]) < len(some[i]) for i in range(len(some)))
        return count

    return {
        split: {
            "sources": longer(rows, "source", corpus.source_tokens),
            "targets": longer(rows, "target", corpus.target_tokens),
        }
        for split, rows in splits.items()
    }


def in_train(splits: Mapping[str, Sequence[Row]], column: str) -> dict[str, tuple[float, float]]:
    """Of each other split, the part of the texts that train has too: of long ones alone, and of all.

    A text of :data:`RUN` words or more is there if train has half or more of its runs of so many, a shorter one if
    train has a text of the same words.
    """

    held_out = {split: [_runs(row[column]) for row in rows] for split, rows in splits.items() if split != "train"}
    wanted = set().union(*itertools.chain.from_iterable(held_out.values()))
    train: set[tuple[str, ...]] = set()
    for row in splits["train"]:
        train |= _runs(row[column]) & wanted
    parts = {}
    for split, texts in held_out.items():
        shared = [each for each in texts if len(each & train) >= len(each) / 2]
        long = sum(len(next(iter(each))) == RUN for each in shared)
        parts[split] = round(long / len(texts), 4), round(len(shared) / len(texts), 4)
    return parts


def of_train_alone(rows: Iterable[Row], splits: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    """Of texts that are in no pair, those that may be trained on: each once, none that the pairs have.

    Left out are sources of any split, by their words, and texts with half or more of the runs (see :func:`in_train`)
    of a source or a target of another split than train.

    Args:
        rows: with ``source`` and, in a translation, ``language``.
        splits: of the corpus.
    """
    seen = {(row.get("language"), *_words(row["source"])) for split in splits.values() for row in split}
    held_out = {frozenset(_runs(row[column])) for split, part in splits.items() if split != "train"
                for row in part for column in ("source", "target")}  # fmt: skip
    texts_with: dict[tuple[str, ...], list[frozenset]] = {}
    for runs in held_out:
        for run in runs:
            texts_with.setdefault(run, []).append(runs)
    for row in rows:
        key = (row.get("language"), *_words(row["source"]))
        shared = Counter(text for run in _runs(row["source"]) for text in texts_with.get(run, ()))
        if key not in seen and not any(count >= len(text) / 2 for text, count in shared.items()):
            seen.add(key)
            yield row


def _words(text: str) -> list[str]:
    """The words by which texts are compared, without the name before the first colon."""
    return [sys.intern(word) for word in _WORD.findall(text.lower().split(": ", 1)[-1])]


def _runs(text: str) -> set[tuple[str, ...]]:
    words = _words(text)
    return {tuple(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}
