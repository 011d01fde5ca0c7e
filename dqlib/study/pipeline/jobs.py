"""The heavy work of the study, each job run by ``python -m dqlib.study job`` on one process or several.

``pretrain`` and ``finetune`` make the teacher, ``distill`` makes one student. The last two also test what they made.
:class:`dqlib.study.pipeline.study.Study` starts them; a cluster may start them itself with ``torchrun`` or
``accelerate launch``, with the same arguments.
"""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from dqlib.architectures import architecture_of
from dqlib.config import FULL_PRECISION, Config
from dqlib.errors import InputError
from dqlib.files import atomic_folder, write_text
from dqlib.storage.footprint import fp32_size_bytes, size_bytes
from dqlib.storage.reading import read_model, save_model
from dqlib.storage.students import save_student
from dqlib.study.corpora.corpus import load_corpus
from dqlib.study.evaluation.records import (
    Record,
    Scores,
    method_of,
    read_record,
    write_answers,
    write_details,
    write_record,
)
from dqlib.study.params import settings as S
from dqlib.study.params.paths import COST, LOG, RECORD, Folders
from dqlib.study.pipeline.committed import committed_teacher
from dqlib.study.process.locks import only_maker
from dqlib.study.training.loop import Log, make_accelerator
from dqlib.study.training.models import pretrained_model, starting_model
from dqlib.study.training.task import TaskTraining


def pretrain(settings: S.Settings, task: str) -> None:
    """Make the model that the teacher starts from: by pre-training, or a copy of what others have pre-trained.

    Raises:
        InputError: the task's teacher does not start from a pre-trained model of its own, or all texts of a split
            are too short for it.
    """
    spec, folders = settings.task(task), settings.folders(task)
    if spec.model.checkpoint is not None:
        loop = spec.pretrain or spec.distill
        accelerator = make_accelerator(loop.seed, loop.precision)  # weights that a checkpoint lacks are random
        model = pretrained_model(spec.model, spec.form, finetuned=spec.finetune is None)
        with made(accelerator, folders, folders.pretrained) as folder:
            if accelerator.is_main_process:
                save_model(model, folder)
                Log(folder / LOG).add({"step": 0})
        return
    if spec.pretrain is None:
        raise InputError(f"{task}.pretrain", None, "given, to pre-train")
    training = _training(settings, task, spec.pretrain)
    model = training.kind.new(spec, training.corpus.tokenizer)
    with made(training.accelerator, folders, folders.pretrained) as folder:
        training.pretrain(model, folder)
        if training.accelerator.is_main_process:
            save_model(model, folder)


def finetune(settings: S.Settings, task: str) -> None:
    """Fine-tune the pre-trained model, or train a new one, into the teacher, and test it.

    Without a block ``finetune`` the pre-trained model is the teacher as it is. Where the committed teacher is the one
    that the parameters ask for, it is taken and tested.
    """
    spec, folders = settings.task(task), settings.folders(task)
    training = _training(settings, task, spec.finetune or spec.distill)
    committed = committed_teacher(settings, task)
    if committed is None:
        model = starting_model(settings, task, training.corpus)
    else:
        model = read_model(committed, dtype=torch.float32)
    with made(training.accelerator, folders, folders.teacher) as folder:
        if committed is not None:
            if training.accelerator.is_main_process:
                print(f"{task}: the teacher is that of {committed}, which was made from the same", flush=True)
                shutil.copyfile(committed / LOG, folder / LOG)
        elif spec.finetune is not None:
            training.finetune(model, folder)
        elif training.accelerator.is_main_process:
            Log(folder / LOG).add({"step": 0})
        model.to(training.accelerator.device)
        if training.accelerator.is_main_process:
            save_model(model, folder, training.corpus.tokenizer)
        depths = architecture_of(model.config).depths(model.config)
        config = Config(FULL_PRECISION, FULL_PRECISION, FULL_PRECISION, *depths)
        made_by, size = "fine-tuning" if spec.finetune else "checkpoint", fp32_size_bytes(model)
        scores = _tested(training, model, config, made_by, spec.finetune, spec.evaluate, folder, size)
        if scores is not None:
            _add_baselines(training, scores, folder)


def distill(
    settings: S.Settings, task: str, config: Config, preset: str | None = None, seed: int | None = None
) -> None:
    """Make one student: copy layers, quantize, train against the teacher, test."""
    spec = settings.task(task)
    distillation = spec.distillation(preset, seed)
    target = settings.student_folder(task, config, distillation.preset, distillation.seed)
    _student(settings, task, config, distillation, spec.evaluate, target)


def make_run(settings: S.Settings, task: str, run: S.Run, target: Path) -> None:
    """Make and test the student of one run of the benchmark in its folder; its weights are not kept.

    What its training cost is the time of this process on the processor, in minutes; null of a training that goes on
    from a checkpoint, since another process has done a part of it.
    """
    benchmark = settings.task(task).methods
    assert benchmark is not None  # it is one of its runs
    _student(settings, task, run.config, benchmark.distillation(run), benchmark.evaluate, target, of_benchmark=True)


