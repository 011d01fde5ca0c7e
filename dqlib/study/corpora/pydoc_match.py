"""The embedded pair task: do a summary line and a body belong to the same docstring?

In form it is like QNLI and MRPC of GLUE: two texts (``source`` the summary, ``second`` the body), a class (``target``).

* Half of the pairs are as they were written. In the other half two docstrings of the same split have exchanged their
  bodies: of two packages, and of like length. So every summary and every body occurs once, and neither of them alone
  gives the class away. Bodies of the same module are harder to tell apart, and too hard for a small BERT: it stayed at
  chance.
* Names are masked, since they would give the answer away: the parts of the qualified names of both docstrings, in all
  four texts, exchanged or not, and all that is written as an identifier (``like_this``, ``likeThis``, ``like.this``,
  ``like()``, `` `like` ``).

As in :mod:`dqlib.study.corpora.pydoc`, files are parsed and never imported, and the module decides the split.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from dqlib.study.corpora.pydoc import in_splits, rows_once, summaries_and_bodies
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.splits import SPLITS, split_of
from dqlib.study.params import settings as S

#: What stands for a name.
MASK = "NAME"

#: Classes.
MATCHES, OTHER = "match", "other"

#: What is written as an identifier: between backticks, called, dotted, with an underscore or a capital inside.
_IDENTIFIER = re.compile(
    r"``?[^`\s]+``?|\b[\w.]+\(\)|\b\w+(?:\.\w+)+\b|\b\w*_\w*\b|\b[a-z]+[A-Z]\w*\b|\b[A-Z]+[a-z]+[A-Z]\w*\b"
)
_WORD = re.compile(r"\w+")

#: Letters of a name that is masked; shorter ones are words of the language.
SHORTEST_NAME = 3


def build(corpus: S.Corpus) -> dict[str, list[Row]]:
    """The rows of every split; raises as :func:`dqlib.study.corpora.pydoc.python_files`."""
    return in_splits(paired(rows_once(corpus.packages, bodies_and_summaries)), corpus.limit)


def bodies_and_summaries(module: str, path: Path) -> list[Row]:
    """Bodies (``source``) and summaries (``target``) of one file, as they are written."""
    found = summaries_and_bodies(module, path)
    return [{"group": module, "name": name, "source": body, "target": summary} for name, summary, body in found]


def maskable(names: Iterable[str]) -> frozenset[str]:
    """The names that are masked, in lower case: those that are no short words."""
    return frozenset(name.lower() for name in names if len(name) >= SHORTEST_NAME)


def masked_text(text: str, names: frozenset[str]) -> str:
    """A text without what is written as an identifier, and without the names of :func:`maskable`."""
    return masked_words(_IDENTIFIER.sub(MASK, text), names)


def masked_words(text: str, names: frozenset[str]) -> str:
    """A text without the names of :func:`maskable`, whatever their case."""
    return _WORD.sub(lambda word: MASK if word[0].lower() in names else word[0], text)


def paired(pairs: list[Row]) -> list[Row]:
    """Summaries with a body each, half of them with that of another docstring.

    ``pairs`` are of body and summary; of those with the same body, the first is taken.
    """
    unique = list({pair["source"]: pair for pair in reversed(pairs)}.values())[::-1]
    splits: dict[str, list[Row]] = {}
    for pair in unique:
        splits.setdefault(split_of(pair["group"]), []).append(pair)
    couples = [couple for group in splits.values() for couple in _couples(group)]
    couples.sort(key=lambda couple: hashlib.sha256(f"{couple[0]['name']} {couple[1]['name']}".encode()).digest())
    rows = []
    exchanged = dict.fromkeys(SPLITS, False)  # in turn, in each split
    for one, other in couples:
        split = split_of(one["group"])
        exchanged[split] = not exchanged[split]
        bodies = (other, one) if exchanged[split] else (one, other)
        names = maskable(part for pair in (one, other) for part in pair["name"].split("."))
        for pair, body in zip((one, other), bodies, strict=True):
            target = MATCHES if pair is body else OTHER
            texts = {"source": masked_text(pair["target"], names), "second": masked_text(body["source"], names)}
            rows.append({"group": pair["group"], "name": pair["name"], **texts, "target": target})
    return rows


def _couples(pairs: list[Row]) -> list[tuple[Row, Row]]:
    """Two by two, each of another package and near in the length of its body; what finds no partner is left out."""
    couples: list[tuple[Row, Row]] = []
    waiting: deque[Row] = deque()  # all of one package
    for pair in sorted(pairs, key=lambda pair: (len(pair["source"].split()), pair["name"], pair["source"])):
        if waiting and _package(waiting[0]) != _package(pair):
            couples.append((waiting.popleft(), pair))
        else:
            waiting.append(pair)
    return couples


def _package(pair: Row) -> str:
    return pair["group"].partition(".")[0]
