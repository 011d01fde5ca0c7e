"""Which code a number came from."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

#: Modules whose code decides what a trained model is and how it scores.
DECIDING = (
    *(f"{name}.py" for name in ("architectures", "attention", "config", "fake_quantize", "layers", "losses")),
    *(f"{name}.py" for name in ("generation", "generation_settings", "languages", "quantizers", "reading", "student")),
    *(f"study/{name}.py" for name in ("batches", "evaluate", "examples", "jobs", "scoring", "tokenizer", "train")),
    "study/translation_metrics.py",
)

#: Modules that those import and that decide nothing that a stamp does not hold itself: parameters and presets are
#: stamped by their values, a corpus by its own stamp; sizes, paths and progress change no weight and no text.
NOT_DECIDING = (
    *(f"{name}.py" for name in ("errors", "files", "footprint", "manifest", "presets")),
    *(f"study/{name}.py" for name in ("checkpoints", "command", "corpus", "hub", "locks", "paths", "progress")),
    *(f"study/{name}.py" for name in ("results", "rows", "settings", "versions")),
)


@cache
def code_hash() -> str:
    """SHA-256 of all code that a run's numbers can depend on, so that none of another version is taken for its own."""
    package = Path(__file__).parent.parent
    return hashlib.sha256(b"".join((package / name).read_bytes() for name in DECIDING)).hexdigest()
