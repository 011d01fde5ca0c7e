"""How long a profile would take: two steps of every kind of training are timed here, and multiplied.

Models are made with random weights at the profile's shape, and read random tokens of the profile's lengths; nothing is
downloaded, and nothing is kept. Tests are timed on one batch, whose texts are written to their greatest length, and
counted for the test documents that the profile names or the built corpus has. Times are those of this machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.presets import get_preset
from dqlib.storage.footprint import fp32_size_bytes, size_bytes
from dqlib.student import make_student, set_attention_maps, supervision_maps
from dqlib.study.corpora.corpus import load_info
from dqlib.study.params import settings as S
from dqlib.study.process.progress import duration
from dqlib.study.process.workers import at_a_time
from dqlib.study.training.batches import Batch, Example, collate
from dqlib.study.training.loop import token_counts
from dqlib.study.training.models import planned_model
from dqlib.study.training.objectives import DistillationObjective, Objective, TaskObjective

#: Micro-batches that are timed, after one that is not.
TIMED = 2


@dataclass(frozen=True)
class Planned:
    """One kind of training.

    Args:
        name: what is trained.
        runs: how many of it.
        steps: of each.
        seconds: of one step, here.
        test_seconds: of the test of one; None where the number of test documents is not known yet.
        size_bytes: of what it makes, packed, or in fp32 for a teacher.
        together: how many run at the same time.
    """

    name: str
    runs: int
    steps: int
    seconds: float
    test_seconds: float | None
    size_bytes: int
    together: int

    @property
    def total_seconds(self) -> float:
        """Of all runs."""
        return self.runs * (self.steps * self.seconds + (self.test_seconds or 0.0)) / min(self.together, self.runs)


@dataclass(frozen=True)
class Plan:
    """All trainings of a profile. ``str`` gives it as a table."""

    profile: str
    trainings: tuple[Planned, ...]

    @property
    def seconds(self) -> float:
        """Of all, one stage after another."""
        return sum(each.total_seconds for each in self.trainings)

    def __str__(self) -> str:
        rows = [("training", "runs", "steps", "a step", "a test", "all", "bytes of one")]
        for each in self.trainings:
            test = "not known" if each.test_seconds is None else duration(each.test_seconds)
            rows.append((
                each.name, str(each.runs), f"{each.steps:,}", f"{each.seconds:.3f} s", test,
                duration(each.total_seconds), f"{each.size_bytes:,}",
            ))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append(f"\n{self.profile}: {duration(self.seconds)} on this machine, corpora and notebooks not counted.")
        if any(each.test_seconds is None for each in self.trainings):
            lines.append("Tests are counted once the corpus is built: `python -m dqlib.study make corpus` does that.")
        return "\n".join(lines)


def plan(settings: S.Settings, only: str | None = None, devices: int | None = None) -> Plan:
    """What a profile would take.

    Args:
        settings: of the profile.
        only: the task to plan; all that the profile has, when None.
        devices: accelerators, each of which makes one student at a time; this machine's, or its cores, when None.

    Raises:
        InputError: ``devices`` is not positive, the profile has no such task, or a preset does not fit.
    """
    if devices is not None and devices < 1:
        raise InputError("devices", devices, "at least 1")
    together = (devices or at_a_time()) if settings.compute.processes == 1 else 1
    tasks = settings.tasks if only is None else (only,)
    return Plan(settings.profile, tuple(each for task in tasks for each in _of_task(settings, task, together)))


def _of_task(settings: S.Settings, task: str, together: int) -> Iterator[Planned]:
    spec, corpus = settings.task(task), settings.task(task).corpus
    lengths, documents = (corpus.source_tokens, corpus.target_tokens), _test_documents(settings, task)
    teacher = planned_model(spec)
    if spec.pretrain is not None and spec.model.pretrained is None:
        window = spec.pretrain.window + 1
        seconds = _step_seconds(teacher, TaskObjective(), spec.pretrain, (window, window))
        yield Planned(f"{task}: pre-training", 1, spec.pretrain.steps, seconds, 0.0, fp32_size_bytes(teacher), 1)
    test = _test_seconds(teacher, spec, spec.evaluate, documents)
    if spec.finetune is not None:
        seconds = _step_seconds(teacher, TaskObjective(), spec.finetune, lengths)
        yield Planned(f"{task}: teacher", 1, spec.finetune.steps, seconds, test, fp32_size_bytes(teacher), 1)
    for config, preset in spec.students():
        yield _student(f"{task}: {config} {preset}", spec, teacher, config, preset, spec.distill, documents, together)
    if spec.methods is not None:
        counts: dict[tuple[str, Config, int], int] = {}
        for run in spec.methods.runs():
            key = run.preset, run.config, run.steps or spec.methods.distill.steps
            counts[key] = counts.get(key, 0) + 1
        for (preset, config, steps), runs in counts.items():
            name = f"{task}, benchmark: {config} {preset}"
            yield _student(name, spec, teacher, config, preset, spec.methods.distill, documents, together, steps, runs)


def _student(
    name: str,
    spec: S.Task,
    teacher: PreTrainedModel,
    config: Config,
    preset_name: str,
    distillation: S.Distillation,
    documents: int | None,
    together: int,
    steps: int | None = None,
    runs: int = 1,
) -> Planned:
    preset = get_preset(preset_name)
    student = make_student(teacher, config, preset)
    for model in (teacher, student):
        set_attention_maps(model, preset.loss.attention_maps)
    objective: Objective = TaskObjective()
    if preset.loss.of_teacher:
        objective = DistillationObjective(teacher, supervision_maps(config, teacher), preset.loss)
    seconds = _step_seconds(student, objective, distillation, (spec.corpus.source_tokens, spec.corpus.target_tokens))
    test = _test_seconds(student, spec, spec.evaluate, documents)
    return Planned(name, runs, steps or distillation.steps, seconds, test, size_bytes(student), together)


def _step_seconds(model: PreTrainedModel, objective: Objective, loop: S.Loop, lengths: tuple[int, int]) -> float:
    """Seconds of one step: those of a micro-batch, times how many a step has, and of the optimizer."""
    model.train()
    texts = max(1, loop.batch_tokens // loop.micro_batches // sum(lengths))
    examples = _random_examples(model, texts, lengths)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    times = []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        terms = objective.terms(model, collate(examples), token_counts([examples]))
        sum(objective.weight(term) * value for term, value in terms.items()).backward()
        passed = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        times.append((passed - began) * loop.micro_batches + time.perf_counter() - passed)
    return sum(times[1:]) / TIMED


@torch.no_grad()
def _test_seconds(
    model: PreTrainedModel, spec: S.Task, evaluation: S.Evaluation, documents: int | None
) -> float | None:
    if documents is None:
        return None
    model.eval()
    size = min(evaluation.batch_size, documents)
    batch: Batch = collate(_random_examples(model, size, (spec.corpus.source_tokens, spec.corpus.target_tokens)))
    began = time.perf_counter()
    model.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, num_beams=evaluation.beams, do_sample=False,
        max_new_tokens=spec.corpus.target_tokens,
    )  # fmt: skip
    return (time.perf_counter() - began) * documents / size


def _test_documents(settings: S.Settings, task: str) -> int | None:
    """Test documents of a task; None where all of a corpus are wanted that is not built yet."""
    spec, folder = settings.task(task), settings.folders(task).corpus
    if spec.evaluate.documents is not None:
        return spec.evaluate.documents
    return load_info(folder)["sizes"]["test"] if (folder / "corpus.json").is_file() else None


def _random_examples(model: PreTrainedModel, count: int, lengths: tuple[int, int]) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    source, target = lengths
    ids = torch.randint(10, model.config.vocab_size, (count, source + target), generator=generator).tolist()
    return [Example(row[:source], row[source:]) for row in ids]
