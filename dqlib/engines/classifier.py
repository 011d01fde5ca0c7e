"""What every engine of a classifier is: texts, or pairs of texts, in; a class for each, with probabilities, out.

All engines cut texts alike, and tell a model alike which text of a pair a token is of, so that what is left between two
of them is arithmetic. They give logits; probabilities are their softmax, in double precision, in all of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dqlib.errors import InputError

if TYPE_CHECKING:  # so that an engine without torch stays without
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

#: Model of each architecture that is a classifier of texts.
CLASSIFIERS = {"bert": "BertForSequenceClassification"}


def class_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes, in order; their numbers, where all are ``LABEL_0`` and so on, as transformers has no names."""
    generic = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return tuple(map(str, range(len(names)))) if generic else tuple(names)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a classifier reads, and which classes it knows.

    Args:
        labels: names of the classes, in the order of the logits.
        positions: tokens that the model has positions for.
        types: of tokens: 2 where the model is told which text of a pair a token is of.
        separator: id of the token that ends each text of a pair; None for a model that reads single texts only.
    """

    labels: tuple[str, ...]
    pad: int
    positions: int
    types: int = 1
    separator: int | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: Tokenizer | None = None) -> Reading:
        """What a model reads.

        Raises:
            InputError: the model is no classifier of texts, or gives something else than one class of several.
        """
        name, config = type(model).__name__, model.config
        if name not in CLASSIFIERS.values():
            raise InputError("model", name, f"a classifier of texts: {', '.join(CLASSIFIERS.values())}")
        kind = getattr(config, "problem_type", None)
        if kind not in (None, "single_label_classification"):
            raise InputError("problem_type", kind, "single_label_classification, one class for each text")
        labels = tuple(str(config.id2label[number]) for number in range(config.num_labels))
        cls._check_labels("id2label", labels)
        separator = None if tokenizer is None else tokenizer.sep_token_id
        return cls(labels, config.pad_token_id or 0, config.max_position_embeddings, config.type_vocab_size, separator)

    @classmethod
    def parse(cls, content: Any, vocabulary: int) -> Reading:
        """The reading whose fields a file has.

        Raises:
            InputError: a field is missing, not known, or out of range.
        """
        try:
            reading = cls(**{**content, "labels": tuple(content["labels"])})
        except (TypeError, KeyError) as error:
            raise InputError("reading", content, f"the fields of {cls.__name__} ({error})") from None
        cls._check_labels("reading, labels", reading.labels)
        token, count = (0, vocabulary - 1), (1, 2**31 - 1)
        for name, (least, most) in {"pad": token, "positions": count, "types": count, "separator": token}.items():
            value = getattr(reading, name)
            if name == "separator" and value is None:
                continue
            if type(value) is not int or not least <= value <= most:
                raise InputError(f"reading, {name}", value, f"a whole number from {least} to {most}")
        return reading

    @staticmethod
    def _check_labels(field: str, labels: tuple[Any, ...]) -> None:
        if len(labels) < 2 or len(set(labels)) < len(labels) or not all(isinstance(label, str) for label in labels):
            raise InputError(field, list(labels), "names of two classes at least, each of its own")

    def batch(self, input_ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Texts padded to one length: ids, types of the tokens, and mask, int64 (texts, length) each.

        The first text of a pair ends with the first separator; all after it is of the second.
        """
        lengths = np.array([len(row) for row in input_ids])
        ids: np.ndarray = np.full((len(input_ids), int(lengths.max())), self.pad, np.int64)
        for row, each in enumerate(input_ids):
            ids[row, : len(each)] = each
        mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
        types = np.zeros_like(ids)
        if self.types > 1 and self.separator is not None:
            ends = (ids == self.separator) * mask
            types = ((ends.cumsum(axis=1) - ends) > 0) * mask
        return ids, types, mask


@dataclass(frozen=True, slots=True)
class Classified:
    """What a classifier says of a text.

    Args:
        cut: whether the text was longer than the model reads, and its end was not read.
    """

    label: str
    probabilities: dict[str, float]
    cut: bool = False


class Classifier(ABC):
    """A model that is ready to classify; without a tokenizer, token ids only."""

    name: ClassVar[str]
    vocabulary_size: int

    def __init__(self, tokenizer: Tokenizer | None, reading: Reading) -> None:
        self.tokenizer, self.reading = tokenizer, reading

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits, as :func:`class_names` has them."""
        return class_names(self.reading.labels)

    @abstractmethod
    def _logits(self, input_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits (texts, classes) of texts that :meth:`logits_of_ids` has checked."""

    def logits_of_ids(self, input_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits of token ids, all in one batch, fp32 (texts, classes).

        Args:
            input_ids: a text, or a pair of texts, each: not padded, with the tokens that begin and end it.

        Raises:
            InputError: a text has no token, more than the model has positions for, or an id that it does not know.
        """
        for row in input_ids:
            if not 0 < len(row) <= self.reading.positions:
                raise InputError("input_ids", f"{len(row)} tokens", f"1 to {self.reading.positions} of each text")
            for token in row:
                if not 0 <= token < self.vocabulary_size:
                    raise InputError("input_ids", token, f"ids from 0 to {self.vocabulary_size - 1}")
        if not input_ids:
            return np.zeros((0, len(self.labels)), np.float32)
        return self._logits(input_ids)

    def classify(
        self, texts: Sequence[str], seconds: Sequence[str] | None = None, *, batch_size: int = 8
    ) -> list[Classified]:
        """The class of each text, or pair of texts, with probabilities, in order.

        Args:
            texts: to read; of what is longer than the model reads, the end is not read.
            seconds: the second text of each pair, for a model of pairs.
            batch_size: texts at a time, those of like length together.

        Raises:
            InputError: there is no tokenizer, or not as many second texts as first ones, or a text has no words.
        """
        if batch_size < 1:
            raise InputError("batch_size", batch_size, "at least 1")
        ids, cut = self.encode(texts, seconds)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        chances = np.zeros((len(ids), len(self.labels)))
        for first in range(0, len(ids), batch_size):
            part = order[first : first + batch_size]
            chances[part] = probabilities(self.logits_of_ids([ids[i] for i in part]))
        found = [(self.labels[int(row.argmax())], dict(zip(self.labels, row.tolist(), strict=True))) for row in chances]
        return [Classified(*each, was_cut) for each, was_cut in zip(found, cut, strict=True)]

    def encode(self, texts: Sequence[str], seconds: Sequence[str] | None = None) -> tuple[list[list[int]], list[bool]]:
        """Texts, or pairs, as token ids, and of which the end was cut, since the model does not read as much.

        Of a pair, the longer text is cut first.

        Raises:
            InputError: there is no tokenizer, or not as many second texts as first ones, or a text has no words.
        """
        if self.tokenizer is None:
            raise InputError(
                "folder", "without a tokenizer", "one saved or exported with its tokenizer, tokenizer.json"
            )
        for field, given in (("texts", texts), ("seconds", seconds or ())):
            for number, text in enumerate(given):
                if not text.strip():
                    raise InputError(f"{field}, number {number + 1}", text, "a text, with a word at least")
        if seconds is not None and len(seconds) != len(texts):
            raise InputError("seconds", f"{len(seconds)} of them", f"as many as texts, {len(texts)}")
        if not texts:
            return [], []
        longest = min(self.tokenizer.model_max_length, self.reading.positions)
        columns = [list(each) for each in (texts, seconds) if each is not None]
        encoded = self.tokenizer(*columns, truncation=True, max_length=longest)
        return encoded["input_ids"], [bool(each.overflowing) for each in encoded.encodings]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits (texts, classes), in double precision."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)
