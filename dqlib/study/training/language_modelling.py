"""The next token: GPT-2, trained on running text in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.tokenizer import EOS_ID
from dqlib.study.params import settings as S
from dqlib.study.training.batches import SHORTEST, collate_texts
from dqlib.study.training.examples import Example
from dqlib.study.training.kinds import KindTraining, random_ids, shape_fields


def new_model(model: S.Model, vocab_size: int, end: int = EOS_ID) -> GPT2LMHeadModel:
    """A GPT-2 of a shape with random weights."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            **shape_fields("gpt2", model),
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
    return [Example(row[:-1], row[1:]) for row in random_ids(model, count, spec.source_tokens + 1)]


def _not_pretrained(*_: object) -> NoReturn:
    raise NotImplementedError("a language model is not pre-trained; parameters refuse it")


TRAINING = KindTraining(
    new=lambda spec, tokenizer: new_model(spec.model, len(tokenizer), tokenizer.eos_token_id),
    started=lambda model, spec, corpus: model,
    encode=_encode,
    collate=lambda tokenizer: partial(
        collate_texts, pad=EOS_ID if tokenizer is None else tokenizer.eos_token_id, classes=False
    ),
    longest=_longest,
    windows=_not_pretrained,
    noise=_not_pretrained,
)
