"""Training checkpoints: a training that was killed goes on and ends with the same weights, bit for bit.

A checkpoint holds all that a step depends on: weights, optimizer, schedule, step, random states, and what was logged
and best so far. It is written aside, put in place at once, and has a checksum. The last two are kept, so that one that
cannot be read falls back to the one before.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dqlib.files import atomic_folder, write_text
from dqlib.study.process.provenance import is_made

#: Checkpoints of one training that are kept.
KEPT = 2

_STATE, _SUM, _IDENTITY = "state.pt", "sha256", "identity.json"


@dataclass(frozen=True)
class Checkpoints:
    """Where one training keeps its checkpoints.

    The ``folder`` is this training's alone, outside of what it makes. The ``identity`` is all that decides what is
    trained, as text; checkpoints of another one are not taken up.
    """

    folder: Path
    identity: str

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint, and remove those that are not kept.

        The state has tensors, numbers, texts, and lists and dicts of these.

        Raises:
            OSError: the disk is full, say; the checkpoints before are as they were.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        write_text(self.folder / _IDENTITY, self.identity)
        with atomic_folder(self.folder / f"step{step:09d}") as scratch:
            (scratch / _STATE).write_bytes(data)
            (scratch / _SUM).write_text(hashlib.sha256(data).hexdigest())
        for path in self._all()[:-KEPT]:
            shutil.rmtree(path)

    def latest(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest checkpoint that is whole, and a sentence for each that was passed over; None where there is none.

        Checkpoints of another identity, or of one that cannot be read, are removed.
        """
        notes: list[str] = []
        if not is_made(self.folder, self.identity, _IDENTITY):
            if self._all():
                what = f"of another training, or their {_IDENTITY} is damaged"
                notes.append(f"The checkpoints in {self.folder} are {what}; none is taken, and it begins anew.")
            shutil.rmtree(self.folder, ignore_errors=True)
            return None, notes
        for path in reversed(self._all()):
            try:
                data = (path / _STATE).read_bytes()
                if hashlib.sha256(data).hexdigest() != (path / _SUM).read_text():
                    raise ValueError("its checksum is wrong")
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), notes
            except (OSError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                notes.append(f"The checkpoint {path} cannot be read ({reason}); the one before it is taken.")
        return None, notes

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step*"))


def random_states() -> dict[str, Any]:
    """Of Python, NumPy and torch, on all devices, in what a checkpoint may hold."""
    version, numbers, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    kind, keys, *rest = legacy
    states = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the states of :func:`random_states` back."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers: part of a training's identity."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identity(**parts: object) -> str:
    """What decides a training, as text."""
    return json.dumps({name: str(part) for name, part in parts.items()}, indent=1, sort_keys=True) + "\n"
