"""The embedded text of language modelling: docstrings as running text, one document per module.

It stands for WikiText-2. A document (``source``) is all docstrings of a file in their order, one per line; of
docstrings that occur again, in whichever module, the first is taken. A module is in one split; of those that are
held out, docstrings that train has nearly word for word are left out: they would measure what a model has learned by
heart, which a 5-gram does best.

As in :mod:`dqlib.study.corpora.pydoc`, files are parsed and never imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dqlib.study.corpora.pydoc import documented, each_module, in_splits
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.splits import are_in
from dqlib.study.params import settings as S

#: Shortest document, in words.
MIN_WORDS = 20


def build(corpus: S.Corpus) -> dict[str, list[Row]]:
    """The rows of every split; raises as :func:`dqlib.study.corpora.pydoc.python_files`."""
    seen: set[str] = set()
    rows = []
    for module, texts in each_module(corpus.packages, module_texts):
        new = [text for text in dict.fromkeys(texts) if text not in seen]
        seen.update(new)
        if is_long_enough(document := "\n".join(new)):
            rows.append({"group": module, "name": module, "source": document})
    splits = in_splits(rows, corpus.limit)
    train = list(docstrings(splits["train"]))
    return {split: part if split == "train" else not_in(part, train) for split, part in splits.items()}


def docstrings(rows: Iterable[Row]) -> Iterator[str]:
    """The docstrings of all documents."""
    for row in rows:
        yield from row["source"].split("\n")


def not_in(rows: Sequence[Row], train: Iterable[str]) -> list[Row]:
    """Documents without the docstrings that train has, and without those that are then too short."""
    texts = list(docstrings(rows))
    known = {text for text, is_known in zip(texts, are_in(texts, train), strict=True) if is_known}
    rest = [row | {"source": "\n".join(text for text in docstrings([row]) if text not in known)} for row in rows]
    return [row for row in rest if is_long_enough(row["source"])]


def is_long_enough(document: str) -> bool:
    """Whether a document has :data:`MIN_WORDS`."""
    return len(document.split()) >= MIN_WORDS


def module_texts(module: str, path: Path) -> tuple[str, list[str]]:
    """The name of a module, and its docstrings without line breaks."""
    return module, [" ".join(text.split()) for _, _, text in documented(module, path)]
