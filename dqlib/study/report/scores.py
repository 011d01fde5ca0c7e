"""Scores of every model, document by document and seed by seed: ``scores.parquet``, and what is computed from it.

Every interval, p-value and retention of the results comes from these rows, whether they were just collected or read
from the file, so ``python -m dqlib.study claims`` needs no model to compute them again. Documents are drawn again with
replacement, the same ones for all models of a task (the paired bootstrap, Koehn 2004), and so are a model's seeds, of
each model by itself.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import pyarrow
from pyarrow import parquet

from dqlib.errors import InputError
from dqlib.files import atomic_file
from dqlib.study.evaluation import bleu as translation_metrics
from dqlib.study.evaluation import perplexity
from dqlib.study.evaluation.bootstrap import resampled_sums
from dqlib.study.evaluation.recall import Recall
from dqlib.study.evaluation.records import Line, Record

#: Name of the file in a folder of results.
SCORES = "scores.parquet"

#: Draws of the test documents, and of the seeds.
RESAMPLES = 10_000

#: Columns that say what a row is of; all others are numbers, empty where a task has none of that name.
KEYS = ("task", "role", "config", "preset", "seed", "steps", "headline", "test_set", "document")

#: Metrics of how probable a document is.
PERPLEXITY = ("perplexity", "bits_per_byte")
#: Numbers of a document that the headline of all of them is computed from; of a metric that is not here, its own value.
STATISTICS = {"bleu": translation_metrics.BLEU_STATISTICS, **dict.fromkeys(PERPLEXITY, ("nats", "tokens", "bytes"))}

#: The set of documents that the similarity of tokens is measured on.
HELD_OUT = "held-out"


class ModelKey(NamedTuple):
    """What its seeds have in common."""

    task: str
    role: str
    config: str
    preset: str
    steps: int


def names_of(headline: str) -> tuple[str, ...]:
    """The numbers of a document that a headline is computed from."""
    return STATISTICS.get(headline, (headline,))


def statistics_of(headline: str, lines: Sequence[Line]) -> np.ndarray:
    """These numbers of each document, (documents, statistics)."""
    if headline == "bleu":
        references, predictions = ([str(line[name]) for line in lines] for name in ("reference", "prediction"))
        return translation_metrics.bleu_statistics(references, predictions)
    return np.array([[line[name] for name in names_of(headline)] for line in lines], dtype=float)


def score_of(headline: str, sums: np.ndarray, documents: int) -> np.ndarray:
    """The headline, (draws,), of sums of its statistics over so many documents, (draws, statistics)."""
    if headline == "bleu":
        return translation_metrics.bleu_of(sums)
    return perplexity.metrics(sums)[headline] if headline in PERPLEXITY else sums[:, 0] / documents


def resampled_headline(headline: str, lines: Sequence[Line]) -> np.ndarray:
    """A headline score on the documents of some lines, drawn again with replacement, (:data:`RESAMPLES`,)."""
    return score_of(headline, resampled_sums(statistics_of(headline, lines), RESAMPLES), len(lines))


def rows_of(record: Record, lines: Sequence[Line], recall: Recall | None = None) -> pandas.DataFrame:
    """The rows of one model from one seed: of its lines in the headline's language, and the recall of its texts."""
    numbers = dict(zip(names_of(record.headline), statistics_of(record.headline, lines).T, strict=True))
    if recall is not None:
        halves = np.where(np.isnan(recall.halves).any(axis=1, keepdims=True), np.nan, recall.halves)  # both, or neither
        numbers |= dict(zip(("early", "late"), halves.T, strict=True))
    return numbered_rows(record, "test", numbers)


def numbered_rows(record: Record, test_set: str, numbers: Mapping[str, np.ndarray]) -> pandas.DataFrame:
    """The rows of one model with these numbers of each document, (documents,)."""
    documents = np.arange(len(next(iter(numbers.values()))))
    model = record.task, record.role, record.config, record.preset, record.seed, record.train_steps
    keys = dict(zip(KEYS, (*model, record.headline, test_set, documents), strict=True))
    return pandas.DataFrame(keys | {name: np.asarray(values, dtype=np.float32) for name, values in numbers.items()})


def joined(parts: Iterable[pandas.DataFrame]) -> pandas.DataFrame:
    """All rows in one table, with the types that the file keeps."""
    every = list(parts)
    table = pandas.concat(every, ignore_index=True) if every else pandas.DataFrame(columns=list(KEYS))
    numbers = dict.fromkeys((name for name in table if name not in KEYS), np.float32)
    return table.astype(dict.fromkeys(("seed", "steps", "document"), np.int32) | numbers)


def write_scores(table: pandas.DataFrame, path: Path) -> None:
    """Write the table, the same bytes for the same table."""
    rows = pyarrow.Table.from_pandas(table, preserve_index=False)
    with atomic_file(path) as scratch:
        parquet.write_table(rows, scratch, compression="zstd", compression_level=19)


