"""What a profile would take, told before anything is built: ``python -m dqlib.study.plan --params paper``.

The profile is loaded and checked; nothing is made, downloaded or measured. Told are the stages in their order, and of
each training its steps, tokens, parameters, memory, floating-point operations and hours, of each student its bytes.
Tests compare each of them with a model that is there.

* **Tokens** are about ``batch_tokens`` a step, padding included, divided between source and target as their longest
  texts are.
* **Sizes** of students are exact: those of the codes, scales and other tensors of the student that
  :func:`dqlib.student.make_student` makes of random weights or, of a large model, on PyTorch's device without memory.
  A packed file adds names and checksums.
  The vocabulary is the profile's ``vocab_size``; a tokenizer trained on few texts may have less.
* **Operations** of a training are ``6 N tokens``, and ``2 N tokens`` more for a teacher's forward pass, where ``N``
  are the parameters of the products that a token passes through: a source token those of the encoder and of the
  decoder's keys and values of it, a target token those of the decoder and the output head (Kaplan et al. 2020,
  arXiv:2001.08361, section 2.1). Attention adds ``4 d L`` a layer and query forward, ``12 d L`` in training, with ``L``
  keys. **Hours** are operations over ``--tflops``; tests by beam search, reading and quantizing come on top.
* **Memory** of a training is in bytes ``4 (W + G + M + B + Q + T + A)``: weights, their gradients, two moments of
  AdamW, the weights of the best validation, quantized weights and the slopes of their scales (``2 N``), the teacher,
  and what a micro-batch of ``s`` source and ``t`` target tokens keeps for the backward pass,
  ``A = a d (s l_enc + t l_dec) + 5 d t l_dec + c d s l_dec + 2 f (s l_enc + t l_dec) + m maps + v t V``
  with ``d`` features, ``f`` inner features, ``V`` tokens in the vocabulary, ``l`` layers, and ``maps`` the entries of
  all attention maps. The factors (:data:`KEPT_NUMBERS`) were fitted to the allocator's peaks of 13 shapes on a CPU, and
  the whole is within a factor of 1.3 of such a peak. bf16 needs less; several processes need buffers besides.
* **Checkpoints** are the weights, two moments and the best weights; at the moment of a change one more is there than is
  kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel

from dqlib.config import FULL_PRECISION, Configuration
from dqlib.errors import InputError
from dqlib.footprint import FP32_BYTES, fp32_size_bytes, size_bytes
from dqlib.presets import DQLIB, Preset, preset
from dqlib.student import make_student
from dqlib.study import settings as S
from dqlib.study.checkpoints import KEPT
from dqlib.study.command import ended
from dqlib.study.pool import at_a_time
from dqlib.study.settings import TASKS, Settings, load_settings

#: Of hours, where ``--tflops`` is left out: half of the fp32 peak of one NVIDIA A100, 19.5.
TFLOPS = 10.0

#: Numbers that a training keeps for its backward pass, by its kind: ``a``, ``c``, ``m`` and ``v`` of the formula above.
KEPT_NUMBERS = {
    "fine-tuning": (9.0, 2.0, 0.0, 3.0),
    "quantization": (9.0, 2.0, 2.0, 3.0),  # of a student without a teacher
    "distillation": (9.5, 4.5, 3.5, 10.0),
}

#: Bytes in fp32 of the largest teacher that is made in full to count its students.
SMALL = 20_000_000

#: Weights, two moments of AdamW, weights of the best validation: what a checkpoint has of each parameter.
CHECKPOINT_COPIES = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of a training, by what they are for; see the module."""

    weights: int
    gradients: int
    moments: int
    best: int
    quantized: int
    teacher: int
    activations: int

    @property
    def total(self) -> int:
        """The sum: what is to be free on the device."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Training:
    """One training, or ``runs`` of it from several seeds; steps, tokens, operations and hours are those of one.

    ``tokens`` are a step's, at most. ``size_bytes`` and ``compression`` are the student's, None where there is none;
    ``model_bytes`` is the folder of the model in fp32, ``checkpoint_bytes`` the most that its checkpoints take.
    """

    stage: str
    task: str
    name: str
    config: str
    runs: int
    steps: int
    tokens: int
    all_tokens: int
    parameters: int
    teacher_parameters: int
    size_bytes: int | None
    compression: float | None
    memory: Memory
    model_bytes: int
    checkpoint_bytes: int
    operations: float
    hours: float


@dataclass(frozen=True)
class Stage:
    """One stage in its order: what makes it, and what it makes."""

    name: str
    command: str
    makes: str


@dataclass(frozen=True)
class Plan:
    """All that a profile would take."""

    profile: str
    tflops: float
    at_a_time: int
    stages: tuple[Stage, ...]
    trainings: tuple[Training, ...]

    @property
    def hours(self) -> float:
        """Of all trainings, one after another or not: what counts are operations."""
        return sum(each.runs * each.hours for each in self.trainings)

    @property
    def model_bytes(self) -> int:
        """Of all models in fp32, as the folders under ``runs/`` hold them."""
        return sum(each.runs * each.model_bytes for each in self.trainings)

    @property
    def checkpoint_bytes(self) -> int:
        """The most that checkpoints take at a time."""
        single = [each.checkpoint_bytes for each in self.trainings if each.size_bytes is None]
        students = [each.checkpoint_bytes for each in self.trainings if each.size_bytes is not None]
        return max([*single, self.at_a_time * max(students, default=0)])

    @property
    def memory_bytes(self) -> int:
        """The most that trainings take at a time."""
        single = [each.memory.total for each in self.trainings if each.size_bytes is None]
        students = [each.memory.total for each in self.trainings if each.size_bytes is not None]
        return max([*single, self.at_a_time * max(students, default=0)])

    def as_json(self) -> dict[str, Any]:
        """The plan for machines; bytes and operations are whole numbers."""
        trainings = [asdict(each) | {"memory": asdict(each.memory) | {"total": each.memory.total}}
                     for each in self.trainings]  # fmt: skip
        whole = {name: getattr(self, name) for name in ("hours", "model_bytes", "checkpoint_bytes", "memory_bytes")}
        stages = [asdict(stage) for stage in self.stages]
        about = {"profile": self.profile, "tflops": self.tflops, "students_at_a_time": self.at_a_time}
        return about | {"stages": stages, "trainings": trainings, "total": whole}

    def __str__(self) -> str:
        stages = [("stage", "command", "makes"), *((s.name, s.command, s.makes) for s in self.stages)]
        head = ("training", "runs", "steps", "tokens a step", "tokens", "parameters", "memory", "bytes", "smaller",
                "PFLOP", "hours")  # fmt: skip
        rows = [
            (
                f"{t.task}: {t.name}", str(t.runs), f"{t.steps:,}", f"{t.tokens:,}", f"{t.all_tokens:,}",
                f"{t.parameters:,}", _bytes(t.memory.total), "" if t.size_bytes is None else f"{t.size_bytes:,}",
                "" if t.compression is None else f"{t.compression:.1f}x",
                _petaflops(t.operations), _hours(t.hours),
            )
            for t in self.trainings
        ]  # fmt: skip
        told = [
            f"Profile {self.profile}: {sum(t.runs for t in self.trainings)} trainings, {_hours(self.hours)} hours of "
            f"{self.tflops:g} TFLOP/s (--tflops), tests not counted.",
            f"Memory: at most {_bytes(self.memory_bytes)}, with {self.at_a_time} "
            f"student{'s' * (self.at_a_time > 1)} at a time (--devices).",
            f"Disk: {_bytes(self.model_bytes)} of models under runs/, at most {_bytes(self.checkpoint_bytes)} of "
            "checkpoints while training; corpora, and the copies in DVC's cache where its files cannot be links, come "
            "on top.",
        ]
        return "\n\n".join([_table(stages, left=3), _table([head, *rows], left=1), "\n".join(told)])


def plan(settings: Settings, tflops: float = TFLOPS, only: str | None = None, devices: int | None = None) -> Plan:
    """What a profile would take.

    Args:
        settings: of the profile.
        tflops: operations a second that the device reaches, in 10^12.
        only: the task to plan; all that the profile has, when None.
        devices: accelerators of the machine, each of which makes a student at a time; None for this machine's, or its
            cores where it has none.

    Raises:
        InputError: ``tflops`` or ``devices`` is not positive, the profile has no such task, or a preset does not fit a
            configuration.
    """
    if not tflops > 0:
        raise InputError("tflops", tflops, "a positive number")
    if devices is not None and devices < 1:
        raise InputError("devices", devices, "at least 1")
    if only is not None:
        settings.task(only)
    tasks = settings.tasks if only is None else (only,)
    trainings = [training for task in tasks for training in _trainings(settings, task, tflops)]
    students = max(len(settings.task(task).students()) for task in tasks)
    together = min(devices or at_a_time(), students) if settings.compute.processes == 1 else 1
    return Plan(settings.profile, tflops, together, tuple(_stages(settings, tasks)), tuple(trainings))


def activation_numbers(
    model: S.Model, encoder: int, decoder: int, vocabulary: int, batch: int, source: int, target: int, kind: str
) -> float:
    """Numbers that a micro-batch keeps for the backward pass: ``A`` of the module's formula.

    Args:
        model: the shape.
        encoder, decoder: layers of the model that is trained.
        vocabulary: tokens that the output head tells apart.
        batch, source, target: texts of the micro-batch, and tokens of each.
        kind: of :data:`KEPT_NUMBERS`.
    """
    of_tokens, of_source, of_maps, of_logits = KEPT_NUMBERS[kind]
    s, t, d = batch * source, batch * target, model.d_model
    passed = s * encoder + t * decoder
    maps = batch * model.heads * (encoder * source**2 + decoder * (target**2 + target * source))
    layers = of_tokens * d * passed + 5 * d * t * decoder + of_source * d * s * decoder + 2 * model.ffn_dim * passed
    return layers + of_maps * maps + of_logits * t * vocabulary


def forward_operations(
    model: S.Model, encoder: int, decoder: int, vocabulary: int, batch: int, source: int, target: int
) -> float:
    """Floating-point operations of a forward pass; a multiplication with its addition counts as two.

    Arguments are those of :func:`activation_numbers`.
    """
    s, t, d = batch * source, batch * target, model.d_model
    inner = 2 * d * model.ffn_dim
    of_source = encoder * (4 * d**2 + inner) + decoder * 2 * d**2
    of_target = decoder * (6 * d**2 + inner) + d * vocabulary
    attention = encoder * s * source + decoder * t * (target + source)
    return 2.0 * (of_source * s + of_target * t) + 4.0 * d * attention


@cache
def empty_teacher(model: S.Model, vocabulary: int, architecture: str) -> PreTrainedModel:
    """The teacher on PyTorch's device without memory; a small one is made in full, for there each operation costs more.

    Buffers are there, since zeros in them are not stored.
    """
    with torch.device("meta"):
        teacher = _new_teacher(model, vocabulary, architecture)
    if fp32_size_bytes(teacher) <= SMALL:
        return _new_teacher(model, vocabulary, architecture)
    for module in teacher.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return teacher


def _new_teacher(model: S.Model, vocabulary: int, architecture: str) -> PreTrainedModel:
    if architecture != "bart":
        from dqlib.study.jobs import new_model

        return new_model(model, vocabulary)
    sides = {
        f"{side}_{name}": value
        for side, layers in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers))
        for name, value in (("layers", layers), ("attention_heads", model.heads), ("ffn_dim", model.ffn_dim))
    }
    positions = model.max_positions
    config = BartConfig(vocab_size=vocabulary, d_model=model.d_model, max_position_embeddings=positions, **sides)
    return BartForConditionalGeneration(config)


def student_size(model: S.Model, vocabulary: int, architecture: str, config: str, method: str) -> tuple[int, int, int]:
    """Of a student: its bytes, its parameters, and those with trained scales, which its folder holds in fp32."""
    # how it is trained, and the bits of its activations, change no byte, so that many students are counted once
    chosen = preset(method)
    stored = replace(DQLIB, name="any", weights=chosen.weights, quantize_head=chosen.quantize_head,
                     position_bits=chosen.position_bits)  # fmt: skip
    configuration = replace(Configuration.parse(config), a_bits=FULL_PRECISION)
    return _stored_size(model, vocabulary, architecture, configuration, _Key(stored))


@dataclass(frozen=True)
class _Key:
    """A preset that compares by its text, since it holds what has no hash."""

    method: Preset = field(compare=False)
    text: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", repr(self.method))


@cache
def _stored_size(
    model: S.Model, vocabulary: int, architecture: str, configuration: Configuration, key: _Key
) -> tuple[int, int, int]:
    with _numbers_are_fine():
        student = make_student(empty_teacher(model, vocabulary, architecture), configuration, key.method)
        trained = sum(parameter.numel() for parameter in student.parameters())
        return size_bytes(student), fp32_size_bytes(student) // FP32_BYTES, trained


def main(arguments: list[str] | None = None) -> int:
    """Print what a profile would take, and make nothing."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.plan", description=main.__doc__)
    parser.add_argument("--params", default="params.yaml", help="parameter file, or name of a profile")
    parser.add_argument("--task", help="the only task to plan")
    parser.add_argument("--tflops", type=float, default=TFLOPS,
                        help="10^12 operations a second that your device reaches (default: %(default)s, half of the "
                        "fp32 peak of one NVIDIA A100)")  # fmt: skip
    parser.add_argument("--devices", type=int,
                        help="accelerators of your machine, each of which makes a student at a time (default: those of "
                        "this machine, or its cores)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)

    def run() -> None:
        told = plan(load_settings(options.params), options.tflops, options.task, options.devices)
        print(json.dumps(told.as_json(), indent=1) if options.json else told)

    return ended(run)


def _trainings(settings: Settings, task: str, tflops: float) -> Iterator[Training]:
    spec = settings.task(task)
    corpus = spec.corpus
    if spec.pretrain is not None and spec.model.pretrained is None:
        longest = spec.pretrain.window + 1
        stage = "pretrain" if set(settings.tasks) == set(TASKS) else "pretrained"
        yield _training(stage, task, "pre-training", spec, spec.pretrain, (longest, longest), None, tflops)
    lengths = corpus.source_tokens, corpus.target_tokens
    if spec.finetune is not None:
        yield _training(f"teacher-{task}", task, "teacher", spec, spec.finetune, lengths, None, tflops)
    for configuration, method in spec.students():
        student = configuration, method
        yield _training(
            f"students@{task}", task, f"{configuration} {method}", spec, spec.distill, lengths, student, tflops
        )
    if spec.methods is not None:
        runs: dict[tuple[str, str, int], int] = {}
        for name, configuration, _, *steps in [*spec.methods.cells(), *spec.methods.longer()]:
            key = name, str(configuration), steps[0] if steps else spec.methods.distill.steps
            runs[key] = runs.get(key, 0) + 1
        for (name, config, steps), count in runs.items():
            student = Configuration.parse(config), name
            title = f"bench, {config} {name}"
            yield _training(
                "methods-runs", task, title, spec, spec.methods.distill, lengths, student, tflops, steps, count
            )


def _training(
    stage: str,
    task: str,
    name: str,
    spec: S.Task,
    loop: S.Training | S.Distillation,
    lengths: tuple[int, int],
    student: tuple[Configuration, str] | None,
    tflops: float,
    steps: int | None = None,
    runs: int = 1,
) -> Training:
    model, vocabulary, steps = spec.model, spec.corpus.vocab_size, steps or loop.steps
    shape = model, vocabulary, spec.architecture
    teacher_bytes = fp32_size_bytes(empty_teacher(*shape))
    of_teacher = teacher_bytes // FP32_BYTES
    depths, size, parameters, trained, distilled = (model.encoder_layers, model.decoder_layers), None, 0, 0, False
    if student is None:
        parameters = trained = of_teacher
    else:
        configuration, method = student
        depths = configuration.encoder_layers, configuration.decoder_layers
        size, parameters, trained = student_size(*shape, str(configuration), method)
        distilled = preset(method).loss.of_teacher
    batch = max(1, loop.batch_tokens // loop.micro_batches // sum(lengths))
    kind = "fine-tuning" if student is None else "distillation" if distilled else "quantization"
    kept = activation_numbers(model, *depths, vocabulary, batch, *lengths, kind)
    memory = Memory(
        weights=FP32_BYTES * trained,
        gradients=FP32_BYTES * trained,
        moments=2 * FP32_BYTES * trained,
        best=FP32_BYTES * trained,
        quantized=0 if student is None else 2 * FP32_BYTES * parameters,
        teacher=teacher_bytes if student is not None else 0,
        activations=round(FP32_BYTES * kept),
    )
    a_text = 3 * forward_operations(model, *depths, vocabulary, 1, *lengths)
    if distilled:
        a_text += forward_operations(model, model.encoder_layers, model.decoder_layers, vocabulary, 1, *lengths)
    operations = a_text * steps * loop.batch_tokens / sum(lengths)
    return Training(
        stage=stage,
        task=task,
        name=name,
        config=str(Configuration(32, 32, 32, *depths)) if student is None else str(student[0]),
        runs=runs,
        steps=steps,
        tokens=loop.batch_tokens,
        all_tokens=steps * loop.batch_tokens,
        parameters=parameters,
        teacher_parameters=of_teacher if student is not None else 0,
        size_bytes=size,
        compression=None if size is None else teacher_bytes / size,
        memory=memory,
        model_bytes=FP32_BYTES * trained,
        checkpoint_bytes=(KEPT + 1) * CHECKPOINT_COPIES * FP32_BYTES * trained,
        operations=operations,
        hours=operations / (tflops * 1e12) / 3600,
    )


def _stages(settings: Settings, tasks: tuple[str, ...]) -> Iterator[Stage]:
    """In the order in which they run: those of ``dvc.yaml`` where it takes the profile, else the same by hand."""
    from_hub = any(settings.task(task).corpus.source == "hub" for task in settings.tasks)
    whole = set(settings.tasks) == set(TASKS) and not from_hub
    params = "" if whole else f" --params {settings.profile}"

    def stage(name: str, module: str, makes: str) -> Stage:
        return Stage(name, f"dvc repro {name}" if whole else f"python -m dqlib.study.{module}{params}", makes)

    for task in tasks:
        source = {"embedded": "from what is installed", "files": "from files", "hub": "from the hub"}
        corpus = settings.task(task).corpus
        makes = f"{corpus.name}, {source[corpus.source]}"
        yield stage(f"corpus-{task}", f"pipeline corpus --task {task}", makes)
    for task in tasks:
        spec = settings.task(task)
        if spec.model.base_task is None and settings.pretrained_folder(task) is not None:
            name = "pretrain" if whole else "pretrained"
            makes = "text infilling" if spec.model.pretrained is None else f"a copy of {spec.model.pretrained}"
            yield stage(name, f"pipeline pretrained --task {task}", makes)
    for task in tasks:
        trained = "fine-tuning, and the test of the teacher" if settings.task(task).finetune else "the teacher's test"
        yield stage(f"teacher-{task}", f"pipeline teacher --task {task}", trained)
    for task in tasks:
        makes = f"{len(settings.task(task).students())} students, and their tests"
        yield stage(f"students@{task}", f"students --task {task}", makes)
    if whole:
        for task in tasks:
            yield stage(f"experiment@{task}", "", "the notebook of the task")
        if len(tasks) == len(TASKS):
            yield stage("compare", "", f"tables and figures in {settings.results}")
            yield stage("deploy", "", "the headline student as a file, run by several engines")
    for task in tasks:
        bench = settings.task(task).methods
        if bench is not None:
            makes = f"{len([*bench.cells(), *bench.longer()])} runs of the bench"
            yield stage("methods-runs", f"methods --task {task}", makes)
            if whole:
                yield stage("methods", "", "the table of all methods")


class _Answers(TorchDispatchMode):
    """Where a number is asked of a tensor without memory, such as whether all are finite, it is one, or True."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _numbers_are_fine() -> Iterator[None]:
    with _Answers():
        yield


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _petaflops(operations: float) -> str:
    return f"{operations / 1e15:,.0f}" if operations >= 1e17 else f"{operations / 1e15:.2g}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}" if hours >= 0.01 else "<0.01"


def _table(rows: list[tuple[str, ...]], left: int) -> str:
    """Columns in line; the first ``left`` of them to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
