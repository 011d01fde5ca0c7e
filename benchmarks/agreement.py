"""How far engines agree with PyTorch on a trained student's texts, and PyTorch with itself after a tiny change.

    python benchmarks/agreement.py STUDENT DOCUMENTS [--limit 200]

``STUDENT`` is a student's folder, ``DOCUMENTS`` a corpus's ``test.jsonl``. Greedy search. The tiny change multiplies
biases and what LayerNorms multiply with by one plus a millionth of a normal number.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging

from dqlib.engines import export_model
from dqlib.engines.agreement import agreement
from dqlib.engines.base import Engine
from dqlib.engines.ctranslate import CTranslate2Engine
from dqlib.engines.onnx_model import OnnxEngine
from dqlib.engines.torch_engine import TorchEngine, load_model

CHANGE = 1e-6


def written(engine: Engine, ids: list[list[int]], tokens: int, batch: int = 8) -> list[list[int]]:
    """What an engine writes for token ids, a batch at a time."""
    return [
        row
        for first in range(0, len(ids), batch)
        for row in engine.generate_ids(ids[first : first + batch], num_beams=1, max_new_tokens=tokens)
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("student", type=Path)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="documents")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model(options.student)
    reference = TorchEngine(model, tokenizer)
    with options.documents.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["document"] for line in itertools.islice(lines, options.limit)]
    tokens = reference.new_tokens()
    ids = reference.encode(texts, tokens)
    expected = written(reference, ids, tokens)
    with tempfile.TemporaryDirectory() as folder:
        for name, engine in (("ctranslate2", CTranslate2Engine), ("onnxruntime", OnnxEngine)):
            export_model(model, Path(folder) / name, name, tokenizer)
            other = engine(Path(folder) / name, threads=options.threads)
            print(f"{name}: {agreement(expected, written(other, ids, tokens))}", flush=True)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.mul_(1 + CHANGE * torch.randn(parameter.shape, generator=draw))
    print(f"PyTorch after a change of {CHANGE:g}: {agreement(expected, written(reference, ids, tokens))}")


if __name__ == "__main__":
    main()
