"""Engines side by side: size, time and agreement on the same texts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import pandas

from dqlib.engines.agreement import agreement
from dqlib.engines.base import Engine
from dqlib.storage.manifest import kind_of, packed_size_bytes

#: Endings of what is no weight: configurations, vocabularies, tokenizers.
_NO_WEIGHTS = frozenset({".json", ".model", ".txt", ".jinja", ".csv", ".jsonl"})


def weight_bytes(folder: Path) -> int:
    """Bytes of a model's weights on disk; of a packed one with its manifest, of any without the tokenizer."""
    if kind_of(folder) == "packed":
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
    """Size, time and agreement of engines on the same texts, one at a time.

    Engines take turns, so that what else the machine does falls on all of them; the time is the median of the turns.
    Beam search ends at as many finished texts as beams in all of them (``early_stopping``), the rule that all have.

    Args:
        engines: by name; the first is what the others are compared with.
        folders: of the engines.
        texts: to read, or their ids.
        beams: of the search.
        max_new_tokens: tokens written at most.
        repeats: turns of each engine, after one that is not counted.

    Returns:
        One row per engine: size (MB), time per text (ms), tokens and choices that agree with the first (%).
    """
    ids = [text for text in texts if not isinstance(text, str)]
    ids = ids or next(iter(engines.values())).encode([text for text in texts if isinstance(text, str)])
    written: dict[str, list[list[int]]] = {}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(repeats + 1):
        for name, engine in engines.items():
            engine.early_stopping = True
            began = time.perf_counter()
            written[name] = [
                engine.generate_ids([row], num_beams=beams, max_new_tokens=max_new_tokens)[0] for row in ids
            ]
            times[name] += [time.perf_counter() - began] if turn else []
    first = next(iter(written.values()))
    rows = []
    for name in engines:
        same = agreement(first, written[name])
        row = {
            "engine": name,
            "size (MB)": weight_bytes(folders[name]) / 1e6,
            "time per text (ms)": 1000 * median(times[name]) / max(len(ids), 1),
            "tokens that agree (%)": 100 * same.part,
            "choices that agree (%)": 100 * same.part_of_choices,
        }
        rows.append(row)
    return pandas.DataFrame(rows).set_index("engine").round(2)
