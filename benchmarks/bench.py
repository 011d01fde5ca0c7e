"""What a bench of engines is: models of one shape, a folder for each engine, processes that generate in turn."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Self, TypeAlias

from tables import ROOT, Row, median_ratio
from transformers import PreTrainedModel

from dqlib.config import Config
from dqlib.engines import export_model
from dqlib.storage.manifest import packed_size_bytes
from dqlib.storage.packed import save_packed
from dqlib.student import make_student, round_for_storage

#: An engine and the folder that it runs; None where it is not installed.
Made: TypeAlias = tuple[str, Path] | None


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
_TINY, _NARROW_TINY = (300, 96, 12, 2, 64), ("2-2-8 2-2 h8 f48",)
SHAPES = {
    "base": Shape("bart", 50265, 768, 12, 6, 3072, _SIX, "2-2-8 6-3", _NARROW, whole=True),
    "large": Shape("bart", 50265, 1024, 16, 12, 4096, _TWELVE, "2-2-8 12-6"),
    "mbart-large": Shape("mbart", 250027, 1024, 16, 12, 4096, _TWELVE, "2-2-8 12-6"),
    "bert-base": Shape(
        "bert", 30522, 768, 12, 12, 3072, ("2-2-8 5-0", "1-1-8 5-0", "8-8-8 6-0"), "8-8-8 6-0", source=128, tokens=0
    ),
    "gpt2": Shape("gpt2", 50257, 768, 12, 12, 3072, ("2-2-8 0-12", "8-8-8 0-12"), "2-2-8 0-12", source=64, tokens=64),
    "tiny-bert": Shape("bert", *_TINY, ("2-2-8 1-0", "8-8-8 1-0"), "8-8-8 1-0", source=12, tokens=0),
    "tiny-gpt2": Shape("gpt2", *_TINY, ("2-2-8 0-2",), "2-2-8 0-2", source=12, tokens=4),
    "tiny": Shape("bart", *_TINY, ("2-2-8 2-1", "1-1-8 1-1"), "2-2-8 2-1", _NARROW_TINY, 12, 4, True, (4, 8)),
}
NAMES = {"base": "BART-base", "large": "BART-large", "mbart-large": "mBART-large"}
NAMES |= {"bert-base": "BERT-base", "gpt2": "GPT-2"}


class Worker:
    """A process that generates with one engine (``inference_worker.py``); as a context, it is ended at the end."""

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended with {self._process.wait()}")
        return json.loads(line)


class Bench(ABC):
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
        self.device = f"{processor()}, {threads} threads"
        encoder, decoder = (0 if self.shape.kind == kind else self.shape.layers for kind in ("gpt2", "bert"))
        self.teacher_config = f"32-32-32 {encoder}-{decoder}"

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
        vars(self).pop("teacher", None)
        gc.collect()

    @property
    @abstractmethod
    def stages(self) -> list[Callable[[], Iterator[Row]]]:
        """What is measured, in this order."""

    @cached_property
    @abstractmethod
    def teacher(self) -> PreTrainedModel:
        """A random model of full depth."""

    def memory_of(self, engines: dict[str, Made]) -> Iterator[Row]:
        """Memory and seconds to load of engines; the first is what the others are compared with."""
        found: dict[str, dict[str, list[float]]] = {}
        for _ in range(self.rounds):
            for name, engine in _installed(engines).items():
                with Worker(*engine, self.threads) as worker:
                    after = worker.generate(texts=1, source=self.shape.source, beams=1, tokens=self.shape.tokens)
                measured = found.setdefault(name, {"memory": [], "model_memory": [], "load_time": []})
                measured["memory"].append(after["resident"])
                measured["model_memory"].append(after["resident"] - worker.loaded["imported"])
                measured["load_time"].append(worker.loaded["load"])
        baseline = next(iter(found))
        for name, measured in found.items():
            for metric, values in measured.items():
                ratio = median_ratio(found[baseline][metric], values)
                unit = "s" if metric == "load_time" else "MB"
                what = "load" if metric == "load_time" else "memory"
                value, against = statistics.median(values), "" if name == baseline else baseline
                yield self.row(what, *parted(name), metric, value, unit, against, ratio if against else None)

    def student(self, config: str, preset: str = "dqlib") -> PreTrainedModel:
        """What a training starts from, rounded as what one ends with."""
        student = make_student(self.teacher, Config.parse(config), preset).eval()
        round_for_storage(student)
        return student

    def transformers(self) -> Made:
        """The teacher's folder."""
        return "transformers", self._made("transformers", lambda folder: self.teacher.save_pretrained(folder))

    def onnx(self, config: str, encoder: str | None = "int8", preset: str = "dqlib", bits: int | None = None) -> Made:
        """A student's folder for ONNX Runtime."""
        name = f"onnx {encoder} {preset} {bits or ''} {config}"
        options = {"bits": bits, "encoder": encoder}
        return "onnxruntime", self._made(
            name, lambda folder: export_model(self.student(config, preset), folder, "onnxruntime", **options)
        )

    def ctranslate2(self, config: str, quantization: str = "int8") -> Made:
        """A teacher's or student's folder for CTranslate2; None where that is not installed."""
        if importlib.util.find_spec("ctranslate2") is None:
            return None

        def make(folder: Path) -> None:
            model = self.teacher if config == self.teacher_config else self.student(config)
            export_model(model, folder, "ctranslate2", quantization=quantization)

        return "ctranslate2", self._made(f"ctranslate2 {quantization} {config}", make)

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        folder = self.work / name.replace(" ", "_")
        if not folder.is_dir():
            make(folder)
            gc.collect()
        return folder

    def in_turn(self, engines: dict[str, Made], **request: int) -> dict[str, list[float]]:
        """Seconds of each engine in each round, after one that does not count."""
        answers = self.answers(engines, **request)
        return {name: [each["seconds"] for each in found] for name, found in answers.items()}

    def answers(self, engines: dict[str, Made], **request: int) -> dict[str, list[dict[str, float]]]:
        """What each engine's process answers in each round, after one that does not count."""
        request = {"source": self.shape.source, "tokens": self.shape.tokens} | request
        installed = _installed(engines)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in installed}
        with ExitStack() as stack:
            workers = {name: stack.enter_context(Worker(*engine, self.threads)) for name, engine in installed.items()}
            for i in range(self.rounds + 1):
                for name, worker in workers.items():
                    answer = worker.generate(**request)
                    if i:
                        found[name].append(answer)
        return found

    def compared(
        self, what: str, seconds: dict[str, list[float]], metric: str, texts: int, beams: int,
        baselines: Sequence[str] | None = None,
    ) -> Iterator[Row]:  # fmt: skip
        """A row for each engine and baseline; by default the first engine is the baseline."""
        baselines = list(seconds)[:1] if baselines is None else [name for name in baselines if name in seconds]
        label = f"{metric}, {texts} text{'s' * (texts > 1)}, {f'{beams} beams' if beams > 1 else 'greedy'}"
        for name, ours in seconds.items():
            median = statistics.median(ours)
            value, unit = (texts / median, "texts/s") if metric == "throughput" else (1000 * median, "ms")
            for other in [other for other in baselines if other != name] or [""]:
                ratio = median_ratio(seconds[other], ours) if other else None
                yield self.row(what, *parted(name), label, value, unit, other, ratio)

    def packed(self, config: str, teacher_bytes: int, name: str = "packed", preset: str = "dqlib") -> Row:
        """Bytes of a packed student, against those of the teacher."""
        save_packed(self.student(config, preset), self.work / "packed")
        size = packed_size_bytes(self.work / "packed")
        shutil.rmtree(self.work / "packed")
        baseline = f"{self.teacher_config} transformers fp32"
        return self.row("size", config, name, "size", size, "bytes", baseline, teacher_bytes / size)

    def row(
        self, name: str, config: str, engine: str, metric: str, value: float, unit: str,
        baseline: str = "", ratio: float | None = None,
    ) -> Row:  # fmt: skip
        """A row of this shape."""
        return Row(
            name, NAMES.get(self.key, self.key), config, engine, metric, value, unit, baseline, ratio, self.device
        )


def _installed(engines: dict[str, Made]) -> dict[str, tuple[str, Path]]:
    return {name: made for name, made in engines.items() if made is not None}


def parted(name: str) -> tuple[str, str]:
    """Configuration and engine of what is measured."""
    words = name.split()
    first = next(i for i, word in enumerate(words) if word in ("transformers", "onnxruntime", "ctranslate2"))
    return " ".join(words[:first]), " ".join(words[first:])


def processor() -> str:
    """The processor by its own name."""
    processors = Path("/proc/cpuinfo")
    if processors.is_file():
        for line in processors.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
