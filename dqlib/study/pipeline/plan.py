"""How long a profile would take: of every kind of training the second of two steps is timed here, and multiplied.

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
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import pandas
import torch
import transformers
from transformers import PreTrainedModel

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.presets import get_preset
from dqlib.storage.footprint import fp32_size_bytes, size_bytes
from dqlib.storage.reading import CONFIG, read_model
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.corpora.tokenizer import EOS_ID, PAD_ID
from dqlib.study.evaluation.perplexity import stride_of
from dqlib.study.params import settings as S
from dqlib.study.process import workers
from dqlib.study.process.progress import duration
from dqlib.study.training.batches import bucketed
from dqlib.study.training.examples import Example
from dqlib.study.training.kinds import shape_fields, training_of
from dqlib.study.training.loop import make_accelerator, token_counts
from dqlib.study.training.objectives import Objective, TaskObjective
from dqlib.study.training.on_policy import OnPolicy
from dqlib.study.training.task import CALIBRATION_BATCH, recipe_of, student_and_objective

#: Rows of a built corpus whose lengths are taken.
SAMPLE = 512


@dataclass(frozen=True)
class Planned:
    """So many ``runs`` of one training, ``together`` at the same time, each of so many ``steps``.

    Those of a ``stage`` come one behind another, and share what they run on.
    ``seconds`` are those of a step here, ``test_seconds`` those of the test of one, None where the number of its
    documents is not known yet. ``size_bytes`` are of what it makes, packed, or in fp32 for a teacher.
    """

    name: str
    runs: int
    steps: int
    seconds: float
    test_seconds: float | None
    size_bytes: int
    together: int
    stage: str = ""

    @property
    def run_seconds(self) -> float:
        """Of one run."""
        return self.steps * self.seconds + (self.test_seconds or 0.0)

    @property
    def total_seconds(self) -> float:
        """Of all runs, were they alone."""
        return _stage_seconds([self])


@dataclass(frozen=True)
class Plan:
    """All trainings of a profile. ``str`` gives it as a table."""

    profile: str
    trainings: tuple[Planned, ...]

    @property
    def seconds(self) -> float:
        """Of all, one stage after another."""
        return sum(_stage_seconds(list(stage)) for _, stage in groupby(self.trainings, lambda each: each.stage))

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


def _stage_seconds(trainings: Sequence[Planned]) -> float:
    """Of trainings that share what they run on, where none waits for another: at least those of the longest run."""
    work = sum(each.runs * each.run_seconds for each in trainings)
    return max(work / trainings[0].together, *(each.run_seconds for each in trainings))


def plan(settings: S.Settings, only: str | None = None, devices: int | None = None) -> Plan:
    """What a profile would take.

    Of ``only`` one task, when given. ``devices`` are accelerators, each of which makes one student at a time; this
    machine's, or its cores, when None.

    Raises:
        InputError: ``devices`` is not positive, the profile has no such task, or a preset does not fit.
    """
    if devices is not None and devices < 1:
        raise InputError("devices", devices, "at least 1")
    together = (devices or workers.at_a_time()) if settings.compute.processes == 1 else 1
    trainings: list[Planned] = []
    threads = torch.get_num_threads()
    try:
        for task in settings.tasks if only is None else (only,):
            torch.set_num_threads(threads)
            trainings += _Timed(settings, task, together).trainings()
    finally:
        torch.set_num_threads(threads)
    return Plan(settings.profile, tuple(trainings))


def planned_model(spec: S.Task, pretraining: bool = False, labels: int = 2) -> PreTrainedModel:
    """A model of the shape of a task's teacher with random weights, as it is pre-trained or fine-tuned.

    A classifier has that many ``labels``.
    """
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "decoder_start_token_id"), EOS_ID) | {"pad_token_id": PAD_ID}
    fields = shape_fields(spec.architecture, spec.model)
    if spec.form.labels:
        fields["num_labels"] = labels
    if spec.architecture == "t5":
        fields["d_kv"] = max(1, spec.model.d_model // spec.model.heads)
    config = transformers.AutoConfig.for_model(
        spec.architecture, vocab_size=spec.corpus.vocab_size, forced_eos_token_id=None, **ids, **fields
    )
    for name in (name for name, value in vars(config).items() if "drop" in name and isinstance(value, float)):
        setattr(config, name, spec.model.dropout)
    masked = pretraining and spec.form.labels
    return getattr(transformers, "AutoModelForMaskedLM" if masked else spec.form.auto).from_config(config)


class _Timed:
    """The trainings of one task, timed."""

    def __init__(self, settings: S.Settings, task: str, together: int) -> None:
        self.name, self.spec, self.together = task, settings.task(task), together
        self.processes, folder = settings.compute.processes, settings.folders(task).corpus
        self.corpus = load_corpus(folder) if (folder / "corpus.json").is_file() else None
        self.kind = training_of(self.spec.form)
        self.batch = self.kind.collate(None)
        made = settings.pretrained_folder(task) if self.spec.finetune is None else None
        if self.corpus:  # whose tokenizer may be a ready one, of more tokens than the parameters say
            tokens = max(self.spec.corpus.vocab_size, len(self.corpus.tokenizer))
            self.spec = replace(self.spec, corpus=replace(self.spec.corpus, vocab_size=tokens))
        if made and (made / CONFIG).is_file():
            self.teacher = read_model(made)
        else:
            labels = len(self.corpus.labels) if self.corpus and self.spec.form.labels else 2
            self.teacher = planned_model(self.spec, labels=labels)

    def trainings(self) -> Iterator[Planned]:
        """Of the teacher, of all students, of the benchmark."""
        spec, size, methods = self.spec, fp32_size_bytes(self.teacher), self.spec.methods
        if spec.pretrain is not None and spec.model.pretrained is None:
            window = spec.longest_window
            texts = replace(spec.corpus, source_tokens=window, target_tokens=window if spec.form.writes else 0)
            seconds = self._step(planned_model(spec, pretraining=True), TaskObjective(), spec.pretrain, texts)
            yield Planned(f"{self.name}: pre-training", 1, spec.pretrain.steps, seconds, 0.0, size, 1)
        name, steps, seconds = f"{self.name}: teacher, as it is", 0, 0.0
        if spec.finetune is not None:
            name, steps = f"{self.name}: teacher", spec.finetune.steps
            seconds = self._step(self.teacher, TaskObjective(), spec.finetune, spec.corpus)
        yield Planned(name, 1, steps, seconds, self._test(self.teacher, spec.evaluate), size, 1)
        if self.together > 1 and not workers.devices():
            torch.set_num_threads(1)  # as each of several that share the cores has
        if spec.asks_for_pseudo_labels:
            yield Planned(f"{self.name}: pseudo-labels, at most", 1, 0, 0.0, self._labelling(), 0, 1)
        for (config, preset), count in Counter(each[:2] for each in spec.seeded_students()).items():
            loop = spec.distillation(preset)
            yield self._student(self.name, count, config, loop, spec.evaluate)
        if methods is not None:
            for run, count in Counter(replace(run, seed=0) for run in methods.runs()).items():
                stage, loop = f"{self.name}, benchmark", methods.distillation(run)
                yield self._student(stage, count, run.config, loop, methods.evaluate)

    def _student(
        self, stage: str, count: int, config: Config, loop: S.Distillation, evaluation: S.Evaluation
    ) -> Planned:
        preset, texts = get_preset(loop.preset), self.kind.longest(self.teacher, CALIBRATION_BATCH, self.spec.corpus)
        student, objective = student_and_objective(self.teacher, config, preset, [self.batch(texts).with_labels()])
        drawn = recipe_of(preset, student, self.teacher).on_policy
        seconds = self._step(student, objective, loop, self.spec.corpus, drawn)
        test, size = self._test(student, evaluation), size_bytes(student)
        name = f"{stage}: {config} {loop.preset}"
        return Planned(name, count, loop.steps, seconds, test, size, self.together, stage)

    def _step(
        self, model: PreTrainedModel, objective: Objective, loop: S.Loop, corpus: S.Corpus, drawn: float = 0.0
    ) -> float:
        """Seconds of the second of two steps; in a share ``drawn`` of them the model draws targets of full length.

        A step is as many micro-batches as a process has of it, at most, and the optimizer.
        """
        accelerator = make_accelerator(loop.seed, loop.precision)
        for each in (self.teacher, model):
            each.to(accelerator.device)
        model.train()
        examples, micro_batches = self._micro_batch(model, loop, corpus), math.ceil(loop.micro_batches / self.processes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

        def step() -> None:
            for _ in range(micro_batches):
                batch = self.batch(examples).to(accelerator.device)
                with accelerator.autocast():
                    terms = objective.terms(model, batch, token_counts([examples]))
                sum(objective.weight(term) * value for term, value in terms.items()).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        seconds = _seconds(step)
        if drawn:
            own = OnPolicy(1.0, corpus.target_tokens, loop.seed)
            seconds += drawn * micro_batches * _seconds(lambda: own.targets(model, examples, 1, 0))
        return seconds

    def _micro_batch(self, model: PreTrainedModel, loop: S.Loop, corpus: S.Corpus) -> list[Example]:
        tokens = loop.batch_tokens // loop.micro_batches
        # the corpus itself: that of a first round may have the same fields, but its rows have no labels
        if corpus is self.spec.corpus and self.corpus is not None:
            examples = self.kind.encode(self.corpus.splits["train"][:SAMPLE], self.corpus, corpus)
            batches = bucketed(examples, tokens)
            return [examples[i] for i in batches[len(batches) // 2]]
        (one,) = self.kind.longest(model, 1, corpus)
        return self.kind.longest(model, max(1, tokens // (len(one.source) + len(one.target))), corpus)

    def _labelling(self) -> float | None:
        """Seconds in which PyTorch writes all pseudo-labels; CTranslate2, which does so on cores, takes about half."""
        labels = self.spec.pseudo_labels
        pairs = self._rows("train") if labels.pairs is None else labels.pairs
        if pairs is None:
            return None
        texts = pairs + (labels.texts if self.spec.has_unpaired_text else 0)
        as_test = S.Evaluation(documents=texts, beams=labels.beams, batch_size=labels.batch_size)
        return (self._test(self.teacher, as_test) or 0.0) / self.together

    @torch.no_grad()
    def _test(self, model: PreTrainedModel, evaluation: S.Evaluation) -> float | None:
        """Seconds of a test; None where the number of its texts depends on a corpus that is not built yet."""
        texts, length = self._test_texts(evaluation.documents), self.spec.corpus.target_tokens
        if texts is None:
            return None
        size = min(evaluation.batch_size, texts)
        inputs = self.batch(self.kind.longest(model, size, self.spec.corpus)).to(model.device).inputs()
        answer = partial(model.eval(), **inputs)
        if self.spec.form.writes:
            del inputs["decoder_input_ids"]
            lengths = {"min_new_tokens": length, "max_new_tokens": length}
            answer = partial(model.generate, **inputs, **lengths, num_beams=evaluation.beams, do_sample=False)
        return _seconds(answer) * texts / size / self.processes

    def _test_texts(self, documents: int | None) -> int | None:
        """Texts, or windows of documents, that a test reads; None where they are not known yet."""
        if not self.spec.form.running_text:
            return self._rows("test") if documents is None else documents
        every = self._rows("test")
        if self.corpus is None or every is None:
            return None
        windows = self.corpus.info["tokens"]["test"] / stride_of(self.spec.corpus.source_tokens)
        return math.ceil(min(1.0, (documents or every) / every) * windows)

    def _rows(self, split: str) -> int | None:
        """Rows of a split, which the built corpus says."""
        return None if self.corpus is None else len(self.corpus.splits[split])


def _seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of a call, on an accelerator to its end."""
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began
