"""Examples: token ids of sources and targets, in memory or in Arrow files that are mapped into it.

A corpus is tokenized once. Its examples are written in parts, each aside and put in place at once, so that a run that
was stopped goes on with the first part that is missing. What training holds in memory is where each example begins.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow
from pyarrow import ipc

from dqlib.files import atomic_file
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.tokenizer import EOS_ID

# Not `datasets`, as tried on 20,000 rows: it adds 86 MB and a second per process, reads an example in 27 us (ours 11),
# and a `Dataset.map` that was stopped begins again from the first row of the corpus.

#: Rows of one file, and of one record batch in it: as many are tokenized at a time.
PART, BATCH = 10_000, 500

_SCHEMA = pyarrow.schema(
    [
        ("source", pyarrow.list_(pyarrow.int32())),
        ("target", pyarrow.list_(pyarrow.int32())),
        ("start", pyarrow.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a source and a target, and the token that the decoder starts from.

    The target ends with ``</s>``; so does the source, where the tokenizer does not add the source's language.
    """

    source: list[int]
    target: list[int]
    start: int = EOS_ID


class Measured(Sequence[Example]):
    """Examples that are read one at a time, and whose lengths are known without reading them.

    Attributes:
        lengths: of all sources and of all targets, in tokens.
    """

    lengths: tuple[array, array]

    @abstractmethod
    def _example(self, index: int) -> Example:
        """The example of that number, from 0."""

    def __len__(self) -> int:
        return len(self.lengths[0])

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index += len(self) if index < 0 else 0
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._example(index)


class StoredExamples(Measured):
    """Examples in Arrow files, mapped into memory; one is read when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open files that :func:`stored_examples` wrote.

        Raises:
            pyarrow.ArrowException, OSError: a file is damaged or missing.
        """
        self.lengths = (array("i"), array("i"))
        self._firsts: list[int] = []  # number of the first example of each record batch
        self._columns: list[tuple[np.ndarray, ...]] = []
        for path in paths:
            with ipc.open_file(pyarrow.memory_map(str(path))) as reader:
                for number in range(reader.num_record_batches):
                    self._add(reader.get_batch(number))

    def _add(self, batch: pyarrow.RecordBatch) -> None:
        self._firsts.append(len(self))
        columns = []
        for name, lengths in zip(("source", "target"), self.lengths, strict=True):
            offsets = batch[name].offsets.to_numpy()
            lengths.frombytes(np.diff(offsets).astype(np.int32).tobytes())
            columns += [offsets, batch[name].values.to_numpy()]
        self._columns.append((*columns, batch["start"].to_numpy()))

    def _example(self, index: int) -> Example:
        number = bisect_right(self._firsts, index) - 1
        place = index - self._firsts[number]
        source_at, sources, target_at, targets, starts = self._columns[number]
        return Example(
            sources[source_at[place] : source_at[place + 1]].tolist(),
            targets[target_at[place] : target_at[place + 1]].tolist(),
            int(starts[place]),
        )


class Picked(Measured):
    """Some examples of several sequences, in any order.

    ``numbers`` of the examples are counted through all parts.
    """

    def __init__(self, parts: Sequence[Sequence[Example]], numbers: array) -> None:
        self._parts, self._numbers = parts, numbers
        self._firsts = list(accumulate(map(len, parts[:-1]), initial=0))
        sources, targets = (
            np.concatenate([np.asarray(each, np.int32) for each in column])[numbers]
            for column in zip(*map(example_lengths, parts), strict=True)
        )
        self.lengths = array("i", sources.tobytes()), array("i", targets.tobytes())

    def _example(self, index: int) -> Example:
        number = self._numbers[index]
        part = bisect_right(self._firsts, number) - 1
        return self._parts[part][number - self._firsts[part]]


def example_lengths(examples: Sequence[Example]) -> tuple[Sequence[int], Sequence[int]]:
    """Tokens of every source and of every target."""
    if isinstance(examples, Measured):
        return examples.lengths
    return array("i", (len(e.source) for e in examples)), array("i", (len(e.target) for e in examples))


def stored_examples(
    folder: Path, rows: Sequence[Row], make: Callable[[Sequence[Row]], list[Example]]
) -> StoredExamples:
    """The examples of rows, made where the folder does not have them yet.

    The folder is of these examples alone: its name has to change with all that decides them. ``make`` is given
    :data:`BATCH` rows at a time.

    Raises:
        DiskFullError: there is no room; parts that were written stay.
    """
    paths = []
    for number, first in enumerate(range(0, len(rows), PART)):
        path = folder / f"{number:05d}.arrow"
        if not _is_whole(path):
            _write(path, rows[first : first + PART], make)
        paths.append(path)
    return StoredExamples(paths)


def _is_whole(path: Path) -> bool:
    try:
        StoredExamples([path])
    except (OSError, pyarrow.ArrowException):
        return False
    return True


def _write(path: Path, rows: Sequence[Row], make: Callable[[Sequence[Row]], list[Example]]) -> None:
    with (
        atomic_file(path) as scratch,
        pyarrow.OSFile(str(scratch), "wb") as file,
        ipc.new_file(file, _SCHEMA) as writer,
    ):
        for first in range(0, len(rows), BATCH):
            examples = make(rows[first : first + BATCH])
            columns = {name: [getattr(example, name) for example in examples] for name in _SCHEMA.names}
            writer.write_batch(pyarrow.RecordBatch.from_pydict(columns, _SCHEMA))
