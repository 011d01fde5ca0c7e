"""The settings of a generation that are taken from a file, and what each may be.

Of what transformers knows besides, some names repositories to load code from, and some needs what no file has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dqlib.errors import InputError

Check = Callable[[Any, int], bool]  # of a value and the size of the vocabulary

#: Beams of a search, at most.
MOST_BEAMS = 1024

#: The power of its length that a text's score is divided by, at most: that of 7,000 tokens is below :data:`_LARGEST`.
MOST_LENGTH_PENALTY = 10

#: Of single precision.
_LARGEST = 3.4e38


def _whole(low: int, high: int = 2**31 - 1) -> tuple[Check, str]:
    return lambda value, _: type(value) is int and low <= value <= high, f"a whole number from {low} to {high}"


def _positive(most: float = _LARGEST) -> tuple[Check, str]:
    allowed = f"a number above 0 and at most {most:g}"
    return lambda value, _: type(value) in (int, float) and 0 < value <= most, allowed


def _is_token(value: Any, vocabulary: int) -> bool:
    return type(value) is int and 0 <= value < vocabulary


def _are_tokens(value: Any, vocabulary: int) -> bool:
    return isinstance(value, list) and all(_is_token(each, vocabulary) for each in value)


_BOOLEAN = lambda value, _: isinstance(value, bool), "true or false"
_TOKEN = _is_token, "an id of the vocabulary"
_TOKENS = _are_tokens, "a list of ids of the vocabulary"
_ENDS = (
    lambda value, size: _is_token(value, size) or (value != [] and _are_tokens(value, size)),
    "one or more ids of the vocabulary",
)

#: Settings that are taken from a file, and what each may be, besides null.
SETTINGS: dict[str, tuple[Check, str]] = {
    **dict.fromkeys(("max_length", "min_length", "min_new_tokens", "top_k"), _whole(0)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), _whole(0)),
    "max_new_tokens": _whole(1),
    **dict.fromkeys(("num_beams", "num_return_sequences"), _whole(1, MOST_BEAMS)),
    **dict.fromkeys(("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values"), _BOOLEAN),
    "_from_model_config": _BOOLEAN,
    "early_stopping": (lambda value, _: isinstance(value, bool) or value == "never", "true, false or 'never'"),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "temperature"), _positive()),
    "length_penalty": (
        lambda value, _: type(value) in (int, float) and abs(value) <= MOST_LENGTH_PENALTY,
        f"a number from {-MOST_LENGTH_PENALTY} to {MOST_LENGTH_PENALTY}",
    ),
    **dict.fromkeys(("top_p", "typical_p"), _positive(1)),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id"), _TOKEN),
    **dict.fromkeys(("eos_token_id", "forced_eos_token_id"), _ENDS),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), _TOKENS),
    "bad_words_ids": (
        lambda value, size: isinstance(value, list) and all(each and _are_tokens(each, size) for each in value),
        "lists of ids of the vocabulary",
    ),
    "exponential_decay_length_penalty": (
        lambda value, _: isinstance(value, list) and len(value) == 2 and all(map(_positive()[0], value, (0, 0))),
        "a length and a factor, both above 0",
    ),
}  # fmt: skip

#: Settings that change the form of an answer and not the answer: each is what it is by default.
_FORM = (
    *("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    "transformers_version",
)


def checked_settings(content: Mapping[str, Any], vocabulary: int, where: str) -> dict[str, Any]:
    """The settings of a generation that a file has: of known names, each in its range.

    Raises:
        InputError: a setting is not known here and asks for something, or is out of range.
    """
    settings = {}
    for name, value in content.items():
        if value is None or (name not in SETTINGS and (value is False or value in ([], {}))):
            settings[name] = value  # asks for nothing, whatever it is
            continue
        if name in _FORM:
            continue
        if name not in SETTINGS:
            raise InputError(f"{where}, {name}", value, "left out, since it is not taken from files")
        check, allowed = SETTINGS[name]
        if not check(value, vocabulary):
            raise InputError(f"{where}, {name}", value, allowed)
        settings[name] = value
    return settings
