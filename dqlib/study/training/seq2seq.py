"""Texts from texts: what trainings of encoder-decoders have of their own."""

from __future__ import annotations

from functools import partial

from transformers import (
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dqlib.errors import InputError
from dqlib.languages import language_id
from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.tokenizer import BOS_ID, EOS_ID, PAD_ID
from dqlib.study.params import settings as S
from dqlib.study.training.batches import collate, encode, infill, windows
from dqlib.study.training.examples import Example
from dqlib.study.training.kinds import KindTraining, random_ids, shape_fields


def new_model(
    model: S.Model, vocab_size: int, begin: int | None = BOS_ID, pad: int = PAD_ID, end: int = EOS_ID
) -> MBartForConditionalGeneration:
    """A pre-LayerNorm encoder-decoder of mBART's architecture with random weights, and ids of special tokens."""
    return MBartForConditionalGeneration(
        MBartConfig(
            vocab_size=vocab_size,
            **shape_fields("mbart", model),
            dropout=model.dropout,
            attention_dropout=0.0,
            init_std=model.init_std,
            scale_embedding=True,
            bos_token_id=begin,
            pad_token_id=pad,
            eos_token_id=end,
            decoder_start_token_id=end,
            forced_eos_token_id=None,
        )
    )


def _new(spec: S.Task, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    ids = tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
    return new_model(spec.model, len(tokenizer), *ids)


def _started(model: PreTrainedModel, spec: S.Task, corpus: LoadedCorpus) -> PreTrainedModel:
    """The model itself, which writes the corpus's first language, if its tokenizer has tokens of languages.

    Raises:
        InputError: its special tokens are not the tokenizer's, or it starts from another token than examples do.
    """
    tokenizer = corpus.tokenizer
    check_tokens(tokenizer, model.config)
    if spec.corpus.start is None and spec.corpus.languages:
        start = language_id(tokenizer, spec.corpus.languages[0])
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
        model.generation_config.forced_bos_token_id = None  # the decoder starts from the language, and needs no other
        return model
    start = tokenizer.eos_token_id if spec.corpus.start is None else spec.corpus.start
    if model.config.decoder_start_token_id not in (None, start):
        raise InputError("corpus.start", spec.corpus.start, f"{model.config.decoder_start_token_id}, as in the model")
    return model


def check_tokens(tokenizer: PreTrainedTokenizerFast, model_config: PreTrainedConfig) -> None:
    """Refuse a tokenizer that is another model's.

    Raises:
        InputError: it pads or ends texts by other ids than the model.
    """
    for name in ("pad_token_id", "eos_token_id"):
        found, wanted = getattr(tokenizer, name), getattr(model_config, name, None)
        if wanted is not None and found not in (wanted if isinstance(wanted, list) else [wanted]):
            raise InputError(f"tokenizer, {name}", found, f"{wanted}, as in the model")


def _longest(model: PreTrainedModel, count: int, spec: S.Corpus) -> list[Example]:
    ids = random_ids(model, count, spec.source_tokens + spec.target_tokens)
    return [Example(row[: spec.source_tokens], row[spec.source_tokens :]) for row in ids]


TRAINING = KindTraining(
    new=_new,
    started=_started,
    encode=lambda rows, corpus, spec: encode(rows, corpus.tokenizer, spec),
    collate=lambda tokenizer: partial(collate, pad=PAD_ID if tokenizer is None else tokenizer.pad_token_id),
    longest=_longest,
    windows=windows,
    noise=lambda training, tokenizer: partial(infill, pretraining=training, mask=tokenizer.mask_token_id),
)
