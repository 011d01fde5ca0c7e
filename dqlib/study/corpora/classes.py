"""Classes of a classification: which there are, how many texts each has, and texts of a class that train lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dqlib.errors import InputError
from dqlib.study.corpora.rows import Row


def class_name(value: Any) -> str | None:
    """The name of a class, which a column has as text, a whole number, or true or false; None for anything else."""
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, int) else None


def classes(
    splits: Mapping[str, Sequence[Row]], place: Callable[[str, int], str], labels: Sequence[str] = ()
) -> dict[str, Any]:
    """The ``labels`` of a corpus, in the order of a model's logits, and the ``balance``: rows of each, by split.

    ``place`` says where a row is, from its split and its number, for an error. Without ``labels`` of a checkpoint they
    are those of train.

    Raises:
        InputError: train has one class alone, or a split has a class that train, or the checkpoint, lacks.
    """
    balance = {split: Counter(row["target"] for row in rows) for split, rows in splits.items()}
    known = list(labels) or sorted(balance["train"], key=_in_order)
    if len(known) < 2:
        raise InputError("corpus.train, classes", ", ".join(known), "two or more")
    for split, rows in splits.items():
        if set(balance[split]) - set(known):
            number = next(i for i, row in enumerate(rows) if row["target"] not in known)
            of, more = "the checkpoint" if labels else "train", ", ..." if len(known) > 20 else ""
            allowed = f"a class of {of}: {', '.join(known[:20])}{more}"
            raise InputError(f"{place(split, number)}, class", rows[number]["target"], allowed)
    return {
        "labels": known,
        "balance": {split: {label: counts[label] for label in known} for split, counts in balance.items()},
    }


def _in_order(label: str) -> tuple[bool, int, str]:
    """Numbers by their size, before names."""
    number = label.removeprefix("-").isdecimal()
    return not number, int(label) if number else 0, label
