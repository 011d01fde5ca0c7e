"""The decoder's graph on one batch: steps of one token, and the memory that keys and values lie in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime


class Steps:
    """What was read, what was written, and the buffers that both are bound to.

    Args:
        session: of the decoder's graph.
        search: that finds candidates.
        description: the model's description.
        rows: texts x beams.
        capacity: tokens that keys and values are kept of.

    Attributes:
        length: tokens that keys and values are there of.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        search: onnxruntime.InferenceSession,
        description: Mapping[str, Any],
        rows: int,
        capacity: int,
    ) -> None:
        self.session, self.search, self.length = session, search, 0
        self.layers, self.heads, self.head_dim = (description[name] for name in ("layers", "heads", "head_dim"))
        self.cache = self._memory(rows, capacity)
        self._ids: np.ndarray = np.zeros((rows, 1), np.int64)
        self._before: np.ndarray = np.zeros(rows, np.int32)
        self._total: np.ndarray = np.zeros((), np.int32)
        self._logits = np.empty((rows, description["vocabulary"]), np.float32)
        self._found: tuple[np.ndarray, np.ndarray] | None = None

    def _memory(self, rows: int, capacity: int) -> np.ndarray:
        """For keys and values: (2 x layers, rows, heads, capacity, head_dim)."""
        return np.zeros((2 * self.layers, rows, self.heads, capacity, self.head_dim), np.float32)

    def _binding(self, cache: np.ndarray, **inputs: np.ndarray) -> onnxruntime.IOBinding:
        """Bind what the graph reads, and keys and values, which it reads and writes in place."""
        read, written = {"ids": self._ids, "before": self._before, "total": self._total} | inputs, {}
        for i in range(self.layers):
            for j, what in enumerate(("keys", "values")):
                read[f"{what} {i}"] = written[f"new {what} {i}"] = cache[2 * i + j]
        binding = self.session.io_binding()
        bound(binding.bind_ortvalue_input, **read)
        bound(binding.bind_ortvalue_output, **written)
        return binding

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits (rows, vocabulary) after one more token per row; the next call writes over them."""
        raise NotImplementedError

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
        session, search, description: as of :class:`Steps`.
        cross: what the encoder gives, (2 x layers, texts, heads, source, head_dim).
        mask: int32 (texts, source).
        beams: rows of a text.
        longest: tokens that are written at most.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        search: onnxruntime.InferenceSession,
        description: Mapping[str, Any],
        cross: np.ndarray,
        mask: np.ndarray,
        beams: int,
        longest: int,
    ) -> None:
        texts = len(mask)
        super().__init__(session, search, description, texts * beams, longest)
        self._first = description.get("first_position", 2)
        self._position: np.ndarray = np.zeros((1, 1), np.int64)
        shape = np.array([texts, beams, self.heads * self.head_dim], np.int64)
        fixed = {"by_source": shape, "mask": mask} | ({} if self._first is None else {"position": self._position})
        for i in range(self.layers):
            for j, what in enumerate(("keys", "values")):
                fixed[f"source {what} {i}"] = cross[2 * i + j]
        self._step = self._binding(self.cache, **fixed)
        bound(self._step.bind_ortvalue_output, logits=self._logits)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """As :meth:`Steps.logits`."""
        self._ids[:, 0] = tokens
        self._position[0, 0] = self.length + (self._first or 0)
        self._before[:] = self.length
        self.length += 1
        self._total[()] = self.length
        self.session.run_with_iobinding(self._step)
        return self._logits


class PromptSteps(Steps):
    """Steps of a decoder alone: the first reads the texts, whatever token it is given.

    Args:
        session, search, description: as of :class:`Steps`.
        sources: texts, as ids.
        beams: rows of a text.
        longest: tokens that are written at most.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        search: onnxruntime.InferenceSession,
        description: Mapping[str, Any],
        sources: Sequence[Sequence[int]],
        beams: int,
        longest: int,
    ) -> None:
        self._sources, self._beams = sources, beams
        self._lengths: np.ndarray = np.repeat(np.array([len(row) for row in sources]), beams)  # (rows,)
        whole = int(self._lengths.max())
        super().__init__(session, search, description, len(self._lengths), whole + longest)
        self._position: np.ndarray = np.zeros((len(self._lengths), 1), np.int64)
        last: np.ndarray = np.zeros((len(self._lengths), 1), np.int64)
        self._step = self._binding(self.cache, position=self._position, last=last)
        bound(self._step.bind_ortvalue_output, logits=self._logits)

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """As :meth:`Steps.logits`."""
        if not self.length:
            return self._read()
        self._ids[:, 0] = tokens
        written = self.length - int(self._lengths.max())
        self._before[:] = self._lengths + written
        self._position[:, 0] = self._before
        self.length += 1
        self._total[()] = self.length
        self.session.run_with_iobinding(self._step)
        return self._logits

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
        logits = np.empty((texts, self._logits.shape[1]), np.float32)
        binding = self._binding(cache, **inputs)
        bound(binding.bind_ortvalue_output, logits=logits)
        self.session.run_with_iobinding(binding)
        if self._beams > 1:
            self.cache[:, :, :, :whole] = np.repeat(cache, self._beams, axis=1)
        self._logits[:] = np.repeat(logits, self._beams, axis=0)
        self.length = whole
        return self._logits


def bound(bind: Any, **arrays: np.ndarray) -> None:
    """Bind arrays, which stay where they are, by name."""
    for name, array in arrays.items():
        bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
