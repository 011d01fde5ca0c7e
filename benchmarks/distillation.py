"""What a step of distillation costs under presets, against the one that the study uses.

    python benchmarks/distillation.py [--presets dqlib-layerwise ...] [--config "2-2-8 2-4"] [--rounds 5] [--steps 20]
                                      [--results results]

Runs whole trainings of some steps in turn, each on the same batches and random models of the `laptop` profile's size,
with one thread, and takes the seconds of processor time, which other work on the machine changes least. Parts of a
recipe (layer-wise steps, averaged ones) take the part of these steps that they take of all; the first two steps are
not timed. The median of the ratios counts; rows go into ``benchmark.csv`` and replace those of an earlier run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from random_models import random_examples
from tables import Row, median_ratio, parser, put_rows

from dqlib.config import Config
from dqlib.presets import VARIANTS, get_preset
from dqlib.study.params.settings import Task, available_cores, load_settings
from dqlib.study.training import loop as training_loop
from dqlib.study.training.batches import Example, steps
from dqlib.study.training.loop import Trainer, make_accelerator
from dqlib.study.training.seq2seq import new_model
from dqlib.study.training.task import recipe_of, student_and_objective, training_by

NAME = "distillation steps"
UNTIMED = 2


def noted(batches: Iterable, times: list[float], clock: Callable[[], float]) -> Iterator:
    """Batches as they come, and the time at each."""
    for batch in batches:
        times.append(clock())
        yield batch


def seconds_of_a_step(task: Task, examples: list[Example], config: Config, preset_name: str, count: int) -> float:
    """Processor seconds of a step, averaged over a training of so many."""
    preset, accelerator = get_preset(preset_name), make_accelerator(0)
    teacher = new_model(task.model, task.corpus.vocab_size)
    student, objective = student_and_objective(teacher, config, preset)
    recipe = recipe_of(preset, student, teacher)
    training = training_by(recipe, replace(task.distill, steps=count, validations=1, seed=0))
    times: list[float] = []
    batches = noted(steps(examples, training), times, time.process_time)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        Trainer(student, objective, batches, examples[:2], training, accelerator, log, preset.name, recipe).train()
    return (times[-1] - times[UNTIMED]) / (len(times) - 1 - UNTIMED)


def measure(task: Task, config: Config, presets: list[str], rounds: int, count: int) -> Iterator[Row]:
    """The row of each preset, after so many rounds of all of them."""
    examples, baseline = random_examples(task.corpus.vocab_size, 2000), task.distill.preset
    taken: dict[str, list[float]] = {name: [] for name in (baseline, *presets)}
    for _ in range(rounds):
        for name, seconds in taken.items():
            seconds.append(seconds_of_a_step(task, examples, config, name, count))
    device = f"CPU, 1 thread of {available_cores()} cores, torch {torch.__version__}"
    for name in presets:
        ratio, value = median_ratio(taken[name], taken[baseline]), statistics.median(taken[name])
        yield Row(NAME, "laptop", str(config), name, "processor time of a step", value, "s", baseline, ratio, device)


def main() -> None:
    """Measure in turn, print the ratios, write them down."""
    arguments = parser(__doc__)
    arguments.add_argument("--presets", nargs="+", default=list(VARIANTS))
    arguments.add_argument("--config", type=Config.parse, default=Config.parse("2-2-8 2-4"))
    arguments.add_argument("--steps", type=int, default=20)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    training_loop.report = lambda *_: None
    task = load_settings("laptop").task("summarization")
    rows = []
    for row in measure(task, options.config, options.presets, options.rounds, options.steps):
        print(f"{row.engine}: {row.ratio:.2f} times a step of {row.baseline}", flush=True)
        rows.append(row)
    put_rows(rows, options.results)


if __name__ == "__main__":
    main()
