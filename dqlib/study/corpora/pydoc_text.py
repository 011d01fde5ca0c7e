"""The embedded text of language modelling: docstrings as running text, one document per module.

It stands for WikiText-2. A document (``source``) is all docstrings of a file in their order, one per line; of
docstrings that occur again, in whichever module, the first is taken. A module is in one split, whole.

As in :mod:`dqlib.study.corpora.pydoc`, files are parsed and never imported.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from dqlib.study.corpora.pydoc import documented, each_module, rows_in_splits
from dqlib.study.corpora.rows import Row
from dqlib.study.params import settings as S

#: Shortest document, in words.
MIN_WORDS = 20


def build(corpus: S.Corpus) -> dict[str, list[Row]]:
    """The rows of every split.

    Raises:
        InputError: a package is not installed.
    """
    seen: set[str] = set()
    rows = []
    for module, texts in each_module(corpus.packages, texts_of, S.available_cores()):
        new = [text for text in dict.fromkeys(texts) if text not in seen]
        seen.update(new)
        if sum(len(text.split()) for text in new) >= MIN_WORDS:
            rows.append({"group": module, "name": module, "source": "\n".join(new)})
    return rows_in_splits(rows, corpus.limit)


def texts_of(module: str, path: Path) -> tuple[str, list[str]]:
    """The name of a module, and its docstrings without line breaks."""
    return module, [" ".join(inspect.cleandoc(text).split()) for _, _, text in documented(module, path)]
