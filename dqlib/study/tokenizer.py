"""A byte-level BPE tokenizer with BART's special tokens, trained on a corpus."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dqlib.errors import InputError

BOS, PAD, EOS, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
SPECIAL_TOKENS = (BOS, PAD, EOS, UNKNOWN, MASK)  # their ids are their places, as in BART
BOS_ID, PAD_ID, EOS_ID, UNKNOWN_ID, MASK_ID = range(5)


def language_token(language: str) -> str:
    """The token that a target in a language starts with, as mBART's: ``<ro>``."""
    return f"<{language}>"


def language_id(tokenizer: PreTrainedTokenizerFast, language: str) -> int:
    """Id of a language's token.

    Raises:
        InputError: the tokenizer has no such token.
    """
    vocabulary = tokenizer.get_vocab()
    if language_token(language) not in vocabulary:
        raise InputError("language", language, f"a language with a token {language_token(language)} in the tokenizer")
    return vocabulary[language_token(language)]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int, languages: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Train a tokenizer whose encodings end with ``</s>``; the same texts give the same tokenizer.

    Args:
        texts: to train on.
        vocab_size: most tokens, special ones included.
        max_length: most tokens that its models read.
        languages: codes of the languages that get a token each, after the other special tokens.
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
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A $B {EOS}", special_tokens=[(EOS, EOS_ID)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        mask_token=MASK,
        model_max_length=max_length,
    )
