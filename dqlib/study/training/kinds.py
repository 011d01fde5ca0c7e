"""What the trainings of a kind of tasks have of their own: models, examples, batches, masks.

Each kind has a module with one :class:`KindTraining`, named in :data:`dqlib.study.params.kinds.KINDS`.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from dqlib.architectures import ARCHITECTURES
from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.rows import Row
from dqlib.study.params import settings as S
from dqlib.study.training.batches import Batch
from dqlib.study.training.examples import Example

Noise = Callable[[Example, random.Random], Example]


@dataclass(frozen=True)
class KindTraining:
    """The parts of a training that depend on the kind of the task."""

    # a model with random weights, to be pre-trained or, without pre-training, fine-tuned
    new: Callable[[S.Task, PreTrainedTokenizerFast], PreTrainedModel]
    # what a teacher starts from, of the pre-trained model or a new one
    started: Callable[[PreTrainedModel, S.Task, LoadedCorpus], PreTrainedModel]
    encode: Callable[[Sequence[Row], LoadedCorpus, S.Corpus], list[Example]]  # rows as examples
    # what makes a batch of examples, for a tokenizer, or for one that is trained here where it is None
    collate: Callable[[PreTrainedTokenizerFast | None], Callable[[Sequence[Example]], Batch]]
    # so many examples of random tokens, each as long as the parameters of a corpus allow, for a model
    longest: Callable[[PreTrainedModel, int, S.Corpus], list[Example]]
    # texts of rows as examples of pre-training, at most so many tokens each
    windows: Callable[[Sequence[Row], PreTrainedTokenizerFast, int], list[Example]]
    noise: Callable[[S.Pretraining, PreTrainedTokenizerFast], Noise]  # what changes each of these anew in every epoch


def shape_fields(architecture: str, shape: S.Model) -> dict[str, int]:
    """Sizes of a model by the names that the configurations of its architecture give them."""
    names = ARCHITECTURES[architecture]
    depths = {"encoder": shape.encoder_layers, "decoder": shape.decoder_layers}
    sizes = {stack.depth: depths[side] for side, stack in names.stacks.items()} | {names.width_field: shape.d_model}
    sizes |= dict.fromkeys(names.head_fields, shape.heads) | dict.fromkeys(names.neuron_fields, shape.ffn_dim)
    return sizes | ({names.position_field: shape.max_positions} if names.position_field else {})


def random_ids(model: PreTrainedModel, count: int, length: int) -> list[list[int]]:
    """So many rows of so many tokens that a model knows, at random, and the same ones whenever they are asked for."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(10, model.config.vocab_size, (count, length), generator=generator).tolist()


def training_of(kind: S.Kind) -> KindTraining:
    """The parts of a kind."""
    return importlib.import_module(kind.training).TRAINING
