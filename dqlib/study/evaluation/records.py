"""Records: the results of one trained model each, free of anything that changes from run to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas

from dqlib.config import Config
from dqlib.files import write_text
from dqlib.study.corpora.rows import Row
from dqlib.study.params import settings as S
from dqlib.study.params.kinds import KINDS
from dqlib.study.params.paths import DETAILS, PREDICTIONS, RECORD
from dqlib.study.params.tasks import kind_of

#: What a trained model did with one test document.
Line = dict[str, str | float | bool]


@dataclass(frozen=True)
class Detail:
    """One metric of one test set in one language, with its 95% interval.

    Scores are percent (but for perplexity and bits per byte), ``words`` and ``reference_words`` words per text,
    ``length_ratio`` the words of all predictions over those of all references. ``language`` is None where there are no
    languages; ``signature`` says how the metric was computed.
    """

    test_set: str
    language: str | None
    metric: str
    value: float
    low: float
    high: float
    signature: str


@dataclass(frozen=True)
class Scores:
    """Scores of the test documents, in percent or as they are counted, and the interval of the headline metric.

    A translation's are those of its first language and of the test set ``test``; ``details`` has all.
    """

    n_test: int
    means: dict[str, float]
    headline: str
    low: float
    high: float
    details: tuple[Detail, ...] = ()


#: What the test of a model gives: its scores, and what it did with each document.
Scored = tuple[Scores, list[Line]]


@dataclass(frozen=True)
class Record:
    """One trained model; None where a column does not apply."""

    task: str
    corpus: str
    role: str
    config: str
    preset: str
    w_bits: int
    e_bits: int
    a_bits: int
    encoder_layers: int
    decoder_layers: int
    seed: int
    train_steps: int
    n_test: int
    rouge1: float | None
    rouge2: float | None
    rougeL: float | None  # noqa: N815 (the metric's own name)
    rougeLsum: float | None  # noqa: N815
    bleu: float | None
    chrf: float | None
    accuracy: float | None
    f1: float | None
    mcc: float | None
    perplexity: float | None
    bits_per_byte: float | None
    headline: str
    score: float
    score_low: float
    score_high: float
    retention: float | None
    size_bytes: int
    teacher_size_bytes: int
    compression: float

    @classmethod
    def of(
        cls,
        task: str,
        corpus: str,
        role: str,
        config: Config,
        preset: str,
        training: S.Loop | None,
        scores: Scores,
        size_bytes: int,
        teacher: Record | None,
    ) -> Record:
        """A record of what was measured; the teacher's own has no ``teacher``.

        A teacher that was not trained here, without ``training``, has no steps, and the seed 0.
        """
        score = round(scores.means[scores.headline], 4)
        means: dict[str, Any] = dict.fromkeys(METRICS)
        means |= {name: round(mean, 4) for name, mean in scores.means.items()}
        teacher_size = size_bytes if teacher is None else teacher.size_bytes
        return cls(
            task=task,
            corpus=corpus,
            role=role,
            config=str(config),
            preset=preset,
            **{name: getattr(config, name) for name in SHAPE},
            seed=training.seed if training else 0,
            train_steps=training.steps if training else 0,
            n_test=scores.n_test,
            **means,
            headline=scores.headline,
            score=score,
            score_low=round(scores.low, 4),
            score_high=round(scores.high, 4),
            retention=1.0 if teacher is None else retained(score, teacher.score, scores.headline),
            size_bytes=size_bytes,
            teacher_size_bytes=teacher_size,
            compression=round(teacher_size / size_bytes, 2),
        )


#: A score in percent that tables show as 0.00. A teacher below it leaves nothing that a part could be kept of.
ZERO = 0.005
#: What a record says of a configuration besides its text, which alone has heads and neurons; where there is a
#: budget, the bits nearest to the mean.
SHAPE = ("w_bits", "e_bits", "a_bits", "encoder_layers", "decoder_layers")
METRICS = tuple(metric for kind in KINDS.values() for metric in kind.metrics)
#: Metrics that are lower for better models.
FALLING = frozenset(metric for kind in KINDS.values() for metric in kind.falling)
COLUMNS = tuple(field.name for field in fields(Record))


def retained(score: float, teacher: float, headline: str) -> float | None:
    """The part of the teacher's score that is left; of a metric that is lower for better models, the inverse.

    None where the teacher has none.
    """
    if headline in FALLING:
        score, teacher = teacher, score
    return round(score / teacher, 4) if teacher >= ZERO else None


def columns_of(task: str) -> tuple[str, ...]:
    """Columns of a task's records: the metrics of other kinds of tasks are none of them."""
    own = kind_of(task).metrics
    return tuple(name for name in COLUMNS if name not in METRICS or name in own)


