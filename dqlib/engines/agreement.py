"""How far two engines write the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """Tokens, and whole texts, that two engines have in common.

    Args:
        tokens: positions compared.
        same_tokens: of these, with the same token in both.
        texts: compared.
        same_texts: of these, with the same tokens from first to last.
    """

    tokens: int
    same_tokens: int
    texts: int
    same_texts: int

    @property
    def part(self) -> float:
        """Part of the tokens that agree, from 0 to 1; 1 where both wrote nothing."""
        return self.same_tokens / self.tokens if self.tokens else 1.0

    def __str__(self) -> str:
        return (
            f"{100 * self.part:.2f}% of {self.tokens:,} tokens, position by position; "
            f"{self.same_texts:,} of {self.texts:,} texts are the same"
        )


def agreement(reference: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> Agreement:
    """Compare the token ids of two engines, text by text and position by position.

    A text counts as many positions as the longer of its two outputs has; a position beyond the shorter one differs. So
    one token more or less near the beginning makes all that follows differ, even where the words are the same: the
    number is a hard one.

    Raises:
        ValueError: not as many outputs as references.
    """
    tokens = same_tokens = same_texts = 0
    for ours, theirs in zip(reference, outputs, strict=True):
        tokens += max(len(ours), len(theirs))
        same_tokens += sum(a == b for a, b in zip(ours, theirs, strict=False))
        same_texts += list(ours) == list(theirs)
    return Agreement(tokens, same_tokens, len(reference), same_texts)
