"""The loss terms of a distillation step: which layers and outputs are compared, and by which of :mod:`dqlib.losses`.

Source: DQ-BART (arXiv:2203.11239, section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from dqlib.errors import InputError
from dqlib.loss_weights import LossWeights
from dqlib.losses import (
    IGNORED_LABEL,
    MemoryBank,
    attention_mse,
    cross_entropy,
    hidden_mse,
    logits_kl,
    logits_mse,
    relation_kl,
    token_contrastive,
    token_scale,
)


@dataclass(frozen=True, slots=True)
class LayerMaps:
    """Teacher layer (from 0) that supervises each student layer, in the encoder and the decoder.

    ``heads`` are the teacher's heads that each layer of the student still has, by part (``encoder``, ``decoder``,
    ``cross``): attention maps are compared with those. A part that is not there has all of them.
    """

    encoder: Sequence[int]
    decoder: Sequence[int]
    heads: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)

    def of_heads(self, part: str, layer: int, teacher: Tensor) -> Tensor:
        """The teacher's maps, (batch, heads, query, key), of the heads that a layer of the student has."""
        return teacher[:, list(self.heads[part][layer])] if part in self.heads else teacher


@dataclass(frozen=True, slots=True)
class StackPart:
    """Attention maps or hidden states of one stack, beside those of the teacher.

    Attributes:
        mask: (batch, tokens), True where a token counts.
        keys: (batch, tokens), how many keys each token sees, for attention.
    """

    name: str
    pairs: list[tuple[Tensor, Tensor]]
    mask: Tensor
    keys: Tensor | None
    denominator: Tensor | float | None


def distillation_terms(
    student: ModelOutput,
    teacher: ModelOutput,
    labels: Tensor,
    source_mask: Tensor,
    maps: LayerMaps,
    weights: LossWeights,
    denominators: tuple[Tensor | float | None, Tensor | float | None] = (None, None),
    bank: MemoryBank | None = None,
) -> dict[str, Tensor]:
    """Every loss term of a distillation step, not yet weighted.

    Args:
        student, teacher: outputs with attentions and hidden states where their weight is not 0.
        labels: (batch, target), -100 where padded, each the label of the logits at its own place; (batch,) of a
            classifier.
        source_mask: (batch, source), True where not padded.
        maps: which teacher layer supervises which student layer; an empty side has no terms.
        denominators: source and target tokens of the whole step.
        bank: smooths the anchors of the contrast by the label of each token of a decoder; None for none.

    Returns:
        Term by name: ``task``, ``logits``, ``contrastive``, ``{encoder,decoder,cross}_attention``,
        ``{encoder,decoder}_hidden``; layered terms are means over the student's layers. With the reduction
        ``reference``, what :func:`reference_terms` gives.

    Raises:
        InputError: an output lacks the attention maps or hidden states that a term compares.
    """
    if weights.reduction == "reference":
        return reference_terms(student, teacher, labels, maps, weights)
    targets = denominators[1]
    # A classifier's decoder reads the source and has no label per token, so the source's mask says which of them count.
    source = source_mask, denominators[0]
    decoder = (labels != IGNORED_LABEL, targets) if labels.dim() > 1 else source
    terms: dict[str, Tensor] = {}
    if weights.task:
        terms["task"] = cross_entropy(student.logits, labels, targets)
    if weights.logits:
        terms["logits"] = _logits_loss(student.logits, teacher.logits, labels, targets, weights)
    compared = slice(-1 if weights.layers == "last" else 0, None)
    if weights.attention:
        for part in _parts("attention", student, teacher, maps, source, decoder):
            losses = [_attention_loss(part, *pair, weights.attention_maps) for pair in part.pairs[compared]]
            terms[part.name] = torch.stack(losses).mean()
    if weights.hidden:
        for part in _parts("hidden", student, teacher, maps, source, decoder):
            losses = [hidden_mse(*pair, part.mask, part.denominator) for pair in part.pairs[compared]]
            terms[part.name] = torch.stack(losses).mean()
    if weights.contrastive:
        last = _parts("hidden", student, teacher, maps, source, decoder)[-1]
        ours, theirs = last.pairs[-1]
        if bank is not None and maps.decoder and labels.dim() > 1:
            ours = bank.smooth(ours, labels, last.mask)
        temperature = weights.contrastive_temperature
        terms["contrastive"] = token_contrastive(ours, theirs, last.mask, last.denominator, temperature)
    return terms