def write_record(record: Record, folder: Path) -> None:
    """Keep the record beside its model."""
    columns = {name: getattr(record, name) for name in columns_of(record.task)}
    write_text(folder / RECORD, json.dumps(columns, indent=2) + "\n")


def read_record(folder: Path) -> Record:
    """Read what :func:`write_record` wrote."""
    return Record(**(dict.fromkeys(METRICS) | json.loads((folder / RECORD).read_text())))


def key_of(row: Row) -> tuple[str, str | None]:
    """The test set and the language of a row, None where there are no languages."""
    return row["test_set"], row.get("language")


def scores_of(
    details: Sequence[Detail], rows: Sequence[Row], headline: str, metrics: Sequence[str], language: str | None = None
) -> Scores:
    """The scores of the test set ``test`` in one language, among the details of all.

    The interval is that of the ``headline``; the record keeps the ``metrics``.
    """
    judged = {each.metric: each for each in details if (each.test_set, each.language) == ("test", language)}
    count = sum(key_of(row) == ("test", language) for row in rows)
    means = {metric: judged[metric].value for metric in metrics}
    return Scores(count, means, headline, judged[headline].low, judged[headline].high, tuple(details))


def write_answers(scores: Scores, lines: Sequence[Line], folder: Path) -> None:
    """Keep what a model answered, one line per test document, and the details beside its record."""
    write_text(folder / PREDICTIONS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_details(scores.details, folder)


def write_details(details: Sequence[Detail], folder: Path) -> None:
    """Keep everything beyond the record beside it, numbers rounded as the record's are."""
    records = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(detail).items()}
        for detail in details
    ]
    write_text(folder / DETAILS, json.dumps(records, indent=1, ensure_ascii=False) + "\n")


def renamed(details: Sequence[Detail], method: str) -> list[Detail]:
    """Details of a simpler method that stands beside a model: ``accuracy`` of ``majority`` is ``majority_accuracy``."""
    return [replace(detail, metric=f"{method}_{detail.metric}") for detail in details]


def method_of(column: str, metric: str) -> str | None:
    """In words, the simpler method whose metric a column of :func:`renamed` holds; None of any other column."""
    ending = f"_{metric}"
    return column.removesuffix(ending).replace("_", " ") if column.endswith(ending) else None


def places(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> dict[Any, list[int]]:
    """Indices of the rows of each key, in the order in which keys come."""
    found: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(key(row), []).append(i)
    return found


def read_details(folder: Path) -> list[Detail]:
    """Read what :func:`write_details` wrote."""
    return [Detail(**record) for record in json.loads((folder / DETAILS).read_text(encoding="utf-8"))]


def read_predictions(folder: Path, language: str | None = None) -> list[dict]:
    """What a trained model wrote for its test documents; a second test set is left out."""
    lines = [json.loads(line) for line in (folder / PREDICTIONS).read_bytes().splitlines()]
    lines = [line for line in lines if line.get("test_set", "test") == "test"]
    return [line for line in lines if language in (None, line.get("language"))]


def metrics_table(records: Sequence[Record]) -> pandas.DataFrame:
    """Records as a table with the columns of ``metrics.csv``, in the order given."""
    used = {name for record in records for name in columns_of(record.task)}
    columns = [name for name in COLUMNS if name in used or not records]
    return pandas.DataFrame([asdict(record) for record in records], columns=columns)


def write_metrics(table: pandas.DataFrame, path: Path) -> None:
    """Write ``metrics.csv``, the same bytes for the same table."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
