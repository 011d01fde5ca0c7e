"""Documents of language modelling: texts that follow each other in a file or data set are joined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dqlib.study.corpora.rows import Row

#: Characters of a document, about. A document is read without what comes before it, so few are better.
LONGEST_DOCUMENT = 100_000


def documents(texts: Iterable[str]) -> Iterator[Row]:
    """Texts in documents, one per line; blank ones are left out."""
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
