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

import argparse
import gc
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import fake_quantization
import packed as packed_benchmark
import torch
from one_stack import OneStack
from tables import Row, put_rows
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
)
from transformers.utils import logging

from dqlib.config import Config
from dqlib.engines.onnx_export import export_onnx
from dqlib.storage.footprint import fp32_size_bytes
from dqlib.storage.manifest import packed_size_bytes
from dqlib.storage.packed import save_packed
from dqlib.student import make_student, round_for_storage

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Shape:
    """A real model's sizes, and the students that are measured."""

    kind: str
    vocabulary: int
    features: int
    heads: int
    layers: int
    inner: int
    configs: tuple[str, ...]
    fast: str
    narrow: tuple[str, ...] = ()
    source: int = 256
    tokens: int = 32
    whole: bool = False
    lengths: tuple[int, ...] = (32, 128, 256)


_SIX = ("8-8-8 6-6", "2-2-8 6-6", "2-2-8 6-3", "2-2-8 3-1", "2-2-8 1-1", "1-1-8 3-1")
#: Of as many weights in linear layers as ``2-2-8 6-3``, whose decoder has lost three layers.
_NARROW = ("2-2-8 6-6 f1536", "2-2-8 6-6 h8 f2304", "2-2-8 6-6 h6 f2688")
_TWELVE = ("8-8-8 12-12", "2-2-8 12-12", "2-2-8 12-6", "2-2-8 6-2", "2-2-8 1-1", "1-1-8 6-2")
SHAPES = {
    "base": Shape("bart", 50265, 768, 12, 6, 3072, _SIX, "2-2-8 6-3", _NARROW, whole=True),
    "large": Shape("bart", 50265, 1024, 16, 12, 4096, _TWELVE, "2-2-8 12-6"),
    "mbart-large": Shape("mbart", 250027, 1024, 16, 12, 4096, _TWELVE, "2-2-8 12-6"),
    "bert-base": Shape(
        "bert", 30522, 768, 12, 12, 3072, ("2-2-8 5-0", "1-1-8 5-0", "8-8-8 6-0"), "8-8-8 6-0", source=128, tokens=0
    ),
    "gpt2": Shape("gpt2", 50257, 768, 12, 12, 3072, ("2-2-8 0-12", "8-8-8 0-12"), "2-2-8 0-12", source=64, tokens=64),
    "tiny-bert": Shape("bert", 300, 96, 12, 2, 64, ("2-2-8 1-0", "8-8-8 1-0"), "8-8-8 1-0", source=12, tokens=0),
    "tiny-gpt2": Shape("gpt2", 300, 96, 12, 2, 64, ("2-2-8 0-2",), "2-2-8 0-2", source=12, tokens=4),
    "tiny": Shape(
        "bart",
        300,
        96,
        12,
        2,
        64,
        ("2-2-8 2-1", "1-1-8 1-1"),
        "2-2-8 2-1",
        ("2-2-8 2-2 h8 f48",),
        12,
        4,
        whole=True,
        lengths=(4, 8),
    ),
}
NAMES = {"base": "BART-base", "large": "BART-large", "mbart-large": "mBART-large"}
NAMES |= {"bert-base": "BERT-base", "gpt2": "GPT-2"}
CLASSES = {"bart": (BartConfig, BartForConditionalGeneration), "mbart": (MBartConfig, MBartForConditionalGeneration)}


