"""How much each family of loss terms counts in the total, and how its terms are compared, as data."""

from __future__ import annotations

from dataclasses import dataclass

from dqlib.errors import InputError, check_fields


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weight of each family of terms in the total; 0 leaves the family out (and its cost).

    Args:
        task, logits, attention, hidden, contrastive: weights.
        logits_loss: ``kl`` (at ``temperature``), ``tsld`` (the same, a token counting as much as the teacher finds it
            hard, see :func:`dqlib.losses.token_scale`) or ``mse``.
        attention_maps: compare ``probabilities``, ``scores`` (before the softmax) or, in self-attention, ``relations``
            (of queries, of keys and of values among themselves).
        reduction: ``tokens`` averages over tokens that are not padding and over layers; ``reference`` as DQ-BART's
            code does: over all positions, padding too, summed over layers, embeddings' output counted as one.
        contrastive_temperature, momentum: of the contrastive loss and its memory bank.
        token_temperature: softens what ``tsld`` makes of hard and easy tokens.
        layers: of the student that attention and hidden states are compared in: ``all``, or the ``last`` of each stack.

    Raises:
        InputError: a weight is negative, or a choice is unknown or one that the reduction does not have.
    """

    task: float = 1.0
    logits: float = 1.0
    attention: float = 1.0
    hidden: float = 1.0
    contrastive: float = 0.0
    logits_loss: str = "kl"
    temperature: float = 1.0
    attention_maps: str = "probabilities"
    reduction: str = "tokens"
    contrastive_temperature: float = 0.1
    momentum: float = 0.5
    token_temperature: float = 10.0
    layers: str = "all"

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            check_fields(self, field, choices.__contains__, " or ".join(choices))
        check_fields(self, "task logits attention hidden contrastive", lambda weight: weight >= 0, "at least 0")
        temperatures = "temperature contrastive_temperature token_temperature"
        check_fields(self, temperatures, lambda temperature: temperature > 0, "a positive number")
        check_fields(self, "momentum", lambda momentum: 0 <= momentum < 1, "at least 0 and below 1")
        if self.reduction == "reference":  # which has terms of one kind only
            for field, weight, there in _OF_REFERENCE:
                if getattr(self, weight) and getattr(self, field) != there:
                    raise InputError(field, getattr(self, field), f"{there} with the reduction 'reference'")

    @property
    def of_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any((self.logits, self.attention, self.hidden, self.contrastive))

    def of(self, term: str) -> float:
        """Weight of one term of :func:`dqlib.terms.distillation_terms`, such as ``cross_attention``."""
        return getattr(self, term.rpartition("_")[2])


#: Fields that the reduction ``reference`` has one value of, where the weight beside them is not 0.
_OF_REFERENCE = (
    ("logits_loss", "logits", "mse"),
    ("attention_maps", "attention", "probabilities"),
    ("layers", "attention", "all"),
    ("layers", "hidden", "all"),
    ("contrastive", "contrastive", 0.0),
)

_CHOICES = {
    "logits_loss": ("kl", "tsld", "mse"),
    "attention_maps": ("probabilities", "scores", "relations"),
    "reduction": ("tokens", "reference"),
    "layers": ("all", "last"),
}
