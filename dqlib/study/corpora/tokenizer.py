"""Tokenizers: a byte-level BPE with BART's special tokens, trained on a corpus, or a ready one of a checkpoint.

Those that are trained here have BART's ids of special tokens; a ready one has its own, which are its model's. BART's
puts texts between ``<s>`` and ``</s>``, ours ends them with ``</s>`` (a classifier's does as BART's), mBART's ends a
source with ``</s> en_XX``. A target ends with ``</s>`` in all of them; in a translation the decoder starts from the
token of its language, where it has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dqlib.errors import InputError
from dqlib.languages import language_id, language_token
from dqlib.study.params import settings as S
from dqlib.study.params.kinds import KINDS, SEQ2SEQ

BOS, PAD, EOS, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
SPECIAL_TOKENS = (BOS, PAD, EOS, UNKNOWN, MASK)  # their ids are their places, as in BART
BOS_ID, PAD_ID, EOS_ID, UNKNOWN_ID, MASK_ID = range(5)

#: How a tokenizer that is trained here marks one text, and two: with the token of a class where its kind has one.
_MARKED = {True: ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"), False: ("$A </s>", "$A $B </s>")}

#: Characters that are read of a text where all of it is; longer ones are files by mistake.
LONGEST_TEXT = 10**6

#: Characters of a word when a tokenizer is trained, which takes time with the square of it.
LONGEST_WORD = 1000
_LONG_WORD = re.compile(
    "|".join(rf"{kind}{{{LONGEST_WORD}}}" for kind in (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s"))
)


def checked_tokenizer(
    source: str | Path, revision: str | None = None, kind: S.Kind = KINDS[SEQ2SEQ]
) -> PreTrainedTokenizerFast:
    """Read a tokenizer from a folder, or from the hub.

    Raises:
        InputError: it lacks a special token; a text that is read by an encoder-decoder does not end with ``</s>`` or
            with that and a language's token.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    for name in kind.tokens:
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise InputError(f"tokenizer '{source}', {name}_token_id", None, f"given, for {kind.description}")
    if not kind.writes:
        return tokenizer
    ids = tokenizer("a")["input_ids"]
    place = -2 if marks_source(tokenizer) else -1
    if len(ids) < 2 or ids[place] != tokenizer.eos_token_id:
        raise InputError(f"tokenizer '{source}', the end of a text", tokenizer.convert_ids_to_tokens(ids), "</s>")
    return tokenizer


def marks_source(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a source ends with its language's token, as in mBART."""
    return getattr(tokenizer, "src_lang", None) is not None


def set_source_language(tokenizer: PreTrainedTokenizerFast, language: str | None) -> None:
    """Tell a tokenizer of mBART's kind which language sources are in; others need none.

    Raises:
        InputError: it needs one and none is given, or has no token for it.
    """
    if not marks_source(tokenizer):
        return
    if language is None:
        raise InputError("source_language", None, "given: this tokenizer ends a source with its language's token")
    tokenizer.src_lang = tokenizer.convert_ids_to_tokens(language_id(tokenizer, language))


def source_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str], most: int) -> list[list[int]]:
    """Ids of texts that a model reads, cut to ``most`` tokens, ending as the tokenizer ends a source."""
    return tokenizer([beginning(text, most) for text in texts], truncation=True, max_length=most)["input_ids"]


def target_ids(tokenizer: PreTrainedTokenizerFast, texts: list[str], most: int) -> list[list[int]]:
    """Ids of texts that a model writes, cut to ``most`` tokens, ending with ``</s>``."""
    texts = [beginning(text, most) for text in texts]
    if not marks_source(tokenizer):
        return tokenizer(text_target=texts, truncation=True, max_length=most)["input_ids"]
    encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=most - 1)
    return [[*ids, tokenizer.eos_token_id] for ids in encoded["input_ids"]]


def beginning(text: str, most: int) -> str:
    """Of a text, what its first ``most`` tokens can depend on: no token of BART's has more than 128 characters.

    A word that goes on beyond it is far from these tokens.
    """
    return text[: 128 * most + 2**14]


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    max_length: int,
    languages: Iterable[str] = (),
    kind: S.Kind = KINDS[SEQ2SEQ],
) -> PreTrainedTokenizerFast:
    """Train a tokenizer whose encodings end with ``</s>``; the same texts give the same tokenizer.

    It has at most ``vocab_size`` tokens, special ones included; ``languages`` get a token each, after the other special
    tokens. The ``kind`` of its task says how texts are marked.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *map(language_token, languages)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(_of_words, texts), trainer)
    single, pair = _MARKED["cls" in kind.tokens]
    marks = [(name, place) for place, name in enumerate(SPECIAL_TOKENS) if name in f"{single} {pair}"]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        mask_token=MASK,
        **({"cls_token": BOS, "sep_token": EOS} if BOS in single else {}),
        model_max_length=max_length,
    )


def _of_words(text: str) -> str:
    """A text for training, with words that are none in pieces, and blanks that are as many left out."""
    if len(text) < LONGEST_WORD:
        return text
    return _LONG_WORD.sub(lambda word: "" if word[0].isspace() else f"{word[0]} ", text[:LONGEST_TEXT])
