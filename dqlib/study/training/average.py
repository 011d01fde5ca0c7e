"""Averages of weights over the last steps of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The mean of a model's trained weights over the last steps of a training.

    ``after`` is the last step that is not averaged.
    """

    def __init__(self, model: nn.Module, after: int) -> None:
        self._weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._after = after
        self._means: list[Tensor] = []

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Take in the weights after a step."""
        if step <= self._after:
            return
        if not self._means:
            self._means = [weight.detach().clone() for weight in self._weights]
        else:
            torch._foreach_lerp_(self._means, self._weights, 1 / (step - self._after))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the mean weights for a while, if there are any."""
        own = [weight.detach().clone() for weight in self._weights] if self._means else []
        self._put(self._means)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=False):
            weight.copy_(value)  # which fake-quantizers notice, as they would not a change of its data

    def state_dict(self) -> list[Tensor]:
        """The means, for a checkpoint; empty before the first."""
        return self._means

    def load_state_dict(self, means: list[Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._means = [mean.to(weight.device) for mean, weight in zip(means, self._weights, strict=False)]
