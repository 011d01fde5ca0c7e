"""Models for the engine ``ctranslate2``, on 8-bit integers (https://github.com/OpenNMT/CTranslate2).

CTranslate2 multiplies int8 weights that have one scale per row with inputs that it rounds to 8 bits per token, as a
student does. So a weight whose rows have one scale each is handed over as the codes it was trained with, whatever its
bits and levels. CTranslate2 itself would find codes anew, ``rint(127 w / max|w|)`` in each row, which are the trained
ones, times 127, only for binary and ternary weights (of four levels, 127 is no multiple of 3); it does so for weights
that have more than one scale per row or are not quantized.

What a student rounds inside of attention (queries, keys, values, probabilities) CTranslate2 leaves in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from ctranslate2.converters import transformers as converters
from ctranslate2.specs import model_spec
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from dqlib.architectures import architecture_of
from dqlib.config import FULL_PRECISION
from dqlib.engines import ENGINES
from dqlib.engines.base import Decoding, check_computed
from dqlib.engines.classifier import CLASSIFIERS, Reading
from dqlib.engines.ctranslate_engine import HEAD, MODEL, NAME, TOKENIZER
from dqlib.errors import InputError, check_choice
from dqlib.files import atomic_folder
from dqlib.pruning import units
from dqlib.storage.manifest import check_replaceable, seal
from dqlib.storage.plain import plain_model

#: Types of weights that a model can be exported with.
QUANTIZATIONS = ("int8", "float32")

#: Configuration of the converter by model_type: whether LayerNorm comes first, and whether embeddings have one.
#: Marian is converted as BART is: it starts from the padding token like any other, whose row training may have moved.
_CONVERTED = {
    "bart": ("BartConfig", False, True),
    "mbart": ("MBartConfig", True, True),
    "marian": ("BartConfig", False, False),
    "t5": ("T5Config", True, False),
    "gpt2": ("GPT2Config", True, False),
    "bert": ("BertConfig", False, True),
}


@dataclass(frozen=True, slots=True)
class Exported:
    """One weight of an exported model.

    Args:
        exact: whether it has the codes that the student was trained with.
        error: largest difference from the given weight, as a part of its row's largest.
    """

    name: str
    shape: tuple[int, ...]
    exact: bool
    error: float


@dataclass(frozen=True)
class Report:
    """What became of a model in an export. ``str`` gives it as sentences."""

    folder: str
    size_bytes: int
    quantization: str
    weights: tuple[Exported, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every weight is the one given."""
        return all(each.exact for each in self.weights)

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.size_bytes:,} bytes, {self.quantization}"]
        if self.weights and self.exact:
            lines.append(f"All {len(self.weights)} quantized matrices keep the codes that they were trained with.")
        elif self.weights:
            others = [each for each in self.weights if not each.exact]
            worst = max(others, key=lambda each: each.error)
            lines.append(
                f"{len(others)} of {len(self.weights)} matrices were rounded anew; the largest error is "
                f"{100 * worst.error:.2f}% of the row's largest weight, in {worst.name}."
            )
        return "\n".join([*lines, *self.notes])


