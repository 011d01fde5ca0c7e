"""The engine ``ctranslate2``: models on 8-bit integers (https://github.com/OpenNMT/CTranslate2).

Encoder-decoders are run by ``ctranslate2.Translator``, decoders alone by ``Generator``, classifiers by ``Encoder``; the
folders are written by :mod:`dqlib.engines.ctranslate`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import ctranslate2
import numpy as np
import safetensors
import safetensors.numpy

from dqlib.engines.base import Decoding, Engine, described
from dqlib.engines.classifier import Classifier, Reading
from dqlib.errors import InputError
from dqlib.storage.manifest import Manifest, read_file
from dqlib.storage.reading import json_object, read_tokenizer, refused_as

NAME = "ctranslate2"

#: Files of a folder: weights, tokens by their ids (of encoder-decoders, and of others), and what CTranslate2 must know.
MODEL, VOCABULARIES, CONFIG = "model.bin", ("shared_vocabulary.json", "vocabulary.json"), "config.json"

#: Folder of the tokenizer, within that of the model.
TOKENIZER = "tokenizer"

#: The layer that makes logits of what an encoder pools: ``weight`` (classes, features) and ``bias`` (classes,), fp32.
HEAD = "classifier.safetensors"


class CTranslate2Engine(Engine):
    """A model that writes, of :func:`dqlib.engines.ctranslate.export_ctranslate2`.

    Args:
        threads: of one call; None for CTranslate2's choice.

    Raises:
        InputError: the folder is none of these, or a file of it was changed.
    """

    name = NAME

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        folder = Path(folder)
        manifest = described(folder, NAME, classifies=False)
        self.vocabulary = _vocabulary(folder, manifest)
        self.ids, self.vocabulary_size = {token: i for i, token in enumerate(self.vocabulary)}, len(self.vocabulary)
        decoding = Decoding.parse(manifest.about.get("decoding"), len(self.vocabulary))
        super().__init__(read_tokenizer(folder / TOKENIZER), decoding)
        if decoding.has_encoder:
            config = json_object(read_file(folder, manifest, CONFIG), CONFIG)
            for name in ("add_source_bos", "add_source_eos"):  # CTranslate2 would find it out while it translates
                if not isinstance(config.get(name), bool):
                    raise InputError(f"{CONFIG}, {name}", config.get(name), "true or false")
            self.translator = _loaded(ctranslate2.Translator, folder, threads)
        else:
            self.generator = _loaded(ctranslate2.Generator, folder, threads)

    def _write(
        self, sources: list[list[int]], starts: list[int | None], beams: int, new_tokens: int, decoding: Decoding
    ) -> list[list[int]]:
        last = [] if decoding.forced_end is None else [decoding.forced_end]  # of a text of full length
        longest = new_tokens - len(last)
        if not longest:
            return [last for _ in sources]
        # transformers lets an end be written, whatever is asked for
        suppressed = [words for words in decoding.suppressed if len(words) > 1 or words[0] not in decoding.ends]
        search = {
            "beam_size": beams,
            # of the length that scores are divided by, the end is a part in transformers, too
            "return_end_token": True,
            # the search ends when so many times the beams are finished
            "patience": 1 if decoding.early_stopping is True or beams == 1 else 2,
            "length_penalty": decoding.length_penalty,
            "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
            "repetition_penalty": decoding.repetition_penalty,
            "suppress_sequences": self._tokens(suppressed) or None,
            "end_token": list(decoding.ends),
        }
        shortest = min(decoding.min_new_tokens, longest)
        if self.continues:
            written = self._continued(sources, longest, shortest, search)
        else:
            first = [] if decoding.forced_start is None else [decoding.forced_start]
            results = self.translator.translate_batch(
                self._tokens(sources),
                self._tokens([[start, *first] for start in cast("list[int]", starts)]),
                min_decoding_length=shortest,
                max_decoding_length=longest,
                max_input_length=0,  # texts were cut already
                **search,
            )
            written = [[self.ids[token] for token in each.hypotheses[0]] for each in results]
        return [row + last if len(row) == longest else row for row in written]

    def _continued(
        self, sources: list[list[int]], longest: int, shortest: int, search: dict[str, Any]
    ) -> list[list[int]]:
        """How a decoder alone goes on, texts of one length together: of others, lengths would be counted otherwise.

        What is forbidden or punished may be in the text; to see that, CTranslate2 wants to read it token by token.
        """
        sequences = any(len(words) > 1 for words in search["suppress_sequences"] or ())
        whole = bool(search["no_repeat_ngram_size"] or search["repetition_penalty"] != 1) or sequences
        written: list[list[int]] = [[] for _ in sources]
        for length in sorted({len(row) for row in sources}):
            these = [i for i, row in enumerate(sources) if len(row) == length]
            more = length - 1 if whole else 0  # the first token is where it starts from
            results = self.generator.generate_batch(
                self._tokens([sources[i] for i in these]),
                min_length=shortest + more,
                max_length=longest + more,
                include_prompt_in_result=whole,
                **search,
            )
            for i, each in zip(these, results, strict=True):
                written[i] = list(each.sequences_ids[0])[length if whole else 0 :]
        return written

    def _tokens(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self.vocabulary[token] for token in row] for row in rows]


class CTranslate2Classifier(Classifier):
    """A classifier that :func:`dqlib.engines.ctranslate.export_ctranslate2` wrote.

    Raises:
        InputError: the folder is none of these, or a file of it was changed.
    """

    name = NAME

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        folder = Path(folder)
        manifest = described(folder, NAME, classifies=True)
        self.vocabulary_size = len(_vocabulary(folder, manifest))
        reading = Reading.parse(manifest.about["reading"], self.vocabulary_size)
        super().__init__(read_tokenizer(folder / TOKENIZER), reading)
        try:
            head = safetensors.numpy.load(read_file(folder, manifest, HEAD))
            self._weight, self._bias = head["weight"], head["bias"]
        except (safetensors.SafetensorError, KeyError) as error:
            raise InputError(HEAD, f"damaged ({error})", "weight and bias of the classifier") from None
        if self._weight.shape[:1] != self._bias.shape or len(self._bias) != len(self.labels):
            raise InputError(HEAD, self._weight.shape, f"a row for each of the {len(self.labels)} classes")
        self.encoder = _loaded(ctranslate2.Encoder, folder, threads)

    def _logits(self, input_ids: Sequence[Sequence[int]]) -> np.ndarray:
        ids, types, mask = self.reading.batch(input_ids)
        lengths = mask.sum(axis=1).astype(np.int32)
        as_view = ctranslate2.StorageView.from_array
        output = self.encoder.forward_batch(as_view(ids.astype(np.int32)), as_view(lengths), types.tolist())
        return np.array(output.pooler_output) @ self._weight.T + self._bias


def _loaded(kind: Any, folder: Path, threads: int | None) -> Any:
    """A model in CTranslate2."""
    try:
        return kind(str(folder), device="cpu", compute_type="default", inter_threads=1, intra_threads=threads or 0)
    except (RuntimeError, ValueError) as error:
        raise InputError("folder", str(folder), f"one that CTranslate2 reads ({error})") from None


def _vocabulary(folder: Path, manifest: Manifest) -> list[str]:
    """The tokens of a model, by id."""
    name = next((name for name in VOCABULARIES if name in manifest.files), VOCABULARIES[0])
    data = read_file(folder, manifest, name)
    with refused_as(name, "JSON"):
        tokens = json.loads(data)
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise InputError(name, type(tokens).__name__, "a list of tokens")
    return tokens
