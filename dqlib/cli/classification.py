"""``dqlib classify``, and ``dqlib agree`` of two classifiers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import islice

from dqlib.cli.inputs import compared, lines_of, texts_of
from dqlib.engines.base import ASKED
from dqlib.errors import InputError


def classify(options: argparse.Namespace) -> int:
    """label texts, or pairs of texts, with probabilities"""
    from dqlib.engines import load_classifier

    read = cut = 0
    with lines_of(options.input) as lines:
        rows = texts_of(lines, options)
        engine = load_classifier(options.folder, options.engine, options.threads)
        while batch := list(islice(rows, options.batch_size)):
            for texts, found in zip(batch, engine.classify(*_columns(batch), batch_size=len(batch)), strict=True):
                read, cut = read + 1, cut + found.cut
                if options.format == "text":
                    line = "\t".join((found.label, f"{found.probabilities[found.label]:.4f}", *texts))
                else:
                    chances = {label: round(chance, 6) for label, chance in found.probabilities.items()}
                    row = dict(zip(("input", "second"), texts, strict=False))
                    line = json.dumps(row | {"label": found.label, "probabilities": chances}, ensure_ascii=False)
                print(line, flush=True)
    if cut:
        print(f"dqlib classify: {cut:,} of {read:,} texts were longer than the model reads, and were cut",
              file=sys.stderr)  # fmt: skip
    return 0


def agree_on_classes(options: argparse.Namespace) -> int:
    """Tell how far two classifiers, or two engines of one, agree."""
    from dqlib.engines import load_classifier
    from dqlib.engines.agreement import class_agreement

    for name in ("beams", "max_new_tokens", "language", *ASKED):
        if (value := getattr(options, name, None)) is not None:
            raise InputError(name, value, "left out: classifiers write nothing")
    with lines_of(options.input) as lines:
        rows = list(texts_of(lines, options))
    engines = compared(options, load_classifier)
    if engines[0].labels != engines[1].labels:
        raise InputError("folder", f"{options.folder}, whose classes are {', '.join(engines[1].labels)}",
                         f"one of the same classes, {', '.join(engines[0].labels)}")  # fmt: skip
    ids, _ = engines[0].encode(*_columns(rows))
    batches = [ids[i : i + options.batch_size] for i in range(0, len(ids), options.batch_size)]
    print(class_agreement(*([row for batch in batches for row in each.logits_of_ids(batch)] for each in engines)))
    return 0


def _columns(rows: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """Texts, and second texts where there are any."""
    return [list(column) for column in zip(*rows, strict=True)] or [[]]
