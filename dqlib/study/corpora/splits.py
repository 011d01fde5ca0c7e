"""Splits of a corpus: which one a pair goes to, and what is measured of them."""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.tokenizer import beginning
from dqlib.study.params import settings as S

SPLITS = ("train", "validation", "test")
#: A second test set, which only some corpora have; that of CLDR has names that training has never seen.
UNSEEN = "test_unseen"

#: Of a hundred groups, this many go to validation, and to test where a corpus is embedded: its test has to tell
#: students of nearly the same quality apart.
VALIDATION_PERCENT, TEST_PERCENT = 4, 12
#: To test where the test is held out of a user's own pairs, which may be few.
HELD_OUT_PERCENT = 5

#: Words of the runs by which texts are compared. Where a script has no spaces, a character counts as a word.
RUN = 8
_NO_SPACES = "\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_NO_SPACES}]|[^\s{_NO_SPACES}]+")

#: Texts that are tokenized at a time to be counted.
COUNTED = 500


def hundredth_of(text: str) -> int:
    """Which of a hundred parts of all texts a text is in, from 0: its hash decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % 100


def split_of(group: str, test_percent: int = TEST_PERCENT) -> str:
    """Split of a content group: a hash decides, so that a module is in one split, here and everywhere."""
    percent = hundredth_of(group)
    if percent < test_percent:
        return "test"
    return "validation" if percent < test_percent + VALIDATION_PERCENT else "train"


def lengths(
    splits: Mapping[str, Sequence[Row]], tokenizer: PreTrainedTokenizerFast, corpus: S.Corpus, kind: S.Kind
) -> dict[str, dict[str, Any]]:
    """By split, the texts that are ``truncated``, or the ``tokens`` of documents, which are read to their end."""
    if kind.writes or kind.labels:
        return {"truncated": {split: _truncated(rows, tokenizer, corpus, kind) for split, rows in splits.items()}}

    def count(rows: Sequence[Row]) -> int:
        texts = (row["source"] for row in rows)
        return sum(len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts)

    return {"truncated": {}, "tokens": {split: count(rows) for split, rows in splits.items()}}


def _truncated(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, corpus: S.Corpus, kind: S.Kind
) -> dict[str, int]:
    """How many sources (two texts of one row count as one) and targets are longer than the model reads."""

    def longer(columns: Sequence[str], most: int) -> int:
        texts, count = ([row[column] for column in columns if column in row] for row in rows), 0
        while some := list(itertools.islice(texts, COUNTED)):
            read = [[beginning(text, most) for text in each] for each in some]
            ids = tokenizer(*map(list, zip(*read, strict=True)), verbose=False)["input_ids"]
            count += sum(len(ids[i]) > most or read[i] != some[i] for i in range(len(some)))
        return count

    of_targets = {"targets": longer(("target",), corpus.target_tokens)} if kind.writes else {}
    return {"sources": longer(("source", "second"), corpus.source_tokens)} | of_targets


def in_train(splits: Mapping[str, Sequence[Row]], column: str) -> dict[str, tuple[float, float]]:
    """Of each other split, the part of the texts that train has too: of long ones alone, and of all.

    A text of :data:`RUN` words or more is there if train has half or more of its runs of so many, a shorter one if
    train has a text of the same words.
    """
    held_out = {split: [row[column] for row in rows] for split, rows in splits.items() if split != "train"}
    texts = list(itertools.chain.from_iterable(held_out.values()))
    shared = iter(are_in(texts, (row[column] for row in splits["train"])))
    parts = {}
    for split, texts in held_out.items():
        found = [text for text in texts if next(shared)]
        long = sum(len(_words(text)) >= RUN for text in found)
        parts[split] = round(long / len(texts), 4), round(len(found) / len(texts), 4)
    return parts


def are_in(texts: Sequence[str], others: Iterable[str]) -> list[bool]:
    """Of each text, whether others have it, in the sense of :func:`in_train`."""
    runs = [_runs(text) for text in texts]
    wanted: set[tuple[str, ...]] = set().union(*runs)
    found: set[tuple[str, ...]] = set()
    for text in others:
        found |= _runs(text) & wanted
    return [len(each & found) >= len(each) / 2 for each in runs]


def of_train_alone(rows: Iterable[Row], splits: Mapping[str, Sequence[Row]]) -> Iterator[Row]:
    """Of texts that are in no pair, those that may be trained on: each once, none that the pairs have.

    Left out are sources of any split, by their words, and texts with half or more of the runs (see :func:`in_train`)
    of a source or a target of another split than train.
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
