"""Size, load time, memory and speed of models of real shape with random weights; and the cost of a training step.

    python benchmarks/inference.py [--shapes base large mbart-large bert-base gpt2] [--stages NAME ...] [--rounds 5]
                                   [--quick] [--threads 2] [--again] [--results results] [--work build/benchmark]

Writes ``benchmark.csv`` and ``figures/benchmark.svg`` and ``.png`` into the folder of results. ``ratio`` says how many
times better than the baseline a value is: smaller, faster, less memory. What is measured:

* ``size``: bytes of the packed file (weights and manifest) against fp32 of the full teacher;
* ``load``: seconds of ``load_packed`` against reading the same student in fp32, as ``benchmarks/packed.py`` has it,
  and seconds in which each engine is ready;
* ``memory``: resident memory of a fresh process after one greedy generation; ``model_memory`` is that less what the
  process had after its imports;
* ``generation``: 256 tokens to exactly 32, of one text and of eight with 4 beams, each engine with each baseline;
* ``low-bit``: greedy search of 1, 4 and 16 texts, ONNX Runtime on 2 bits and CTranslate2 on 8 bits, the same student;
* ``long``: greedy search of one text to 32, 128 and 256 tokens, by the teacher in PyTorch and the student on
  CTranslate2 and ONNX Runtime; a token after the first 32; and of ONNX Runtime the time that encoder, decoder, its head
  and what is left, Python, take;
* ``levels``: a token in greedy search on ONNX Runtime, four levels (at 2 bits, and at 4) against three;
* ``narrow``: a student without some layers, and students of all layers that have as many weights but fewer heads or
  neurons: greedy search of one text, each engine against the same engine with the first;
* ``reading`` and ``continuation``: of BERT-base and GPT-2 (``benchmarks/one_stack.py``);
* ``training``: a step of distillation, quantized against plain (``benchmarks/fake_quantization.py``).

Engines are processes that live side by side and generate one after another, all in each round; medians count, and of
ratios the median of the rounds'. Of the larger shapes only sizes and one latency are measured. Rows of other shapes
stay in the table. What a stage found is kept in the work folder, so that a run that was stopped goes on, until
``--again``.
"""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import fake_quantization
import packed as packed_benchmark
import pandas
import torch
from bench import NAMES, SHAPES, Bench, parted
from one_stack import OneStack
from random_models import random_bart
from tables import ROOT, Row, parser, put_rows
from transformers import PreTrainedModel
from transformers.utils import logging

from dqlib.storage.footprint import fp32_size_bytes


