"""Distillation losses: pure functions of student, teacher and an explicit mask and denominator.

Every loss is a sum over the positions that count, over a denominator. The denominator defaults to the
number of those positions; a training step that is split over micro-batches or processes passes the
number of the whole step, so that splitting changes nothing.

Sources: DQ-BART (arXiv:2203.11239, section 2.2, eq. 4), Hinton et al. 2015 (arXiv:1503.02531) for the
divergence at a temperature, TSLD (arXiv:2308.06744) for its scale per token, QuantGPT (arXiv:2203.10705,
section 3.1) for the contrast of tokens, MiniLMv2 (arXiv:2012.15828, section 3.1) for relations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.modeling_outputs import ModelOutput

from dqlib.config import LossWeights
from dqlib.errors import InputError

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
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    denominator: Tensor | float | None = None,
    temperature: float = 1.0,
    scale: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of the student's token distribution from the teacher's.

    Args:
        student, teacher: logits, (batch, target, vocabulary).
        mask: (batch, target), True where a token counts.
        denominator: tokens to divide by; those that count here, when None.
        temperature: softens both; the loss is scaled by its square, so gradients keep their size.
        scale: (batch, target), how much each token counts; 1 when None.
    """
    student, teacher = student[mask], teacher[mask]
    if temperature != 1:
        student, teacher = student / temperature, teacher / temperature
    student_log, teacher_log = torch.log_softmax(student, dim=-1), torch.log_softmax(teacher, dim=-1)
    divergence = torch.nn.functional.kl_div
    if scale is None:
        total = divergence(student_log, teacher_log, reduction="sum", log_target=True)
    else:
        per_token = divergence(student_log, teacher_log, reduction="none", log_target=True).sum(dim=-1)
        total = (per_token * scale[mask]).sum()
    return total * temperature**2 / _denominator(denominator, mask)


def token_scale(teacher: Tensor, labels: Tensor, temperature: float = 10.0) -> Tensor:
    """How much each token of a text counts: the more, the less the teacher expects what the reference says there.

    ``c_n = N softmax_n(-log p_teacher(y_n) / tau)`` over the N tokens of a text that count (TSLD, arXiv:2308.06744,
    section 4.2). The paper leaves N out, and adds up texts; with it tokens count 1 on average, so that weights and
    denominators of losses mean what they do without a scale.

    Args:
        teacher: logits, (batch, target, vocabulary); (batch, classes) of a classifier.
        labels: (batch, target), -100 where padded; (batch,) of a classifier, where every scale is 1.
        temperature: tau; the larger, the more alike are all tokens.

    Returns:
        The shape of the labels, 0 where they are -100.
    """
    loss = torch.nn.functional.cross_entropy(
        teacher.flatten(0, -2), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none"
    )
    texts = labels.view(len(labels), -1)
    mask = texts != IGNORED_LABEL
    hardness = (loss.view_as(texts) / temperature).masked_fill(~mask, torch.finfo(loss.dtype).min)
    return (torch.softmax(hardness, dim=-1) * mask.sum(dim=-1, keepdim=True) * mask).view_as(labels)


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
    per_token = _squared(student, teacher).mean(dim=-1)  # (batch, tokens)
    return (per_token * mask).sum() / _denominator(denominator, mask)


def attention_mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    denominator: Tensor | float | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """Squared distance of attention maps, averaged over heads and the queries that count.

    Keys that are masked are zero in both maps and add nothing, so the length of the padding does not
    change the loss. Probabilities are summed over keys; scores, which do not sum to one, are averaged over
    the ``keys`` that a query sees.

    Args:
        student, teacher: probabilities or scores, (batch, heads, query, key).
        mask: (batch, query), True where a query counts.
        denominator: queries to divide by; those that count here, when None.
        keys: (batch, query), how many keys each query sees; None for probabilities.
    """
    per_query = _squared(student, teacher).sum(dim=-1).mean(dim=1)  # (batch, query)
    if keys is not None:
        per_query = per_query / keys.clamp(min=1)
    return (per_query * mask).sum() / _denominator(denominator, mask)


