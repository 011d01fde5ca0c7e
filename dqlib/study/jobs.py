"""The heavy work of the study, each job run by ``python -m dqlib.study.jobs`` on one process or several.

``pretrain`` and ``finetune`` make the teacher, ``distill`` makes one student. The last two also test what
they made. Notebooks start jobs through :func:`dqlib.study.launch.launch`; a cluster may start them itself
with ``torchrun`` or ``accelerate launch``, with the same arguments.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import tokenizers
import torch
from accelerate import Accelerator
from transformers import MBartConfig, MBartForConditionalGeneration, PreTrainedModel
from transformers.utils import logging as transformers_logging

from dqlib.architectures import architecture_of
from dqlib.config import Configuration
from dqlib.errors import InputError
from dqlib.footprint import fp32_size_bytes, size_bytes
from dqlib.languages import language_id
from dqlib.presets import preset
from dqlib.reading import read_model, save_model
from dqlib.student import make_student, round_for_storage, save_student, set_attention_maps, supervision_maps
from dqlib.study import settings as S
from dqlib.study.batches import SHORTEST, encode, infill, steps, windows
from dqlib.study.checkpoints import Checkpoints, identity, weights_hash
from dqlib.study.command import ended
from dqlib.study.corpus import LoadedCorpus, load_corpus
from dqlib.study.examples import Example, StoredExamples, stored
from dqlib.study.hub import SHAPE, fetching, snapshot
from dqlib.study.locks import BusyError, only_maker
from dqlib.study.paths import LOG, ROW, Folders, atomic_folder
from dqlib.study.results import Row, read_row, write_row
from dqlib.study.rows import Rows
from dqlib.study.scoring import score
from dqlib.study.settings import load_settings
from dqlib.study.tokenizer import BOS_ID, EOS_ID, PAD_ID
from dqlib.study.train import (
    DistillationObjective,
    Log,
    Objective,
    TaskObjective,
    TrainingError,
    make_accelerator,
    train,
)
from dqlib.study.versions import code_hash


def new_model(model: S.Model, vocab_size: int) -> MBartForConditionalGeneration:
    """A pre-LayerNorm encoder-decoder of mBART's architecture with random weights."""
    return MBartForConditionalGeneration(
        MBartConfig(
            vocab_size=vocab_size,
            d_model=model.d_model,
            encoder_layers=model.encoder_layers,
            decoder_layers=model.decoder_layers,
            encoder_attention_heads=model.heads,
            decoder_attention_heads=model.heads,
            encoder_ffn_dim=model.ffn_dim,
            decoder_ffn_dim=model.ffn_dim,
            max_position_embeddings=model.max_positions,
            dropout=model.dropout,
            attention_dropout=0.0,
            init_std=model.init_std,
            scale_embedding=True,
            bos_token_id=BOS_ID,
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
            decoder_start_token_id=EOS_ID,
            forced_eos_token_id=None,
        )
    )


def pretrain(settings: S.Settings, task: str, config: str | None = None, method: str | None = None) -> None:
    """Text infilling on the training texts: teaches a new model to read its source.

    Raises:
        InputError: the task's teacher does not start from a pre-trained model of its own, or all texts of a split
            are too short for it.
    """
    spec, folders = settings.task(task), settings.folders(task)
    training = spec.pretrain
    accelerator = _accelerator(training or spec.finetune or spec.distill)
    if spec.model.pretrained is not None and not spec.model.base_task:
        return _copy_pretrained(spec.model, folders, accelerator)
    if training is None:
        raise InputError(f"{task}.pretrain", None, "given, to pre-train")
    corpus = load_corpus(folders.corpus)
    model = new_model(spec.model, len(corpus.tokenizer))
    noise = partial(infill, pretraining=training, mask=corpus.tokenizer.mask_token_id)
    make = partial(windows, tokenizer=corpus.tokenizer, length=training.window)
    examples = _stored(corpus, "train", corpus.splits["train"], make, f"windows of {training.window}", accelerator)
    order = random.Random(0)  # the same masks at every validation
    held_out = [
        noise(example, order) for example in windows(_held_out(corpus, spec), corpus.tokenizer, training.window)
    ]
    for split, each in (("train", examples), ("validation", held_out)):
        if not each:
            allowed = f"at least 1: no text of the corpus '{corpus.info['name']}' there has {SHORTEST} tokens"
            raise InputError(f"{task}.corpus.{split}, windows of text", 0, allowed)
    with made(accelerator, folders, folders.pretrained) as folder:
        log, name = folder / LOG, f"{task}: pre-training"
        batches = steps(examples, training, noise)
        checkpoints = _checkpoints(folders, folders.pretrained, training, model, spec, corpus, accelerator)
        train(model, TaskObjective(), batches, held_out, training, accelerator, log, name, checkpoints=checkpoints)
        if accelerator.is_main_process:
            save_model(model, folder)


