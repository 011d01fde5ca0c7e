"""Engines side by side: size, time and agreement on the same texts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import pandas

from dqlib.engines.agreement import agreement, class_agreement
from dqlib.engines.base import Engine
from dqlib.engines.classifier import Classifier
from dqlib.storage.manifest import folder_kind, packed_size_bytes

T = TypeVar("T")

#: Endings of what is no weight: configurations, vocabularies, tokenizers.
_NO_WEIGHTS = frozenset({".json", ".model", ".txt", ".jinja", ".csv", ".jsonl"})


def weight_bytes(folder: Path) -> int:
    """Bytes of a model's weights on disk; of a packed one with its manifest, of any without the tokenizer."""
    if folder_kind(folder) == "packed":
        return packed_size_bytes(folder)
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.suffix not in _NO_WEIGHTS)


def measured(
    engines: Mapping[str, Engine],
    folders: Mapping[str, Path],
    texts: Sequence[str] | Sequence[list[int]],
    beams: int = 1,
    max_new_tokens: int = 40,
    repeats: int = 3,
) -> pandas.DataFrame:
    """Size (MB), time per text (ms) and agreement (%) of engines on the same texts or ids of texts, one at a time.

    Engines take turns, ``repeats`` after one that is not counted, so that what else the machine does falls on all of
    them; the time is the median of the turns. The tokens and the choices that agree are those of the first engine.
    Beam search ends at as many finished texts as beams in all of them (``early_stopping``), the rule that all have.
    """
    ids = [text for text in texts if not isinstance(text, str)]
    ids = ids or next(iter(engines.values())).encode([text for text in texts if isinstance(text, str)])
    for engine in engines.values():
        engine.early_stopping = True
    calls = {
        name: lambda row, engine=engine: engine.generate_ids([row], num_beams=beams, max_new_tokens=max_new_tokens)[0]
        for name, engine in engines.items()
    }
    table, written = _timed(calls, folders, ids, repeats)
    same = [agreement(written[0], each) for each in written]
    table["tokens that agree (%)"] = [round(100 * each.part, 2) for each in same]
    table["choices that agree (%)"] = [round(100 * each.part_of_choices, 2) for each in same]
    return table


def measured_classifiers(
    classifiers: Mapping[str, Classifier], folders: Mapping[str, Path], texts: Sequence[list[int]], repeats: int = 3
) -> pandas.DataFrame:
    """The same of classifiers, on the ids of a text or a pair each: texts whose class is that of the first (%)."""
    calls = {
        name: lambda row, classifier=classifier: classifier.logits_of_ids([row])[0]
        for name, classifier in classifiers.items()
    }
    table, logits = _timed(calls, folders, texts, repeats)
    table["classes that agree (%)"] = [round(100 * class_agreement(logits[0], each).part, 2) for each in logits]
    return table


def _timed(
    calls: Mapping[str, Callable[[list[int]], T]], folders: Mapping[str, Path], texts: Sequence[list[int]], repeats: int
) -> tuple[pandas.DataFrame, list[list[T]]]:
    """Size and time of models, and what each gave for each text; ``calls`` are what they do with the ids of one."""
    given: dict[str, list[T]] = {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            given[name] = [call(text) for text in texts]
            times[name] += [time.perf_counter() - began] if turn else []
    rows = {
        name: (weight_bytes(folders[name]) / 1e6, 1000 * median(times[name]) / max(len(texts), 1)) for name in calls
    }
    table = pandas.DataFrame.from_dict(rows, "index", columns=["size (MB)", "time per text (ms)"])
    return table.rename_axis("engine").round(2), list(given.values())
