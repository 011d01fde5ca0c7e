"""Distillation losses: pure functions of student, teacher and an explicit mask and denominator.

Every loss is a sum over the positions that count, over a denominator, ``denominator``. It defaults to the
number of those positions; a training step that is split over micro-batches or processes passes the
number of the whole step, so that splitting changes nothing.

Sources: DQ-BART (arXiv:2203.11239, section 2.2, eq. 4), Hinton et al. 2015 (arXiv:1503.02531) for the
divergence at a temperature, TSLD (arXiv:2308.06744) for its scale per token, QuantGPT (arXiv:2203.10705,
section 3.1) for the contrast of tokens, MiniLMv2 (arXiv:2012.15828, section 3.1) for relations.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED_LABEL = -100


def cross_entropy(
    logits: Tensor, labels: Tensor, denominator: Tensor | float | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Task loss: cross-entropy of the reference tokens, labels of -100 left out.

    Args:
        logits: (batch, target, vocabulary).
        labels: (batch, target).
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


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor, denominator: Tensor | float | None = None) -> Tensor:
    """Mean squared difference of hidden states over features, averaged over the tokens that count.

    Args:
        student, teacher: (batch, tokens, features).
        mask: (batch, tokens), True where a token counts.
    """
    per_token = _squared(student, teacher).mean(dim=-1)  # (batch, tokens)
    return (per_token * mask).sum() / _denominator(denominator, mask)


#: The same of logits, (batch, target, vocabulary), over the vocabulary.
logits_mse = hidden_mse


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
    """
    tiny = torch.finfo(teacher.dtype).tiny  # what is masked is 0 in both
    difference = teacher.clamp(min=tiny).log() - student.clamp(min=tiny).log()
    of_kinds = (teacher * difference).sum(dim=-1).unflatten(-1, (-1, mask.size(-1)))  # (batch, heads, kinds, token)
    return (of_kinds.mean(dim=(1, 2)) * mask).sum() / _denominator(denominator, mask)


def token_contrastive(
    student: Tensor, teacher: Tensor, mask: Tensor, denominator: Tensor | float | None = None, temperature: float = 0.1
) -> Tensor:
    """Contrast of tokens: a student's token should be most like the same token of the teacher.

    For token i of a sequence, with cosine similarity sim and all tokens j of the sequence that count,
    ``-log(exp(sim(s_i, t_i) / tau) / sum_j exp(sim(s_i, t_j) / tau))`` (QuantGPT, arXiv:2203.10705, eq. 5).

    Args:
        student, teacher: last hidden states, (batch, tokens, features).
        mask: (batch, tokens), True where a token counts, as an anchor, a positive or a negative.
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
        momentum: part of the old average that stays.
    """

    def __init__(self, size: int, momentum: float) -> None:
        self.size, self.momentum = size, momentum
        self._state: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Averages and which of them are known (``seen``); empty before the first use."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._state = {name: value.to(device, copy=True) for name, value in state.items()}

    def smooth(self, states: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        """The states, mixed with the averages that are known of their keys; the averages take in the result.

        Args:
            states: (batch, tokens, features); the gradient passes through the part that is new.
            keys: (batch, tokens), the entry of each token.
            mask: (batch, tokens), True where a token counts.
        """
        if not self._state:
            seen = torch.zeros(self.size, dtype=torch.bool, device=states.device)
            self._state = {"averages": states.new_zeros(self.size, states.size(-1)), "seen": seen}
        averages, seen = self._state["averages"], self._state["seen"]
        keys = keys.clamp(min=0)
        share = self.momentum * seen[keys].unsqueeze(-1)  # (batch, tokens, 1)
        mixed = torch.lerp(states, averages[keys], share.to(states.dtype).expand_as(states))
        with torch.no_grad():
            index, values = keys[mask], mixed[mask]
            sums = torch.zeros_like(averages).index_add_(0, index, values)
            counts = torch.bincount(index, minlength=self.size).unsqueeze(-1)
            met = counts.squeeze(-1) > 0
            averages[met] = sums[met] / counts[met]
            seen |= met
        return mixed


def _squared(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared differences, in one pass over both tensors instead of two."""
    return torch.nn.functional.mse_loss(student, teacher, reduction="none")


def _denominator(given: Tensor | float | None, mask: Tensor) -> Tensor | float:
    return mask.sum().clamp(min=1) if given is None else given
