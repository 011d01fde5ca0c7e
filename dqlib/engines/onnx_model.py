"""The engine ``onnxruntime``: models on weights of a few bits (https://onnxruntime.ai).

Runs the graphs of :mod:`dqlib.engines.onnx_export`. Keys and values lie in memory of this program, which the graphs
read and write in place: a step copies none of them. Searches are
those of transformers (``GenerationMixin._sample`` without sampling, ``_beam_search``): the same candidates, the same
scores, the same end. Neither torch nor transformers is needed but for the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from dqlib.engines import rules
from dqlib.engines.base import Decoding, Engine, described, looks_back
from dqlib.engines.classifier import Classifier, Reading
from dqlib.engines.onnx_steps import Graphs, PromptSteps, SourceSteps, Steps, bound
from dqlib.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

ENCODER, DECODER, CANDIDATES = "encoder.onnx", "decoder.onnx", "candidates.onnx"
CLASSIFIER = "classifier.onnx"
FORMAT = 1

#: Score of what cannot be chosen, as transformers has it.
_NEVER = -1.0e9


class OnnxEngine(Engine):
    """A model that :func:`dqlib.engines.onnx_export.export_onnx` wrote.

    Raises:
        InputError: the folder is none of these, or damaged.
    """

    name = "onnxruntime"

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        self.folder = Path(folder)
        self._description = description = description_of(self.folder, classifies=False)
        self.decoding = Decoding.parse(description.get("decoding"), description.get("vocabulary") or 0)
        names = [ENCODER] * self.decoding.has_encoder + [DECODER, CANDIDATES]
        *self._encoders, self._decoder, self._search = sessions(self.folder, threads, *names)
        shapes = {each.name: each.shape for each in self._decoder.get_outputs()}
        layers = sum(name.startswith("new keys") for name in shapes)
        (_, heads, _, width), (_, vocabulary) = shapes["new keys 0"], shapes["logits"]
        sizes = {"layers": layers, "heads": heads, "head_dim": width, "vocabulary": vocabulary}
        for field, size in sizes.items():
            if type(description.get(field)) is not int or description[field] != size:
                raise InputError(f"{folder}, {field}", description.get(field), f"{size:g}, as the graphs have it")
        first = description.get("first_position", 2)  # which older exports, of BART and mBART, do not say
        placed = any(each.name == "position" for each in self._decoder.get_inputs())
        if first not in (0, 2, None) or (first is not None) != placed:
            raise InputError(f"{folder}, first_position", first, "0 or 2, or null of a graph without positions")
        self.vocabulary_size = vocabulary
        if self.decoding.positions is None and first is not None:
            raise InputError(f"{folder}, positions", None, "those of the model")
        self.early_stopping = self.decoding.early_stopping

    @cached_property
    def tokenizer(self) -> Tokenizer | None:  # type: ignore[override]  # mypy holds it to be read-only: it is not
        """The model's own; None if it was exported without."""
        return tokenizer_of(self.folder)

    def _write(
        self, sources: list[list[int]], starts: list[int | None], beams: int, new_tokens: int, decoding: Decoding
    ) -> list[list[int]]:
        if self.continues:
            steps: Steps = PromptSteps(self.graphs, sources, beams, new_tokens)
            # what is there already, where rules ask for it: texts are then of one length
            there = np.array(sources if looks_back(decoding) else [[0]] * len(sources))
        else:
            steps = self._read_source(sources, beams, new_tokens)
            there = np.array(starts)[:, None]
        if beams == 1:
            return self._greedy(steps, there, new_tokens, decoding)
        return self._beams(steps, there, beams, new_tokens, decoding)

    # --- searches

    def _greedy(self, steps: Steps, there: np.ndarray, longest: int, decoding: Decoding) -> list[list[int]]:
        ends, pad, shortest = decoding.ends, decoding.pad or 0, decoding.min_new_tokens
        (texts, first), tokens = there.shape, there[:, -1]
        done: np.ndarray = np.zeros(texts, bool)
        written = np.column_stack([there, np.full((texts, longest), pad)])
        for n in range(longest):
            logits = steps.logits(tokens)
            rules.apply(logits, written[:, : first + n], decoding)
            forced = self._forced(n, longest)
            if n < shortest:
                logits[:, ends] = -np.inf
            tokens = logits.argmax(-1) if forced is None else np.full(texts, forced)
            tokens = np.where(done, pad, tokens)
            written[:, first + n] = tokens
            done |= np.isin(tokens, ends)
            if done.all():
                break
        return written[:, first : first + n + 1].tolist()

    def _beams(self, steps: Steps, there: np.ndarray, beams: int, longest: int, decoding: Decoding) -> list[list[int]]:
        """The beam search of transformers, all texts at once; its names where there are any.

        A row's candidates are its best few tokens, among which those of all its text's beams are.
        """
        texts, ends, power = len(there), np.array(decoding.ends), decoding.length_penalty
        keep = max(2, 1 + len(ends)) * beams  # enough that as many as beams have not ended
        running = np.full((texts, beams, longest), decoding.pad or 0)
        finished = running.copy()
        running_scores: np.ndarray = np.full((texts, beams), _NEVER, np.float32)
        running_scores[:, 0] = 0.0
        scores: np.ndarray = np.full((texts, beams), _NEVER, np.float32)
        is_finished: np.ndarray = np.zeros((texts, beams), bool)
        improvable: np.ndarray = np.ones((texts, 1), bool)
        among_best = np.arange(keep) < beams
        there = np.repeat(there, beams, axis=0)
        row, early_stopping = np.arange(texts)[:, None], decoding.early_stopping is True
        for n in range(longest):
            written = np.column_stack([there, running[:, :, :n].reshape(texts * beams, n)])
            values, candidates = self._candidates(steps, written, n, longest, keep, decoding)  # (rows, few)
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
        return finished[:, 0].tolist()

    def _candidates(
        self, steps: Steps, written: np.ndarray, n: int, longest: int, keep: int, decoding: Decoding
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and ids of each row's best tokens, (rows, few)."""
        ends, tokens = decoding.ends, written[:, -1]
        few = min(keep + (len(ends) if n < decoding.min_new_tokens else 0), self.vocabulary_size)
        if looks_back(decoding):
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

    def _read_source(self, input_ids: Sequence[Sequence[int]], beams: int, longest: int) -> SourceSteps:
        description, texts, source = self._description, len(input_ids), max(map(len, input_ids))
        ids: np.ndarray = np.full((texts, source), self.decoding.pad or 0, np.int64)
        mask: np.ndarray = np.zeros((texts, source), np.int32)
        for i, row in enumerate(input_ids):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        shape = 2 * description["layers"], texts, description["heads"], source, description["head_dim"]
        cross: np.ndarray = np.empty(shape, np.float32)
        binding = self._encoders[0].io_binding()
        bound(binding.bind_ortvalue_input, input_ids=ids, mask=mask)
        bound(binding.bind_ortvalue_output, cross=cross)
        self._encoders[0].run_with_iobinding(binding)
        return SourceSteps(self.graphs, cross, mask, beams, longest)

    @property
    def graphs(self) -> Graphs:
        """What steps are taken with."""
        return self._decoder, self._search, self._description


class OnnxClassifier(Classifier):
    """A classifier that :func:`dqlib.engines.onnx_export.export_onnx` wrote.

    Raises:
        InputError: the folder is none of these, or damaged.
    """

    name = "onnxruntime"

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        folder = Path(folder)
        description = description_of(folder, classifies=True)
        (self._session,) = sessions(folder, threads, CLASSIFIER)
        size = description.get("vocabulary")
        if type(size) is not int or size < 1:
            raise InputError(f"{folder}, vocabulary", size, "a whole number of at least 1")
        self.vocabulary_size = size
        super().__init__(tokenizer_of(folder), Reading.parse(description["reading"], size))
        classes = self._session.get_outputs()[0].shape[-1]
        if classes != len(self.labels):
            raise InputError(f"{folder}, labels", len(self.labels), f"{classes} of them, as the graph has it")

    def _logits(self, input_ids: Sequence[Sequence[int]]) -> np.ndarray:
        ids, types, mask = self.reading.batch(input_ids)
        return self._session.run(None, {"input_ids": ids, "types": types, "mask": mask.astype(np.int32)})[0]


def description_of(folder: Path, classifies: bool) -> Mapping[str, Any]:
    """What the manifest of an exported model says of it.

    Raises:
        InputError: as of :func:`dqlib.engines.base.described`, or it is of another version of the format.
    """
    about = described(folder, OnnxEngine.name, classifies).about
    if about.get("format") != FORMAT:
        raise InputError(f"{folder}, format", about.get("format"), f"{FORMAT}, which this dqlib reads")
    return about


def sessions(folder: Path, threads: int | None, *names: str) -> list[onnxruntime.InferenceSession]:
    """Graphs of a folder that are ready to run.

    Raises:
        InputError: ONNX Runtime does not read one of them.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # which plans for shapes that come once
    # Else the threads of one graph keep a core busy while the other's want it.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    cpu = ["CPUExecutionProvider"]
    try:
        return [onnxruntime.InferenceSession(str(folder / name), options, providers=cpu) for name in names]
    except Exception as error:  # ONNX Runtime's have no class in common
        raise InputError("folder", str(folder), f"one that ONNX Runtime reads ({error})") from None


def tokenizer_of(folder: Path) -> Tokenizer | None:
    """The tokenizer of an exported model; None if it was exported without."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    import transformers

    # a tokenizer that is not an architecture's own needs no torch, which AutoTokenizer takes seconds to import
    plain = json.loads(path.read_bytes()).get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    read = transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer
    return read.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
