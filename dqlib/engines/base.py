"""What every engine is: texts in, texts out, the same calls, limits and search whatever multiplies the matrices.

All engines cut texts alike, start alike and search alike, so that what is left between two of them is arithmetic. Beam
search is that of transformers: scores are sums of log-probabilities over the number of tokens (the end among them) to
the power of ``length_penalty``; when it ends is said by ``early_stopping`` (see :class:`Decoding`). Where CTranslate2
has another rule, its export says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dqlib.errors import InputError, check_choice
from dqlib.generation_settings import MOST_BEAMS, checked_settings
from dqlib.languages import language_id

if TYPE_CHECKING:  # so that an engine without torch stays without
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

    from dqlib.storage.manifest import Manifest

#: Tokens that are written at most, where nothing else is said.
NEW_TOKENS = 64

#: What a model may ask of a search that only transformers does, with the values that ask for nothing.
_OF_TRANSFORMERS: dict[str, tuple[Any, ...]] = {
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}, []),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
}

#: What GPT-2's configuration may say that only transformers computes, and what all engines have.
_OF_GPT2 = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


#: Fields of :class:`Decoding` by the names that transformers has for them, where it has others.
_SETTINGS = {
    "start": "decoder_start_token_id",
    "ends": "eos_token_id",
    "pad": "pad_token_id",
    "forced_start": "forced_bos_token_id",
    "forced_end": "forced_eos_token_id",
    "suppressed": "bad_words_ids",
}

#: Settings of a search that a call may ask for in place of the model's, by transformers' names for them: what each is,
#: and what it does. All engines know all of them.
ASKED: dict[str, tuple[type, str]] = {
    "min_new_tokens": (int, "tokens written before the end, at least"),
    "length_penalty": (float, "power of its length that a text's score is divided by, in a beam search"),
    "early_stopping": (bool, "end a beam search at as many finished texts as beams, the rule that all engines have"),
    "no_repeat_ngram_size": (int, "tokens that may be written once only in the same order"),
    "repetition_penalty": (float, "above 1 for fewer tokens that are there already"),
    "bad_words_ids": (list, "ids that may not be written, in this order"),
}


@dataclass(frozen=True, slots=True)
class Decoding:
    """What a model's configuration says of decoding, as transformers reads it.

    Args:
        start: id that the decoder starts from; None for a model without an encoder.
        positions: tokens that the model has positions for; None where they have no end.
        forced_start, forced_end: ids that come first, and last in a text of full length; None for any.
        early_stopping: True ends a beam search when as many texts are finished as there are beams. With False (or
            ``never``), transformers goes on while an unfinished one has a better score than the worst of these;
            CTranslate2 has no such rule, and goes on to twice as many finished texts instead.
        no_repeat_ngram_size: tokens that occur in this order once only; 0 for no such rule.
        repetition_penalty: divides the scores of tokens that are there; 1 for none.
        min_new_tokens: tokens before the end at least, or as many as are asked for where those are fewer.
        suppressed: sequences of ids that are never written.
        has_encoder: whether a text is read apart from what is written; else an answer goes on after the text.
    """

    start: int | None
    ends: tuple[int, ...]
    pad: int | None
    positions: int | None = None
    forced_start: int | None = None
    forced_end: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    suppressed: tuple[tuple[int, ...], ...] = ()
    has_encoder: bool = True

    @classmethod
    def of(cls, model: PreTrainedModel) -> Decoding:
        """The decoding of a model.

        Raises:
            InputError: the model does not generate, or has an encoder and nothing that its decoder starts from.
        """
        if not model.can_generate() or model.config.model_type == "bert":
            raise InputError("model", type(model).__name__, "a model that writes")
        config, settings = model.config, model.generation_config
        ends = _first(settings.eos_token_id, getattr(config, "eos_token_id", None))
        ends = tuple(ends) if isinstance(ends, list | tuple) else () if ends is None else (ends,)
        fields = ("decoder_start_token_id", "bos_token_id")  # the second where there is no first, as in transformers
        start = _first(*(getattr(each, field, None) for field in fields for each in (settings, config)))
        if start is None and config.is_encoder_decoder:
            raise InputError(fields[0], None, f"the id that the decoder starts from, or be told by {fields[1]}")
        # the start counts as one of min_length; min_new_tokens takes precedence, as in transformers
        shortest = max((settings.min_length or 0) - config.is_encoder_decoder, 0)
        return cls(
            start if config.is_encoder_decoder else None,
            ends,
            _first(settings.pad_token_id, getattr(config, "pad_token_id", None), *ends[:1]),
            getattr(config, "max_position_embeddings", None),
            settings.forced_bos_token_id,
            settings.forced_eos_token_id,
            float(_first(settings.length_penalty, 1)),
            settings.early_stopping or False,
            settings.no_repeat_ngram_size or 0,
            float(_first(settings.repetition_penalty, 1)),
            _first(settings.min_new_tokens, shortest),
            tuple(map(tuple, settings.bad_words_ids or ())),
            config.is_encoder_decoder,
        )

    @classmethod
    def exported(cls, model: PreTrainedModel, engine: str) -> Decoding:
        """The decoding of a model for another engine than transformers.

        Raises:
            InputError: as :meth:`of`, or the model asks for what only transformers does.
        """
        decoding = cls.of(model)
        if not decoding.has_encoder:
            settings = model.generation_config
            if settings.min_new_tokens is None and settings.min_length:  # which counts the text that is read
                raise InputError("min_length", settings.min_length, f"min_new_tokens instead for the engine {engine}")
            if decoding.forced_start is not None:  # which comes after texts of one token alone
                raise InputError("forced_bos_token_id", decoding.forced_start, f"left out for the engine {engine}")
        for field, nothing in _OF_TRANSFORMERS.items():
            value = getattr(model.generation_config, field, None)
            if value not in nothing:
                raise InputError(field, value, f"left out for the engine {engine}")
        return decoding

    @classmethod
    def parse(cls, content: Any, vocabulary: int) -> Decoding:
        """The decoding whose fields a file has.

        Raises:
            InputError: a field is missing, not known, or out of range.
        """
        try:
            suppressed = tuple(map(tuple, content["suppressed"]))
            decoding = cls(**{**content, "ends": tuple(content["ends"]), "suppressed": suppressed})
        except (TypeError, KeyError) as error:
            raise InputError("decoding", content, f"the fields of {cls.__name__} ({error})") from None
        settings = {_SETTINGS.get(name, name): value for name, value in asdict(decoding).items()}
        has_encoder, positions = settings.pop("has_encoder"), settings.pop("positions")
        if not isinstance(has_encoder, bool):
            raise InputError("decoding, has_encoder", has_encoder, "true or false")
        if positions is not None and not (type(positions) is int and positions > 0):
            raise InputError("decoding, positions", positions, "a whole number of at least 1")
        for field in fields(cls):
            if getattr(decoding, field.name) is None and field.default not in (None, MISSING):
                raise InputError(f"decoding, {field.name}", None, "given")
        several = {"eos_token_id": list(content["ends"]) or None, "bad_words_ids": content["suppressed"]}
        checked_settings(settings | several, vocabulary, "decoding")
        return decoding


def activation_field(config: PreTrainedConfig) -> str:
    """Field of a configuration that names the activation function."""
    return {"bert": "hidden_act", "t5": "dense_act_fn"}.get(config.model_type, "activation_function")


def check_computed(config: PreTrainedConfig, engine: str, activations: Collection[str]) -> None:
    """Check that an engine other than PyTorch computes what a configuration asks for.

    Raises:
        InputError: it does not.
    """
    tables = getattr(config, "decoder_vocab_size", None)
    if tables not in (None, config.vocab_size):
        raise InputError("decoder_vocab_size", tables, f"{config.vocab_size}, as many ids as the source has")
    field = activation_field(config)
    check_choice(field, getattr(config, field), activations)
    for field, value in (_OF_GPT2 if config.model_type == "gpt2" else {}).items():
        if getattr(config, field) != value:
            raise InputError(field, getattr(config, field), f"{value} for the engine {engine}")


def _first(*values: Any) -> Any:
    """The first of some values that is not None, if one is not."""
    return next((value for value in values if value is not None), None)


def described(folder: Path, engine: str, classifies: bool) -> Manifest:
    """The manifest of an exported model, once all files are found to be as they were written.

    Raises:
        InputError: the folder is none of the engine's, or a file was changed, or the model is of the other kind.
    """
    from dqlib.storage.manifest import check_files, opened  # and numpy, which `dqlib --help` does without

    manifest = opened(folder, engine)
    check_files(folder, manifest)
    if ("reading" in manifest.about) != classifies:
        kind = "a classifier of texts" if classifies else "a model that writes"
        raise InputError("model", manifest.about.get("class"), kind)
    return manifest


def field_of(setting: str) -> str:
    """The field of :class:`Decoding` that a setting of transformers is."""
    return next((field for field, name in _SETTINGS.items() if name == setting), setting)


def looks_back(decoding: Decoding) -> bool:
    """Whether the score of a token depends on those that are there, or it may not be written at all."""
    return bool(decoding.no_repeat_ngram_size or decoding.suppressed or decoding.repetition_penalty != 1)


class Engine(ABC):
    """A model that is ready to write; without a tokenizer, token ids only.

    Attributes:
        early_stopping: of the beam search, see :class:`Decoding`; the model's own until it is set.
    """

    name: ClassVar[str]
    vocabulary_size: int

    def __init__(self, tokenizer: Tokenizer | None, decoding: Decoding) -> None:
        self.tokenizer, self.decoding, self.early_stopping = tokenizer, decoding, decoding.early_stopping

    @property
    def continues(self) -> bool:
        """Whether an answer goes on after the text, in the same positions: a model without an encoder."""
        return not self.decoding.has_encoder

    @abstractmethod
    def _write(
        self,
        sources: list[list[int]],
        starts: list[int | None],
        num_beams: int,
        max_new_tokens: int,
        decoding: Decoding,
    ) -> Sequence[Sequence[int]]:
        """What the model writes for sources that :meth:`generate_ids` has checked, which cuts it at its end.

        ``decoding`` is the model's with what the call asks for.
        """

    def generate_ids(
        self,
        input_ids: Sequence[Sequence[int]],
        *,
        num_beams: int = 4,
        max_new_tokens: int,
        starts: Sequence[int | None] | None = None,
        **settings: Any,
    ) -> list[list[int]]:
        """What the model writes for token ids, all in one batch.

        Args:
            input_ids: a text each, not padded, with the tokens that end it. A text without any is read as its end
                alone, since attention needs something to attend to.
            num_beams: 1 for greedy search.
            max_new_tokens: tokens written at most, the end among them.
            starts: id that the decoder starts from, for each text; None for the model's own.
            settings: of the search, in place of the model's: some of :data:`ASKED`, the same in all engines.

        Returns:
            Ids for each text, without start and end.

        Raises:
            InputError: a number or a setting is not allowed, or there is nothing to read: a text is empty and the model
                has no end, or no encoder.
        """
        decoding = self.asked(settings)
        longest, positions = self.new_tokens(max_new_tokens), self.decoding.positions
        if not 1 <= num_beams <= MOST_BEAMS:
            raise InputError("num_beams", num_beams, f"from 1 to {MOST_BEAMS}")
        if starts is None:
            starts = [self.decoding.start] * len(input_ids)
        elif len(starts) != len(input_ids):
            raise InputError("starts", f"{len(starts)} of them", f"as many as texts, {len(input_ids)}")
        if positions is not None and self.continues:
            positions -= longest
        end = self.decoding.ends[:1] if self.decoding.has_encoder else ()
        sources = [list(row) or list(end) for row in input_ids]
        for row in sources:
            if not row:
                raise InputError("input_ids", row, "a token at least of each text, for a model without encoder or end")
            if positions is not None and len(row) > positions:
                raise InputError("input_ids", f"{len(row)} tokens", f"at most {positions} of each text")
        for field, ids in (*(("input_ids", row) for row in sources), ("starts", starts)):
            for token in ids:
                if token is not None and not 0 <= token < self.vocabulary_size:
                    raise InputError(field, token, f"ids from 0 to {self.vocabulary_size - 1}")
        groups: dict[int, list[int]] = {}
        by_length = self.continues and looks_back(decoding)  # at the text, too, where no padding is to be seen
        for i, row in enumerate(sources):
            groups.setdefault(len(row) if by_length else 0, []).append(i)
        written: dict[int, list[int]] = {}
        for group in groups.values():
            parts = [sources[i] for i in group], [starts[i] for i in group]
            written |= zip(group, map(self.until_end, self._write(*parts, num_beams, longest, decoding)), strict=True)
        return [written[i] for i in range(len(sources))]

    def generate(
        self,
        texts: Sequence[str],
        *,
        num_beams: int = 4,
        max_new_tokens: int | None = None,
        languages: str | Sequence[str] | None = None,
        batch_size: int = 8,
        **settings: Any,
    ) -> list[str]:
        """What the model writes for texts, in order.

        Args:
            texts: to read; what is longer than the model reads is cut.
            max_new_tokens: tokens written at most; by default 64, or what the model has positions for.
            languages: to write in, one for all or each text's own; None for the model's own start.

        Raises:
            InputError: a number or a setting is not allowed, a language has no token, or there is no tokenizer.
        """
        if self.tokenizer is None:
            raise InputError(
                "folder", "without a tokenizer", "one saved or exported with its tokenizer, tokenizer.json"
            )
        if batch_size < 1:
            raise InputError("batch_size", batch_size, "at least 1")
        new_tokens, ids, rows = self.new_tokens(max_new_tokens), self.encode(texts, max_new_tokens), []
        starts = self.starts(languages, len(texts))
        for first in range(0, len(ids), batch_size):
            part = slice(first, first + batch_size)
            own = None if starts is None else starts[part]
            rows += self.generate_ids(ids[part], num_beams=num_beams, max_new_tokens=new_tokens, starts=own, **settings)
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True) if rows else []

    def asked(self, settings: Mapping[str, Any]) -> Decoding:
        """The model's decoding with settings of a call in place of its own.

        Raises:
            InputError: a setting is not known, or out of range.
        """
        plain = {each.name: each.default for each in fields(Decoding)}
        values: dict[str, Any] = {"early_stopping": self.early_stopping}
        for name, value in settings.items():
            if name not in ASKED:
                raise InputError(name, value, f"left out: a call may ask for {', '.join(ASKED)}")
            checked_settings({name: value}, self.vocabulary_size, "settings")
            field = field_of(name)
            value = plain[field] if value is None else tuple(map(tuple, value)) if isinstance(value, list) else value
            values[field] = value
        return replace(self.decoding, **values)

    def new_tokens(self, asked: int | None = None) -> int:
        """Tokens that are written at most.

        Raises:
            InputError: the model has no positions for so many, or there are none.
        """
        positions = self.decoding.positions
        if asked is None:
            share = 2 if self.continues else 1
            return NEW_TOKENS if positions is None else max(1, min(NEW_TOKENS, positions // share - 1))
        if asked < 1:
            raise InputError("max_new_tokens", asked, "at least 1")
        if positions is not None and asked >= positions:
            raise InputError("max_new_tokens", asked, f"at most {positions - 1}, the model's positions less one")
        return asked

    def encode(self, texts: Sequence[str], max_new_tokens: int | None = None) -> list[list[int]]:
        """Texts as token ids, cut to what the model reads."""
        assert self.tokenizer is not None
        longest, positions = self.tokenizer.model_max_length, self.decoding.positions
        if positions is not None:
            longest = min(longest, positions - (self.new_tokens(max_new_tokens) if self.continues else 0))
        return self.tokenizer(list(texts), truncation=longest < 10**9, max_length=longest)["input_ids"] if texts else []

    def starts(self, languages: str | Sequence[str] | None, count: int) -> list[int] | None:
        """Ids that the decoder starts from, for texts in these languages.

        Raises:
            InputError: a language has no token, or there are not as many as texts.
        """
        if languages is None:
            return None
        languages = [languages] * count if isinstance(languages, str) else list(languages)
        if len(languages) != count:
            raise InputError("languages", f"{len(languages)} of them", f"as many as texts, {count}")
        ids = {language: language_id(self.tokenizer, language) for language in dict.fromkeys(languages)}
        return [ids[language] for language in languages]

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """Ids up to the first one that ends a text."""
        ends = self.decoding.ends
        return list(islice(ids, next((i for i, token in enumerate(ids) if token in ends), len(ids))))
