"""The decoder's graph on one batch: steps of one token, and the memory that keys and values lie in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnxruntime

#: Graphs of the decoder and of what finds candidates, and the model's description.
Graphs: TypeAlias = tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession, Mapping[str, Any]]


class Steps:
    """What was read, what was written, and the buffers that both are bound to.

    Args:
        lengths: tokens that are read in each row, texts x beams, before the first one is written.
        positions: how many places the graph is told for each token: one per row, or one for all.

    Attributes:
        length: tokens that keys and values are there of.
    """

    _step: onnxruntime.IOBinding  # of the arrays of a step

    def __init__(self, graphs: Graphs, lengths: np.ndarray, longest: int, positions: int) -> None:
        self.session, self.search, description = graphs
        self.layers, self.heads, self.head_dim = (description[name] for name in ("layers", "heads", "head_dim"))
        self.length, rows, whole = 0, len(lengths), int(lengths.max())
        self.cache = self._memory(rows, whole + longest)
        self._lengths = lengths
        self._longer: np.ndarray = whole - lengths  # tokens that the longest text has more
        self._ids: np.ndarray = np.zeros((rows, 1), np.int64)
        self._before: np.ndarray = np.zeros(rows, np.int32)
        self._total: np.ndarray = np.zeros((), np.int32)
        self._first = description.get("first_position", 2)
        self._position: np.ndarray = np.zeros((positions, 1), np.int64)
        self._logits: np.ndarray = np.empty((rows, description["vocabulary"]), np.float32)
        self._found: tuple[np.ndarray, np.ndarray] | None = None

    def _memory(self, rows: int, capacity: int) -> np.ndarray:
        """For keys and values: (2 x layers, rows, heads, capacity, head_dim)."""
        return np.zeros((2 * self.layers, rows, self.heads, capacity, self.head_dim), np.float32)

    def _binding(self, cache: np.ndarray, logits: np.ndarray, **inputs: np.ndarray) -> onnxruntime.IOBinding:
        """Bind what the graph reads and gives, and keys and values, which it reads and writes in place."""
        read, written = {"ids": self._ids, "before": self._before, "total": self._total} | inputs, {"logits": logits}
        for i in range(self.layers):
            for j, what in enumerate(("keys", "values")):
                read[f"{what} {i}"] = written[f"new {what} {i}"] = cache[2 * i + j]
        binding = self.session.io_binding()
        bound(binding.bind_ortvalue_input, **read)
        bound(binding.bind_ortvalue_output, **written)
        return binding

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits (rows, vocabulary) after one more token per row; the next call writes over them."""
        self._ids[:, 0] = tokens
        self._before[:] = self.length - self._longer
        self._position[:, 0] = self._before[: len(self._position)] + (self._first or 0)
        self.length += 1
        self._total[()] = self.length
        self.session.run_with_iobinding(self._step)
        return self._logits

    def best(self, tokens: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and ids of the best tokens after one more per row, (rows, count), best first."""
        logits = self.logits(tokens)
        if self._found is None or self._found[0].shape[1] != count:
            self._found = np.empty((len(tokens), count), np.float32), np.empty((len(tokens), count), np.int64)
            self._searching = self.search.io_binding()
            bound(self._searching.bind_ortvalue_input, logits=logits, k=np.array([count]))
            bound(self._searching.bind_ortvalue_output, best=self._found[0], tokens=self._found[1])
        self.search.run_with_iobinding(self._searching)
        return self._found

    def reorder(self, parents: np.ndarray) -> None:
        """Let row ``i`` go on from row ``parents[i]``, which is one of the same text: the source stays in place."""
        if (parents != np.arange(len(parents))).any():
            self.cache[:, :, :, : self.length] = self.cache[:, parents, :, : self.length]


class SourceSteps(Steps):
    """Steps of a decoder beside an encoder.

    Args:
        cross: what the encoder gives, (2 x layers, texts, heads, source, head_dim).
        mask: int32 (texts, source).
    """

    def __init__(self, graphs: Graphs, cross: np.ndarray, mask: np.ndarray, beams: int, longest: int) -> None:
        super().__init__(graphs, np.zeros(len(mask) * beams, np.int64), longest, positions=1)
        shape = np.array([len(mask), beams, self.heads * self.head_dim], np.int64)
        fixed = {"by_source": shape, "mask": mask} | ({} if self._first is None else {"position": self._position})
        for i in range(self.layers):
            fixed |= {f"source keys {i}": cross[2 * i], f"source values {i}": cross[2 * i + 1]}
        self._step = self._binding(self.cache, self._logits, **fixed)


class PromptSteps(Steps):
    """Steps of a decoder alone: the first reads the texts, whatever token it is given."""

    def __init__(self, graphs: Graphs, sources: Sequence[Sequence[int]], beams: int, longest: int) -> None:
        lengths: np.ndarray = np.repeat(np.array([len(row) for row in sources]), beams)  # (rows,)
        super().__init__(graphs, lengths, longest, positions=len(lengths))
        self._sources, self._beams = sources, beams
        last = np.zeros_like(self._position)
        self._step = self._binding(self.cache, self._logits, position=self._position, last=last)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """As :meth:`Steps.logits`."""
        return super().logits(tokens) if self.length else self._read()

    def _read(self) -> np.ndarray:
        """Logits after the texts, whose beams are the same as yet."""
        texts, lengths = len(self._sources), self._lengths[:: self._beams]
        whole = int(lengths.max())
        ids: np.ndarray = np.zeros((texts, whole), np.int64)
        for row, each in enumerate(self._sources):
            ids[row, : len(each)] = each
        inputs = {"ids": ids, "position": np.tile(np.arange(whole), (texts, 1)), "last": lengths[:, None] - 1}
        inputs |= {"before": (lengths - 1).astype(np.int32), "total": np.array(whole, np.int32)}
        cache = self.cache if self._beams == 1 else self._memory(texts, whole)
        logits: np.ndarray = np.empty((texts, self._logits.shape[1]), np.float32)
        self.session.run_with_iobinding(self._binding(cache, logits, **inputs))
        if self._beams > 1:
            self.cache[:, :, :, :whole] = np.repeat(cache, self._beams, axis=1)
        self._logits[:] = np.repeat(logits, self._beams, axis=0)
        self.length = whole
        return self._logits


def bound(bind: Any, **arrays: np.ndarray) -> None:
    """Bind arrays, which stay where they are, by name."""
    for name, array in arrays.items():
        bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
