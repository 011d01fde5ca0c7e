"""Pairs from data sets of the hub, or from the folder of a snapshot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dqlib.errors import InputError
from dqlib.study.corpora.classes import class_name
from dqlib.study.corpora.files import SOURCES, columns_read, text_columns
from dqlib.study.corpora.rows import Row, documents, named_row
from dqlib.study.corpora.splits import SPLITS
from dqlib.study.params.checkpoint import fetching, located

if TYPE_CHECKING:
    from datasets import Dataset

    from dqlib.study.params import settings as S


def build(corpus: S.Corpus, kind: S.Kind) -> dict[str, Iterator[Row]]:
    """The rows of every split of a corpus from the hub, read when they are asked for; empty texts are left out.

    Raises:
        InputError: the data set cannot be reached, a column is missing, or a language has no token.
    """

    def of_split(name: str) -> Iterator[Row]:
        split = getattr(corpus, name) or name
        if text_columns(corpus, kind).keys() == {"source"}:
            some = itertools.islice(hub_rows(corpus, kind, split), corpus.limit)
            return documents(texts["source"] for texts, _ in some)
        return itertools.islice(_named_rows(corpus, kind, split), corpus.limit)

    return {name: of_split(name) for name in SPLITS}


def unpaired(corpus: S.Corpus, split: str) -> Iterator[Row]:
    """Texts without a target from a split of the data set.

    Raises:
        InputError: the data set cannot be reached, a column is missing, or a language has no token.
    """
    return _named_rows(corpus, SOURCES, split)


def _named_rows(corpus: S.Corpus, kind: S.Kind, split: str) -> Iterator[Row]:
    for texts, language in hub_rows(corpus, kind, split):
        if all(map(str.strip, texts.values())):  # before the prefix, with which no source is empty
            yield named_row(texts, language, corpus, corpus.dataset or "")


def hub_rows(corpus: S.Corpus, kind: S.Kind, split: str) -> Iterator[tuple[dict[str, str], str | None]]:
    """Texts, by our names for their columns, and language of the rows of a split, none of them kept.

    A text is empty where a row has none. A class has its name, if the data set gives it one, or its number.

    ``split`` may be a part of one as ``datasets`` writes it: ``train[1%:]``.

    Raises:
        InputError: the data set cannot be reached, or a column is missing.
    """
    assert corpus.dataset is not None  # the parameters are checked
    data = _loaded(corpus.dataset, corpus.dataset_config, split, corpus.revision, "corpus.dataset")
    columns, paths = text_columns(corpus, kind), columns_read(corpus, kind)
    passages = None
    if corpus.support is not None:
        paths.append(corpus.support.id)
        passages = _Passages(corpus.support)
    data = _with_columns(data, paths)
    for row in data:
        texts = {ours: next(_texts(row, theirs), "") for ours, theirs in columns.items()}
        if kind.labels:
            texts["target"] = _class(row[corpus.target], data.features[corpus.target])
        if passages is not None and texts["source"]:
            texts["source"] = passages.added_to(texts["source"], row[passages.support.id])
        yield texts, row[corpus.language] if corpus.language else None


def _class(value: Any, feature: Any) -> str:
    """The name of a class, from what a row has and the feature that describes it."""
    if hasattr(feature, "int2str") and isinstance(value, int) and value >= 0:
        return feature.int2str(value)
    name = class_name(value)
    if name is None:
        raise InputError("corpus.target", value, "the column of a class: text or whole numbers")
    return name


class _Passages:
    """Support documents by the id of their question; in memory is where each of them is."""

    def __init__(self, support: S.Support) -> None:
        self.support = support
        data = _loaded(support.dataset, None, None, support.revision, "corpus.support.dataset")
        self._splits = [_with_columns(split, [support.id, support.text]) for split in data.values()]
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
