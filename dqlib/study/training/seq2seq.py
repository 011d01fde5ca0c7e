"""Texts from texts: what trainings of encoder-decoders have of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dqlib.languages import language_id
from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.tokenizer import BOS_ID, EOS_ID, PAD_ID
from dqlib.study.params import settings as S
from dqlib.study.training.batches import collate, encode, infill, windows
from dqlib.study.training.examples import Example
from dqlib.study.training.kinds import KindTraining, Noise


def new_model(model: S.Model, vocab_size: int) -> MBartForConditionalGeneration:
    """A pre-LayerNorm encoder-decoder of mBART's architecture with random weights."""
    return MBartForConditionalGeneration(
        MBartConfig(
            vocab_size=vocab_size,
            d_model=model.d_model,
            encoder_layers=model.encoder_layers,
            decoder_layers=model.decoder_layers,
            encoder_attention_heads=model.heads,
            decoder_attention_heads=model.heads,
            encoder_ffn_dim=model.ffn_dim,
            decoder_ffn_dim=model.ffn_dim,
            max_position_embeddings=model.max_positions,
            dropout=model.dropout,
            attention_dropout=0.0,
            init_std=model.init_std,
            scale_embedding=True,
            bos_token_id=BOS_ID,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
            decoder_start_token_id=EOS_ID,
            forced_eos_token_id=None,
        )
    )


def _new(spec: S.Task, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    return new_model(spec.model, len(tokenizer))


def _started(model: PreTrainedModel, spec: S.Task, corpus: LoadedCorpus) -> PreTrainedModel:
    """The model itself, which writes the corpus's first language, if there are any."""
    if spec.corpus.languages:
        start = language_id(corpus.tokenizer, spec.corpus.languages[0])
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
        model.generation_config.forced_bos_token_id = None  # the decoder starts from the language, and needs no other
    return model


def _planned(spec: S.Task, pretraining: bool) -> PreTrainedModel:
    if spec.architecture != "bart":
        return new_model(spec.model, spec.corpus.vocab_size)
    shape = new_model(spec.model, spec.corpus.vocab_size).config.to_dict()
    return BartForConditionalGeneration(BartConfig(**{k: v for k, v in shape.items() if k != "model_type"}))


def _encode(rows: Sequence[Row], corpus: LoadedCorpus, spec: S.Corpus) -> list[Example]:
    return encode(rows, corpus.tokenizer, spec)


def _longest(model: PreTrainedModel, count: int, spec: S.Corpus) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    tokens = spec.source_tokens, spec.target_tokens
    ids = torch.randint(10, model.config.vocab_size, (count, sum(tokens)), generator=generator).tolist()
    return [Example(row[: tokens[0]], row[tokens[0] :]) for row in ids]


def _noise(training: S.Pretraining, tokenizer: PreTrainedTokenizerFast) -> Noise:
    return partial(infill, pretraining=training, mask=tokenizer.mask_token_id)


TRAINING = KindTraining(
    new=_new,
    started=_started,
    planned=_planned,
    encode=_encode,
    collate=lambda tokenizer: collate,
    longest=_longest,
    windows=windows,
    noise=_noise,
)
