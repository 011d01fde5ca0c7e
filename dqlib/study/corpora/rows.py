"""Rows of a split: pairs of texts in a JSON Lines file, read one at a time."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import overload

from dqlib.errors import InputError
from dqlib.study.params import settings as S

Row = dict[str, str]

#: Characters of a document, about. A document is read without what comes before it, so few are better.
LONGEST_DOCUMENT = 100_000


class Rows(Sequence[Row]):
    """The rows of a JSON Lines file; what is in memory is where each line begins, 8 bytes per row.

    A slice is rows again, and reads nothing. Rows equal a list of the same rows.
    """

    def __init__(self, path: str | Path, places: array | None = None) -> None:
        """Take the rows of a file, or those of its lines that begin at ``places``, in bytes."""
        self.path = Path(path)
        self._places = _line_starts(self.path) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return Rows(self.path, self._places[index])
        with self.path.open("rb") as file:
            file.seek(self._places[index])
            return json.loads(file.readline())

    def __iter__(self) -> Iterator[Row]:
        with self.path.open("rb") as file:
            for place in self._places:
                file.seek(place)
                yield json.loads(file.readline())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows | list):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Rows({str(self.path)!r}, {len(self):,} rows)"


def write_rows(rows: Iterable[Row], path: Path, digest: hashlib._Hash) -> Rows:
    """Write rows to a file, one after the other, and add its bytes to a digest."""
    with path.open("wb") as file:
        for row in rows:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
            digest.update(line)
            file.write(line)
    return Rows(path)


def _line_starts(path: Path) -> array:
    starts, place = array("q"), 0
    with path.open("rb") as file:
        for line in file:
            starts.append(place)
            place += len(line)
    return starts


def named_row(texts: Mapping[str, str], language: str | None, corpus: S.Corpus, path: str) -> Row:
    """A row of a file or of the hub under our names for its columns, with its language where there are any."""
    named = {name: text.strip() for name, text in texts.items()}
    named["source"] = corpus.prefix + named["source"]
    if corpus.languages:
        language = language if corpus.language else corpus.languages[0]
        if language not in corpus.languages:
            allowed = f"one of {', '.join(corpus.languages)}, the languages that have a token"
            raise InputError(f"{path}, column {corpus.language}", language, allowed)
        named["language"] = language
    return named


def documents(texts: Iterable[str]) -> Iterator[Row]:
    """Rows of language modelling: texts that follow each other in one document, one per line, without blank ones."""
    document: list[str] = []
    size = 0
    for text in filter(str.strip, texts):
        document.append(text.strip())
        size += len(text)
        if size >= LONGEST_DOCUMENT:
            yield {"source": "\n".join(document)}
            document, size = [], 0
    if document:
        yield {"source": "\n".join(document)}
