"""One process with all threads against several processes of one thread: training steps a second, as a ratio.

    python benchmarks/processes.py [--processes 2] [--rounds 3] [--steps 40]

Runs both in turn on random models of the `laptop` profile's size and prints the median of the ratios, for a
fine-tuning step and for a distillation step (`2-2-8`, half the decoder).
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from dqlib.config import Configuration
from dqlib.losses import LayerMaps
from dqlib.student import make_student, supervision_map
from dqlib.study import train as training_loop
from dqlib.study.batches import Example, steps
from dqlib.study.jobs import new_model
from dqlib.study.settings import Training, available_cores, load_settings
from dqlib.study.train import DistillationObjective, TaskObjective, make_accelerator, train

KINDS = ("fine-tuning", "distillation")


def measure(kind: str, count: int) -> None:
    """Print the steps a second of this process, or of the group that it belongs to."""
    task = load_settings("laptop").summarization
    vocabulary = task.corpus.vocab_size
    order = random.Random(0)
    draw = lambda n: [order.randrange(5, vocabulary) for _ in range(n)]  # noqa: E731
    examples = [Example(draw(order.randrange(30, 128)), draw(order.randrange(6, 24))) for _ in range(2000)]
    accelerator = make_accelerator(0)
    model, objective = new_model(task.model, vocabulary), TaskObjective()
    if kind == "distillation":
        layers = (task.model.encoder_layers, task.model.decoder_layers)
        half = max(1, layers[1] // 2)
        maps = LayerMaps(supervision_map(layers[0], layers[0]), supervision_map(half, layers[1]))
        objective = DistillationObjective(model, maps, task.distill.loss)
        model = make_student(model, Configuration.parse(f"2-2-8 {layers[0]}-{half}"))
    training_loop.report = lambda *_: None
    spec = Training(steps=count, learning_rate=1e-4, batch_tokens=task.distill.batch_tokens, validations=1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train(model, objective, steps(examples, spec), examples[:8], spec, accelerator, Path(folder) / "log.csv", kind)
        if accelerator.is_main_process:
            print(count / (time.perf_counter() - start))


def run(kind: str, processes: int, count: int) -> float:
    """Steps a second of a group of processes that share the cores."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    threads = str(max(1, available_cores() // processes))
    command = [sys.executable, *launcher, __file__, "--worker", kind, "--steps", str(count)]
    environment = os.environ | {"OMP_NUM_THREADS": threads}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> None:
    """Measure in turn and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return measure(options.worker, options.steps)
    print(f"{available_cores()} cores, torch {torch.__version__}")
    for kind in KINDS:
        ratios = [
            run(kind, options.processes, options.steps) / run(kind, 1, options.steps) for _ in range(options.rounds)
        ]
        print(f"{kind}: {options.processes} processes do {statistics.median(ratios):.2f} times the steps of one")
    return None


if __name__ == "__main__":
    main()
