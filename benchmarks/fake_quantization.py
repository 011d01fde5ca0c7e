"""What fake quantization costs: seconds of a quantized student over those of the same student in full precision.

    python benchmarks/fake_quantization.py [--rounds 5] [--threads 2] [--shapes base|tiny] [--csv PATH]
                                           [--clock wall|cpu] [--what training generation first] [--variants ...]

On a random BART of base size (or a tiny one), on a CPU, in float32, it times

* ``training step``: forward pass of student and teacher, the distillation terms of the preset ``dqlib`` (the same
  for every variant), backward pass, a step of AdamW; batch 4, source 256, target 48 tokens. Weights change with
  each step, so each step quantizes them all again.
* ``generation``: 32 tokens with 4 beams from a batch of 4 with 256 source tokens. Weights stay, so they were
  quantized before the clock starts, as in every batch of an evaluation but the first.
* ``first generation``: the same with weights that changed just before.

The baseline is a student ``32-32-32`` of the same layers. Every round runs each variant once, in an order that
changes from round to round; printed are the median of the rounds' ratios, the least and the greatest. On a
machine that does other work too, ratios within a round say more than seconds, and ``--threads 1 --clock cpu``,
which counts only the time that this process ran, says most.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from random_models import random_bart
from tables import write_rows
from torch import Tensor
from transformers import PreTrainedModel

from dqlib.config import Config
from dqlib.presets import get_preset
from dqlib.student import make_student, supervision_maps
from dqlib.terms import distillation_terms

#: Preset and bits of each variant; the first is what the others are compared with.
VARIANTS = {
    "32-32-32": ("dqlib", "32-32-32"),
    "dqlib 2-2-8": ("dqlib", "2-2-8"),
    "dqlib 8-8-8": ("dqlib", "8-8-8"),
    "dq-bart-faithful 2-2-8": ("dq-bart-faithful", "2-2-8"),
}
BASELINE = "32-32-32"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WHAT = {"generation": "generation", "first": "first generation", "training": "training step"}


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sizes of model and batch."""

    vocabulary: int
    features: int
    layers: int
    heads: int
    inner: int
    batch: int
    source: int
    target: int
    new_tokens: int
    beams: int


SHAPES = {
    "base": Shapes(50265, 768, 6, 12, 3072, batch=4, source=256, target=48, new_tokens=32, beams=4),
    "tiny": Shapes(300, 32, 2, 2, 64, batch=2, source=12, target=6, new_tokens=4, beams=2),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; seconds are medians over the rounds."""

    what: str
    variant: str
    baseline: str
    ratio: float
    ratio_min: float
    ratio_max: float
    seconds: float
    seconds_baseline: float
    rounds: int
    threads: int
    clock: str
    torch: str


@dataclass(frozen=True, slots=True)
class Timed:
    """What is timed, and what is done before the clock starts."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


def make_teacher(shapes: Shapes) -> PreTrainedModel:
    """A random BART."""
    s, longest = shapes, max(shapes.source, shapes.target, shapes.new_tokens) + 2
    sizes = (s.vocabulary, s.features, s.heads, s.inner)
    return random_bart((s.layers, s.layers), *sizes, max_position_embeddings=longest)


def make_students(teacher: PreTrainedModel, shapes: Shapes, names: Collection[str]) -> dict[str, PreTrainedModel]:
    """A student of the teacher's depth, by variant."""
    layers = f"{shapes.layers}-{shapes.layers}"
    return {
        name: make_student(teacher, Config.parse(f"{bits} {layers}"), preset)
        for name, (preset, bits) in VARIANTS.items()
        if name in names
    }


def training_step(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    shapes: Shapes,
    preset: str = "dqlib",
    precision: str = "fp32",
) -> Timed:
    """A step of distillation on the models' device, with the loss of a preset; matrix products in fp32 or bf16."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    device = student.device
    source, target = (_tokens(shapes, length).to(device) for length in (shapes.source, shapes.target))
    mask = torch.ones_like(source)
    weights = get_preset(preset).loss
    maps = supervision_maps(student.dqlib_config, teacher)
    teacher.eval().set_attn_implementation("eager")  # which returns the attention maps

    def run() -> None:
        inputs = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
        inputs |= {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            ours = student(**inputs)
            with torch.no_grad():
                theirs = teacher(**inputs)
            terms = distillation_terms(ours, theirs, target, mask.bool(), maps, weights)
        sum(weights.of(name) * value for name, value in terms.items()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return Timed(run, student.train)


def generation(model: PreTrainedModel, shapes: Shapes, new_weights: bool = False) -> Timed:
    """Beam search of a fixed length."""
    source = _tokens(shapes, shapes.source)

    def run() -> None:
        model.generate(
            input_ids=source,
            attention_mask=torch.ones_like(source),
            num_beams=shapes.beams,
            min_new_tokens=shapes.new_tokens,
            max_new_tokens=shapes.new_tokens,
        )

    def prepare() -> None:
        model.eval()
        if new_weights:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.0)

    return Timed(run, prepare)


def compare(what: str, timed: dict[str, Timed], rounds: int, clock: str = "wall") -> list[Row]:
    """Time every variant once per round, after one round that does not count."""
    order, now = random.Random(0), CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for i in range(rounds + 1):
        for name in order.sample(list(timed), len(timed)):
            timed[name].prepare()
            start = now()
            timed[name].run()
            if i:
                seconds[name].append(now() - start)
    rows = []
    for name in timed:
        if name == BASELINE:
            continue
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], seconds[BASELINE], strict=True)]
        of_ratios = (statistics.median(ratios), min(ratios), max(ratios))
        medians = (statistics.median(seconds[each]) for each in (name, BASELINE))
        made_with = (rounds, torch.get_num_threads(), clock, torch.__version__.partition("+")[0])
        rows.append(Row(what, name, BASELINE, *of_ratios, *medians, *made_with))
    return rows


def measure(
    shapes: Shapes,
    rounds: int,
    clock: str = "wall",
    what: Collection[str] = tuple(WHAT),
    variants: Collection[str] = tuple(VARIANTS),
) -> Iterator[Row]:
    """The comparisons of ``what``, each of ``variants`` with the baseline."""
    teacher = make_teacher(shapes)
    students = make_students(teacher, shapes, {BASELINE, *variants})
    for kind in (kind for kind in WHAT if kind in what):
        timed = {
            name: training_step(student, teacher, shapes)
            if kind == "training"
            else generation(student, shapes, new_weights=kind == "first")
            for name, student in students.items()
        }
        yield from compare(WHAT[kind], timed, rounds, clock)


def _tokens(shapes: Shapes, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, shapes.vocabulary, (shapes.batch, length), generator=generator)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--shapes", choices=SHAPES, default="base")
    parser.add_argument(
        "--csv", type=Path, help="file for the rows, such as results/tables/benchmark_fake_quantization.csv"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for row in measure(SHAPES[options.shapes], options.rounds, options.clock, options.what, options.variants):
        rows.append(row)
        print(
            f"{row.what:>16}, {row.variant:<22} {row.ratio:.2f} ({row.ratio_min:.2f} to {row.ratio_max:.2f}) "
            f"times {row.baseline}, {row.seconds:.2f} s against {row.seconds_baseline:.2f} s",
            flush=True,
        )
    if options.csv:
        write_rows(rows, options.csv)


if __name__ == "__main__":
    main()
