"""From a checkpoint and pairs to a small model with its report: the study's parts, in one folder, each made once."""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas
import torch
import yaml

from dqlib.architectures import architecture_of
from dqlib.config import Config, in_megabytes
from dqlib.engines import ENGINES, EXTRA, export_model
from dqlib.engines.kept import keep
from dqlib.engines.torch_engine import load_model
from dqlib.errors import InputError
from dqlib.files import atomic_folder, write_text
from dqlib.presets import get_preset
from dqlib.storage.budget import module_entries
from dqlib.storage.packed import save_packed
from dqlib.storage.reading import json_object, read_model, read_tokenizer
from dqlib.storage.students import load_student
from dqlib.study.corpora.corpus import LoadedCorpus, load_corpus
from dqlib.study.corpora.rows import LONGEST_DOCUMENT
from dqlib.study.corpora.splits import SPLITS
from dqlib.study.distill.arguments import DistillArguments, arguments_of, flag, options_named, options_of
from dqlib.study.distill.page import PAGE, measure, write_report
from dqlib.study.distill.parameters import asked_of, parameters, validations_of
from dqlib.study.evaluation.records import Record, read_record
from dqlib.study.params import settings as S
from dqlib.study.params.evaluation import FEWEST_DOCUMENTS
from dqlib.study.params.paths import PROVENANCE
from dqlib.study.pipeline.jobs import quiet
from dqlib.study.pipeline.plan import Plan, plan
from dqlib.study.pipeline.study import Study
from dqlib.study.process.exit_codes import exit_code
from dqlib.study.process.progress import duration
from dqlib.study.report.names import percent
from dqlib.study.training.kinds import training_of

#: A year and more, which is meant by nobody.
LONGEST_HOURS = 10_000

#: Hours of all, where neither hours nor steps are given.
HOURS = 2.0

#: Files and folders of the output: what was asked for, the parameters that were made of it, and all that is made first.
ARGUMENTS, PARAMS, WORK = "arguments.json", "params.yaml", "work"

#: Numbers of a student in fp32, of its size: its best weights, and a checkpoint (weights, best ones, two averages of
#: the optimizer) as it is made and as it is written; two such on the disk.
CHECKPOINT_COPIES, CHECKPOINTS_ON_DISK = 1 + 2 * 4, 2 * 4

#: Arguments that change nothing of what is trained.
_OF_OUTPUT = ("out", "export", "dry_run")


@dataclass(frozen=True)
class Distilled:
    """What came of it.

    ``out`` is the folder, with ``report.md``; ``teacher`` and ``student`` are their scores and sizes.
    """

    out: Path
    teacher: Record
    student: Record

    @property
    def retention(self) -> float | None:
        """The part of the teacher's score that is left; None where it has none."""
        return self.student.retention


def distill(checkpoint: str | Path, out: str | Path, **options: Any) -> Distilled | None:
    """Distil and quantize a checkpoint on pairs of texts: what the command ``dqlib distill`` does.

    Args:
        checkpoint: folder or hub name of a BART, mBART, Marian, T5, BERT with a classifier, or GPT-2.
        out: folder to write. With the same arguments it goes on where it was stopped.
        options: the fields of :class:`dqlib.study.distill.arguments.DistillArguments`, at least ``train``, ``config``
            and the columns.

    Returns:
        The scores; None after a dry run.

    Raises:
        InputError: an argument is not allowed; nothing is trained then.
        JobError: the training failed.
    """
    return Command(DistillArguments(checkpoint=str(checkpoint), out=str(out), **options)).run()


def distill_command(options: argparse.Namespace) -> int:
    """The command ``dqlib distill``, and its exit code."""
    return exit_code(Command(arguments_of(DistillArguments, options)).run, "dqlib distill")


