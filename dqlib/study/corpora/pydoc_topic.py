"""The embedded single-text task: which package is a docstring from?

In form it is like SST-2 of GLUE: a text (``source``), a class (``target``), which is one of the largest packages, each
text once. Names of the packages and of all their modules are masked, the same ones whatever the package of the text is.

As in :mod:`dqlib.study.corpora.pydoc`, files are parsed and never imported, and the module decides the split.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dqlib.study.corpora.pydoc import documented, in_splits, python_files, rows_once
from dqlib.study.corpora.pydoc_match import maskable, masked_words
from dqlib.study.corpora.rows import Row
from dqlib.study.params import settings as S

#: Classes, unless there are fewer packages.
CLASSES = 12

#: Shortest text, in words.
MIN_WORDS = 12


def build(corpus: S.Corpus) -> dict[str, list[Row]]:
    """The rows of every split; raises as :func:`dqlib.study.corpora.pydoc.python_files`."""
    modules = {module: package for package, module, _ in python_files(corpus.packages)}
    texts = rows_once(corpus.packages, whole_texts)
    sizes = Counter(modules[text["group"]] for text in texts)
    classes = [package for package, _ in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:CLASSES]]
    parts = {part for module, package in modules.items() if package in classes for part in module.split(".")}
    names = maskable(parts | set(classes))
    rows = [
        {"group": text["group"], "name": text["name"], "source": masked_words(text["target"], names), "target": package}
        for text in texts
        if (package := modules[text["group"]]) in classes
    ]
    return in_splits(rows, corpus.limit)


def whole_texts(module: str, path: Path) -> list[Row]:
    """Docstrings of one file (``target``) that have enough words."""
    texts = ((name, " ".join(text.split())) for name, _, text in documented(module, path))
    return [{"group": module, "name": name, "target": text} for name, text in texts if len(text.split()) >= MIN_WORDS]