class TwoStacks(Bench):
    """The stages of an encoder-decoder."""

    @cached_property
    def teacher(self) -> PreTrainedModel:
        """A random model of full depth, whose texts are as long as is asked for."""
        s = self.shape
        sizes = (s.vocabulary, s.features, s.heads, s.inner, s.kind)
        model = random_bart(
            (s.layers, s.layers), *sizes, max_position_embeddings=1024, forced_eos_token_id=None,
            decoder_start_token_id=2, scale_embedding=s.kind == "mbart",
        )  # fmt: skip
        model.generation_config.min_new_tokens = s.tokens
        return model

    @property
    def stages(self) -> list[Callable[[], Iterator[Row]]]:
        """What is measured, in this order."""
        if not self.shape.whole:
            return [self.sizes, self.generation]
        return [
            self.sizes, self.loading, self.generation, self.low_bit, self.long, self.levels, self.narrow, self.memory,
            self.training,
        ]  # fmt: skip

    def sizes(self) -> Iterator[Row]:
        """Bytes of packed files."""
        teacher_bytes = fp32_size_bytes(self.teacher)
        yield self.row("size", self.teacher_config, "transformers fp32", "size", teacher_bytes, "bytes")
        for config in (*self.shape.configs, *self.shape.narrow):
            yield self.packed(config, teacher_bytes)

    def loading(self) -> Iterator[Row]:
        """Seconds of ``load_packed``."""
        s = self.shape
        found = packed_benchmark.measure(
            s.fast, 1, self.work / "loading", self.rounds, features=s.features, vocabulary=s.vocabulary
        )
        shutil.rmtree(self.work / "loading")
        baseline = f"{s.fast} transformers fp32, read whole"
        seconds, ratio = found.load_seconds, 1 / found.load_ratio
        yield self.row("load", s.fast, "load_packed", "load_time", seconds, "s", baseline, ratio)

    def generation(self) -> Iterator[Row]:
        """Four beams, one text and eight."""
        teacher, fast = self.teacher_config, self.shape.fast
        engines = {f"{teacher} transformers fp32": self.transformers(), f"{fast} onnxruntime": self.onnx(fast)}
        if self.shape.whole:
            int8 = teacher.replace("32-32-32", "8-8-8")
            engines[f"{int8} onnxruntime int8"] = self.onnx(int8)
            engines[f"{teacher} ctranslate2 fp32"] = self.ctranslate2(teacher, "float32")
            engines[f"{teacher} ctranslate2 int8"] = self.ctranslate2(teacher)
            engines[f"{fast} ctranslate2 int8"] = self.ctranslate2(fast)
        baselines = [name for name in engines if not name.startswith(fast)]
        for texts, metric in ((1, "latency"), (8, "throughput"))[: 2 if self.shape.whole else 1]:
            seconds = self.in_turn(engines, texts=texts, beams=4)
            yield from self.compared("generation", seconds, metric, texts, 4, baselines)

    def low_bit(self) -> Iterator[Row]:
        """Greedy search of one, four and sixteen rows."""
        fast = self.shape.fast
        engines = {
            f"{fast} ctranslate2 int8": self.ctranslate2(fast),
            f"{fast} onnxruntime": self.onnx(fast),
            f"{fast} onnxruntime packed": self.onnx(fast, "packed"),
        }
        for texts in (1, 4, 16):
            seconds = self.in_turn(engines, texts=texts, beams=1)
            yield from self.compared("low-bit", seconds, "latency", texts, 1)

    def long(self) -> Iterator[Row]:
        """Greedy search of one text to more and more tokens, and where the time of ONNX Runtime goes."""
        fast, lengths = self.shape.fast, self.shape.lengths
        teacher, ours, int8 = (
            f"{self.teacher_config} transformers fp32",
            f"{fast} onnxruntime",
            f"{fast} ctranslate2 int8",
        )
        engines = {teacher: self.transformers(), ours: self.onnx(fast), int8: self.ctranslate2(fast)}
        baselines = [teacher, int8]
        found = {n: self.in_turn(engines, texts=1, beams=1, tokens=n) for n in lengths}
        for n, seconds in found.items():
            yield from self.compared("long", seconds, f"latency of {n} tokens", 1, 1, baselines)
            timed = self.answers({ours: engines[ours]}, texts=1, beams=1, tokens=n, parts=1)[ours]
            for part in ("encoder", "decoder", "head", "Python"):
                value = 1000 * statistics.median(each[part] for each in timed)
                yield self.row("long", *parted(ours), f"{part} of {n} tokens, 1 text, greedy", value, "ms")
        first, last = lengths[0], lengths[-1]
        token = {
            name: [(b - a) / (last - first) for a, b in zip(seconds, found[last][name], strict=True)]
            for name, seconds in found[first].items()
        }
        yield from self.compared("long", token, f"latency of a token after {first}", 1, 1, baselines)

    def levels(self) -> Iterator[Row]:
        """What a token takes to decode with three levels and with four, after a source that takes next to nothing."""
        fast, three = self.shape.fast, "dqlib-ternary"
        engines = {
            f"{fast} onnxruntime three levels": self.onnx(fast, preset=three),
            f"{fast} onnxruntime": self.onnx(fast),
            f"{fast} onnxruntime at 4 bits": self.onnx(fast, bits=4),
        }
        whole = self.in_turn(engines, texts=1, beams=1, source=8)
        seconds = {name: [each / self.shape.tokens for each in found] for name, found in whole.items()}
        yield from self.compared("levels", seconds, "latency of a token", 1, 1)

    def narrow(self) -> Iterator[Row]:
        """Greedy search of one text, by students of as many weights: without layers, and with narrower ones."""
        configs = (self.shape.fast, *self.shape.narrow)
        for engine, make in (("onnxruntime", self.onnx), ("ctranslate2 int8", self.ctranslate2)):
            seconds = self.in_turn({f"{config} {engine}": make(config) for config in configs}, texts=1, beams=1)
            yield from self.compared("narrow", seconds, "latency", 1, 1)

    def memory(self) -> Iterator[Row]:
        """Resident memory and seconds to load, each in a process of its own."""
        teacher, fast = self.teacher_config, self.shape.fast
        engines = {
            f"{fast} ctranslate2 int8": self.ctranslate2(fast),
            f"{fast} onnxruntime": self.onnx(fast),
            f"{fast} onnxruntime packed": self.onnx(fast, "packed"),
            f"{teacher} transformers fp32": self.transformers(),
            f"{teacher} ctranslate2 int8": self.ctranslate2(teacher),
        }
        yield from self.memory_of(engines)

    def training(self) -> Iterator[Row]:
        """A step of distillation."""
        torch.set_num_threads(self.threads)
        shapes = fake_quantization.SHAPES["tiny" if self.key == "tiny" else "base"]
        variants = ("dqlib 2-2-8", "dqlib 8-8-8")
        for each in fake_quantization.measure(shapes, self.rounds, what=("training",), variants=variants):
            config = f"{each.variant.removeprefix('dqlib ')} {shapes.layers}-{shapes.layers}"
            baseline = f"{each.baseline} torch, distilled"
            yield self.row("training", config, "torch", "step_time", each.seconds, "s", baseline, 1 / each.ratio)


