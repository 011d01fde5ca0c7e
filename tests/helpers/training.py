"""A training of seconds: a random encoder-decoder learns to copy the start of its source."""

import csv
from pathlib import Path

import torch
from transformers import MBartConfig, MBartForConditionalGeneration

import dqlib
from dqlib.study.params import settings as S
from dqlib.study.training.batches import steps
from dqlib.study.training.loop import Trainer, make_accelerator, validation_loss
from tests.helpers.examples import copying
from tests.helpers.models import TINY


def small_model():
    """Two layers on each side, with random weights."""
    torch.manual_seed(0)
    shape = TINY | {"init_std": 0.1, "encoder_layers": 2, "decoder_layers": 2}
    return MBartForConditionalGeneration(MBartConfig(**shape))


def train(model, objective, folder: Path, *, count=300, noise=None, parts=None, **changes):
    """Train a model to copy the start of so many sources, and give its validation losses before and after.

    ``parts`` are more of what a trainer is given, and ``changes`` are of the parameters of the training.
    """
    loop = {"steps": 60, "learning_rate": 3e-3, "batch_tokens": 600, "validations": 3, "seed": 1} | changes
    training, held_out, log = S.Training(**loop), copying(40, 1), folder / "log.csv"
    accelerator = make_accelerator(training.seed, training.precision)
    before, batches = validation_loss(model, held_out, training, accelerator), steps(copying(count, 0), training, noise)
    Trainer(model, objective, batches, held_out, training, accelerator, log, "test", **parts or {}).train()
    dqlib.forget(model)  # what it computes is of the weights that it has
    return before, validation_loss(model, held_out, training, accelerator)


def log_of(folder: Path) -> list[dict[str, str]]:
    """The rows of the log that a training left."""
    with (folder / "log.csv").open() as handle:
        return list(csv.DictReader(handle))
