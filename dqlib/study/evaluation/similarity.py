"""Similarity of tokens: whether few bits make representations alike (QuantGPT, arXiv:2203.10705, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from dqlib.losses import IGNORED_LABEL, cross_entropy, logits_kl
from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.evaluation.bootstrap import bootstrap_interval
from dqlib.study.params import settings as S
from dqlib.study.training.batches import Batch
from dqlib.study.training.kinds import training_of

#: Held-out pairs on which similarity is measured.
HELD_OUT_PAIRS = 64


@dataclass(frozen=True, slots=True)
class Similarity:
    """What is measured of one model on held-out pairs; arrays have one value per text."""

    decoder: np.ndarray  # mean cosine of different tokens' last hidden states
    encoder: np.ndarray  # the same of the encoder's; NaN where there is none
    embedding: float  # the same of the rows of the token embedding
    matched: np.ndarray  # share of the tokens whose most similar token of the teacher is the same one
    divergence: float  # from the teacher's next token, nats
    task_loss: float  # cross-entropy of the reference, nats


def held_out(corpus: LoadedCorpus, spec: S.Task) -> Batch:
    """The first validation pairs, or blocks of running text, in one batch."""
    kind = training_of(spec.form)
    examples = kind.encode(corpus.splits["validation"][:HELD_OUT_PAIRS], corpus, spec.corpus)
    return kind.collate(corpus.tokenizer)(examples[:HELD_OUT_PAIRS])


@torch.no_grad()
def similarity(model: PreTrainedModel, teacher: PreTrainedModel, batch: Batch) -> Similarity:
    """How similar a model's tokens are to each other, and how far it is from the teacher.

    Hidden states are those after the last layer (and its LayerNorm), of the decoder under the reference. A pair
    of positions counts where the tokens differ and neither is padding. Of the embedding, the rows of tokens that
    occur are compared.

    Models are encoder-decoders, or decoders alone, with the same vocabulary.
    """
    was_training = model.training
    inputs = batch.inputs()
    outputs = [m.eval()(**inputs, output_hidden_states=True) for m in (model, teacher)]
    model.train(was_training)
    ours, theirs = outputs
    mask = batch.labels != IGNORED_LABEL
    several = hasattr(ours, "encoder_hidden_states")  # an encoder-decoder names its stacks; others have but one
    last, last_teacher = (o.decoder_hidden_states[-1] if several else o.hidden_states[-1] for o in outputs)
    unit, unit_teacher = normalize(last, dim=-1), normalize(last_teacher, dim=-1)
    across = (unit @ unit_teacher.transpose(1, 2)).masked_fill(~mask.unsqueeze(1), -2.0)  # (texts, ours, theirs)
    matched = across.argmax(dim=-1) == torch.arange(mask.size(1))
    embedding = model.get_input_embeddings()
    rows = embedding.weight
    if getattr(embedding, "weight_quantizer", None) is not None:
        rows = embedding.weight_quantizer(rows)
    ids, read = inputs["input_ids"], batch.attention_mask.bool()
    occurring = torch.cat([ids[read], batch.labels[mask]]).unique()
    encoder = np.full(len(ids), np.nan)
    if several:
        encoder = _mean_cosine(ours.encoder_hidden_states[-1], ids, read)
    return Similarity(
        decoder=_mean_cosine(last, batch.labels, mask),
        encoder=encoder,
        embedding=float(_mean_cosine(rows[occurring][None], occurring[None], torch.ones(1, len(occurring)).bool())[0]),
        matched=((matched & mask).sum(dim=1) / mask.sum(dim=1)).numpy(),
        divergence=float(logits_kl(ours.logits, theirs.logits, mask)),
        task_loss=float(cross_entropy(ours.logits, batch.labels)),
    )


def similarity_table(
    models: Mapping[str, PreTrainedModel], teacher: PreTrainedModel, batch: Batch, resamples: int = 1000
) -> pandas.DataFrame:
    """One row per model; ``more_alike`` is its similarity less the teacher's, text by text, with a 95% interval.

    Returns:
        Index ``model``; columns ``decoder``, ``more_alike``, ``low``, ``high``, ``encoder``, ``embedding``, ``matched``
        (share), ``divergence`` and ``task_loss`` (nats).
    """
    base = similarity(teacher, teacher, batch)
    rows = {}
    for name, model in models.items():
        measured = base if model is teacher else similarity(model, teacher, batch)
        more = measured.decoder - base.decoder
        low, high = bootstrap_interval(more, resamples)
        means = {column: np.mean(value) for column, value in asdict(measured).items()}
        compared = {"more_alike": more.mean(), "low": low, "high": high}
        rows[name] = {"decoder": means.pop("decoder")} | compared | means
    table = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return table.astype(float).round(3) + 0.0  # no minus zero


def _mean_cosine(states: Tensor, ids: Tensor, mask: Tensor) -> np.ndarray:
    """Mean cosine over pairs of positions with different tokens: (texts,) for states (texts, tokens, features)."""
    unit = normalize(states, dim=-1)
    cosine = unit @ unit.transpose(1, 2)  # (texts, tokens, tokens)
    pairs = mask.unsqueeze(1) & mask.unsqueeze(2) & (ids.unsqueeze(1) != ids.unsqueeze(2))
    return ((cosine * pairs).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).numpy()
