"""Tokens of languages, which a translation starts from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dqlib.errors import InputError

if TYPE_CHECKING:  # so that an engine without torch stays without
    from transformers import PreTrainedTokenizerBase as Tokenizer


def language_token(language: str) -> str:
    """Token of a language, such as ``<ro>``."""
    return f"<{language}>"


def language_id(tokenizer: Tokenizer, language: str) -> int:
    """Id of a language's token: ``<ro>`` in our own tokenizers, ``ro_RO`` in mBART's, for ``ro`` or ``ro_RO``.

    A piece of a word that looks like a language is none.

    Raises:
        InputError: the tokenizer has no such token.
    """
    vocabulary, token = tokenizer.get_vocab(), language_token(language)
    if token in vocabulary:
        return vocabulary[token]
    code = re.compile(f"{re.escape(language)}(_[A-Z]{{2}})?")
    found = [special for special in tokenizer.all_special_tokens if code.fullmatch(special)]
    if len(found) != 1:
        raise InputError("language", language, f"a language with a token, such as {token}, in the tokenizer")
    return vocabulary[found[0]]
