"""How long a profile would take: two steps of every kind of training are timed here, and multiplied.

Models are made with random weights at the profile's shape, or read where a checkpoint is the teacher and here. They
read random tokens of the profile's lengths, or the texts of the corpus where it is built; nothing is downloaded, and
nothing is kept. Tests are timed on one batch, whose texts are written to their greatest length, and counted for the
test documents that the profile names or the built corpus has. Times are those of this machine: of its accelerator if
there is one, else of its cores, of which trainings that run at the same time have one each.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import pandas
import torch
from transformers import PreTrainedModel

from dqlib.errors import InputError
from dqlib.presets import get_preset
from dqlib.storage.footprint import fp32_size_bytes, size_bytes
from dqlib.storage.reading import CONFIG, read_model
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.evaluation.perplexity import stride_of
from dqlib.study.params import settings as S
from dqlib.study.process import workers
from dqlib.study.process.progress import duration
from dqlib.study.training.batches import bucketed
from dqlib.study.training.examples import Example
from dqlib.study.training.kinds import training_of
from dqlib.study.training.loop import make_accelerator, token_counts
from dqlib.study.training.objectives import Objective, TaskObjective
from dqlib.study.training.on_policy import OnPolicy
from dqlib.study.training.task import CALIBRATION_BATCH, recipe_of, student_and_objective
from dqlib.study.training.text_batches import ModelBatch

#: Micro-batches that are timed, after one that is not.
TIMED = 2

#: Rows of a built corpus whose lengths are taken.
SAMPLE = 512


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
        rows = [
            {
                "runs": each.runs,
                "steps": f"{each.steps:,}",
                "a step": f"{each.seconds:.3f} s",
                "a test": "not known" if each.test_seconds is None else duration(each.test_seconds),
                "all": duration(each.total_seconds),
                "bytes of one": f"{each.size_bytes:,}",
            }
            for each in self.trainings
        ]
        lines = [pandas.DataFrame(rows, [each.name for each in self.trainings]).to_string()]
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
    together = (devices or workers.at_a_time()) if settings.compute.processes == 1 else 1
    tasks = settings.tasks if only is None else (only,)
    trainings = [each for task in tasks for each in _Timed(settings, task, together).trainings()]
    return Plan(settings.profile, tuple(trainings))


class _Timed:
    """The trainings of one task, timed."""

    def __init__(self, settings: S.Settings, task: str, together: int) -> None:
        self.name, self.spec, self.together = task, settings.task(task), together
        self.processes, folder = settings.compute.processes, settings.folders(task).corpus
        self.corpus = load_corpus(folder) if (folder / "corpus.json").is_file() else None
        #: Texts of each split; of none before the corpus is built.
        self.sizes = {split: len(rows) for split, rows in self.corpus.splits.items()} if self.corpus else {}
        #: Of one training, where several run at the same time on cores.
        self.threads = 1 if together > 1 and not workers.devices() else torch.get_num_threads()
        self.kind = training_of(self.spec.form)
        self.batch: Callable[[Sequence[Example]], ModelBatch] = self.kind.collate(None)
        made = settings.pretrained_folder(task)
        ready = self.spec.finetune is None and made is not None and (made / CONFIG).is_file()
        self.teacher = read_model(made) if ready and made is not None else self.kind.planned(self.spec, False)

    def trainings(self) -> Iterator[Planned]:
        """Of the teacher, of all students, of the benchmark."""
        spec, size = self.spec, fp32_size_bytes(self.teacher)
        if spec.pretrain is not None and spec.model.pretrained is None:
            window = spec.pretrain.window + 1
            texts = replace(spec.corpus, source_tokens=window, target_tokens=window if spec.form.writes else 0)
            seconds = self._step(self.kind.planned(spec, True), TaskObjective(), spec.pretrain, texts)
            yield Planned(f"{self.name}: pre-training", 1, spec.pretrain.steps, seconds, 0.0, size, 1)
        name, steps, seconds = f"{self.name}: teacher, as it is", 0, 0.0
        if spec.finetune is not None:
            name, steps = f"{self.name}: teacher", spec.finetune.steps
            seconds = self._step(self.teacher, TaskObjective(), spec.finetune, spec.corpus)
        yield Planned(name, 1, steps, seconds, self._test(self.teacher, spec.evaluate), size, 1)
        if spec.asks_for_pseudo_labels:
            yield Planned(f"{self.name}: pseudo-labels, at most", 1, 0, 0.0, self._labelling(), 0, 1)
        with _threads(self.threads):
            for (config, preset), count in Counter(each[:2] for each in spec.seeded_students()).items():
                run = S.Run(preset, config, spec.distill.seed, spec.distill.steps)
                yield self._student(f"{self.name}: {config} {preset}", run, spec.distill, spec.evaluate, count)
            if (benchmark := spec.methods) is not None:
                for run, count in Counter(replace(run, seed=0) for run in benchmark.runs()).items():
                    name = f"{self.name}, benchmark: {run.config} {run.preset}"
                    yield self._student(name, run, benchmark.distillation(run), benchmark.evaluate, count)

    def _student(self, name: str, run: S.Run, loop: S.Distillation, evaluation: S.Evaluation, count: int) -> Planned:
        preset, texts = get_preset(run.preset), self.kind.longest(self.teacher, CALIBRATION_BATCH, self.spec.corpus)
        calibration = [self.batch(texts).with_labels()]
        student, objective = student_and_objective(self.teacher, run.config, preset, calibration)
        seconds = self._step(student, objective, loop, self.spec.corpus)
        if share := recipe_of(preset, student, self.teacher).on_policy:
            seconds += share * self._drawing(student, loop)
        test = self._test(student, evaluation)
        return Planned(name, count, loop.steps, seconds, test, size_bytes(student), self.together)

    def _step(self, model: PreTrainedModel, objective: Objective, loop: S.Loop, corpus: S.Corpus) -> float:
        """Seconds of one step: of a micro-batch, times how many of it a process has, and of the optimizer."""
        accelerator = make_accelerator(loop.seed, loop.precision)
        for each in (self.teacher, model):
            each.to(accelerator.device)
        model.train()
        examples = self._micro_batch(model, loop, corpus)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

        def micro_batch() -> None:
            batch = self.batch(examples).to(accelerator.device)
            with accelerator.autocast():
                terms = objective.terms(model, batch, token_counts([examples]))
            sum(objective.weight(term) * value for term, value in terms.items()).backward()

        def update() -> None:
            optimizer.step()
            optimizer.zero_grad()

        times = [(_seconds(micro_batch), _seconds(update)) for _ in range(1 + TIMED)][1:]
        return sum(self._share(loop) * one + other for one, other in times) / TIMED

    def _share(self, loop: S.Loop) -> int:
        """Micro-batches of a step that a process has, at most."""
        return math.ceil(loop.micro_batches / self.processes)

    def _micro_batch(self, model: PreTrainedModel, loop: S.Loop, corpus: S.Corpus) -> list[Example]:
        if corpus == self.spec.corpus and self.corpus is not None:
            examples = self.kind.encode(self.corpus.splits["train"][:SAMPLE], self.corpus, corpus)
            batches = bucketed(examples, loop.batch_tokens // loop.micro_batches)
            return [examples[i] for i in batches[len(batches) // 2]]
        (one,) = self.kind.longest(model, 1, corpus)
        texts = max(1, loop.batch_tokens // loop.micro_batches // (len(one.source) + len(one.target)))
        return self.kind.longest(model, texts, corpus)

    def _drawing(self, student: PreTrainedModel, loop: S.Loop) -> float:
        """Seconds in which a student draws targets of full length for what a process has of a step."""
        examples = self._micro_batch(student, loop, self.spec.corpus)
        own = OnPolicy(1.0, self.spec.corpus.target_tokens, loop.seed)
        return self._share(loop) * _seconds(lambda: own.targets(student, examples, 1, 0))

    def _labelling(self) -> float | None:
        """Seconds in which PyTorch writes all pseudo-labels; None where the corpus is not built, which says how many.

        CTranslate2, which writes them on cores, takes about half of that.
        """
        labels = self.spec.pseudo_labels
        pairs = self.sizes.get("train") if labels.pairs is None else labels.pairs
        if pairs is None:
            return None
        texts = pairs + (labels.texts if self.spec.has_unpaired_text else 0)
        as_test = replace(self.spec.evaluate, documents=texts, beams=labels.beams, batch_size=labels.batch_size)
        with _threads(self.threads):
            seconds = self._test(self.teacher, as_test)
        return None if seconds is None else seconds / self.together

    @torch.no_grad()
    def _test(self, model: PreTrainedModel, evaluation: S.Evaluation) -> float | None:
        """Seconds of a test; None where the number of its texts depends on a corpus that is not built yet."""
        texts = self._test_texts(evaluation)
        if texts is None:
            return None
        size, length = min(evaluation.batch_size, texts), self.spec.corpus.target_tokens
        inputs = self.batch(self.kind.longest(model, size, self.spec.corpus)).to(model.device).inputs()
        answer = partial(model.eval(), **inputs)
        if self.spec.form.writes:
            read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            answer = partial(
                model.generate, **read, num_beams=evaluation.beams, do_sample=False, min_new_tokens=length,
                max_new_tokens=length,
            )  # fmt: skip
        return _seconds(answer) * texts / size / self.processes

    def _test_texts(self, evaluation: S.Evaluation) -> int | None:
        """Texts, or windows of documents, that a test reads; None where they are not known yet."""
        spec, documents = self.spec, evaluation.documents
        if spec.form.writes or spec.form.labels:
            return self.sizes.get("test") if documents is None else documents
        if self.corpus is None:
            return None
        share = min(1.0, (documents or math.inf) / self.sizes["test"])
        return math.ceil(share * self.corpus.info["tokens"]["test"] / stride_of(spec.corpus.source_tokens))


def _seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of a call, on an accelerator to its end."""
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
