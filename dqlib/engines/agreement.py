"""How far two engines write the same, or find the same classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dqlib.engines.classifier import probabilities


@dataclass(frozen=True, slots=True)
class Agreement:
    """Tokens, choices and whole texts that two engines have in common (see :func:`agreement`).

    Args:
        tokens: positions compared.
        same_tokens: of these, with the same token in both.
        choices: tokens, and ends, that both chose after the same beginning.
        same_choices: of these, the same.
        same_texts: of these, with the same tokens from first to last.
    """

    tokens: int
    same_tokens: int
    choices: int
    same_choices: int
    texts: int
    same_texts: int

    @property
    def part(self) -> float:
        """Part of the tokens that agree, from 0 to 1; 1 where both wrote nothing."""
        return self.same_tokens / self.tokens if self.tokens else 1.0

    @property
    def part_of_choices(self) -> float:
        """Part of the choices that agree, from 0 to 1; 1 where there were none."""
        return self.same_choices / self.choices if self.choices else 1.0

    def __str__(self) -> str:
        return (
            f"{100 * self.part:.2f}% of {self.tokens:,} tokens, position by position; "
            f"{100 * self.part_of_choices:.2f}% of {self.choices:,} choices after the same beginning; "
            f"{self.same_texts:,} of {self.texts:,} texts are the same"
        )


def agreement(reference: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> Agreement:
    """Compare the token ids of two engines, text by text.

    *Tokens* are compared position by position. A text counts as many positions as the longer of its two outputs has; a
    position beyond the shorter one differs. One token more or less near the beginning makes all that follows differ,
    even where the words are the same: the number is a hard one, and falls with the length of the texts.

    *Choices* are compared up to the first difference of a text, the end of a text being one: how often the engines
    agree as long as they have the same beginning before them. With greedy search that is the part of equal arguments of
    the maximum; with beams it is a number between, since a choice depends on what comes after it.

    Raises:
        ValueError: not as many outputs as references.
    """
    tokens = same_tokens = choices = same_choices = same_texts = 0
    for ours, theirs in zip(reference, outputs, strict=True):
        equal = [a == b for a, b in zip(ours, theirs, strict=False)]
        same = list(ours) == list(theirs)
        beginning = equal.index(False) if False in equal else len(equal)
        tokens += max(len(ours), len(theirs))
        same_tokens += sum(equal)
        choices += beginning + 1
        same_choices += beginning + same
        same_texts += same
    return Agreement(tokens, same_tokens, choices, same_choices, len(reference), same_texts)


@dataclass(frozen=True, slots=True)
class ClassAgreement:
    """Classes that two classifiers have in common (see :func:`class_agreement`).

    Args:
        texts: compared.
        same_labels: of these, with the same most probable class.
        largest, mean: difference of the probability of a class, over all texts and classes.
    """

    texts: int
    same_labels: int
    largest: float
    mean: float

    @property
    def part(self) -> float:
        """Part of the texts with the same label, from 0 to 1; 1 where there were none."""
        return self.same_labels / self.texts if self.texts else 1.0

    def __str__(self) -> str:
        return (
            f"{100 * self.part:.2f}% of {self.texts:,} texts have the same label; the probability of a class differs "
            f"by {self.mean:.4f} on average, and by {self.largest:.4f} at most"
        )


def class_agreement(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> ClassAgreement:
    """Compare the logits of two classifiers, text by text.

    Args:
        reference, outputs: logits (classes,) for each text.

    Raises:
        ValueError: not as many outputs as references.
    """
    if len(reference) != len(outputs):
        raise ValueError(f"{len(outputs)} outputs for {len(reference)} references")
    if not len(reference):
        return ClassAgreement(0, 0, 0.0, 0.0)
    ours, theirs = (probabilities(np.stack(list(each))) for each in (reference, outputs))
    same = int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
    differences = np.abs(ours - theirs)
    return ClassAgreement(len(ours), same, float(differences.max()), float(differences.mean()))