def read_scores(path: Path) -> pandas.DataFrame:
    """Read what :func:`write_scores` wrote.

    Raises:
        InputError: the file is missing, or no such table.
    """
    try:
        table = parquet.read_table(path).to_pandas()
    except (OSError, pyarrow.ArrowException):
        raise InputError("scores", str(path), f"a {SCORES} that `compare` writes beside its tables") from None
    if missing := set(KEYS) - set(table):
        raise InputError("scores", str(path), f"a table with the columns {', '.join(sorted(missing))}")
    return table


class Resampled:
    """Models on documents and seeds that are drawn again: what intervals and p-values are percentiles and shares of.

    Raises:
        InputError: models of a task were tested on different documents.
    """

    def __init__(self, table: pandas.DataFrame) -> None:
        self.table = table
        self._sets: dict[tuple[str, str], _Documents] = {}

    @cached_property
    def models(self) -> list[ModelKey]:
        """Every model, in the order of the table."""
        rows = self.table.loc[self.table.test_set == "test", list(ModelKey._fields)].drop_duplicates()
        return [ModelKey(*row) for row in rows.itertuples(index=False)]

    def teacher(self, task: str) -> ModelKey:
        """The teacher of a task."""
        return next(model for model in self.models if (model.task, model.role) == (task, "teacher"))

    def students(self) -> list[ModelKey]:
        """Every student, in the order of the table."""
        return [model for model in self.models if model.role == "student"]

    def headline(self, model: ModelKey) -> str:
        return self._documents(model).headline

    def seeds(self, model: ModelKey) -> list[int]:
        return self._documents(model).seeds[model]

    def score(self, model: ModelKey, column: str | None = None, test_set: str = "test") -> float:
        """Its headline score, or the mean of a column over the documents that have it: of all, mean over its seeds."""
        documents = self._documents(model, test_set)
        sums = [documents.totals[model, seed] for seed in documents.seeds[model]]
        return float(documents.score(np.array(sums), column).mean())

    def drawn(
        self, model: ModelKey, column: str | None = None, test_set: str = "test", seeds: Sequence[int] | None = None
    ) -> np.ndarray:
        """The same on documents and seeds that are drawn again, (draws,); of some seeds, or of all.

        The mean of n seeds drawn again from n has (n - 1) / n of the variance that the mean of n seeds has: with three,
        a third is missing. How far a draw is from the mean of all is stretched to make up for it (Rao and Wu 1988).
        """
        documents = self._documents(model, test_set)
        seeds = seeds or documents.seeds[model]
        scores = np.stack([documents.score(documents.sums[model, seed], column) for seed in seeds], axis=1)
        count, mean = len(seeds), scores.mean(axis=1)
        if count == 1:
            return mean
        generator = np.random.default_rng(zlib.crc32(" ".join(map(str, model)).encode()))
        shares = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count
        return mean + math.sqrt(count / (count - 1)) * ((shares * scores).sum(axis=1) - mean)

    def having(self, column: str, test_set: str = "test") -> list[ModelKey]:
        """The models some of whose documents have a column, in the order of the table."""
        if column not in self.table:
            return []
        rows = self.table[(self.table.test_set == test_set) & self.table[column].notna()]
        found = set(rows[list(ModelKey._fields)].itertuples(index=False, name=None))
        return [model for model in self.models if model in found]

    def _documents(self, model: ModelKey, test_set: str = "test") -> _Documents:
        key = model.task, test_set
        if key not in self._sets:
            rows = self.table[(self.table.task == model.task) & (self.table.test_set == test_set)]
            self._sets[key] = _Documents(rows)
        return self._sets[key]


class _Documents:
    """The models of one task on one set of documents: sums of their statistics, of all documents and of draws."""

    def __init__(self, rows: pandas.DataFrame) -> None:
        numbers = [name for name in rows if name not in KEYS and rows[name].notna().any()]
        self.columns = [*numbers, *(f"has {name}" for name in numbers)]
        self.headline: str = rows.headline.iloc[0]
        self.seeds: dict[ModelKey, list[int]] = {}
        matrices = {}
        for (*model, seed), own in rows.groupby([*ModelKey._fields, "seed"], sort=False):
            values = own.sort_values("document")[numbers].to_numpy(dtype=float)
            matrices[ModelKey(*model), int(seed)] = np.concatenate([np.nan_to_num(values), ~np.isnan(values)], axis=1)
            self.seeds.setdefault(ModelKey(*model), []).append(int(seed))
        counts = sorted({len(matrix) for matrix in matrices.values()})
        if len(counts) > 1:
            raise InputError("scores", f"{counts} documents", f"as many for all models of '{rows.task.iloc[0]}'")
        self.count = counts[0]
        every = resampled_sums(np.concatenate(list(matrices.values()), axis=1), RESAMPLES)
        self.totals = {key: matrix.sum(axis=0) for key, matrix in matrices.items()}
        self.sums = dict(zip(matrices, np.split(every, len(matrices), axis=1), strict=True))

    def score(self, sums: np.ndarray, column: str | None = None) -> np.ndarray:
        """The headline, or the mean of a column over the documents that have it, (draws,), of (draws, columns) sums."""
        if column is not None:
            place, there = self.columns.index(column), self.columns.index(f"has {column}")
            return sums[:, place] / np.maximum(sums[:, there], 1)
        places = [self.columns.index(name) for name in names_of(self.headline)]
        return score_of(self.headline, sums[:, places], self.count)