def _student(
    settings: S.Settings, task: str, config: Config, distillation: S.Distillation, evaluation: S.Evaluation,
    target: Path, of_benchmark: bool = False,
) -> None:  # fmt: skip
    training = _training(settings, task, distillation)
    with made(training.accelerator, training.folders, target) as folder:
        whole, start = not training.folders.checkpoints(target).exists(), time.process_time()
        student = training.distill(distillation, config, folder, target)
        if of_benchmark:
            minutes = round((time.process_time() - start) / 60, 4) if whole else None
            write_text(folder / COST, json.dumps({"minutes": minutes}) + "\n")
        elif training.accelerator.is_main_process:
            save_student(student, folder, training.corpus.tokenizer)
        teacher = read_record(training.folders.teacher)
        config, name = student.dqlib_config, distillation.preset
        _tested(training, student, config, name, distillation, evaluation, folder, size_bytes(student), teacher)


def quiet() -> None:
    """Keep transformers from printing what the study prints itself."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def run_job(
    settings: S.Settings,
    job: str,
    task: str,
    config: Config | None = None,
    preset: str | None = None,
    seed: int | None = None,
) -> None:
    """Run ``pretrain``, ``finetune`` or ``distill`` in this process.

    Raises:
        InputError: task or configuration are not allowed.
        TrainingError: a loss is not a finite number, or memory is too small.
        BusyError: another run is making the same.
    """
    quiet()
    if job == "distill":
        if config is None:
            raise InputError("config", None, "given, to distill")
        distill(settings, task, config, preset, seed)
    else:
        {"pretrain": pretrain, "finetune": finetune}[job](settings, task)


def check_inputs(settings: S.Settings, job: str, task: str, params: str) -> None:
    """Refuse a job whose inputs are not there, and say what makes them.

    Raises:
        InputError: the corpus, the pre-trained model or the teacher is missing.
    """
    spec, folders, pretrained = settings.task(task), settings.folders(task), settings.pretrained_folder(task)
    needed = {"corpus": folders.corpus / "corpus.json"}
    if job == "pretrain" and spec.model.checkpoint is not None:
        needed = {}  # a model that others have pre-trained is copied
    if job == "finetune" and pretrained is not None:
        needed["pretrained"] = pretrained / "config.json"
    if job == "distill":
        needed["teacher"] = folders.teacher / RECORD
    for part, file in needed.items():
        if not file.is_file():
            command = f"python -m dqlib.study make {part} --params {params} --task {task}"
            raise InputError(part, str(file.parent), f"a folder that is there; `{command}` makes it")


@contextmanager
def made(accelerator: Accelerator, folders: Folders, target: Path) -> Iterator[Path]:
    """A folder to fill, put in place when all went well; only the main process writes, and only one run at a time.

    Its checkpoints go when it is there.

    Raises:
        BusyError: another run is making it.
    """
    if not accelerator.is_main_process:
        yield target
        return
    checkpoints = folders.checkpoints(target)
    with only_maker(target, checkpoints.with_name(f"{checkpoints.name}.lock")):
        with atomic_folder(target) as folder:
            yield folder
        shutil.rmtree(checkpoints, ignore_errors=True)


def _training(settings: S.Settings, task: str, loop: S.Loop) -> TaskTraining:
    folders, accelerator = settings.folders(task), make_accelerator(loop.seed, loop.precision)
    return TaskTraining(task, settings.task(task), folders, load_corpus(folders.corpus), accelerator)


def _tested(
    training: TaskTraining, model: PreTrainedModel, config: Config, preset: str, loop: S.Loop | None,
    evaluation: S.Evaluation, folder: Path, size: int, teacher: Record | None = None,
) -> Scores | None:  # fmt: skip
    """Test a model, and leave its answers, details and record in the folder; the scores on the main process alone."""
    role, what = ("student", f"{config} {preset}") if teacher else ("teacher", "the teacher")
    name = f"{training.name}: testing {what}"
    scored = importlib.import_module(training.spec.form.scoring).score(training, model, evaluation, name)
    if scored is None:
        return None
    scores, lines = scored
    write_answers(scores, lines, folder)
    corpus = training.corpus.info["name"]
    write_record(Record.of(training.name, corpus, role, config, preset, loop, scores, size, teacher), folder)
    return scores


def _add_baselines(training: TaskTraining, scores: Scores, folder: Path) -> None:
    """Leave beside a teacher's details what simpler methods reach on the same test, and say it."""
    module = training.spec.form.baselines
    if module is None:
        return
    found = importlib.import_module(module).baselines(training.spec.evaluate, training.spec, training.corpus)
    write_details([*scores.details, *found], folder)
    beside = [f"{each.metric} {each.value:.2f}" for each in found if method_of(each.metric, scores.headline)]
    headline = f"{scores.headline} {scores.means[scores.headline]:.2f}"
    print(f"{training.name}: {headline}; beside it: {', '.join(beside)}", flush=True)
