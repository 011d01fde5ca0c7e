"""Batches of models that read one text at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dqlib.losses import IGNORED_LABEL
from dqlib.study.training.batches import Batch, padded
from dqlib.study.training.examples import Example


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

    def to(self, device: torch.device) -> TextBatch:
        """The batch on a device."""
        values = (getattr(self, name) for name in self.__slots__)
        return TextBatch(*(None if value is None else value.to(device) for value in values))


#: Padded tensors of one forward pass, of any model.
ModelBatch = Batch | TextBatch


def collate_texts(examples: Sequence[Example], pad: int, separator: int | None = None) -> TextBatch:
    """Pad examples to a batch.

    Args:
        examples: of one text each; a target is as long as its source, or one class.
        pad: id that sources are padded with.
        separator: id of the token that ends each text, where models are given which text of a pair a token is of.
    """
    input_ids = padded([example.source for example in examples], pad)
    mask = padded([[1] * len(example.source) for example in examples], 0)  # a source may hold the id of padding
    labels = padded([example.target for example in examples], IGNORED_LABEL)
    if labels.size(1) == 1:
        labels = labels[:, 0]
    if separator is None:
        return TextBatch(input_ids, mask, labels)
    ends = (input_ids == separator).long() * mask
    return TextBatch(input_ids, mask, labels, ((ends.cumsum(dim=1) - ends) > 0).long() * mask)
