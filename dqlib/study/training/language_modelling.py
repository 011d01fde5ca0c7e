"""The next token: GPT-2, trained on running text in blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.tokenizer import EOS_ID
from dqlib.study.params import settings as S
from dqlib.study.training.batches import SHORTEST
from dqlib.study.training.examples import Example
from dqlib.study.training.kinds import KindTraining, Noise
from dqlib.study.training.text_batches import TextBatch, collate_texts


def new_model(model: S.Model, vocab_size: int, end: int = EOS_ID) -> GPT2LMHeadModel:
    """A GPT-2 of a shape with random weights."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_embd=model.d_model,
            n_layer=model.decoder_layers,
            n_head=model.heads,
            n_inner=model.ffn_dim,
            n_positions=model.max_positions,
            resid_pdrop=model.dropout,
            embd_pdrop=model.dropout,
            attn_pdrop=0.0,
            initializer_range=model.init_std,
            bos_token_id=end,
            eos_token_id=end,
        )
    )


def stream(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """A document between two tokens that end texts: the first token is predicted from the one before it."""
    end = tokenizer.eos_token_id
    return [end, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], end]


def _new(spec: S.Task, tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    return new_model(spec.model, len(tokenizer), tokenizer.eos_token_id)


def _started(model: PreTrainedModel, spec: S.Task, corpus: LoadedCorpus) -> PreTrainedModel:
    return model


def _planned(spec: S.Task, pretraining: bool) -> GPT2LMHeadModel:
    return new_model(spec.model, spec.corpus.vocab_size)


def _encode(rows: Sequence[Row], corpus: LoadedCorpus, spec: S.Corpus) -> list[Example]:
    """Documents in blocks of ``source_tokens``; the target of each token is the next one."""
    examples, length = [], spec.source_tokens
    for row in rows:
        ids = stream(row["source"], corpus.tokenizer)
        for start in range(0, len(ids) - 1, length):
            block = ids[start : start + length + 1]
            if len(block) > SHORTEST:
                examples.append(Example(block[:-1], block[1:]))
    return examples


def _longest(model: PreTrainedModel, count: int, spec: S.Corpus) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    shape = count, spec.source_tokens + 1
    ids = torch.randint(10, model.config.vocab_size, shape, generator=generator).tolist()
    return [Example(row[:-1], row[1:]) for row in ids]


def _windows(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, length: int) -> list[Example]:
    raise NotImplementedError("a language model is not pre-trained; parameters refuse it")


def _noise(training: S.Pretraining, tokenizer: PreTrainedTokenizerFast) -> Noise:
    raise NotImplementedError("a language model is not pre-trained; parameters refuse it")


def _collate(tokenizer: PreTrainedTokenizerFast | None) -> Callable[[Sequence[Example]], TextBatch]:
    return partial(collate_texts, pad=EOS_ID if tokenizer is None else tokenizer.eos_token_id)


TRAINING = KindTraining(
    new=_new,
    started=_started,
    planned=_planned,
    encode=_encode,
    collate=_collate,
    longest=_longest,
    windows=_windows,
    noise=_noise,
)
