"""The engine ``onnxruntime``: BART, mBART, Marian and T5 on weights of a few bits (https://onnxruntime.ai).

Runs the graphs of :mod:`dqlib.engines.onnx_export`. Keys and values lie in memory of this program, which the graphs
read and write in place: a step copies none of them. Searches are
those of transformers (``GenerationMixin._sample`` without sampling, ``_beam_search``): the same candidates, the same
scores, the same end. Neither torch nor transformers is needed but for the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime

from dqlib.engines import rules
from dqlib.engines.base import Decoding, Engine
from dqlib.errors import InputError
from dqlib.storage.manifest import check_files, opened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

ENCODER, DECODER, CANDIDATES = "encoder.onnx", "decoder.onnx", "candidates.onnx"
FORMAT = 1

#: Score of what cannot be chosen, as transformers has it.
_NEVER = -1.0e9


class OnnxEngine(Engine):
    """A model that :func:`dqlib.engines.onnx_export.export_onnx` wrote.

    Args:
        folder: that was written.
        threads: of one call; None for one per core.

    Attributes:
        early_stopping: of the beam search, as transformers has it; the model's own until it is set.

    Raises:
        InputError: the folder is none of these, or damaged.
    """

    name = "onnxruntime"

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        self.folder = Path(folder)
        manifest = opened(folder, self.name)
        check_files(folder, manifest)
        description = manifest.about
        if description.get("format") != FORMAT:
            raise InputError(f"{folder}, format", description.get("format"), f"{FORMAT}, which this dqlib reads")
        self._description = description
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # which plans for shapes that come once
        # Else the threads of one graph keep a core busy while the other's want it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._encoder, self._decoder, self._search = (
                onnxruntime.InferenceSession(str(self.folder / name), options, providers=["CPUExecutionProvider"])
                for name in (ENCODER, DECODER, CANDIDATES)
            )
        except Exception as error:  # ONNX Runtime's have no class in common
            raise InputError("folder", str(folder), f"one that ONNX Runtime reads ({error})") from None
        (layers, _, heads, _, width), (_, vocabulary) = (
            next(each.shape for each in session.get_outputs() if each.name == name)
            for session, name in ((self._encoder, "cross"), (self._decoder, "logits"))
        )
        sizes = {"layers": layers / 2, "heads": heads, "head_dim": width, "vocabulary": vocabulary}
        for field, size in sizes.items():
            if type(description.get(field)) is not int or description[field] != size:
                raise InputError(f"{folder}, {field}", description.get(field), f"{size:g}, as the graphs have it")
        first = description.get("first_position", 2)  # which older exports, of BART and mBART, do not say
        if first not in (0, 2, None) or (first is None) == any(
            i.name == "position" for i in self._decoder.get_inputs()
        ):
            raise InputError(f"{folder}, first_position", first, "0 or 2, or null of a graph without positions")
        self.decoding, self.vocabulary_size = Decoding.parse(description.get("decoding"), vocabulary), vocabulary
        if self.decoding.positions is None and first is not None:
            raise InputError(f"{folder}, positions", None, "those of the model")
        self.early_stopping = self.decoding.early_stopping

    @cached_property
    def tokenizer(self) -> Tokenizer | None:  # type: ignore[override]  # mypy holds it to be read-only: it is not
        """The model's own; None if it was exported without."""
        if not (self.folder / "tokenizer_config.json").is_file():
            return None
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False, local_files_only=True)

    def _write(
        self,
        sources: list[list[int]],
        starts: list[int | None],
        num_beams: int,
        max_new_tokens: int,
        decoding: Decoding,
    ) -> list[list[int]]:
        steps = self._read_source(sources, num_beams, max_new_tokens)
        own_starts = cast("list[int]", starts)  # as all models here have an encoder
        if num_beams == 1:
            return self._greedy(steps, own_starts, max_new_tokens, decoding)
        return self._beams(steps, own_starts, num_beams, max_new_tokens, decoding)

    # --- searches

    def _greedy(self, steps: _Steps, starts: list[int], longest: int, decoding: Decoding) -> list[list[int]]:
        ends, pad, shortest = decoding.ends, decoding.pad, decoding.min_new_tokens
        tokens: np.ndarray = np.array(starts)
        done: np.ndarray = np.zeros(len(starts), bool)
        written = np.full((len(starts), 1 + longest), pad)
        written[:, 0] = starts
        for n in range(longest):
            logits = steps.logits(tokens)
            rules.apply(logits, written[:, : n + 1], decoding)
            forced = self._forced(n, longest)
            if n < shortest:
                logits[:, ends] = -np.inf
            tokens = logits.argmax(-1) if forced is None else np.full(len(starts), forced)
            tokens = np.where(done, pad, tokens)
            written[:, n + 1] = tokens
            done |= np.isin(tokens, ends)
            if done.all():
                break
        return written[:, 1 : n + 2].tolist()

    def _beams(self, steps: _Steps, starts: list[int], beams: int, longest: int, decoding: Decoding) -> list[list[int]]:
        """The beam search of transformers, all texts at once; its names where there are any.

        A row's candidates are its best few tokens, among which those of all its text's beams are.
        """
        texts, ends, power = len(starts), np.array(decoding.ends), decoding.length_penalty
        keep = max(2, 1 + len(ends)) * beams  # enough that as many as beams have not ended
        running = np.full((texts, beams, longest), decoding.pad)
        finished = running.copy()
        running_scores: np.ndarray = np.full((texts, beams), _NEVER, np.float32)
        running_scores[:, 0] = 0.0
        scores: np.ndarray = np.full((texts, beams), _NEVER, np.float32)
        is_finished: np.ndarray = np.zeros((texts, beams), bool)
        improvable: np.ndarray = np.ones((texts, 1), bool)
        among_best = np.arange(keep) < beams
        tokens: np.ndarray = np.repeat(starts, beams)
        row, early_stopping = np.arange(texts)[:, None], decoding.early_stopping is True
        for n in range(longest):
            written = np.column_stack([np.repeat(starts, beams), running[:, :, :n].reshape(texts * beams, n)])
            values, candidates = self._candidates(steps, tokens, written, longest, keep, decoding)  # (rows, few)
            few = values.shape[-1]
            values = values.reshape(texts, beams, few) + running_scores[:, :, None]
            order = np.argsort(-values.reshape(texts, -1), axis=-1, kind="stable")[:, :keep]
            best = np.take_along_axis(values.reshape(texts, -1), order, 1)  # (texts, keep)
            chosen = np.take_along_axis(candidates.reshape(texts, -1), order, 1)
            parents = order // few
            sequences = running[row, parents]
            sequences[:, :, n] = chosen
            stops = np.isin(chosen, ends) | (n + 1 == longest)

            going_on = best + stops * np.float32(_NEVER)
            next_ = np.argsort(-going_on, axis=-1, kind="stable")[:, :beams]
            running, running_scores = sequences[row, next_], going_on[row, next_]

            ended = stops & among_best
            final = best / np.float32((n + 1) ** power)
            final += (is_finished.all(-1, keepdims=True) & early_stopping) * np.float32(_NEVER)
            final += ~improvable * np.float32(_NEVER)
            final += ~ended * np.float32(_NEVER)
            merged = np.concatenate([scores, final], axis=1)
            kept = np.argsort(-merged, axis=-1, kind="stable")[:, :beams]
            finished = np.concatenate([finished, sequences], axis=1)[row, kept]
            scores, is_finished = merged[row, kept], np.concatenate([is_finished, ended], axis=1)[row, kept]

            most = longest if decoding.early_stopping == "never" and power > 0 else n + 1
            hope = running_scores[:, :1] / np.float32(most**power)
            worst = np.where(is_finished, scores.min(axis=1, keepdims=True), _NEVER)
            improvable &= (hope > worst).any(-1, keepdims=True)
            if not improvable.any() or (is_finished.all() and early_stopping) or stops.all():
                break
            steps.reorder((row * beams + parents[row, next_]).reshape(-1))
            tokens = running[:, :, n].reshape(-1)
        return finished[:, 0].tolist()

    def _candidates(
        self, steps: _Steps, tokens: np.ndarray, written: np.ndarray, longest: int, keep: int, decoding: Decoding
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and ids of each row's best tokens, (rows, few)."""
        ends, n = decoding.ends, written.shape[1] - 1
        few = min(keep + (len(ends) if n < decoding.min_new_tokens else 0), self.vocabulary_size)
        if rules.looks_back(decoding):
            scores = rules.log_probabilities(steps.logits(tokens))
            rules.apply(scores, written, decoding)
            values, candidates = rules.best(scores, few)
        else:
            values, candidates = steps.best(tokens, few)
        forced = self._forced(n, longest)
        if forced is not None:
            candidates = np.broadcast_to(np.arange(few), values.shape) + (np.arange(few) >= forced)
            candidates[:, 0] = forced
            values = np.full_like(values, -np.inf)
            values[:, 0] = 0.0
        elif n < decoding.min_new_tokens:
            values = np.where(np.isin(candidates, ends), -np.inf, values)
        return values, candidates

    def _forced(self, n: int, longest: int) -> int | None:
        """The token that must come, if one must."""
        if n + 1 == longest and self.decoding.forced_end is not None:
            return self.decoding.forced_end
        return self.decoding.forced_start if n == 0 else None

    # --- graphs

    def _read_source(self, input_ids: Sequence[Sequence[int]], beams: int, longest: int) -> _Steps:
        description, texts, source = self._description, len(input_ids), max(map(len, input_ids))
        ids: np.ndarray = np.full((texts, source), self.decoding.pad or 0, np.int64)
        mask: np.ndarray = np.zeros((texts, source), np.int32)
        for i, row in enumerate(input_ids):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        cross = np.empty(
            (2 * description["layers"], texts, description["heads"], source, description["head_dim"]), np.float32
        )
        binding = self._encoder.io_binding()
        _bind(binding.bind_ortvalue_input, input_ids=ids, mask=mask)
        _bind(binding.bind_ortvalue_output, cross=cross)
        self._encoder.run_with_iobinding(binding)
        return _Steps(self._decoder, self._search, description, cross, mask, beams, longest)


class _Steps:
    """The decoder on one batch: what was read, what was written, and the buffers that both are bound to.

    Args:
        session: of the decoder's graph.
        search: that finds candidates.
        description: the model's description.
        cross: (2 x layers, texts, heads, source, head_dim).
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
        texts, layers = len(mask), description["layers"]
        rows = texts * beams
        self.session, self.search, self.length = session, search, 0
        self._first = description.get("first_position", 2)
        self.features = description["heads"] * description["head_dim"]
        self.cache = np.zeros((2 * layers, rows, description["heads"], longest, description["head_dim"]), np.float32)
        self._ids: np.ndarray = np.zeros((rows, 1), np.int64)
        self._position: np.ndarray = np.zeros((1, 1), np.int64)
        self._before: np.ndarray = np.zeros(rows, np.int32)
        self._total: np.ndarray = np.zeros((), np.int32)
        self._logits = np.empty((rows, description["vocabulary"]), np.float32)
        self._fixed: dict[str, np.ndarray] = {
            "by_source": np.array([texts, beams, self.features], np.int64),
            "mask": mask,
            "ids": self._ids,
            "before": self._before,
            "total": self._total,
        } | ({} if self._first is None else {"position": self._position})
        kept: dict[str, np.ndarray] = {}
        for i in range(layers):
            for j, what in enumerate(("keys", "values")):
                self._fixed[f"source {what} {i}"] = cross[2 * i + j]
                self._fixed[f"{what} {i}"] = kept[f"new {what} {i}"] = self.cache[2 * i + j]
        self._binding = session.io_binding()
        _bind(self._binding.bind_ortvalue_input, **self._fixed)
        _bind(self._binding.bind_ortvalue_output, **kept)
        _bind(self._binding.bind_ortvalue_output, logits=self._logits)
        self._found: tuple[np.ndarray, np.ndarray] | None = None

    def logits(self, tokens: np.ndarray) -> np.ndarray:
        """Logits (rows, vocabulary) after one more token per row; the next call writes over them."""
        self._ids[:, 0] = tokens
        self._position[0, 0] = self.length + (self._first or 0)
        self._before[:] = self.length
        self.length += 1
        self._total[()] = self.length
        self.session.run_with_iobinding(self._binding)
        return self._logits

    def best(self, tokens: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and ids of the best tokens after one more per row, (rows, count), best first."""
        logits = self.logits(tokens)
        if self._found is None or self._found[0].shape[1] != count:
            self._found = np.empty((len(tokens), count), np.float32), np.empty((len(tokens), count), np.int64)
            self._searching = self.search.io_binding()
            _bind(self._searching.bind_ortvalue_input, logits=logits, k=np.array([count]))
            _bind(self._searching.bind_ortvalue_output, best=self._found[0], tokens=self._found[1])
        self.search.run_with_iobinding(self._searching)
        return self._found

    def reorder(self, parents: np.ndarray) -> None:
        """Let row ``i`` go on from row ``parents[i]``, which is one of the same text: the source stays in place."""
        if (parents != np.arange(len(parents))).any():
            self.cache[:, :, :, : self.length] = self.cache[:, parents, :, : self.length]


def _bind(bind: Any, **arrays: np.ndarray) -> None:
    """Bind arrays, which stay where they are, by name."""
    for name, array in arrays.items():
        bind(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
