"""What students are trained on beside references: targets that the teacher wrote, for pairs and for other texts."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from dqlib.errors import InputError
from dqlib.presets import Recipe
from dqlib.study.training.examples import Example, Picked


@dataclass(frozen=True)
class Mixture:
    """Pairs and texts, of which each pass over the training data takes its own selection.

    Raises:
        InputError: there are fewer labels than the recipe asks for.
    """

    references: Sequence[Example]  # the training pairs
    # the first of them, or all, with the target that the teacher wrote (sequence-level distillation, Kim and Rush 2016,
    # arXiv:1606.07947)
    targets: Sequence[Example]
    texts: Sequence[Example]  # in no pair, with the target that the teacher wrote
    recipe: Recipe  # its shares ``teacher_targets`` and ``labelled_text``

    def __post_init__(self) -> None:
        share, labelled = self.recipe.teacher_targets, len(self.targets) / len(self.references)
        if share > labelled:
            allowed = f"at most {labelled:.4f}, the share of pairs that are labelled; pseudo_labels.pairs says how many"
            raise InputError("teacher_targets", share, allowed)
        if self.recipe.labelled_text and not self.texts:
            raise InputError("labelled_text", self.recipe.labelled_text, "0, since no text in no pair is labelled")

    def of_pass(self, seed: int, number: int) -> Picked:
        """The examples of a pass, by its number from 0; the same seed gives the same, whatever was asked before."""
        pairs, share = len(self.references), self.recipe.labelled_text
        picked = array("q", range(pairs) if share < 1 else ())
        order = random.Random(f"{seed} {number} targets")
        count = round(self.recipe.teacher_targets * pairs) if picked else 0
        for i in order.sample(range(len(self.targets)), min(count, len(self.targets))):
            picked[i] = pairs + i
        wanted = round(pairs * share / (1 - share)) if share < 1 else len(self.texts)
        first = pairs + len(self.targets)
        picked.extend(first + i for i in self._texts(seed, number * wanted, (number + 1) * wanted))
        return Picked((self.references, self.targets, self.texts), picked)

    def _texts(self, seed: int, start: int, stop: int) -> array:
        """Numbers of texts, from ``start`` to ``stop`` of an endless sequence: all in some order, then in another."""
        numbers, count = array("q"), len(self.texts)
        while start < stop:
            turn, place = divmod(start, count)
            shuffled = array("q", range(count))
            random.Random(f"{seed} {turn} texts").shuffle(shuffled)
            numbers += shuffled[place : place + stop - start]
            start += min(count - place, stop - start)
        return numbers