def _logits_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, denominator: Tensor | float | None, weights: LossWeights
) -> Tensor:
    mask = labels != IGNORED_LABEL
    if weights.logits_loss == "mse":
        return logits_mse(student, teacher, mask, denominator)
    scale = token_scale(teacher, labels, weights.token_temperature) if weights.logits_loss == "tsld" else None
    return logits_kl(student, teacher, mask, denominator, weights.temperature, scale)


def _attention_loss(part: StackPart, student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Distance of what two attentions give out; those that read another text have no relations, but probabilities."""
    if kind == "relations" and part.name != "cross_attention":
        return relation_kl(student, teacher, part.mask, part.denominator)
    keys = part.keys if kind == "scores" else None
    return attention_mse(student, teacher, part.mask, part.denominator, keys)


def reference_terms(
    student: ModelOutput, teacher: ModelOutput, labels: Tensor, maps: LayerMaps, weights: LossWeights
) -> dict[str, Tensor]:
    """The terms that DQ-BART's code adds up: plain means, padding counted, summed over layers.

    The output of the embeddings counts as a layer of its own, and ``encoder_last_hidden`` is summed over the
    batch, so that its weight grows with the batch's size.

    Returns:
        ``task``, ``logits``, ``{encoder,decoder,cross}_attention``, ``{encoder,encoder_last,decoder}_hidden``.
    """
    mse = torch.nn.functional.mse_loss
    terms: dict[str, Tensor] = {}
    if weights.task:
        terms["task"] = cross_entropy(student.logits, labels)
    if weights.logits:
        terms["logits"] = mse(student.logits, teacher.logits)
    if weights.attention:
        for part, layers in (("encoder", maps.encoder), ("decoder", maps.decoder), ("cross", maps.decoder)):
            ours, theirs = _given(student, teacher, f"{part}_attentions")
            losses = [mse(ours[i], maps.of_heads(part, i, theirs[j])) for i, j in enumerate(layers)]
            terms[f"{part}_attention"] = torch.stack(losses).sum()
    if weights.hidden:
        for side, layers in (("encoder", maps.encoder), ("decoder", maps.decoder)):
            ours, theirs = _given(student, teacher, f"{side}_hidden_states")
            pairs = zip(ours, [theirs[0], *(theirs[j + 1] for j in layers)], strict=True)
            terms[f"{side}_hidden"] = torch.stack([mse(*pair) for pair in pairs]).sum()
        sizes = student.encoder_last_hidden_state, teacher.encoder_last_hidden_state
        terms["encoder_last_hidden"] = mse(*sizes) * len(sizes[0])
    return terms


def _parts(
    kind: str,
    student: ModelOutput,
    teacher: ModelOutput,
    maps: LayerMaps,
    source: tuple[Tensor, Tensor | float | None],
    target: tuple[Tensor, Tensor | float | None],
) -> list[StackPart]:
    """Attention maps (``kind`` attention) or hidden states (hidden) of every stack that there is, encoder first.

    ``source`` and ``target`` are the masks of the tokens of encoder and decoder, with their denominators.
    """
    several = hasattr(student, "encoder_hidden_states")  # an encoder-decoder names its stacks; others have but one
    seen_source = source[0].sum(dim=-1, keepdim=True)  # (batch, 1)
    seen_causally = torch.arange(1, target[0].size(-1) + 1, device=target[0].device).unsqueeze(0)
    wanted = [("encoder", maps.encoder, *source, seen_source), ("decoder", maps.decoder, *target, seen_causally)]
    if kind == "attention" and several:
        wanted.append(("cross", maps.decoder, *target, seen_source))
    parts = []
    for side, layers, mask, denominator, keys in wanted:
        if not layers:
            continue
        output, skip = ("attentions", 0) if kind == "attention" else ("hidden_states", 1)  # first: the embeddings
        ours, theirs = _given(student, teacher, f"{side}_{output}" if several else output)
        pairs = [(ours[i + skip], theirs[j + skip]) for i, j in enumerate(layers)]
        if kind == "attention":
            pairs = [(own, maps.of_heads(side, i, other)) for i, (own, other) in enumerate(pairs)]
        parts.append(StackPart(f"{side}_{kind}", pairs, mask, keys, denominator))
    return parts


def _given(student: ModelOutput, teacher: ModelOutput, field: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """A field of both outputs, (student's, teacher's), which must not be empty: SDPA leaves attention maps out."""
    found = {"student": getattr(student, field), "teacher": getattr(teacher, field)}
    for name, value in found.items():
        if not value:
            how = "output_hidden_states=True"
            if field.endswith("attentions"):
                how = "output_attentions=True and attn_implementation='eager' (SDPA, the default, has no maps to give)"
            raise InputError(f"{field} of the {name}", value, f"given, by {how}, or have the weight 0")
    return found["student"], found["teacher"]