def finetune(settings: S.Settings, task: str, config: str | None = None, method: str | None = None) -> None:
    """Fine-tune the pre-trained model, or train a new one, into the teacher, and test it.

    A checkpoint that has been fine-tuned, ``finetune: null``, is the teacher as it is.
    """
    spec, folders = settings.task(task), settings.folders(task)
    accelerator = _accelerator(spec.finetune or spec.distill)
    corpus = load_corpus(folders.corpus)
    model = _starting_model(settings, task, corpus)
    with made(accelerator, folders, folders.teacher) as folder:
        if spec.finetune is not None:
            objective, name = TaskObjective(spec.finetune.label_smoothing), f"{task}: teacher"
            checkpoints = _checkpoints(folders, folders.teacher, spec.finetune, model, spec, corpus, accelerator)
            _train_on_pairs(
                model, objective, spec, spec.finetune, corpus, accelerator, folder, folders.teacher, name, checkpoints
            )
        elif accelerator.is_main_process:
            Log(folder / LOG).add({"step": 0})
        model.to(accelerator.device)
        if accelerator.is_main_process:
            save_model(model, folder, corpus.tokenizer)
        layers = f"{spec.model.encoder_layers}-{spec.model.decoder_layers}"
        configuration = Configuration.parse(f"32-32-32 {layers}")
        scores = score(model, spec.evaluate, spec, corpus, accelerator, folder, f"{task}: testing the teacher")
        if accelerator.is_main_process:
            row = Row.of(
                task, corpus.info["name"], "teacher", configuration,
                "fine-tuning" if spec.finetune else "checkpoint", spec.finetune, scores,
                size_bytes=fp32_size_bytes(model), teacher=None,
            )  # fmt: skip
            write_row(row, folder)


def distill(settings: S.Settings, task: str, config: str | None = None, method: str | None = None) -> None:
    """Make one student: copy layers, quantize, train against the teacher, test."""
    configuration = Configuration.parse(config)
    spec, folders = settings.task(task), settings.folders(task)
    distillation = spec.distill if method is None else replace(spec.distill, preset=method)
    accelerator = _accelerator(distillation)
    corpus = load_corpus(folders.corpus)
    target = folders.student(configuration.slug, None if distillation == spec.distill else method)
    with made(accelerator, folders, target) as folder:
        student = distilled(
            distillation, configuration, spec, corpus, folders.teacher, accelerator, folder, target, task
        )
        if accelerator.is_main_process:
            save_student(student, folder, corpus.tokenizer)
        score_student(student, distillation, spec.evaluate, spec, corpus, folders.teacher, accelerator, folder, task)


def distilled(
    distillation: S.Distillation,
    configuration: Configuration,
    spec: S.Task,
    corpus: LoadedCorpus,
    teacher_folder: Path,
    accelerator: Accelerator,
    folder: Path,
    target: Path,
    task: str,
) -> PreTrainedModel:
    """A student trained by a preset; its log is left in ``folder``, which is to become ``target``."""
    method = preset(distillation.preset)
    teacher = read_model(teacher_folder).to(accelerator.device)
    depths = architecture_of(teacher.config).depths(teacher.config)
    recipe = method.recipe_for(configuration, (configuration.encoder_layers, configuration.decoder_layers) != depths)
    training, loss = distillation.training(recipe), method.loss
    student = make_student(teacher, configuration, method)
    maps = supervision_maps(configuration, teacher)
    for model in (teacher, student):
        set_attention_maps(model, loss.attention_maps)
    objective = DistillationObjective(teacher, maps, loss) if loss.of_teacher else TaskObjective()
    name = f"{task}: {configuration} {method.name}"
    checkpoints = _checkpoints(
        Folders(teacher_folder.parent), target, training, student, spec, corpus, accelerator,
        teacher=weights_hash(teacher), method=method, configuration=configuration,
    )  # fmt: skip
    _train_on_pairs(
        student, objective, spec, training, corpus, accelerator, folder, target, name, checkpoints,
        recipe.scale_learning_rate, recipe.progressive,
    )  # fmt: skip
    round_for_storage(student)
    return student


