"""Pairs from data sets of the hub, or from the folder of a snapshot."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dqlib.errors import InputError
from dqlib.study.corpora.rows import Row, named_row
from dqlib.study.corpora.splits import SPLITS
from dqlib.study.params.checkpoint import fetching, located

if TYPE_CHECKING:
    from datasets import Dataset

    from dqlib.study.params import settings as S


def build(corpus: S.Corpus) -> dict[str, Iterator[Row]]:
    """The rows of every split of a corpus from the hub, read when they are asked for; empty texts are left out.

    Raises:
        InputError: the data set cannot be reached, a column is missing, or a language has no token.
    """

    def rows(split: str) -> Iterator[Row]:
        for source, target, language in hub_rows(corpus, split):
            row = named_row(source, target, language, corpus, corpus.dataset or "")
            if row["source"] and row["target"]:
                yield row

    return {name: itertools.islice(rows(getattr(corpus, name) or name), corpus.limit) for name in SPLITS}


def unpaired(corpus: S.Corpus, split: str) -> Iterator[Row]:
    """Texts without a target from a split of the data set.

    Raises:
        InputError: the data set cannot be reached, a column is missing, or a language has no token.
    """
    for source, _, language in hub_rows(dataclasses.replace(corpus, target=corpus.source), split):
        row = named_row(source, "", language, corpus, corpus.dataset or "")
        del row["target"]
        if row["source"]:
            yield row


def hub_rows(corpus: S.Corpus, split: str) -> Iterator[tuple[str, str, str | None]]:
    """Source, target and language of the rows of a split, none of them kept; empty texts where a row has none.

    Args:
        corpus: its data set, columns and support documents.
        split: name of the split, or a part of it as ``datasets`` writes it: ``train[1%:]``.

    Raises:
        InputError: the data set cannot be reached, or a column is missing.
    """
    assert corpus.dataset is not None  # the parameters are checked
    data = _loaded(corpus.dataset, corpus.dataset_config, split, corpus.revision, "corpus.dataset")
    paths = [corpus.source, corpus.target, *([corpus.language] if corpus.language else [])]
    passages = None
    if corpus.support is not None:
        paths.append(corpus.support.id)
        passages = _Passages(corpus.support)
    data = _with_columns(data, paths)
    for row in data:
        source, target = (next(_texts(row, path), "") for path in (corpus.source, corpus.target))
        if passages is not None and source:
            source = passages.added_to(source, row[passages.support.id])
        yield source, target, row[corpus.language] if corpus.language else None


class _Passages:
    """Support documents by the id of their question; in memory is where each of them is."""

    def __init__(self, support: S.Support) -> None:
        self.support = support
        self._splits = list(_loaded(support.dataset, None, None, support.revision, "corpus.support.dataset").values())
        self._splits = [_with_columns(data, [support.id, support.text]) for data in self._splits]
        self._places: dict[str, tuple[int, int]] = {}
        for number, data in enumerate(self._splits):
            for place, row in enumerate(data.select_columns([support.id])):
                self._places.setdefault(row[support.id], (number, place))

    def added_to(self, question: str, name: str) -> str:
        """The question with its passages, or an empty text where it has none."""
        if name not in self._places:
            return ""
        number, place = self._places[name]
        texts = list(_texts(self._splits[number][place], self.support.text))
        return f"question: {question} context: {' '.join(f'<P> {text}' for text in texts)}" if texts else ""


def _loaded(name: str, config: str | None, split: str | None, revision: str | None, field: str) -> Dataset:
    import datasets  # slow to import, and needed by corpora of the hub only

    path, revision = located(name, revision)
    with fetching(field, name):
        return datasets.load_dataset(path, config, split=split, revision=revision)


def _with_columns(data: Dataset, paths: list[str]) -> Dataset:
    """The data set with the columns that the paths are in, and no others, which are not even read."""
    known = list(_leaves(data.features))
    for path in paths:
        if path not in known:
            raise InputError("corpus.column", path, f"one of {', '.join(known)}")
    return data.select_columns(list(dict.fromkeys(path.partition(".")[0] for path in paths)))


def _leaves(feature: Any, path: str = "") -> Iterator[str]:
    """Paths of all texts and numbers below a feature; a list adds nothing to the path of what it holds."""
    if hasattr(feature, "languages"):
        yield from (f"{path}.{language}" for language in feature.languages)
    elif isinstance(feature, dict):
        for name, inner in feature.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif hasattr(feature, "feature"):
        yield from _leaves(feature.feature, path)
    else:
        yield path


def _texts(value: Any, path: str) -> Iterator[str]:
    """Texts at a path that are not blank, without the blanks around them; of lists, those of all elements."""
    if isinstance(value, list):
        for each in value:
            yield from _texts(each, path)
    elif isinstance(value, dict):
        name, _, rest = path.partition(".")
        yield from _texts(value.get(name), rest)
    elif isinstance(value, str) and value.strip():
        yield value.strip()
