"""Distillation losses: pure functions of student, teacher and an explicit mask and denominator.

Every loss is a sum over the positions that count, over a denominator. The denominator defaults to the
number of those positions; a training step that is split over micro-batches or processes passes the
number of the whole step, so that splitting changes nothing.

Sources: DQ-BART (arXiv:2203.11239, section 2.2, eq. 4), Hinton et al. 2015 (arXiv:1503.02531) for the
divergence at a temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import Seq2SeqLMOutput

from dqlib.config import LossWeights

IGNORED_LABEL = -100


def cross_entropy(
    logits: Tensor, labels: Tensor, denominator: Tensor | float | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Task loss: cross-entropy of the reference tokens, labels of -100 left out.

    Args:
        logits: (batch, target, vocabulary).
        labels: (batch, target).
        denominator: tokens to divide by; those that count here, when None.
        label_smoothing: part of the probability given to all tokens alike (Szegedy et al. 2016).
    """
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / _denominator(denominator, labels != IGNORED_LABEL)


def logits_kl(
    student: Tensor, teacher: Tensor, mask: Tensor, denominator: Tensor | float | None = None, temperature: float = 1.0
) -> Tensor:
    """Kullback-Leibler divergence of the student's token distribution from the teacher's.

    Args:
        student, teacher: logits, (batch, target, vocabulary).
        mask: (batch, target), True where a token counts.
        denominator: tokens to divide by; those that count here, when None.
        temperature: softens both; the loss is scaled by its square, so gradients keep their size.
    """
    student_log = torch.log_softmax(student[mask] / temperature, dim=-1)
    teacher_log = torch.log_softmax(teacher[mask] / temperature, dim=-1)
    total = torch.nn.functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
    return total * temperature**2 / _denominator(denominator, mask)


def logits_mse(student: Tensor, teacher: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Mean squared difference of logits over the vocabulary, averaged over the tokens that count.

    Args:
        student, teacher: (batch, target, vocabulary).
        mask: (batch, target), True where a token counts.
        denominator: tokens to divide by; those that count here, when None.
    """
    return hidden_mse(student, teacher, mask, denominator)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Mean squared difference of hidden states over features, averaged over the tokens that count.

    Args:
        student, teacher: (batch, tokens, features).
        mask: (batch, tokens), True where a token counts.
        denominator: tokens to divide by; those that count here, when None.
    """
    per_token = (student - teacher).square().mean(dim=-1)  # (batch, tokens)
    return (per_token * mask).sum() / _denominator(denominator, mask)


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Squared distance of attention distributions, averaged over heads and the queries that count.

    Keys that are masked have probability zero in both and add nothing, so the length of the padding
    does not change the loss.

    Args:
        student, teacher: probabilities, (batch, heads, query, key).
        mask: (batch, query), True where a query counts.
        denominator: queries to divide by; those that count here, when None.
    """
    per_query = (student - teacher).square().sum(dim=-1).mean(dim=1)  # (batch, query)
    return (per_query * mask).sum() / _denominator(denominator, mask)


@dataclass(frozen=True, slots=True)
class LayerMaps:
    """Teacher layer (from 0) that supervises each student layer, in the encoder and the decoder."""

    encoder: Sequence[int]
    decoder: Sequence[int]


def distillation_terms(
    student: Seq2SeqLMOutput,
    teacher: Seq2SeqLMOutput,
    labels: Tensor,
    source_mask: Tensor,
    maps: LayerMaps,
    weights: LossWeights,
    denominators: tuple[Tensor | float | None, Tensor | float | None] = (None, None),
) -> dict[str, Tensor]:
    """Every loss term of a distillation step, not yet weighted.

    Args:
        student, teacher: outputs with attentions and hidden states where their weight is not 0.
        labels: (batch, target), -100 where padded.
        source_mask: (batch, source), True where not padded.
        maps: which teacher layer supervises which student layer.
        weights: families with weight 0 are left out.
        denominators: source and target tokens of the whole step.

    Returns:
        Term by name: ``task``, ``logits``, ``{encoder,decoder,cross}_attention``, ``{encoder,decoder}_hidden``;
        layered terms are means over the student's layers.
    """
    target_mask = labels != IGNORED_LABEL
    sources, targets = denominators
    terms: dict[str, Tensor] = {}
    if weights.task:
        terms["task"] = cross_entropy(student.logits, labels, targets)
    if weights.logits and weights.logits_loss == "kl":
        terms["logits"] = logits_kl(student.logits, teacher.logits, target_mask, targets, weights.temperature)
    elif weights.logits:
        terms["logits"] = logits_mse(student.logits, teacher.logits, target_mask, targets)
    if weights.attention:
        for name, field, layers, mask, denominator in (
            ("encoder_attention", "encoder_attentions", maps.encoder, source_mask, sources),
            ("decoder_attention", "decoder_attentions", maps.decoder, target_mask, targets),
            ("cross_attention", "cross_attentions", maps.decoder, target_mask, targets),
        ):
            ours, theirs = getattr(student, field), getattr(teacher, field)
            pairs = [attention_mse(ours[i], theirs[j], mask, denominator) for i, j in enumerate(layers)]
            terms[name] = torch.stack(pairs).mean()
    if weights.hidden:
        for name, field, layers, mask, denominator in (
            ("encoder_hidden", "encoder_hidden_states", maps.encoder, source_mask, sources),
            ("decoder_hidden", "decoder_hidden_states", maps.decoder, target_mask, targets),
        ):
            ours, theirs = getattr(student, field), getattr(teacher, field)  # first entry: the embeddings
            pairs = [hidden_mse(ours[i + 1], theirs[j + 1], mask, denominator) for i, j in enumerate(layers)]
            terms[name] = torch.stack(pairs).mean()
    return terms


def _denominator(given: Tensor | float | None, mask: Tensor) -> Tensor | float:
    return mask.sum().clamp(min=1) if given is None else given
