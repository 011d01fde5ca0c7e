"""What a training starts from: a new model with random weights, or one that others have pre-trained."""

from __future__ import annotations

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
)

from dqlib.errors import InputError
from dqlib.languages import language_id
from dqlib.storage.reading import read_model
from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.tokenizer import BOS_ID, EOS_ID, PAD_ID
from dqlib.study.params import settings as S
from dqlib.study.params.checkpoint import SHAPE, fetching, snapshot


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


def planned_model(spec: S.Task) -> PreTrainedModel:
    """A model of a task's shape with random weights, where the one that it names is not to be fetched."""
    if spec.architecture != "bart":
        return new_model(spec.model, spec.corpus.vocab_size)
    shape = new_model(spec.model, spec.corpus.vocab_size).config.to_dict()
    return BartForConditionalGeneration(BartConfig(**{k: v for k, v in shape.items() if k != "model_type"}))


def starting_model(settings: S.Settings, task: str, corpus: LoadedCorpus) -> PreTrainedModel:
    """What a task's teacher starts from: the pre-trained model, or one with random weights.

    By itself it writes the corpus's first language, if there are any.

    Raises:
        InputError: the tokenizer has tokens that the model does not know, or none for the language.
    """
    spec, pretrained = settings.task(task), settings.pretrained_folder(task)
    model = new_model(spec.model, len(corpus.tokenizer)) if pretrained is None else read_model(pretrained)
    if len(corpus.tokenizer) > model.config.vocab_size:
        allowed = f"one of at most {model.config.vocab_size} tokens, which the model '{spec.model.pretrained}' knows"
        raise InputError("corpus.tokenizer", spec.corpus.tokenizer, allowed)
    if spec.corpus.languages:
        start = language_id(corpus.tokenizer, spec.corpus.languages[0])
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
        model.generation_config.forced_bos_token_id = None  # the decoder starts from the language, and needs no other
    return model


def pretrained_model(spec: S.Model) -> PreTrainedModel:
    """A model that others have pre-trained, in fp32, from a folder or the hub.

    Raises:
        InputError: it cannot be reached, or is not of the shape that the parameters say.
    """
    assert spec.pretrained is not None
    with fetching("model.pretrained", spec.pretrained):
        model = read_model(snapshot(spec.pretrained, spec.revision), "seq2seq", dtype=torch.float32, bins=True)
    _check_shape(model, spec)
    return model


def _check_shape(model: PreTrainedModel, spec: S.Model) -> None:
    model_config = model.config
    for name in ("architecture", *S.SIZES):
        value = getattr(model_config, SHAPE[name])
        if getattr(spec, name) != value:
            raise InputError(f"model.{name}", getattr(spec, name), f"{value}, as in the model '{spec.pretrained}'")
    for name, wanted in (("bos", BOS_ID), ("pad", PAD_ID), ("eos", EOS_ID)):
        value = getattr(model_config, f"{name}_token_id")
        if value != wanted:
            raise InputError(f"model '{spec.pretrained}', {name}_token_id", value, f"{wanted}, as in BART and mBART")