class Worker:
    """A process that generates with one engine (``inference_worker.py``)."""

    def __init__(self, engine: str, folder: Path, threads: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("inference_worker.py")), engine, folder, threads]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.loaded = self._answer()

    def generate(self, **request: int) -> dict[str, float]:
        """Seconds and memory of one generation, and its parts where they are asked for and can be told."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended with {self._process.wait()}")
        return json.loads(line)


class Bench:
    """The stages of one shape."""

    def __init__(
        self, key: str, rounds: int, threads: int, work: Path, again: bool = False, only: Sequence[str] = ()
    ) -> None:
        self.key, self.shape, self.rounds, self.threads = key, SHAPES[key], rounds, threads
        self.work, self.only = work / key, only
        if again:
            self._forget()
        self.work.mkdir(parents=True, exist_ok=True)
        (self.work / "vocabulary.json").write_text(str(self.shape.vocabulary))
        self.device = f"{_processor()}, {threads} threads"
        encoder, decoder = (0 if self.shape.kind == kind else self.shape.layers for kind in ("gpt2", "bert"))
        self.teacher_config = f"32-32-32 {encoder}-{decoder}"
        self._teacher: PreTrainedModel | None = None

    def _forget(self) -> None:
        """Remove what an earlier run left, models too, but the rows of stages that are not asked for."""
        kept = {f"{stage.__name__}.json" for stage in self.stages if self.only and stage.__name__ not in self.only}
        for path in self.work.glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in kept:
                path.unlink()

    def rows(self) -> Iterator[list[Row]]:
        """Rows of each stage, or of some by name: measured, or kept from an earlier run."""
        for stage in self.stages:
            if self.only and stage.__name__ not in self.only:
                continue
            kept = self.work / f"{stage.__name__}.json"
            if not kept.is_file():
                found = [asdict(row) for row in stage()]
                scratch = kept.with_suffix(".partial")
                scratch.write_text(json.dumps(found, indent=1))
                scratch.replace(kept)
            yield [Row(**row) for row in json.loads(kept.read_text())]
        self._teacher = None
        gc.collect()

    # --- stages

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
        teacher_bytes = fp32_size_bytes(self.teacher())
        yield self.row("size", self.teacher_config, "transformers fp32", "size", teacher_bytes, "bytes")
        for config in (*self.shape.configs, *self.shape.narrow):
            student = self.student(config)
            save_packed(student, self.work / "packed")
            size = packed_size_bytes(self.work / "packed")
            shutil.rmtree(self.work / "packed")
            baseline = f"{self.teacher_config} transformers fp32"
            yield self.row("size", config, "packed", "size", size, "bytes", baseline, teacher_bytes / size)

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
            for name, quantization in (("fp32", "float32"), ("int8", "int8")):
                engines[f"{teacher} ctranslate2 {name}"] = self.ctranslate2(teacher, quantization)
            engines[f"{fast} ctranslate2 int8"] = self.ctranslate2(fast, "int8")
        engines = {name: made for name, made in engines.items() if made is not None}
        baselines = [name for name in engines if not name.startswith(fast)]
        for texts, metric in ((1, "latency"), (8, "throughput"))[: 2 if self.shape.whole else 1]:
            seconds = self.in_turn(engines, texts=texts, beams=4)
            yield from self.compared("generation", seconds, baselines, metric, texts, 4)

    def low_bit(self) -> Iterator[Row]:
        """Greedy search of one, four and sixteen rows."""
        fast = self.shape.fast
        engines = {f"{fast} ctranslate2 int8": self.ctranslate2(fast, "int8")}
        engines |= {f"{fast} onnxruntime": self.onnx(fast), f"{fast} onnxruntime packed": self.onnx(fast, "packed")}
        engines = {name: made for name, made in engines.items() if made is not None}
        for texts in (1, 4, 16):
            seconds = self.in_turn(engines, texts=texts, beams=1)
            yield from self.compared("low-bit", seconds, list(engines)[:1], "latency", texts, 1)

    def long(self) -> Iterator[Row]:
        """Greedy search of one text to more and more tokens, and where the time of ONNX Runtime goes."""
        fast, lengths = self.shape.fast, self.shape.lengths
        teacher, ours, int8 = f"{self.teacher_config} transformers fp32", f"{fast} onnxruntime", self._int8(fast)
        engines = {teacher: self.transformers(), ours: self.onnx(fast)}
        if int8 is not None:
            engines[f"{fast} ctranslate2 int8"] = int8
        baselines = [name for name in engines if name != ours]
        found = {n: self.in_turn(engines, texts=1, beams=1, tokens=n) for n in lengths}
        for n, seconds in found.items():
            yield from self.compared("long", seconds, baselines, f"latency of {n} tokens", 1, 1)
            timed = self.answers({ours: engines[ours]}, texts=1, beams=1, tokens=n, parts=1)[ours]
            for part in ("encoder", "decoder", "head", "Python"):
                value = 1000 * statistics.median(each[part] for each in timed)
                yield self.row("long", *_parted(ours), f"{part} of {n} tokens, 1 text, greedy", value, "ms")
        first, last = lengths[0], lengths[-1]
        token = {
            name: [(b - a) / (last - first) for a, b in zip(found[first][name], found[last][name], strict=True)]
            for name in engines
        }
        yield from self.compared("long", token, baselines, f"latency of a token after {first}", 1, 1)

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
        yield from self.compared("levels", seconds, list(engines)[:1], "latency of a token", 1, 1)

    def narrow(self) -> Iterator[Row]:
        """Greedy search of one text, by students of as many weights: without layers, and with narrower ones."""
        configs = (self.shape.fast, *self.shape.narrow)
        for engine, make in (("onnxruntime", self.onnx), ("ctranslate2 int8", self._int8)):
            made = {f"{config} {engine}": make(config) for config in configs}
            engines = {name: each for name, each in made.items() if each is not None}
            if engines:
                seconds = self.in_turn(engines, texts=1, beams=1)
                yield from self.compared("narrow", seconds, list(engines)[:1], "latency", 1, 1)

    def memory(self) -> Iterator[Row]:
        """Resident memory and seconds to load, each in a process of its own."""
        teacher, fast = self.teacher_config, self.shape.fast
        made = {
            f"{fast} ctranslate2 int8": self.ctranslate2(fast, "int8"),
            f"{fast} onnxruntime": self.onnx(fast),
            f"{fast} onnxruntime packed": self.onnx(fast, "packed"),
            f"{teacher} transformers fp32": self.transformers(),
            f"{teacher} ctranslate2 int8": self.ctranslate2(teacher, "int8"),
        }
        yield from self.memory_of({name: engine for name, engine in made.items() if engine is not None})

    def memory_of(self, made: dict[str, tuple[str, Path]]) -> Iterator[Row]:
        """Memory and seconds to load of engines; the first is what the others are compared with."""
        found: dict[str, dict[str, list[float]]] = {}
        for _ in range(self.rounds):
            for name, engine in made.items():
                with self.worker(*engine) as worker:
                    after = worker.generate(texts=1, source=self.shape.source, beams=1, tokens=self.shape.tokens)
                measured = found.setdefault(name, {"memory": [], "model_memory": [], "load_time": []})
                measured["memory"].append(after["resident"])
                measured["model_memory"].append(after["resident"] - worker.loaded["imported"])
                measured["load_time"].append(worker.loaded["load"])
        baseline = next(iter(found))
        for name, measured in found.items():
            for metric, values in measured.items():
                ratio = statistics.median(b / v for b, v in zip(found[baseline][metric], values, strict=True))
                unit = "s" if metric == "load_time" else "MB"
                what = "load" if metric == "load_time" else "memory"
                config, engine = _parted(name)
                value, against = statistics.median(values), "" if name == baseline else baseline
                yield self.row(what, config, engine, metric, value, unit, against, ratio if against else None)

    def training(self) -> Iterator[Row]:
        """A step of distillation."""
        torch.set_num_threads(self.threads)
        shapes = fake_quantization.SHAPES["tiny" if self.key == "tiny" else "base"]
        variants = ("dqlib 2-2-8", "dqlib 8-8-8")
        for each in fake_quantization.measure(shapes, self.rounds, what=("training",), variants=variants):
            config = f"{each.variant.removeprefix('dqlib ')} {shapes.layers}-{shapes.layers}"
            baseline = f"{each.baseline} torch, distilled"
            yield self.row("training", config, "torch", "step_time", each.seconds, "s", baseline, 1 / each.ratio)

    # --- models and engines

    def teacher(self) -> PreTrainedModel:
        """A random model of full depth, whose texts are as long as is asked for."""
        if self._teacher is None:
            s = self.shape
            sides = {
                f"{side}_{field}": value
                for side in ("encoder", "decoder")
                for field, value in (("layers", s.layers), ("attention_heads", s.heads), ("ffn_dim", s.inner))
            }
            config, model = CLASSES[s.kind]
            torch.manual_seed(0)
            self._teacher = model(
                config(
                    vocab_size=s.vocabulary, d_model=s.features, max_position_embeddings=1024,
                    forced_eos_token_id=None, decoder_start_token_id=2, scale_embedding=s.kind == "mbart", **sides,
                )
            ).eval()  # fmt: skip
            self._teacher.generation_config.min_new_tokens = s.tokens
        return self._teacher

    def student(self, config: str, preset: str = "dqlib") -> PreTrainedModel:
        """What a training starts from, rounded as what one ends with."""
        student = make_student(self.teacher(), Config.parse(config), preset).eval()
        round_for_storage(student)
        return student

    def transformers(self) -> tuple[str, Path]:
        """The teacher's folder."""
        return "transformers", self._made("transformers", lambda folder: self.teacher().save_pretrained(folder))

    def onnx(
        self, config: str, encoder: str | None = "int8", preset: str = "dqlib", bits: int | None = None
    ) -> tuple[str, Path]:
        """A student's folder for ONNX Runtime."""
        name = f"onnx {encoder} {preset} {bits or ''} {config}"
        return "onnxruntime", self._made(
            name, lambda f: export_onnx(self.student(config, preset), f, bits=bits, encoder=encoder)
        )

    def ctranslate2(self, config: str, quantization: str) -> tuple[str, Path] | None:
        """A teacher's or student's folder for CTranslate2; None where that is not installed."""
        if not all(map(importlib.util.find_spec, ("ctranslate2", "dqlib.engines.ctranslate"))):
            return None
        from dqlib.engines.ctranslate import export_ctranslate2

        def make(folder: Path) -> None:
            model = self.teacher() if config == self.teacher_config else self.student(config)
            export_ctranslate2(model, folder, None, quantization=quantization)

        return "ctranslate2", self._made(f"ctranslate2 {quantization} {config}", make)

    def _int8(self, config: str) -> tuple[str, Path] | None:
        return self.ctranslate2(config, "int8")

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        folder = self.work / name.replace(" ", "_")
        if not folder.is_dir():
            make(folder)
            gc.collect()
        return folder

    @contextmanager
    def worker(self, engine: str, folder: Path) -> Iterator[Worker]:
        """A process of that engine."""
        worker = Worker(engine, folder, self.threads)
        try:
            yield worker
        finally:
            worker.close()

    def in_turn(self, engines: dict[str, tuple[str, Path]], **request: int) -> dict[str, list[float]]:
        """Seconds of each engine in each round, after one that does not count."""
        answers = self.answers(engines, **request)
        return {name: [each["seconds"] for each in found] for name, found in answers.items()}

    def answers(self, engines: dict[str, tuple[str, Path]], **request: int) -> dict[str, list[dict[str, float]]]:
        """What each engine's process answers in each round, after one that does not count."""
        request = {"source": self.shape.source, "tokens": self.shape.tokens} | request
        found: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
        with ExitStack() as stack:
            workers = {name: stack.enter_context(self.worker(*engine)) for name, engine in engines.items()}
            for i in range(self.rounds + 1):
                for name, worker in workers.items():
                    answer = worker.generate(**request)
                    if i:
                        found[name].append(answer)
        return found

    def compared(
        self, what: str, seconds: dict[str, list[float]], baselines: list[str], metric: str, texts: int, beams: int
    ) -> Iterator[Row]:
        """A row for each engine and baseline."""
        for name, ours in seconds.items():
            config, engine = _parted(name)
            median = statistics.median(ours)
            value, unit = (texts / median, "texts/s") if metric == "throughput" else (1000 * median, "ms")
            label = f"{metric}, {texts} text{'s' * (texts > 1)}, {f'{beams} beams' if beams > 1 else 'greedy'}"
            others = [other for other in baselines if other != name] or [""]
            for other in others:
                ratio = None
                if other:
                    ratio = statistics.median(b / v for b, v in zip(seconds[other], ours, strict=True))
                yield self.row(what, config, engine, label, value, unit, other, ratio)

    def row(
        self, name: str, config: str, engine: str, metric: str, value: float, unit: str,
        baseline: str = "", ratio: float | None = None,
    ) -> Row:  # fmt: skip
        """A row of this shape."""
        return Row(
            name, NAMES.get(self.key, self.key), config, engine, metric, value, unit, baseline, ratio, self.device
        )


