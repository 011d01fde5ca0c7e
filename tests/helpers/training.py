"""A training of seconds: a random encoder-decoder learns to copy the start of its source."""

from pathlib import Path

import torch
from transformers import MBartConfig, MBartForConditionalGeneration

from dqlib.study.params import settings as S
from dqlib.study.training.batches import steps
from dqlib.study.training.loop import Trainer, make_accelerator, validation_loss
from tests.conftest import TINY
from tests.helpers.examples import copying


def small_model():
    """Two layers on each side, with random weights."""
    torch.manual_seed(0)
    model_config = MBartConfig(**{**TINY, "init_std": 0.1}, encoder_layers=2, decoder_layers=2)
    return MBartForConditionalGeneration(model_config)


def train(model, objective, folder: Path, **changes):
    """Train a model to copy, with parameters of a training changed; gives its validation losses before and after."""
    loop = {"steps": 60, "learning_rate": 3e-3, "batch_tokens": 600, "validations": 3, "seed": 1} | changes
    training, examples, held_out = S.Training(**loop), copying(300, 0), copying(40, 1)
    accelerator = make_accelerator(training.seed, training.precision)
    before = validation_loss(model, held_out, training, accelerator)
    batches, log = steps(examples, training), folder / "log.csv"
    model = Trainer(model, objective, batches, held_out, training, accelerator, log, "test").train()
    return before, validation_loss(model, held_out, training, accelerator)