def score_student(
    student: PreTrainedModel,
    distillation: S.Distillation,
    evaluation: S.Evaluation,
    spec: S.Task,
    corpus: LoadedCorpus,
    teacher_folder: Path,
    accelerator: Accelerator,
    folder: Path,
    task: str,
) -> None:
    """Test a student, and leave predictions and the row of its scores in the folder."""
    configuration = student.dqlib_configuration
    name = f"{task}: testing {configuration} {distillation.preset}"
    scores = score(student, evaluation, spec, corpus, accelerator, folder, name)
    if accelerator.is_main_process:
        row = Row.of(
            task, corpus.info["name"], "student", configuration, distillation.preset, distillation, scores,
            size_bytes=size_bytes(student), teacher=read_row(teacher_folder),
        )  # fmt: skip
        write_row(row, folder)


JOBS = {"pretrain": pretrain, "finetune": finetune, "distill": distill}


def quiet() -> None:
    """Keep transformers from telling what the study tells itself."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def run_job(settings: S.Settings, job: str, task: str, config: str | None = None, method: str | None = None) -> None:
    """Run one of :data:`JOBS` in this process.

    Raises:
        InputError: task or configuration are not allowed.
        TrainingError: a loss is not a finite number, or memory is too small.
        BusyError: another run is making the same.
    """
    quiet()
    JOBS[job](settings, task, config, method)


def main(arguments: list[str] | None = None) -> int:
    """Run one job; errors of the user's making are one sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m dqlib.study.jobs", description=__doc__.partition("\n")[0])
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("--params", default="params.yaml", help="parameter file, or name of a profile")
    parser.add_argument("--task", default="summarization")
    parser.add_argument("--config", help="configuration of the student, for 'distill'")
    parser.add_argument("--preset", help="of the student, for 'distill'; the task's own, when left out")
    options = parser.parse_args(arguments)

    def run() -> None:
        settings = load_settings(options.params)
        _check_made(settings, options.job, options.task, options.params)
        run_job(settings, options.job, options.task, options.config, options.preset)

    try:
        return ended(run, BusyError, TrainingError)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _check_made(settings: S.Settings, job: str, task: str, params: str) -> None:
    """Refuse a job whose inputs are not there, and say what makes them.

    Raises:
        InputError: the corpus, the pre-trained model or the teacher is missing.
    """
    spec, folders, pretrained = settings.task(task), settings.folders(task), settings.pretrained_folder(task)
    needed = {"corpus": folders.corpus / "corpus.json"}
    if job == "pretrain" and spec.model.pretrained is not None and not spec.model.base_task:
        needed = {}  # a model that others have pre-trained is copied
    if job == "finetune" and pretrained is not None:
        needed["pretrained"] = pretrained / "config.json"
    if job == "distill":
        needed["teacher"] = folders.teacher / ROW
    for part, file in needed.items():
        if not file.is_file():
            command = f"python -m dqlib.study.pipeline {part} --params {params} --task {task}"
            raise InputError(part, str(file.parent), f"a folder that is there; `{command}` makes it")


def _starting_model(settings: S.Settings, task: str, corpus: LoadedCorpus) -> PreTrainedModel:
    """The pre-trained model, or one with random weights; by itself it writes the first language, if there are any."""
    spec, pretrained = settings.task(task), settings.pretrained_folder(task)
    model = new_model(spec.model, len(corpus.tokenizer)) if pretrained is None else read_model(pretrained)
    if len(corpus.tokenizer) > model.config.vocab_size:
        allowed = f"one of at most {model.config.vocab_size} tokens, which the model '{spec.model.pretrained}' knows"
        raise InputError("corpus.tokenizer", spec.corpus.tokenizer, allowed)
    if spec.corpus.languages:
        start = language_id(corpus.tokenizer, spec.corpus.languages[0])
        model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
        model.generation_config.forced_bos_token_id = None  # the decoder starts from the language, and needs no other
    return model


def _copy_pretrained(spec: S.Model, folders: Folders, accelerator: Accelerator) -> None:
    """Take a model that others have pre-trained in place of text infilling.

    Raises:
        InputError: it cannot be reached, or is not of the shape that the parameters say.
    """
    with fetching("model.pretrained", spec.pretrained):
        model = read_model(snapshot(spec.pretrained, spec.revision), "seq2seq", dtype=torch.float32, bins=True)
    _check_shape(model, spec)
    with made(accelerator, folders, folders.pretrained) as folder:
        if accelerator.is_main_process:
            save_model(model, folder)
            Log(folder / LOG).add({"step": 0})