def export_ctranslate2(
    model: PreTrainedModel, folder: str | Path, tokenizer: Tokenizer | None = None, quantization: str | None = None
) -> Report:
    """Write a model for CTranslate2: aside, and put in place at once.

    Args:
        model: a student, what ``load_packed`` gave, or a teacher; of BERT, a classifier.
        folder: new, empty, or an exported model, which is replaced.
        tokenizer: written beside it; without one, the engine takes token ids only.
        quantization: of the weights, ``int8`` or ``float32``; by default int8 for what has quantized weights.

    Returns:
        Which weights are exactly those of the student, and what else is not as it was.

    Raises:
        InputError: the architecture is not served, the quantization unknown, or the folder holds something else.
    """
    folder, kind = Path(folder), model.config.model_type
    if kind not in _CONVERTED:
        raise InputError("model_type", kind, f"one of {', '.join(sorted(_CONVERTED))} for the engine ctranslate2")
    check_computed(model.config, NAME, converters._SUPPORTED_ACTIVATIONS)
    config = getattr(model, "dqlib_config", None)
    if quantization is None:
        full = config is None or min(config.w_bits, config.e_bits) >= FULL_PRECISION
        quantization = "float32" if full else "int8"
    check_choice("quantization", quantization, QUANTIZATIONS)
    check_replaceable(folder, *ENGINES[1:])
    reads: Reading | Decoding = Reading.of(model, tokenizer) if kind in CLASSIFIERS else Decoding.exported(model, NAME)
    tokens = _Vocabulary(model.get_input_embeddings().num_embeddings, tokenizer, reads)
    weights: tuple[Exported, ...] = ()
    heads = None if config is None else config.heads
    plain = plain_model(model)
    spec = _spec(plain, tokens, heads)
    if quantization == "int8":
        codes = None if config is None else _spec(plain_model(model, codes=True), tokens, heads)
        weights = _to_int8(spec, codes)
    else:
        spec.optimize(quantization)
    notes = (*_notes(model, quantization), *(_notes_of_search(reads) if isinstance(reads, Decoding) else ()))
    description = {
        "class": type(model).__name__,
        "config": None if config is None else str(config),
        "quantization": quantization,
        "reading" if isinstance(reads, Reading) else "decoding": asdict(reads),
        "weights": [asdict(each) for each in weights],
        "notes": notes,
    }
    with atomic_folder(folder) as scratch:
        spec.save(str(scratch))
        if isinstance(reads, Reading):
            head = {name: getattr(plain.classifier, name).detach().numpy() for name in ("weight", "bias")}
            safetensors.numpy.save_file(head, scratch / HEAD)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch / TOKENIZER)
        seal(scratch, NAME, description)
    return Report(str(folder), (folder / MODEL).stat().st_size, quantization, weights, notes)


class _Vocabulary:
    """A tokenizer as the converter asks for it, with a token for every row of the table, even without a tokenizer."""

    def __init__(self, size: int, tokenizer: Tokenizer | None, model: Decoding | Reading) -> None:
        known = {} if tokenizer is None else tokenizer.get_vocab()
        tokens = {i: token for token, i in known.items() if i < size}
        self._tokens = [tokens.get(i, f"<id {i}>") for i in range(size)]
        if len(set(self._tokens)) != size:
            raise InputError("tokenizer", type(tokenizer).__name__, "one with a token of its own for each id")
        pad = self._tokens[model.pad or 0]
        self.bos_token = self.pad_token = pad
        ends = getattr(model, "ends", ())
        self.eos_token = self._tokens[ends[0]] if ends else pad
        unknown = getattr(tokenizer, "unk_token", None)
        self.unk_token = unknown if unknown in self._tokens else pad

    def get_vocab(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self._tokens)}

    def convert_ids_to_tokens(self, i: int) -> str:
        return self._tokens[i]


def _spec(plain: PreTrainedModel, tokens: _Vocabulary, heads: int | None = None) -> model_spec.ModelSpec:
    """CTranslate2's description of a plain model, weights in fp32.

    The decoder starts from the first token of the prefix, which the engine gives, so that a text may start from its
    language's. Nor is CTranslate2 told what begins and ends a source: to one without other tokens it answers nothing,
    unread. Of a classifier it is the body with its pooler.

    Args:
        heads: of every attention, where they are fewer than the model's configuration says.
    """
    config = plain.config
    name, config.normalize_before, config.normalize_embedding = _CONVERTED[config.model_type]
    config.add_final_layer_norm = config.normalize_before
    config.position_embedding_type = "absolute"  # which BERT's converter asks for
    if config.model_type == "t5":  # the converter asks one for the other
        config.tie_word_embeddings = config.scale_decoder_outputs
    names = architecture_of(config)
    for field in names.head_fields if heads is not None else ():
        setattr(config, field, heads)  # for the converter
    with torch.no_grad():
        spec = converters._MODEL_LOADERS[name](plain.base_model if config.model_type in CLASSIFIERS else plain, tokens)
    for side in names.stacks if heads is not None else ():
        size = np.dtype("int32").type(next(units(plain, side)).size)
        for layer in getattr(spec, side).layer:
            for name in ("self_attention", "attention"):
                if hasattr(layer, name):  # the converters cannot say so, but CTranslate2 reads it of any attention
                    vars(getattr(layer, name))["head_dim"] = size
    if config.model_type == "gpt2":
        spec.config.layer_norm_epsilon = config.layer_norm_epsilon
    if hasattr(spec.config, "decoder_start_token"):
        spec.config.decoder_start_token = None
    spec.config.bos_token = spec.config.eos_token = f"<id {len(tokens.get_vocab())}>"  # no token of the table
    spec.validate()
    return spec


