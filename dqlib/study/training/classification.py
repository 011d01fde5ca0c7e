"""Classes of texts: BERT, pre-trained by masked language modelling and fine-tuned with a classifier."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from dqlib.errors import InputError
from dqlib.losses import IGNORED_LABEL
from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.rows import Row
from dqlib.study.corpora.tokenizer import EOS_ID, LONGEST_TEXT, PAD_ID, beginning
from dqlib.study.params import settings as S
from dqlib.study.training.batches import SHORTEST
from dqlib.study.training.examples import Example
from dqlib.study.training.kinds import KindTraining, Noise
from dqlib.study.training.text_batches import TextBatch, collate_texts

#: Of the tokens that are to be found again, this many are masked, this many are any others, the rest stay (BERT,
#: arXiv:1810.04805, section 3.1).
MASKED, RANDOM = 0.8, 0.1


def new_config(model: S.Model, vocab_size: int, pad: int = PAD_ID, classes: Sequence[str] = ("0", "1")) -> BertConfig:
    """The configuration of a BERT of a shape."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=model.d_model,
        num_hidden_layers=model.encoder_layers,
        num_attention_heads=model.heads,
        intermediate_size=model.ffn_dim,
        max_position_embeddings=model.max_positions,
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=0.0,
        initializer_range=model.init_std,
        pad_token_id=pad,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )


def _new(spec: S.Task, tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    return BertForMaskedLM(new_config(spec.model, len(tokenizer), tokenizer.pad_token_id))


def _started(model: PreTrainedModel, spec: S.Task, corpus: LoadedCorpus) -> BertForSequenceClassification:
    """A classifier of the corpus's classes on the body of a pre-trained model; its pooler, too, where it has one.

    A classifier is taken as it is: the corpus has its classes in the order of its logits.
    """
    if isinstance(model, BertForSequenceClassification):
        if model.config.num_labels != len(corpus.labels):
            raise InputError("corpus.labels", corpus.labels, f"the {model.config.num_labels} classes of the checkpoint")
        return model
    config = BertConfig(**{k: v for k, v in model.config.to_dict().items() if k not in ("id2label", "label2id")})
    config.id2label = dict(enumerate(corpus.labels))
    config.label2id = {name: number for number, name in config.id2label.items()}
    classifier = BertForSequenceClassification(config)
    body = {name: value for name, value in model.state_dict().items() if name.startswith("bert.")}
    missing = set(classifier.load_state_dict(body, strict=False).missing_keys)
    assert all(name.startswith(("bert.pooler.", "classifier.")) for name in missing), missing
    return classifier


def _planned(spec: S.Task, pretraining: bool) -> PreTrainedModel:
    config = new_config(spec.model, spec.corpus.vocab_size)
    return BertForMaskedLM(config) if pretraining else BertForSequenceClassification(config)


def _encode(rows: Sequence[Row], corpus: LoadedCorpus, spec: S.Corpus) -> list[Example]:
    return encode(rows, corpus.tokenizer, corpus.labels, spec.source_tokens)


def encode(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, labels: Sequence[str], length: int
) -> list[Example]:
    """Texts, or pairs of texts, cut to ``length`` tokens, with the number of their class among ``labels``."""
    numbers = {label: number for number, label in enumerate(labels)}
    if not rows:
        return []
    sources = _ids(rows, tokenizer, length)
    return [Example(ids, [numbers[row["target"]]]) for ids, row in zip(sources, rows, strict=True)]


def _ids(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, most: int) -> list[list[int]]:
    texts = [[beginning(row[name], most) for row in rows] for name in ("source", "second") if name in rows[0]]
    return tokenizer(*texts, truncation=True, max_length=most)["input_ids"]


def _longest(model: PreTrainedModel, count: int, spec: S.Corpus) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    shape = count, spec.source_tokens
    ids = torch.randint(10, model.config.vocab_size, shape, generator=generator).tolist()
    if isinstance(model, BertForMaskedLM):
        return [Example(row, row) for row in ids]
    return [Example(row, [number % model.config.num_labels]) for number, row in enumerate(ids)]


def windows(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, length: int) -> list[Example]:
    """Texts for masked language modelling: a single text in windows of at most ``length`` tokens, a pair cut to them.

    A pair stays together, so that words of one text can be found in the other.
    """
    if rows and "second" in rows[0]:
        sources = _ids(rows, tokenizer, length)
    else:
        sources = []
        begin, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        texts = [row["source"][:LONGEST_TEXT] for row in rows]
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            sources += [[begin, *ids[start : start + length - 2], end] for start in range(0, len(ids), length - 2)]
    return [Example(ids, ids) for ids in sources if len(ids) >= min(SHORTEST, length)]


def masked(
    example: Example, order: random.Random, pretraining: S.Pretraining, mask: int, kept: frozenset[int], vocabulary: int
) -> Example:
    """Masked language modelling: the target has the tokens that are to be found again, and -100 in other places.

    Spans have geometric lengths with mean ``mean_span`` (BERT's own are of one token), until ``mask_ratio`` of the
    tokens is covered.

    Args:
        example: whose source is the text.
        order: what is drawn from.
        pretraining: spans and ratio.
        mask: id of ``<mask>``.
        kept: ids that are never masked.
        vocabulary: number of tokens, for those that are replaced by any other.
    """
    places = [place for place, token in enumerate(example.source) if token not in kept]
    hidden: set[int] = set()
    while len(hidden) < pretraining.mask_ratio * len(places):
        length = 1 if pretraining.mean_span == 1 else 1 + int(order.expovariate(1 / (pretraining.mean_span - 0.5)))
        start = order.randrange(len(places))
        hidden.update(places[start : start + length])
    source = list(example.source)
    for place in sorted(hidden):
        chance = order.random()
        if chance < MASKED:
            source[place] = mask
        elif chance < MASKED + RANDOM:
            source[place] = order.randrange(vocabulary)
    target = [token if place in hidden else IGNORED_LABEL for place, token in enumerate(example.source)]
    return Example(source, target)


def _noise(training: S.Pretraining, tokenizer: PreTrainedTokenizerFast) -> Noise:
    kept = frozenset(tokenizer.all_special_ids)
    return partial(masked, pretraining=training, mask=tokenizer.mask_token_id, kept=kept, vocabulary=len(tokenizer))


def _collate(tokenizer: PreTrainedTokenizerFast | None) -> Callable[[Sequence[Example]], TextBatch]:
    ids = (PAD_ID, EOS_ID) if tokenizer is None else (tokenizer.pad_token_id, tokenizer.sep_token_id)
    return partial(collate_texts, pad=ids[0], separator=ids[1])


TRAINING = KindTraining(
    new=_new,
    started=_started,
    planned=_planned,
    encode=_encode,
    collate=_collate,
    longest=_longest,
    windows=windows,
    noise=_noise,
)
