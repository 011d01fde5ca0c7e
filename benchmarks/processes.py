"""A training step on one process with all threads against other ways: several processes, compilation, bf16.

    python benchmarks/processes.py [--ways processes compiled bf16] [--processes 2] [--rounds 3] [--steps 60]
                                   [--kinds fine-tuning distillation] [--results results]

Runs each way and the plain one in turn on random models of the `laptop` profile's size, for a fine-tuning step and for
a distillation step (`2-2-8`, half the decoder). The first third of the steps, with compilation in it, is not timed. The
median of the ratios counts; rows go into ``benchmark.csv`` and replace those of an earlier run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from pathlib import Path

import torch
from distillation import noted
from random_models import random_examples
from tables import Row, parser, put_rows

from dqlib.config import Config
from dqlib.presets import get_preset
from dqlib.study.params.settings import Training, available_cores, load_settings
from dqlib.study.training import loop as training_loop
from dqlib.study.training.batches import steps
from dqlib.study.training.loop import Trainer, make_accelerator
from dqlib.study.training.objectives import Objective, TaskObjective
from dqlib.study.training.seq2seq import new_model
from dqlib.study.training.task import student_and_objective

KINDS = ("fine-tuning", "distillation")
WAYS = ("processes", "compiled", "bf16")
NAME = "training ways"


def measure(kind: str, count: int, way: str) -> None:
    """Print the steps per second of this process, or of the group that it belongs to."""
    task = load_settings("laptop").task("summarization")
    vocabulary = task.corpus.vocab_size
    examples = random_examples(vocabulary, 2000)
    precision = "bf16" if way == "bf16" else "fp32"
    accelerator = make_accelerator(0, precision)
    model = new_model(task.model, vocabulary)
    objective: Objective = TaskObjective()
    if kind == "distillation":
        layers = (task.model.encoder_layers, task.model.decoder_layers)
        config = Config(2, 2, 8, layers[0], max(1, layers[1] // 2))
        model, objective = student_and_objective(model, config, get_preset(task.distill.preset))
    training_loop.report = lambda *_: None
    spec = Training(
        steps=count, learning_rate=1e-4, batch_tokens=task.distill.batch_tokens, validations=1, precision=precision,
        compile=way == "compiled",
    )  # fmt: skip
    untimed = count // 3
    times: list[float] = []
    batches = noted(steps(examples, spec), times, time.perf_counter)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        Trainer(model, objective, batches, examples[:8], spec, accelerator, log, kind).train()
        if accelerator.is_main_process:
            print((count - untimed) / (time.perf_counter() - times[untimed]))


def run(kind: str, processes: int, count: int, way: str = "") -> float:
    """Steps per second of a group of processes that share the cores."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    threads = str(max(1, available_cores() // processes))
    command = [sys.executable, *launcher, __file__, "--worker", kind, "--ways", way or WAYS[0], "--steps", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure in turn, print the ratios, write them down."""
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    arguments.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--worker", choices=KINDS, help=SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        return measure(options.worker, options.steps, options.ways[0])
    device = f"CPU, {available_cores()} cores, torch {torch.__version__}"
    rows = []
    for kind in options.kinds:
        for way in options.ways:
            name = f"{options.processes} processes" if way == "processes" else way
            rates, ratios = [], []
            for _ in range(options.rounds):
                rates.append(run(kind, options.processes if way == "processes" else 1, options.steps, way))
                ratios.append(rates[-1] / run(kind, 1, options.steps))
            ratio = statistics.median(ratios)
            print(f"{kind}, {name}: {ratio:.2f} times the steps of one process with all threads", flush=True)
            config = "2-2-8, half the decoder" if kind == "distillation" else "32-32-32"
            rows.append(
                Row(NAME, "laptop", config, name, f"{kind} steps", statistics.median(rates), "steps/s",
                    "one process, all threads, fp32", ratio, device)
            )  # fmt: skip
    put_rows(rows, options.results)
    return None


if __name__ == "__main__":
    main()