@dataclass(frozen=True)
class Command:
    """One call of the command."""

    arguments: DistillArguments

    @property
    def out(self) -> Path:
        return Path(self.arguments.out).expanduser().absolute()

    @property
    def work(self) -> Path:
        """The folder in it with what is made on the way."""
        return self.out / WORK

    @cached_property
    def config(self) -> Config:
        return Config.parse(self.arguments.config)

    @options_named(options_of(DistillArguments))
    def run(self) -> Distilled | None:
        """Make all that is missing.

        Raises:
            InputError: an argument is not allowed; nothing is trained then.
            JobError: the training failed.
        """
        quiet()
        self._check()
        steps = self.arguments.steps or self._asked.get("chosen_steps")
        study = self._study(steps)
        self._check_sizes(study, load_corpus(study.corpus()))
        study.pretrained()
        if not (study.folders.teacher / PROVENANCE).is_file():
            self._check_budget(study)
            self._check_exports(study)
        if self.arguments.dry_run or steps is None:
            estimate = plan(study.settings)
            chosen = steps or self._steps(study, estimate)
            if self.arguments.dry_run:
                print(_estimated(estimate, chosen, self._validation_seconds(study, estimate)))
                return None
            study = self._study(chosen)
        folder = study.student(self.config)
        self._write(study, folder)
        made = Distilled(self.out, read_record(study.folders.teacher), read_record(folder))
        student, kept = made.student, percent(made.student.retention)
        scores = f"{student.headline} {student.score:.2f}, teacher {made.teacher.score:.2f} ({kept})"
        print(f"{self.out / PAGE}: {scores}; {student.compression:.1f} times smaller", flush=True)
        return made

    def _check(self) -> None:
        """Refuse what is seen to be wrong before anything is read or written.

        Raises:
            InputError: an argument is not allowed, or the folder is something else.
        """
        a = self.arguments
        for name in ("steps", "hours", "learning_rate"):
            value = getattr(a, name)
            if value is not None and not value > 0:
                raise InputError(flag(name), value, "a number above 0")
        if a.hours is not None and not a.hours <= LONGEST_HOURS:
            raise InputError("--hours", a.hours, f"at most {LONGEST_HOURS:,}")
        if a.steps is not None and a.hours is not None:
            raise InputError("--hours", a.hours, "left out where --steps are given")
        for engine in a.export:
            if engine not in ENGINES[1:]:
                raise InputError("--export", engine, f"one of {', '.join(ENGINES[1:])}")
            if find_spec(engine) is None:
                raise InputError("--export", engine, f"installed, by {EXTRA}")
        if self.out.exists() and not (self.out.is_dir() and (self._asked or not any(self.out.iterdir()))):
            raise InputError("out", a.out, "a new or empty folder, or one that this command began")
        made = any(self.work.glob(f"*/teacher/{PROVENANCE}"))  # before that a refused command, or a dry run, was here
        if made and any(self._asked[name] != self._asking[name] for name in ("checkpoint", "train")):
            there = f"{self._asked['checkpoint']} and {self._asked['train']}, with which it was begun"
            raise InputError("out", a.out, f"another folder, or the one of {there}")

    @property
    def _asking(self) -> dict[str, Any]:
        """What decides the student, as JSON has it; paths as they are seen from anywhere."""
        asking = {name: value for name, value in asdict(self.arguments).items() if name not in _OF_OUTPUT}
        paths = {name: Path(asking[name]).expanduser() for name in ("checkpoint", *SPLITS) if asking[name]}
        return asking | {name: str(path.absolute()) for name, path in paths.items() if path.exists()}

    @cached_property
    def _asked(self) -> dict[str, Any]:
        """What the folder was made with before, and the steps that were chosen where the arguments are the same."""
        path = self.out / ARGUMENTS
        asked = json_object(path.read_bytes(), str(path)) if path.is_file() else {}
        steps = asked.get("chosen_steps")
        whole = {"checkpoint", "train"} <= asked.keys() and (steps is None or (type(steps) is int and steps > 0))
        if path.is_file() and not whole:
            raise InputError(str(path), "damaged", "as this command wrote it, or the folder be another")
        same = {name: value for name, value in asked.items() if name != "chosen_steps"} == self._asking
        return asked if same else asked | {"chosen_steps": None} if asked else {}

    def _study(self, steps: int | None) -> Study:
        """The study with so many steps, one where they are not chosen yet; its parameters are checked, and written."""
        task, content = parameters(self.arguments, steps or 1)
        content["folder"] = str(self.work)
        settings = S.settings_of(content)
        write_text(self.out / PARAMS, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        asked = self._asking | {"chosen_steps": steps}
        if not (self.arguments.dry_run and (self.out / ARGUMENTS).is_file()):  # which a run goes on by
            write_text(self.out / ARGUMENTS, json.dumps(asked, indent=1, ensure_ascii=False) + "\n")
        return Study(str(self.out / PARAMS), task, settings)

    def _check_sizes(self, study: Study, corpus: LoadedCorpus) -> None:
        """Raise an :class:`InputError` where a step or a test has not enough of a corpus."""
        kind, most = training_of(study.task.form), self.arguments.batch_tokens
        examples = kind.encode(corpus.splits["train"][:most], corpus, study.task.corpus)
        tokens = sum(len(each.source) + len(each.target) for each in examples)
        if tokens < most:
            found = f"{len(examples)} examples of {tokens:,} tokens"
            allowed = f"as many as a step reads at least, {most:,} tokens, or --batch-tokens be fewer"
            raise InputError("--train", found, allowed)
        if (count := len(corpus.splits["test"])) < FEWEST_DOCUMENTS:
            of_documents = "documents", f", of {LONGEST_DOCUMENT:,} characters each"
            unit, size = of_documents if study.task.form.running_text else ("texts", "")
            raise InputError("--test", f"{count} {unit}", f"at least {FEWEST_DOCUMENTS}{size}")

    def _check_budget(self, study: Study) -> None:
        """Raise an :class:`InputError`, before anything is tested, of a budget below the smallest student's bytes."""
        if self.config.budget is None:
            return
        teacher, kind = read_model(study.folders.pretrained), training_of(study.task.form)
        config = self.config.with_layers_of(*architecture_of(teacher.config).depths(teacher.config))
        batch = kind.collate(None)(kind.longest(teacher, 1, study.task.corpus)).with_labels()
        entries, rest = module_entries(teacher, config, get_preset(study.task.distill.preset), [batch])
        smallest = rest + sum(min(each.size_bytes for each in by_bits.values()) for by_bits in entries.values())
        if self.config.budget < smallest:
            allowed = f"at least auto:{in_megabytes(smallest)}, the smallest student of this shape"
            raise InputError("--config", self.arguments.config, allowed)

    def _check_exports(self, study: Study) -> None:
        """Export the checkpoint itself: an :class:`InputError`, before any training, where an engine serves it not."""
        for engine in self.arguments.export:
            with tempfile.TemporaryDirectory(dir=self.work) as scratch:
                export_model(read_model(study.folders.pretrained), Path(scratch, engine), engine)

    def _steps(self, study: Study, estimate: Plan) -> int:
        """As many steps as the hours have room for, beside the tests and the validations.

        Raises:
            InputError: they are too few for a step, a validation and the tests.
        """
        hours, step = self.arguments.hours or HOURS, estimate.trainings[-1].seconds
        validation = self._validation_seconds(study, estimate)
        left = 3600 * hours - sum(each.test_seconds or 0.0 for each in estimate.trainings)
        steps = max(1, int(left / step))
        steps = max(1, int((left - validations_of(steps) * validation) / step))
        if left < step + validation:
            fewest = (3600 * hours - left + step + validation) / 3600
            allowed = f"at least {fewest:.4f}, in which there is time for a step, a validation and the tests"
            raise InputError("--hours", hours, allowed)
        print(f"{steps:,} steps in {hours:g} hours, at {step:.2f} s each", flush=True)
        return steps

    @staticmethod
    def _validation_seconds(study: Study, estimate: Plan) -> float:
        """Of one validation: a third of steps on as many tokens, since it has no backward pass and no teacher."""
        spec, corpus = study.task, load_corpus(study.folders.corpus)
        rows = corpus.splits["validation"][: spec.evaluate.validation_documents]
        tokens = sum(len(e.source) + len(e.target) for e in training_of(spec.form).encode(rows, corpus, spec.corpus))
        return tokens / spec.distill.batch_tokens * estimate.trainings[-1].seconds / 3

    def _write(self, study: Study, folder: Path) -> None:
        """The student, what it is packed and exported as, and the pages about it."""
        identity = hashlib.sha256((folder / PROVENANCE).read_bytes()).hexdigest()
        packed = self.out / "packed"
        asked = asked_of(asdict(study.task.corpus), asdict(study.task.evaluate), study.task.model.max_positions)

        def once(name: str, make: Callable[[Path], object]) -> None:
            note = self.work / "made" / name
            if not (note.is_file() and note.read_text() == identity and (self.out / name).exists()):
                make(self.out / name)
                if (self.out / name).is_dir():
                    keep(self.out / name, asked)
                write_text(note, identity)

        def copy(target: Path) -> None:
            with atomic_folder(target) as scratch:
                shutil.copytree(folder, scratch, dirs_exist_ok=True)

        def export(target: Path) -> None:
            model, tokenizer = load_model(packed)
            export_model(model, target, target.name, tokenizer)

        once("student", copy)
        once("packed", lambda target: save_packed(load_student(folder), target, read_tokenizer(folder)))
        for engine in self.arguments.export:
            once(engine, export)
        folders = {"packed": packed, **{name: self.out / name for name in self.arguments.export}}
        folders["teacher"] = study.folders.teacher
        latency = "-".join(["latency", *folders]) + ".csv"
        once(f"{WORK}/{latency}", lambda target: write_text(target, measure(study, folders)))
        write_report(study, folder, self.out, pandas.read_csv(self.work / latency), self.arguments)


def _estimated(estimate: Plan, steps: int, validation: float) -> str:
    """What a run of so many steps would take, in sentences; ``validation`` are the seconds of one."""
    teacher, *_, student = estimate.trainings
    tests = sum(each.test_seconds or 0.0 for each in estimate.trainings)
    training = steps * student.seconds + validations_of(steps) * validation
    weights = teacher.size_bytes  # of a student in training, at most
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    return (
        f"time: {duration(training)} of training ({steps:,} steps of {student.seconds:.2f} s, "
        f"{validations_of(steps)} validations of {validation:.2f} s), and at most {duration(tests)} of tests, where "
        "all texts are written to their greatest length\n"
        f"memory: at most {(peak + CHECKPOINT_COPIES * weights) / 1e9:.1f} GB\n"
        f"disk, checkpoints too: at most {(2 + CHECKPOINTS_ON_DISK + 2) * weights / 1e9:.1f} GB\n"
        f"the student, packed: {student.size_bytes:,} bytes; the teacher in fp32: {teacher.size_bytes:,}"
    )
