"""Classes of texts: BERT, pre-trained by masked language modelling and fine-tuned with a classifier."""

from __future__ import annotations

import math
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
from dqlib.study.training.batches import SHORTEST, Batch, collate_texts
from dqlib.study.training.examples import Example
from dqlib.study.training.kinds import KindTraining, Noise, random_ids, shape_fields

#: Of the tokens that are to be found again, this many are masked, this many are any others, the rest stay (BERT,
#: arXiv:1810.04805, section 3.1).
MASKED, RANDOM = 0.8, 0.1

#: Of the heads of each layer of a new model, the part that begins by comparing tokens, at least one.
COMPARING = 0.5
#: In these heads, what attention's logit of two equal tokens is more than that of two others, before training: a token
#: then gives about half of its attention or more to its equal among a hundred. And what that of two tokens of different
#: texts is more than that of two tokens of the same text.
EQUAL, OTHER_TEXT = 9.5, 6.0
#: Length of a new model's embeddings of positions and of text types, as parts of that of its embeddings of tokens: what
#: token it is counts most.
POSITION, TYPE = 0.25, 0.33


def new_config(model: S.Model, vocab_size: int, pad: int = PAD_ID, classes: Sequence[str] = ("0", "1")) -> BertConfig:
    """The configuration of a BERT of a shape."""
    return BertConfig(
        vocab_size=vocab_size,
        **shape_fields("bert", model),
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=0.0,
        initializer_range=model.init_std,
        pad_token_id=pad,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
    )


def _new(spec: S.Task, tokenizer: PreTrainedTokenizerFast) -> BertForMaskedLM:
    model = BertForMaskedLM(new_config(spec.model, len(tokenizer), tokenizer.pad_token_id))
    compare_tokens(model)
    return model


@torch.no_grad()
def compare_tokens(model: BertForMaskedLM | BertForSequenceClassification) -> None:
    """Let a new BERT begin with attention that finds a token's equal in the other text of a pair, in place.

    From BERT's own start all attention is even, and a small model that has only some thousand pairs never learns to
    look for what two texts share. Three things differ here:

    * Some heads of each layer have the same orthonormal projection for query and key, so that q k^T is largest for
      equal tokens, as it comes out of training in large models (Trockman & Kolter, arXiv:2305.09828). One feature is
      of the opposite sign in the query: the one that tells the two texts apart, so a token looks into the other text.
    * Embeddings of positions and types are short beside those of tokens.
    * What attention and feed-forward layers add is divided by the root of their number (GPT-2), so that which token it
      is can still be read in the last layer.

    What is drawn here is from torch's generator.
    """
    config, body = model.config, model.bert
    width, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    length = config.initializer_range * math.sqrt(width)
    embeddings = body.embeddings
    embeddings.position_embeddings.weight.mul_(POSITION)
    direction = torch.nn.functional.normalize(torch.randn(width), dim=0)
    signs = torch.tensor([1.0, -1.0]).repeat(config.type_vocab_size)[: config.type_vocab_size]
    embeddings.token_type_embeddings.weight.copy_(TYPE * length * signs.outer(direction))
    # LayerNorm makes the squared length of a token's features the width; these parts of it are the type's and a head's
    of_type = width * TYPE**2 / (1 + POSITION**2 + TYPE**2)
    equal = math.sqrt(EQUAL / math.sqrt(size))
    other = math.sqrt(OTHER_TEXT / 2 * math.sqrt(size) / of_type)
    for layer in body.encoder.layer:
        rows = torch.linalg.qr(torch.randn(width, width))[0]
        attention = layer.attention.self
        for head in range(max(1, round(COMPARING * config.num_attention_heads))):
            place = slice(head * size, (head + 1) * size)
            projection = equal * (rows[place] - (rows[place] @ direction).outer(direction))
            projection[0] = other * direction
            attention.key.weight[place] = projection
            attention.query.weight[place] = projection
            attention.query.weight[place.start].neg_()
        for added in (layer.attention.output.dense, layer.output.dense):
            added.weight.div_(math.sqrt(2 * config.num_hidden_layers))


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


def _encode(rows: Sequence[Row], corpus: LoadedCorpus, spec: S.Corpus) -> list[Example]:
    """Texts, or pairs of texts, cut to ``source_tokens``, with the number of their class."""
    if not rows:
        return []
    numbers = {label: number for number, label in enumerate(corpus.labels)}
    sources = _ids(rows, corpus.tokenizer, spec.source_tokens)
    return [Example(ids, [numbers[row["target"]]]) for ids, row in zip(sources, rows, strict=True)]


def _ids(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, most: int) -> list[list[int]]:
    texts = [[beginning(row[name], most) for row in rows] for name in ("source", "second") if name in rows[0]]
    return tokenizer(*texts, truncation=True, max_length=most)["input_ids"]


def _longest(model: PreTrainedModel, count: int, spec: S.Corpus) -> list[Example]:
    ids = random_ids(model, count, spec.source_tokens)
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

    Ids that are ``kept`` are never masked; others are replaced by ``mask`` or by any of the ``vocabulary``.
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


def _collate(tokenizer: PreTrainedTokenizerFast | None) -> Callable[[Sequence[Example]], Batch]:
    ids = (PAD_ID, EOS_ID) if tokenizer is None else (tokenizer.pad_token_id, tokenizer.sep_token_id)
    return partial(collate_texts, pad=ids[0], separator=ids[1])


TRAINING = KindTraining(
    new=_new,
    started=_started,
    encode=_encode,
    collate=_collate,
    longest=_longest,
    windows=windows,
    noise=_noise,
)
