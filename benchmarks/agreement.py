"""How far engines agree with PyTorch on a trained student's texts, and PyTorch with itself after a tiny change.

    python benchmarks/agreement.py [STUDENT] [DOCUMENTS] [--limit 200] [--csv results/tables/agreement.csv]

``STUDENT`` is a student's folder, ``DOCUMENTS`` a corpus's ``test.jsonl``; left out, they are those of summarization
after ``make repro``. Greedy search. The tiny change multiplies biases and what LayerNorms multiply with by one plus a
millionth of a normal number. The file of ``--csv`` gets one row per engine: the parts of ``tokens`` and of ``choices``
that agree, from 0 to 1, on ``n`` documents.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tables import write_rows
from transformers.utils import logging

from dqlib.engines import ENGINES, export_model, load_engine
from dqlib.engines.agreement import Agreement, agreement
from dqlib.engines.base import Engine
from dqlib.engines.torch_engine import TorchEngine, load_model
from dqlib.errors import InputError
from dqlib.study.process.exit_codes import exit_code

ROOT = Path(__file__).parent.parent
TASK = ROOT / "runs" / "laptop" / "summarization"
STUDENT, DOCUMENTS = TASK / "students" / "2-2-8_2-4", TASK / "corpus" / "test.jsonl"

CHANGE = 1e-6


@dataclass(frozen=True, slots=True)
class Row:
    """Parts of tokens and choices that an engine has in common with PyTorch, on ``n`` documents."""

    engine: str
    tokens: float
    choices: float
    n: int


def written(engine: Engine, ids: list[list[int]], tokens: int, batch: int = 8) -> list[list[int]]:
    """What an engine writes for token ids, a batch at a time."""
    return [
        row
        for first in range(0, len(ids), batch)
        for row in engine.generate_ids(ids[first : first + batch], num_beams=1, max_new_tokens=tokens)
    ]


def measure(student: Path, documents: Path, limit: int, threads: int) -> Iterator[tuple[str, Agreement]]:
    """Each engine's name and its agreement with PyTorch, that of PyTorch with itself last.

    Raises:
        InputError: there is no such folder or file.
    """
    made = "`make repro` makes those of the default study"
    if not student.is_dir():
        raise InputError("STUDENT", str(student), f"the folder of a student; {made}")
    if not documents.is_file():
        raise InputError("DOCUMENTS", str(documents), f"the test.jsonl of a corpus; {made}")
    torch.set_num_threads(threads)
    model, tokenizer = load_model(student)
    reference = TorchEngine(model, tokenizer)
    with documents.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["source"] for line in itertools.islice(lines, limit)]
    tokens = reference.new_tokens()
    ids = reference.encode(texts, tokens)
    expected = written(reference, ids, tokens)
    with tempfile.TemporaryDirectory() as folder:
        for name in ENGINES[1:]:
            export_model(model, Path(folder) / name, name, tokenizer)
            other = load_engine(Path(folder) / name, threads=threads)
            yield name, agreement(expected, written(other, ids, tokens))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.mul_(1 + CHANGE * torch.randn(parameter.shape, generator=draw))
    yield f"PyTorch after a change of {CHANGE:g}", agreement(expected, written(reference, ids, tokens))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("student", type=Path, nargs="?", default=STUDENT, help="by default %(default)s")
    parser.add_argument("documents", type=Path, nargs="?", default=DOCUMENTS, help="by default %(default)s")
    parser.add_argument("--limit", type=int, default=200, help="documents")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--csv", type=Path, default=ROOT / "results" / "tables" / "agreement.csv", help="file for the rows"
    )
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()

    def run() -> None:
        rows = []
        for name, found in measure(options.student, options.documents, options.limit, options.threads):
            rows.append(Row(name, found.part, found.part_of_choices, found.texts))
            print(f"{name}: {found}", flush=True)
        write_rows(rows, options.csv)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
