"""Batches of models that read one text at a time, and what all batches have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from dqlib.losses import IGNORED_LABEL
from dqlib.study.training.examples import Example


class ModelBatch(Protocol):
    """What training needs of the padded tensors of one forward pass."""

    @property
    def attention_mask(self) -> Tensor:
        """(batch, source), 1 where not padded."""
        ...

    @property
    def labels(self) -> Tensor:
        """(batch, target), -100 where no label counts; (batch,) of classes."""
        ...

    def inputs(self) -> dict[str, Tensor]:
        """What a model's forward takes."""
        ...

    def with_labels(self) -> dict[str, Tensor]:
        """The same with ``labels`` from which the model's own loss is computed."""
        ...

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""
        ...


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Padded tensors of one forward pass of an encoder or a decoder alone."""

    input_ids: Tensor  # (batch, source)
    attention_mask: Tensor  # (batch, source)
    labels: Tensor  # (batch, source), -100 where no label counts; (batch,) of classes
    token_type_ids: Tensor | None = None  # (batch, source), 1 in the second text of a pair

    def inputs(self) -> dict[str, Tensor]:
        """What a model's forward takes (labels stay out: losses are computed outside the model)."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.token_type_ids is None else inputs | {"token_type_ids": self.token_type_ids}

    def with_labels(self) -> dict[str, Tensor]:
        """The same with ``labels`` from which the model's own loss is computed: a decoder's shifts its input itself."""
        labels = self.labels
        if labels.dim() > 1 and self.token_type_ids is None:
            labels = self.input_ids.masked_fill(self.attention_mask == 0, IGNORED_LABEL)
        return self.inputs() | {"labels": labels}

    def to(self, device: torch.device) -> Self:
        """The batch on a device."""
        values = (getattr(self, name) for name in self.__slots__)
        return type(self)(*(None if value is None else value.to(device) for value in values))


def collate_texts(examples: Sequence[Example], pad: int, separator: int | None = None) -> TextBatch:
    """Pad examples to a batch.

    Args:
        examples: of one text each; a target is as long as its source, or one class.
        pad: id that sources are padded with.
        separator: id of the token that ends each text, where models are given which text of a pair a token is of.
    """
    longest = max(len(example.source) for example in examples)
    input_ids = torch.tensor([example.source + [pad] * (longest - len(example.source)) for example in examples])
    lengths = torch.tensor([len(example.source) for example in examples])
    mask = (torch.arange(longest) < lengths.unsqueeze(1)).long()  # a source may hold the id of padding
    if all(len(example.target) == 1 for example in examples):
        labels = torch.tensor([example.target[0] for example in examples])
    else:
        labels = torch.tensor([e.target + [IGNORED_LABEL] * (longest - len(e.target)) for e in examples])
    if separator is None:
        return TextBatch(input_ids, mask, labels)
    ends = (input_ids == separator).long() * mask
    return TextBatch(input_ids, mask, labels, ((ends.cumsum(dim=1) - ends) > 0).long() * mask)