def relation_kl(student: Tensor, teacher: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Divergence of the student's relations from the teacher's, averaged over kinds, heads and the tokens that count.

    MiniLMv2 (arXiv:2012.15828, section 3.1), whose relation heads are the heads of the attention here.

    Args:
        student, teacher: probabilities, (batch, heads, kinds x token, token), as :mod:`dqlib.attention` gives them.
        mask: (batch, token), True where a token counts.
        denominator: tokens to divide by; those that count here, when None.
    """
    tiny = torch.finfo(teacher.dtype).tiny  # what is masked is 0 in both
    difference = teacher.clamp(min=tiny).log() - student.clamp(min=tiny).log()
    of_kinds = (teacher * difference).sum(dim=-1).unflatten(-1, (-1, mask.size(-1)))  # (batch, heads, kinds, token)
    return (of_kinds.mean(dim=(1, 2)) * mask).sum() / _denominator(denominator, mask)


def token_contrastive(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    denominator: Tensor | float | None = None,
    temperature: float = 0.1,
) -> Tensor:
    """Contrast of tokens: a student's token should be most like the same token of the teacher.

    For token i of a sequence, with cosine similarity sim and all tokens j of the sequence that count,
    ``-log(exp(sim(s_i, t_i) / tau) / sum_j exp(sim(s_i, t_j) / tau))`` (QuantGPT, arXiv:2203.10705, eq. 5).

    Args:
        student, teacher: last hidden states, (batch, tokens, features).
        mask: (batch, tokens), True where a token counts, as an anchor, a positive or a negative.
        denominator: tokens to divide by; those that count here, when None.
        temperature: tau.
    """
    unit = torch.nn.functional.normalize
    similarity = unit(student, dim=-1) @ unit(teacher, dim=-1).transpose(1, 2) / temperature  # (batch, anchor, token)
    similarity = similarity.masked_fill(~mask.unsqueeze(1), torch.finfo(similarity.dtype).min)
    per_token = torch.logsumexp(similarity, dim=-1) - similarity.diagonal(dim1=1, dim2=2)  # (batch, tokens)
    return per_token.masked_fill(~mask, 0.0).sum() / _denominator(denominator, mask)


class MemoryBank:
    """Moving averages of the student's token representations, which smooth the anchors of the contrast.

    QuantGPT (arXiv:2203.10705, section 3.1) keeps one per token of the training set; here it is one per entry of the
    vocabulary, so that its size does not grow with the corpus and a short training meets each more than once.

    Args:
        size: number of entries.
        momentum: part of the old average that stays.
    """

    def __init__(self, size: int, momentum: float) -> None:
        self.size, self.momentum = size, momentum
        self._averages: Tensor | None = None
        self._seen: Tensor | None = None

    def state_dict(self) -> dict[str, Tensor]:
        """Averages and which of them are known; empty before the first use."""
        if self._averages is None or self._seen is None:
            return {}
        return {"averages": self._averages, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._averages = state["averages"].to(device, copy=True) if state else None
        self._seen = state["seen"].to(device, copy=True) if state else None

    def smooth(self, states: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """The states, mixed with the averages that are known of their keys; the averages take in the result.

        Args:
            states: (batch, tokens, features); the gradient passes through the part that is new.
            keys: (batch, tokens), the entry of each token.
            mask: (batch, tokens), True where a token counts.
        """
        if self._averages is None or self._seen is None:
            self._averages = states.new_zeros(self.size, states.size(-1))
            self._seen = torch.zeros(self.size, dtype=torch.bool, device=states.device)
        keys = keys.clamp(min=0)
        share = self.momentum * self._seen[keys].unsqueeze(-1)  # (batch, tokens, 1)
        mixed = torch.lerp(states, self._averages[keys], share.to(states.dtype).expand_as(states))
        with torch.no_grad():
            index, values = keys[mask], mixed[mask]
            sums = torch.zeros_like(self._averages).index_add_(0, index, values)
            counts = torch.bincount(index, minlength=self.size).unsqueeze(-1)
            met = counts.squeeze(-1) > 0
            self._averages[met] = sums[met] / counts[met]
            self._seen |= met
        return mixed


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
class Part:
    """Attention maps or hidden states of one stack, beside those of the teacher.

    Attributes:
        name: of the loss term, such as ``cross_attention``.
        pairs: student's and teacher's tensors, one pair per student layer.
        mask: (batch, tokens), True where a token counts.
        keys: (batch, tokens), how many keys each token sees, for attention.
        denominator: tokens of the whole step.
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
        weights: families with weight 0 are left out.
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
    # A classifier's decoder reads the source and has no label per token, so the source tells which of them count.
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
        terms["contrastive"] = token_contrastive(
            ours, theirs, last.mask, last.denominator, weights.contrastive_temperature
        )
    return terms


def _logits_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, denominator: Tensor | float | None, weights: LossWeights
) -> Tensor:
    mask = labels != IGNORED_LABEL
    if weights.logits_loss == "mse":
        return logits_mse(student, teacher, mask, denominator)
    scale = token_scale(teacher, labels, weights.token_temperature) if weights.logits_loss == "tsld" else None
    return logits_kl(student, teacher, mask, denominator, weights.temperature, scale)


def _attention_loss(part: Part, student: Tensor, teacher: Tensor, kind: str) -> Tensor:
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
) -> list[Part]:
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
        parts.append(Part(f"{side}_{kind}", pairs, mask, keys, denominator))
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


def _squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared differences, in one pass over both tensors instead of two."""
    return torch.nn.functional.mse_loss(student, teacher, reduction="none")


def _denominator(given: Tensor | float | None, mask: Tensor) -> Tensor | float:
    return mask.sum().clamp(min=1) if given is None else given
