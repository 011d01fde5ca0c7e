"""Tests that need a GPU, and what a training step costs there; appends rows to results/tables/benchmark.csv.

    python benchmarks/gpu.py [--device cuda] [--shape base] [--rounds 10] [--batch 8] [--results results]

First it runs the tests that are marked ``gpu``, and stops if one fails. Then it times steps of distillation of a random
BART of base size, 1,024 source and 128 target tokens, half of the decoder left out, in fp32 and bf16:

* ``plain distillation``: a student in full precision, ``32-32-32``, with the losses of the preset ``dqlib``;
* ``dqlib``: the same student at ``2-2-8``, weights quantized once per step;
* ``reference's way`` (fp32 only): the preset ``dq-bart-faithful`` at ``2-2-8`` with its own losses, eager attention
  in the teacher, and every weight quantized again wherever it is used, as DQ-BART's code does.

A row has tokens per second (source and target together) or, on a GPU, the most bytes that were allocated at a time.
``ratio`` says how many times better than the baseline a value is: more tokens, fewer bytes; a value has a row for each
baseline. Rows of an earlier run on the same device are replaced, all others stay.

On a CPU (``--device cpu --shape tiny``) the same tests and steps run, to see that the script does; speed there says
nothing. **This script has not been run on a GPU yet.**
"""

from __future__ import annotations

import copy
import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import fake_quantization
import torch
from fake_quantization import Shapes, make_teacher, training_step
from tables import ROOT, Row, parser, put_rows
from transformers import PreTrainedModel

from dqlib.config import Config
from dqlib.fake_quantize import WeightFakeQuantizer
from dqlib.student import make_student

NAME = "gpu-training"
#: Columns of what a later run replaces: the same on the same device; a value has a row for each baseline.
SAME = ("name", "shape", "config", "engine", "metric", "baseline", "device")

SHAPES = {
    "base": replace(fake_quantization.SHAPES["base"], batch=8, source=1024, target=128),
    "tiny": fake_quantization.SHAPES["tiny"],
}
NAMES = {"base": "BART-base", "tiny": "tiny"}

PLAIN, OURS, REFERENCE = "plain distillation", "dqlib", "reference's way"
#: Preset and bits of each way.
WAYS = {PLAIN: ("dqlib", "32-32-32"), OURS: ("dqlib", "2-2-8"), REFERENCE: ("dq-bart-faithful", "2-2-8")}
#: What is timed, as way and precision of products, and the baselines of each.
RUNS = {
    (PLAIN, "fp32"): (),
    (REFERENCE, "fp32"): ((PLAIN, "fp32"),),
    (OURS, "fp32"): ((PLAIN, "fp32"), (REFERENCE, "fp32")),
    (PLAIN, "bf16"): ((PLAIN, "fp32"),),
    (OURS, "bf16"): ((PLAIN, "bf16"), (REFERENCE, "fp32")),
}


def device_name(device: str) -> str:
    """The device by its own name."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.processor() or platform.machine()} CPU, torch {torch.__version__}"


def run_tests(device: str) -> int:
    """Status of the tests that are marked ``gpu``; on a CPU they run there."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", str(ROOT / "tests" / "project" / "test_gpu.py")]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"DQLIB_GPU_TESTS_ON": device}).returncode


def quantize_at_every_use(model: PreTrainedModel) -> None:
    """Let a student's weights be quantized wherever they are used, not once per step."""

    def again(quantizer: WeightFakeQuantizer) -> None:
        kept = quantizer.forward

        def forward(weight: torch.Tensor) -> torch.Tensor:
            quantizer.forget()
            return kept(weight)

        quantizer.forward = forward

    for module in model.modules():
        if isinstance(module, WeightFakeQuantizer):
            again(module)


def measure(shapes: Shapes, device: str, rounds: int) -> dict[tuple[str, str], dict[str, float]]:
    """Metrics of each of :data:`RUNS`, one after another, each alone on the device."""
    found = {}
    teacher = make_teacher(shapes)
    config = f"{shapes.layers}-{max(1, shapes.layers // 2)}"
    for way, precision in RUNS:
        preset, bits = WAYS[way]
        student = make_student(teacher, Config.parse(f"{bits} {config}"), preset).to(device)
        if way == REFERENCE:
            quantize_at_every_use(student)
        found[way, precision] = _timed(student, copy.deepcopy(teacher).to(device), shapes, preset, precision, rounds)
        del student
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    return found


def rows(found: dict[tuple[str, str], dict[str, float]], shapes: Shapes, key: str, device: str) -> Iterator[Row]:
    """A row for each metric of each run and each of its baselines."""
    shape = f"{NAMES[key]}, {shapes.batch} x {shapes.source} to {shapes.target}"
    units = {"tokens_per_second": "tokens/s", "peak_memory": "bytes"}
    for (way, precision), metrics in found.items():
        config = f"{WAYS[way][1]} {shapes.layers}-{max(1, shapes.layers // 2)}"
        for metric, value in metrics.items():
            for baseline in RUNS[way, precision] or (None,):
                against, ratio = "", None
                if baseline is not None:
                    other = found[baseline][metric]
                    against = " ".join(baseline)
                    ratio = value / other if metric == "tokens_per_second" else other / value
                yield Row(NAME, shape, config, f"{way} {precision}", metric, value, units[metric],
                          against, ratio, device)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Test, measure, append, print."""
    known = parser(__doc__, rounds=10)
    known.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    known.add_argument("--shape", choices=SHAPES, default="base")
    known.add_argument("--batch", type=int, help="texts of a step; 8 of base size need about 60 GB")
    known.add_argument("--no-tests", action="store_true", help="measure only")
    options = known.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device; --device cpu --shape tiny shows that the script runs", file=sys.stderr)
        return 2
    if not options.no_tests and run_tests(options.device):
        print("error: a test failed, so nothing was measured", file=sys.stderr)
        return 1
    shapes = SHAPES[options.shape]
    shapes = replace(shapes, batch=options.batch or shapes.batch)
    found = measure(shapes, options.device, options.rounds)
    measured = list(rows(found, shapes, options.shape, device_name(options.device)))
    print(*measured, sep="\n", flush=True)
    put_rows(measured, options.results, SAME)
    return 0


def _timed(
    student: PreTrainedModel, teacher: PreTrainedModel, shapes: Shapes, preset: str, precision: str, rounds: int
) -> dict[str, float]:
    """Tokens per second by the median of the rounds, after two that do not count, and the peak of the allocator."""
    on_gpu = student.device.type == "cuda"
    step = training_step(student, teacher, shapes, preset, precision)
    step.prepare()
    seconds = []
    for number in range(rounds + 2):
        if on_gpu and number == 2:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        step.run()
        if on_gpu:
            torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    tokens = shapes.batch * (shapes.source + shapes.target)
    metrics = {"tokens_per_second": tokens / statistics.median(seconds)}
    return metrics | ({"peak_memory": float(torch.cuda.max_memory_allocated())} if on_gpu else {})


if __name__ == "__main__":
    sys.exit(main())
