"""The trainings of one task: pre-training, fine-tuning, distillation, on the examples of its corpus."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import tokenizers
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from dqlib.architectures import layer_weights
from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.files import atomic_folder
from dqlib.presets import Preset, Recipe, get_preset
from dqlib.pruning import Calibration
from dqlib.storage.reading import read_model, save_model
from dqlib.storage.students import save_student
from dqlib.student import make_student, round_for_storage, set_attention_maps, supervision_maps
from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.corpora.pseudo_labels import LoadedLabels, load_labels
from dqlib.study.corpora.rows import Row, Rows
from dqlib.study.params import settings as S
from dqlib.study.params.identity import code_hash
from dqlib.study.params.paths import LOG, Folders
from dqlib.study.training.batches import SHORTEST, steps
from dqlib.study.training.checkpoints import Checkpoints, identity, weights_hash
from dqlib.study.training.examples import Example, StoredExamples, stored_examples
from dqlib.study.training.kinds import KindTraining, training_of
from dqlib.study.training.loop import Trainer, TrainingError
from dqlib.study.training.mixture import Mixture
from dqlib.study.training.objectives import DistillationObjective, Objective, TaskObjective
from dqlib.study.training.on_policy import OnPolicy

#: Training pairs on which a student is shaped before its training, and how many of them go through a model at a time.
CALIBRATION, CALIBRATION_BATCH = 128, 32

#: Of what is no student: nothing is averaged, drawn or layer-wise.
PLAIN = Recipe()


@dataclass(frozen=True)
class TaskTraining:
    """What the trainings of one task share."""

    name: str
    spec: S.Task
    folders: Folders
    corpus: LoadedCorpus
    accelerator: Accelerator

    @cached_property
    def kind(self) -> KindTraining:
        """What its trainings have of their own."""
        return training_of(self.spec.form)

    def pretrain(self, model: PreTrainedModel, folder: Path) -> None:
        """Text infilling, or masked language modelling, on the texts of the corpus: teaches a new model to read.

        The model is trained in place; the log goes to ``folder``, which becomes ``folders.pretrained``.

        Raises:
            InputError: all texts of a split are too short for a window.
        """
        training, tokenizer = self.spec.pretrain, self.corpus.tokenizer
        assert training is not None
        noise, length = self.kind.noise(training, tokenizer), training.window

        def make(rows: Sequence[Row]) -> list[Example]:
            return self.kind.windows(rows, tokenizer, length)

        examples = self._examples("train", self.corpus.splits["train"], make, f"windows of {length}")
        order = random.Random(0)  # the same masks at every validation
        validation = [noise(example, order) for example in make(self._validation_rows())]
        for split, each in (("train", examples), ("validation", validation)):
            if not each:
                allowed = f"at least 1: no text of the corpus '{self.corpus.info['name']}' there has {SHORTEST} tokens"
                raise InputError(f"{self.name}.corpus.{split}, windows of text", 0, allowed)
        batches = steps(examples, training, noise)
        self._train(
            model, TaskObjective(), training, folder, self.folders.pretrained, "pre-training", batches, validation
        )

    def finetune(self, model: PreTrainedModel, folder: Path) -> None:
        """Train the teacher on the pairs, in place; the log goes to ``folder``, which becomes ``folders.teacher``.

        Its weights end on the grid of fp16, so that half the bytes keep the very function that students learn from.
        """
        training = self.spec.finetune
        assert training is not None
        objective = TaskObjective(training.label_smoothing)
        self._train_on_pairs(model, objective, training, folder, self.folders.teacher, "teacher")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.half())

    def distill(self, distillation: S.Distillation, config: Config, folder: Path, target: Path) -> PreTrainedModel:
        """A student of the task's teacher, trained by a preset and rounded to what a packed file stores.

        The log goes to ``folder``, which is to become ``target``.

        Raises:
            InputError: the preset asks for what the teacher writes, and that is missing or another teacher's.
        """
        preset = get_preset(distillation.preset)
        teacher = read_model(self.folders.teacher).to(self.accelerator.device)
        shaped = config.is_open or config.narrow  # by what matters on a calibration set
        calibration = calibration_batches(self.corpus, self.spec) if shaped else None
        student, objective = student_and_objective(teacher, config, preset, calibration)
        config = student.dqlib_config  # with the bits that were chosen, where there is a budget
        recipe = recipe_of(preset, student, teacher)
        training = training_by(recipe, distillation)
        parts: dict[str, object] = {"teacher": weights_hash(teacher), "preset": preset, "config": repr(config)}
        labels = None
        if recipe.pseudo_labels:
            labels = load_labels(self.folders.pseudo_labels, self.corpus.info["sha256"], str(parts["teacher"]))
            parts["pseudo_labels"] = labels.sha256
        name = f"{config} {preset.name}"
        self._train_on_pairs(student, objective, training, folder, target, name, recipe, labels, **parts)
        round_for_storage(student)
        return student

    def _train_on_pairs(
        self, model: PreTrainedModel, objective: Objective, training: S.Training, folder: Path, target: Path, name: str,
        recipe: Recipe = PLAIN, labels: LoadedLabels | None = None, **parts: object,
    ) -> None:  # fmt: skip
        """Train on pairs, and on what a teacher wrote where there are ``labels``."""
        spec = self.spec.corpus
        validation = self._pairs("validation", self._validation_rows(), spec)
        # A tokenizer is saved as its last call left it: whether examples are found or made, the same.
        self.kind.encode(self.corpus.splits["validation"][:1], self.corpus, spec)
        batches = self.batches(training, recipe, labels)
        self._train(model, objective, training, folder, target, name, batches, validation, recipe, **parts)

    def _train(
        self, model: PreTrainedModel, objective: Objective, training: S.Training, folder: Path, target: Path, name: str,
        batches: Iterator[list[list[Example]]], validation: Sequence[Example], recipe: Recipe = PLAIN, **parts: object,
    ) -> None:  # fmt: skip
        """Train in place. Where that fails, the last good weights are kept beside ``target``."""
        most = self.spec.corpus.target_tokens
        try:
            Trainer(
                model=model,
                objective=objective,
                batches=batches,
                validation=validation,
                training=training,
                accelerator=self.accelerator,
                log_path=folder / LOG,
                name=f"{self.name}: {name}",
                recipe=recipe,
                checkpoints=self._checkpoints(target, training, model, **parts),
                on_policy=OnPolicy(recipe.on_policy, most, training.seed) if recipe.on_policy else None,
                collate=self.kind.collate(self.corpus.tokenizer),
            ).train()
        except TrainingError as error:
            if not error.restored:
                raise
            kept = target.with_name(f"{target.name}.last-good")
            if self.accelerator.is_main_process:
                with atomic_folder(kept) as aside:
                    save_student(model, aside) if hasattr(model, "dqlib_preset") else save_model(model, aside)
            raise TrainingError(f"{error} The weights of the best validation are kept in {kept}.") from None

    def batches(
        self, training: S.Training, recipe: Recipe, labels: LoadedLabels | None = None
    ) -> Iterator[list[list[Example]]]:
        """The micro-batches of each step: of short sources first, as long as the recipe says, then of whole ones."""
        spec, first = self.spec.corpus, round(recipe.short_sources * training.steps)
        whole = steps(self._training_examples(spec, recipe, labels), training)
        if not first:
            return whole
        length = max(SHORTEST, round(recipe.short_length * spec.source_tokens))
        short = self._training_examples(replace(spec, source_tokens=length), recipe, labels)
        return chain(islice(steps(short, training), first), whole)

    def _training_examples(
        self, spec: S.Corpus, recipe: Recipe, labels: LoadedLabels | None
    ) -> Sequence[Example] | Mixture:
        """The training pairs at the lengths of ``spec``, mixed with what a teacher wrote where there are ``labels``."""
        pairs = self._pairs("train", self.corpus.splits["train"], spec)
        if labels is None:
            return pairs
        of_labels = f" {labels.sha256}"
        targets = self._pairs("labelled-pairs", labels.pairs, spec, of_labels)
        return Mixture(pairs, targets, self._pairs("labelled-texts", labels.texts, spec, of_labels), recipe)

    def _pairs(self, split: str, rows: Rows, spec: S.Corpus, of_labels: str = "") -> StoredExamples:
        """Examples of rows, as long as the parameters of a corpus say."""
        description = f"pairs of {spec.source_tokens} and {spec.target_tokens}{of_labels}"
        return self._examples(split, rows, lambda some: self.kind.encode(some, self.corpus, spec), description)

    def _validation_rows(self) -> Rows:
        return self.corpus.splits["validation"][: self.spec.evaluate.validation_documents]

    def _examples(
        self, split: str, rows: Rows, make: Callable[[Sequence[Row]], list[Example]], description: str
    ) -> StoredExamples:
        """Examples of rows of a split, tokenized once for all runs that want the same of the same corpus.

        ``description`` says what ``make`` does, with all that decides it but corpus and tokenizer.
        """
        parts = self.corpus.info["sha256"], split, len(rows), description, tokenizers.__version__, code_hash()
        digest = self._with_tokenizer(" ".join(map(str, parts)))
        folder = self.corpus.folder.parent / "tokens" / f"{split}-{digest[:16]}"
        with self.accelerator.main_process_first():  # one process writes for all
            return stored_examples(folder, rows, make)

    def _with_tokenizer(self, text: str) -> str:
        """SHA-256 of a text and of all files of the corpus's tokenizer."""
        digest = hashlib.sha256(text.encode())
        for path in sorted((self.corpus.folder / "tokenizer").iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def _checkpoints(self, target: Path, training: S.Training, model: PreTrainedModel, **parts: object) -> Checkpoints:
        """Of the training that makes ``target``: everything that decides it is part of their identity."""
        corpus, spec = self.corpus, self.spec
        examples = spec.corpus.source_tokens, spec.corpus.target_tokens, spec.evaluate.validation_documents
        of_training = identity(
            training=training, weights=weights_hash(model), corpus=corpus.info["sha256"], code=code_hash(),
            examples=self._with_tokenizer(" ".join(map(str, examples))), processes=self.accelerator.num_processes,
            **parts,
        )  # fmt: skip
        return Checkpoints(self.folders.checkpoints(target), of_training)


def calibration_batches(corpus: LoadedCorpus, spec: S.Task) -> list[dict[str, Tensor]]:
    """The first training pairs as batches of a model's inputs with labels: what a student is shaped by before training.

    Every run of a task takes the same, so that what is chosen on them is the same for all.
    """
    kind = training_of(spec.form)
    collate = kind.collate(corpus.tokenizer)
    examples = kind.encode(corpus.splits["train"][:CALIBRATION], corpus, spec.corpus)[:CALIBRATION]
    return [
        collate(examples[first : first + CALIBRATION_BATCH]).with_labels()
        for first in range(0, len(examples), CALIBRATION_BATCH)
    ]


def student_and_objective(
    teacher: PreTrainedModel, config: Config, preset: Preset, calibration: Calibration | None = None
) -> tuple[PreTrainedModel, Objective]:
    """A student that is to be trained, and what its training minimizes under a preset.

    Both models give out the attention maps that the preset compares. ``calibration`` as in
    :func:`dqlib.student.make_student`.
    """
    student = make_student(teacher, config, preset, calibration)
    config = student.dqlib_config
    for model in (teacher, student):
        set_attention_maps(model, preset.loss.attention_maps)
    if not preset.loss.of_teacher:
        return student, TaskObjective()
    recipe = recipe_of(preset, student, teacher)
    maps = supervision_maps(config, teacher, student)
    return student, DistillationObjective(teacher, maps, preset.loss, recipe=recipe)


def training_by(recipe: Recipe, distillation: S.Distillation) -> S.Training:
    """The training that a preset's recipe makes of the study's steps, batches and rate."""
    values = {each.name: getattr(distillation, each.name) for each in fields(S.Loop)}
    values["learning_rate"] *= recipe.learning_rate
    if recipe.weight_decay is not None:
        values["weight_decay"] = recipe.weight_decay
    return S.Training(**values, schedule=recipe.schedule, warmup=recipe.warmup)


def recipe_of(preset: Preset, student: PreTrainedModel, teacher: PreTrainedModel) -> Recipe:
    """How a student of a teacher is trained under a preset."""
    return preset.recipe_for(student.dqlib_config, layer_weights(student) / layer_weights(teacher))