class OneStackBench(OneStack, Bench):
    """The stages of a model of one stack."""


def _parted(name: str) -> tuple[str, str]:
    """Configuration and engine of what is measured."""
    words = name.split()
    first = next(i for i, word in enumerate(words) if word in ("transformers", "onnxruntime", "ctranslate2"))
    return " ".join(words[:first]), " ".join(words[first:])


def draw(rows: list[Row], folder: Path) -> None:
    """How much smaller, how much faster: two panels of bars."""
    import matplotlib
    from matplotlib import pyplot

    from dqlib.study.report.style import COLOURS, STYLE, save

    sizes = [row for row in rows if row.name == "size" and row.ratio]
    speeds = [row for row in rows if row.metric == "latency, 1 text, 4 beams" and row.baseline.endswith("s fp32")]
    shapes = list(dict.fromkeys(row.shape for row in rows))
    with matplotlib.rc_context(STYLE):
        height = 1 + 0.22 * max(len(sizes), len(speeds))
        figure, panels = pyplot.subplots(1, 2, figsize=(10, height), layout="constrained")
        for axes, some, title in ((panels[0], sizes, "times smaller"), (panels[1], speeds, "times as fast")):
            names = [f"{row.config}{'' if some is sizes else ' ' + row.engine}, {row.shape}" for row in some]
            colours = [COLOURS[shapes.index(row.shape)] for row in some]
            axes.barh(range(len(some)), [row.ratio for row in some], color=colours)
            for i, row in enumerate(some):
                axes.annotate(f" {row.ratio:.1f}", (row.ratio, i), va="center", fontsize=8)
            axes.set_yticks(range(len(some)), names, fontsize=8)
            axes.invert_yaxis()
            axes.grid(axis="y", visible=False)
            axes.set_xlabel(f"{title} than the fp32 teacher" if some is sizes else f"{title} as the fp32 teacher")
        panels[1].set_title("one text, 4 beams, 256 to 32 tokens", fontsize=9)
        save(figure, folder / "figures", "benchmark")
    pyplot.close(figure)