def _check_shape(model: PreTrainedModel, spec: S.Model) -> None:
    config = model.config
    for name in ("architecture", *S.SIZES):
        value = getattr(config, SHAPE[name])
        if getattr(spec, name) != value:
            raise InputError(f"model.{name}", getattr(spec, name), f"{value}, as in the model '{spec.pretrained}'")
    for name, wanted in (("bos", BOS_ID), ("pad", PAD_ID), ("eos", EOS_ID)):
        value = getattr(config, f"{name}_token_id")
        if value != wanted:
            raise InputError(f"model '{spec.pretrained}', {name}_token_id", value, f"{wanted}, as in BART and mBART")


def _stored(
    corpus: LoadedCorpus,
    split: str,
    rows: Rows,
    make: Callable[[Sequence[dict[str, str]]], list[Example]],
    told: str,
    accelerator: Accelerator,
) -> StoredExamples:
    """Examples of rows of a split, tokenized once for all runs that want the same of the same corpus.

    Args:
        corpus: whose rows they are.
        split: its name.
        rows: the split's first ones, or all.
        make: examples of some of them.
        told: what ``make`` does, with all that decides it but corpus and tokenizer.
        accelerator: of this process; one process writes for all.
    """
    parts = corpus.info["sha256"], split, len(rows), told, tokenizers.__version__, code_hash()
    digest = _with_tokenizer(" ".join(map(str, parts)), corpus)
    folder = corpus.folder.parent / "tokens" / f"{split}-{digest[:16]}"
    with accelerator.main_process_first():
        return stored(folder, rows, make)


def _with_tokenizer(text: str, corpus: LoadedCorpus) -> str:
    """SHA-256 of a text and of all files of the corpus's tokenizer."""
    digest = hashlib.sha256(text.encode())
    for path in sorted((corpus.folder / "tokenizer").iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _train_on_pairs(
    model: PreTrainedModel,
    objective: Objective,
    spec: S.Task,
    training: S.Training,
    corpus: LoadedCorpus,
    accelerator: Accelerator,
    folder: Path,
    target: Path,
    name: str,
    checkpoints: Checkpoints,
    *of_scales: float,
) -> None:
    """Train on pairs; where training fails, the last good weights are kept beside ``target``."""
    make = partial(encode, tokenizer=corpus.tokenizer, corpus=spec.corpus)
    told = f"pairs of {spec.corpus.source_tokens} and {spec.corpus.target_tokens}"
    examples = _stored(corpus, "train", corpus.splits["train"], make, told, accelerator)
    held_out = _stored(corpus, "validation", _held_out(corpus, spec), make, told, accelerator)
    make(corpus.splits["validation"][:1])  # a tokenizer is saved as its last call left it: found or made, the same file
    batches = steps(examples, training)
    try:
        train(
            model, objective, batches, held_out, training, accelerator, folder / LOG, name, *of_scales,
            checkpoints=checkpoints,
        )  # fmt: skip
    except TrainingError as error:
        if not error.restored:
            raise
        kept = rescue_folder(target)
        if accelerator.is_main_process:
            with atomic_folder(kept) as aside:
                save_student(model, aside) if hasattr(model, "dqlib_preset") else save_model(model, aside)
        raise TrainingError(f"{error} The weights of the best validation are kept in {kept}.") from None


def rescue_folder(target: Path) -> Path:
    """Where the last good weights of a training that failed are kept."""
    return target.with_name(f"{target.name}.last-good")


def _held_out(corpus: LoadedCorpus, spec: S.Task) -> Rows:
    return corpus.splits["validation"][: spec.evaluate.validation_documents]


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


def _accelerator(training: S.Loop) -> Accelerator:
    return make_accelerator(training.seed, training.precision)


def _checkpoints(
    folders: Folders,
    target: Path,
    training: S.Training,
    model: PreTrainedModel,
    spec: S.Task,
    corpus: LoadedCorpus,
    accelerator: Accelerator,
    **parts: object,
) -> Checkpoints:
    """Of the training that makes ``target``: everything that decides it is told apart."""
    examples = spec.corpus.source_tokens, spec.corpus.target_tokens, spec.evaluate.validation_documents
    told = identity(
        training=training, weights=weights_hash(model), corpus=corpus.info["sha256"], code=code_hash(),
        examples=_with_tokenizer(" ".join(map(str, examples)), corpus), processes=accelerator.num_processes, **parts,
    )  # fmt: skip
    return Checkpoints(folders.checkpoints(target), told)


if __name__ == "__main__":
    sys.exit(main())