def draw(table: pandas.DataFrame, folder: Path) -> None:
    """How much smaller, how much faster, by all rows of ``benchmark.csv``: two panels of bars."""
    from dqlib.study.report.style import COLOURS, save, subplots

    compared = table[table.ratio.notna()]
    sizes = compared[compared.name == "size"]
    fast = (compared.metric == "latency, 1 text, 4 beams") & compared.baseline.str.endswith("s fp32", na=False)
    speeds = compared[fast]
    kinds = sizes.engine.str.removeprefix("packed")  # of students whose weights have other levels
    parts = (
        (sizes, sizes.config + kinds + ", " + sizes["shape"], "times smaller than the fp32 teacher"),
        (speeds, speeds.config + " " + speeds.engine + ", " + speeds["shape"], "times as fast as the fp32 teacher"),
    )
    colours = dict(zip(table["shape"].unique(), COLOURS, strict=False))
    with subplots(1, 2, figsize=(10, 1 + 0.22 * len(sizes))) as (figure, panels):
        for axes, (some, names, title) in zip(panels, parts, strict=True):
            axes.barh(range(len(some)), some.ratio, color=some["shape"].map(colours))
            for i, ratio in enumerate(some.ratio):
                axes.annotate(f" {ratio:.1f}", (ratio, i), va="center", fontsize=8)
            axes.set_yticks(range(len(some)), names, fontsize=8)
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.set_xlabel(title)
        panels[1].set_title("one text, 4 beams, 256 to 32 tokens", fontsize=9)
    save(figure, folder / "figures", "benchmark")


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    known = parser(__doc__)
    known.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(NAMES))
    known.add_argument("--stages", nargs="+", default=[], metavar="NAME", help="that are measured (default: all)")
    known.add_argument("--quick", action="store_true", help="one round")
    known.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    known.add_argument("--again", action="store_true", help="measure what an earlier run has measured, too")
    known.add_argument("--work", type=Path, default=ROOT / "build" / "benchmark")
    options = known.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    if not options.again and any((options.work / key / "sizes.json").is_file() for key in options.shapes):
        print(f"goes on from what is in {options.work}; with --again all is measured anew", flush=True)
    rounds = 1 if options.quick else options.rounds
    kinds = {key: OneStack if SHAPES[key].kind in ("bert", "gpt2") else TwoStacks for key in options.shapes}
    how = (rounds, options.threads, options.work, options.again, options.stages)
    benches = [kind(key, *how) for key, kind in kinds.items()]
    names = list(dict.fromkeys(stage.__name__ for bench in benches for stage in bench.stages))
    if unknown := [name for name in options.stages if name not in names]:
        known.error(f"--stages: '{unknown[0]}' is not allowed; it must be one of {', '.join(names)}")
    rows: list[Row] = []
    for bench in benches:
        for found in bench.rows():
            rows += found
            print(*found, sep="\n", flush=True)
    put_rows(rows, options.results, same=("name", "shape"))
    table = pandas.read_csv(options.results / "tables" / "benchmark.csv")
    if (table.name == "generation").any():
        draw(table, options.results)


if __name__ == "__main__":
    main()