def _to_int8(spec: model_spec.ModelSpec, codes: model_spec.ModelSpec | None) -> tuple[Exported, ...]:
    """Quantize a description in place: codes as they were trained where there are such, new ones elsewhere."""
    given = {  # copies, since they are quantized in place
        name: value.numpy().copy()
        for name, value in spec.variables().items()
        if name.endswith("/weight")
        and hasattr(model_spec.index_spec(spec, name.removesuffix("/weight")), "weight_scale")
    }
    trained = {} if codes is None else codes.variables()
    spec.optimize("int8")
    exported = []
    for name, weight in given.items():
        layer = model_spec.index_spec(spec, name.rpartition("/")[0])
        if isinstance(layer.weight, str):  # the name of another, which is the same
            continue
        rows = trained[name].numpy() if name in trained else np.full_like(weight, np.nan)
        row_max = np.abs(weight).max(axis=1)
        rows = np.where(row_max[:, None] > 0, rows, 0)  # the binary codes of a row of zeros are ones, times zero
        negative = (rows * weight).sum(axis=1, keepdims=True) < 0  # as a trained factor can make a scale
        rows = np.where(negative, -rows, rows)
        largest = np.abs(rows).max(axis=1)
        # a zero row has any scale; the others' largest code is the same part of all codes that it is of the weights
        scale = np.divide(largest, row_max, out=np.ones_like(row_max), where=row_max > 0)
        exact = bool(np.isfinite(rows).all() and (rows == np.rint(rows)).all() and largest.max() <= 127)
        if exact:
            layer.weight = model_spec.NumpyVariable(rows.astype(np.int8))
            layer.weight_scale = model_spec.NumpyVariable(scale.astype(np.float32))
        written = layer.weight.numpy() / layer.weight_scale.numpy()[:, None]
        error = np.abs(written - weight).max(axis=1) / np.where(row_max > 0, row_max, 1)
        exact = exact and float(error.max()) < 1e-6
        exported.append(Exported(name, tuple(weight.shape), exact, float(error.max())))
    return tuple(exported)


def _notes(model: PreTrainedModel, quantization: str) -> Iterator[str]:
    """What the engine does not compute as the model does, a sentence each."""
    config = getattr(model, "dqlib_config", None)
    if config is None:
        return
    kind = "tensor" if model.dqlib_preset.activations.granularity == "per_tensor" else "token"
    here = "to 8 bits with one scale per token" if quantization == "int8" else "not at all"
    there = f"to {config.a_bits} bits with one scale per {kind}" if config.a_bits < FULL_PRECISION else "not at all"
    if config.a_bits < FULL_PRECISION:
        yield "Inputs of attention and its probabilities are not rounded, as they are in the student."
    if here != there:
        yield f"Linear layers round their inputs {here}, the student's {there}."


def _notes_of_search(decoding: Decoding) -> Iterator[str]:
    """What it searches by another rule, a sentence each."""
    first = "the token that the decoder starts from" if decoding.has_encoder else "the first token of a text"
    if decoding.early_stopping is not True:
        yield (
            "Beam search ends at twice as many finished texts as beams, which is not PyTorch's rule; with "
            "early_stopping both end alike."
        )
    rules = {
        "min_length": decoding.min_new_tokens,
        "bad_words_ids": decoding.suppressed,
        "no_repeat_ngram_size": decoding.no_repeat_ngram_size,
    }
    if forbidding := [name for name, value in rules.items() if value]:
        yield (
            f"In beam search, the probability of tokens that {' and '.join(forbidding)} forbid goes to the others; in "
            "PyTorch it is lost."
        )
    if decoding.forced_start is not None:
        yield "In beam search, only the best beam may end right after the first token, which is forced."
    if decoding.forced_end is not None and decoding.length_penalty:
        yield "In beam search, the forced end of a text of full length is no part of the length of its score."
    if decoding.no_repeat_ngram_size:
        yield f"Where no_repeat_ngram_size forbids, {first} does not count."
    if decoding.repetition_penalty != 1:
        yield (
            f"The repetition penalty leaves out {first}, and in beam search it changes logits, where PyTorch changes "
            "log-probabilities."
        )