def _processor() -> str:
    processors = Path("/proc/cpuinfo")
    if processors.is_file():
        for line in processors.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(NAMES))
    parser.add_argument("--stages", nargs="+", default=[], metavar="NAME", help="that are measured (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--again", action="store_true", help="measure what an earlier run has measured, too")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "benchmark")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    if not options.again and any((options.work / key / "sizes.json").is_file() for key in options.shapes):
        print(f"goes on from what is in {options.work}; with --again all is measured anew", flush=True)
    rounds = 1 if options.quick else options.rounds
    benches = [
        (OneStackBench if SHAPES[key].kind in ("bert", "gpt2") else Bench)(
            key, rounds, options.threads, options.work, options.again, options.stages
        )
        for key in options.shapes
    ]
    known = list(dict.fromkeys(stage.__name__ for bench in benches for stage in bench.stages))
    if unknown := [name for name in options.stages if name not in known]:
        parser.error(f"--stages: '{unknown[0]}' is not allowed; it must be one of {', '.join(known)}")
    rows: list[Row] = []
    for bench in benches:
        for found in bench.rows():
            rows += found
            for row in found:
                against = f", {row.ratio:.2f} times better than {row.baseline}" if row.ratio else ""
                print(
                    f"{row.shape} {row.config} {row.engine}: {row.metric} {row.value:.4g} {row.unit}{against}",
                    flush=True,
                )
    put_rows(rows, options.results / "tables" / "benchmark.csv", same=("name", "shape"))
    if any(row.name == "generation" for row in rows):
        draw(rows, options.results)


if __name__ == "__main__":
    main()
