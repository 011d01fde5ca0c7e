"""The parameters of a study, from a checkpoint and the arguments of a command: the block that a profile would have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from dqlib.engines.classifier import class_names
from dqlib.errors import InputError
from dqlib.generation_settings import checked_settings
from dqlib.storage.manifest import folder_kind
from dqlib.storage.reading import config_of
from dqlib.study.corpora.files import ENDINGS
from dqlib.study.corpora.splits import SPLITS
from dqlib.study.corpora.tokenizer import checked_tokenizer, marks_source
from dqlib.study.distill.arguments import Columns, DistillArguments, flag
from dqlib.study.params.checkpoint import checkpoint_config, fetching, generation_settings, located, on_disk
from dqlib.study.params.kinds import KINDS, SEQ2SEQ, Kind
from dqlib.study.params.presets import is_file
from dqlib.study.training.seq2seq import check_tokens

#: Of sources and targets, where neither arguments nor checkpoint say a smaller number.
SOURCE_TOKENS, TARGET_TOKENS = 1024, 128

#: The rate of a model of a width, and the largest: DQ-BART's for BART-base; that of a width of 128 here is 1e-3.
RATE, RATE_WIDTH, LARGEST_RATE = 3e-5, 768, 1e-3

#: Columns that models of a kind have, by the names of the options, and what parameters call them.
OPTIONS = {
    SEQ2SEQ: {"source": "source", "target": "target"},
    "classification": {"text": "source", "second": "second", "label": "target"},
    "language_modelling": {"text": "source"},
}
_OPTIONAL = ("second",)

#: Options of models that write texts alone.
_OF_WRITING = ("language", "prefix", "target_tokens", "beams")

#: Names of tasks, by kind; a translation has one of its own.
TASK_OF_KIND = {SEQ2SEQ: "texts", "classification": "classes", "language_modelling": "language"}

#: Kinds of folders whose models are quantized.
_QUANTIZED = {"packed": "a packed model", "student": "a student"}

#: Packages of tokenizers that this project does without.
_PACKAGES = ("sentencepiece", "tiktoken", "sacremoses")

#: The token of a language in a tokenizer of the study, and in mBART's.
_LANGUAGE = re.compile(r"<([a-z]{2,3})>|([a-z]{2,3}_[A-Z]{2})")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of itself.

    ``field`` is the argument that names it.

    Raises:
        InputError: it is not there, or of another architecture; its tokenizer is not there, or does not fit.
    """

    field: str
    name: str
    revision: str | None = None

    @cached_property
    def content(self) -> dict[str, Any]:
        """Of its ``config.json``."""
        content = checkpoint_config(self.field, self.name, self.revision)
        known = [name for kind in KINDS.values() for name in kind.architectures]
        model, names = content.get("model_type"), content.get("architectures") or [""]
        if model not in known:
            raise InputError(self.field, self.name, f"a checkpoint of one of {', '.join(known)}; it is of {model!r}")
        if not isinstance(names, list):
            raise InputError(f"{self.field}, architectures", names, "a list of the names of classes")
        classifier = KINDS["classification"].finetuned
        if model == "bert" and names[0] != classifier:
            allowed = f"a BERT with a classifier, {classifier}; it is a {names[0] or 'body alone'}"
            raise InputError(self.field, self.name, allowed)
        return content

    @cached_property
    def kind(self) -> str:
        """Of the tasks that it is for."""
        return next(name for name, kind in KINDS.items() if self.content["model_type"] in kind.architectures)

    @property
    def form(self) -> Kind:
        return KINDS[self.kind]

    @cached_property
    def model_config(self) -> PreTrainedConfig:
        plain = {name: value for name, value in self.content.items() if name != "quantization_config"}
        return config_of(plain, f"{self.name}, config.json", 2**20)

    @property
    def positions(self) -> int | None:
        """As many tokens as it reads at most; None where it has no such number."""
        return getattr(self.model_config, "max_position_embeddings", None)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """How it generates."""
        settings = generation_settings(self.field, self.name, self.revision)
        given = {name: value for name, value in (self.content | settings).items() if value is not None}
        names: tuple[str, ...] = ("max_length", "num_beams", "decoder_start_token_id")  # those that are read here
        read = {name: given[name] for name in names if name in given}
        checked_settings(read, self.model_config.vocab_size, f"{self.field}, how it generates")
        return given

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer, which fits it."""
        field = f"{self.field}, its tokenizer"
        try:
            with fetching(field, self.name):
                tokenizer = checked_tokenizer(*located(self.name, self.revision), self.form)
        except (ImportError, InputError) as error:
            package = self._missing_package(error)
            if package is not None:
                allowed = f"one whose packages are installed: this one needs {package} (pip install {package})"
            elif isinstance(error, ImportError):  # of a package that is not known here: transformers says which
                allowed = f"one whose packages are installed ({' '.join(str(error).split())[:200]})"
            else:
                raise
            raise InputError(field, self.name, allowed) from None
        if len(tokenizer) > self.model_config.vocab_size:
            allowed = f"one of at most {self.model_config.vocab_size} tokens, which the model knows"
            raise InputError(field, f"{len(tokenizer)} tokens", allowed)
        special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        if len(tokenizer.get_vocab().keys() - special) <= 1:  # transformers makes one up where its files are missing
            allowed = "one with a vocabulary, which a tokenizer.json or the files of its class have"
            raise InputError(field, self.name, allowed)
        if self.form.writes:
            check_tokens(tokenizer, self.model_config)
        return tokenizer

    def _missing_package(self, error: BaseException | None) -> str | None:
        """The package that its tokenizer was not read without; None for another reason, or a package not known here.

        It is the module that Python did not find, in the error or in one that led to it, or what transformers itself
        missed. Of Marian's tokenizer, which is of SentencePiece alone, transformers knows no class without that.
        """
        if self.content["model_type"] == "marian" and "Unrecognized configuration class" in str(error):
            return "sentencepiece" if find_spec("sentencepiece") is None else None
        while error is not None:
            missed = re.search(r"requires the (\w+) library", str(error))
            name = getattr(error, "name", None) or (missed[1].lower() if missed else None)
            if isinstance(error, ImportError) and name in _PACKAGES:
                return name
            error = error.__cause__ or error.__context__
        return None

    @cached_property
    def start(self) -> int:
        """Id that its decoder starts from; that of padding, where T5 does not say it."""
        start = self.settings.get("decoder_start_token_id", getattr(self.model_config, "decoder_start_token_id", None))
        if start is None:
            start = self.tokenizer.pad_token_id if self.content["model_type"] in ("t5", "marian") else -1
        return start

    @cached_property
    def language(self) -> str | None:
        """That its decoder starts from the token of, or that Marian's tokenizer says; None for neither."""
        if self.content["model_type"] == "marian":
            return getattr(self.tokenizer, "target_lang", None)
        return language_of(self.tokenizer, self.start)

    @cached_property
    def labels(self) -> list[str]:
        """Its classes in the order of its logits; numbers, where they have no names."""
        return list(class_names([name for _, name in sorted(self.model_config.id2label.items())]))

    def prefix(self, asked: str | None) -> str:
        """That stands before each source.

        Raises:
            InputError: the checkpoint has several, and none is asked for.
        """
        of_tasks, field = self.content.get("task_specific_params") or {}, f"{self.field}, task_specific_params"
        if not isinstance(of_tasks, dict):
            raise InputError(field, of_tasks, "settings by the names of tasks")
        prefixes = [each["prefix"] for each in of_tasks.values() if isinstance(each, dict) and "prefix" in each]
        if not all(isinstance(each, str) for each in prefixes):
            raise InputError(field, prefixes, "prefixes that are texts")
        known = sorted(set(prefixes)) or [""]
        if asked is not None or len(known) == 1:
            return known[0] if asked is None else asked
        raise InputError("--prefix", None, f"given, such as {known[0]!r}, or '' where it was fine-tuned without one")

    def lengths(self, columns: Columns) -> dict[str, int]:
        """Tokens of sources and targets that are read.

        Raises:
            InputError: the model has no positions for so many.
        """
        positions = self.positions
        most = min(SOURCE_TOKENS, positions or 512, self.tokenizer.model_max_length)
        longest = self.settings.get("max_length", 0)
        # 20 is what transformers says where nothing is said
        target = min(most, longest if longest > 20 else TARGET_TOKENS)
        lengths = {"source_tokens": most} | ({"target_tokens": target} if self.form.writes else {})
        for name in lengths:
            lengths[name] = getattr(columns, name) or lengths[name]
            if positions is not None and lengths[name] > positions:
                raise InputError(flag(name), lengths[name], f"at most {positions}, the positions of the checkpoint")
        return lengths

    def corpus(self, columns: Columns) -> dict[str, Any]:
        """The parameters of a corpus of pairs for it, but for where they come from.

        Raises:
            InputError: a column is not named, or is one of another kind; a language or a prefix has to be named.
        """
        corpus: dict[str, Any] = corpus_columns(columns, self.kind) | self.lengths(columns)
        if self.form.labels:
            return corpus | {"labels": self.labels}
        return corpus | self._of_texts(columns) if self.form.writes else corpus

    def _of_texts(self, columns: Columns) -> dict[str, Any]:
        found: dict[str, Any] = {"prefix": self.prefix(columns.prefix)}
        language = columns.language or self.language
        end = self.tokenizer.eos_token_id
        if self.content["model_type"] in ("t5", "marian"):
            found["start"] = self.start
        elif self.language is None and not marks_source(self.tokenizer) and (language or self.start not in (-1, end)):
            found["start"] = end if self.start < 0 else self.start
        if marks_source(self.tokenizer):
            if language is None:
                raise InputError("--language", None, "the language that is written, since this tokenizer has several")
            found["source_language"] = self.tokenizer.src_lang
        return found | ({"languages": [language]} if language else {})

    def task(self, columns: Columns) -> str:
        """Name of the task that it does."""
        return "translation" if self.form.writes and (columns.language or self.language) else TASK_OF_KIND[self.kind]

    def evaluate(self, columns: Columns) -> dict[str, Any]:
        """The parameters of a test."""
        beams = columns.beams or (self.settings.get("num_beams", 4) if self.form.writes else 1)
        return {"documents": columns.documents, "beams": beams, "batch_size": columns.batch_size}


def asked_of(corpus: Mapping[str, Any], evaluate: Mapping[str, Any], positions: int | None) -> dict[str, Any]:
    """What :mod:`dqlib.engines.kept` keeps, of the parameters of a corpus and of a test, and a model's positions."""
    asked = {name: corpus.get(name) for name in ("prefix", "source_tokens", "target_tokens")}
    if asked["target_tokens"] and positions:
        asked["target_tokens"] = min(asked["target_tokens"], positions - 1)  # as many as engines write
    return asked | {"language": next(iter(corpus.get("languages", ())), None), "beams": evaluate["beams"]}


def language_of(tokenizer: PreTrainedTokenizerFast, start: int | None) -> str | None:
    """The language whose token a decoder starts from; None for another token, or no decoder."""
    if start is None or start < 0:
        return None
    token = tokenizer.convert_ids_to_tokens(start)
    found = _LANGUAGE.fullmatch(token)
    special = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.mask_token)
    return None if found is None or token in special else found[1] or found[2]


def corpus_columns(columns: Columns, kind: str) -> dict[str, str | None]:
    """The parameters of a corpus that name its columns, for a model of a kind.

    Raises:
        InputError: a column is not named, or it or another option is one of another kind.
    """
    options, description = OPTIONS[kind], KINDS[kind].description
    for name in sorted({name for each in OPTIONS.values() for name in each}):
        value, wanted = getattr(columns, name), name in options
        if value is None and wanted and name not in _OPTIONAL:
            raise InputError(flag(name), None, f"the name of a column, for {description}")
        if value is not None and not wanted:
            raise InputError(flag(name), value, f"left out, for {description}")
    for name in () if KINDS[kind].writes else _OF_WRITING:
        if getattr(columns, name) is not None:
            raise InputError(flag(name), getattr(columns, name), f"left out, for {description}")
    return {theirs: getattr(columns, ours) for ours, theirs in options.items()}


def data_of(columns: Columns, **files: str | None) -> dict[str, Any]:
    """Where the rows of a corpus come from: files, or a data set of the hub whose splits have these names.

    ``train`` is the name of a data set of the hub.

    Raises:
        InputError: a file is not there, and what names it is none of the hub.
    """
    train = files["train"] or ""
    name = re.sub(r"\W+", "-", Path(train).name.partition(".")[0]).strip("-") or "data"
    if train.removesuffix(".gz").endswith(ENDINGS) or "*" in train or _absolute(train).is_file():
        paths = {split: None if path is None else str(_absolute(path)) for split, path in files.items()}
        for split, path in paths.items():
            if path is not None and "*" not in path and not Path(path).is_file():
                raise InputError(flag(split), path, "a file that exists")
        if columns.dataset_config is not None:
            raise InputError("--dataset-config", columns.dataset_config, "left out where the data is a file")
        return {"origin": "files", "name": name} | paths
    is_folder = _absolute(train).is_dir()
    if not is_folder and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", train):
        raise InputError("--train", train, f"a file ({', '.join(ENDINGS)}, or with .gz) or a data set of the hub")
    splits = {split: value for split, value in files.items() if split != "train"}
    found = {"origin": "hub", "dataset": str(_absolute(train)) if is_folder else train}
    return found | splits | {"name": name, "dataset_config": columns.dataset_config}


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def validations_of(steps: int) -> int:
    """How often a training of so many steps is validated."""
    return max(1, min(10, steps // 10))


def parameters(arguments: DistillArguments, steps: int) -> tuple[str, dict[str, Any]]:
    """The name of the task, and the content of its parameter file, for a training of so many steps.

    Raises:
        InputError: an argument is not allowed, or the checkpoint or its tokenizer cannot be read or do not fit.
    """
    folder, revision = _absolute(arguments.checkpoint), arguments.revision
    name = str(folder) if folder.is_dir() else arguments.checkpoint
    if revision is not None and on_disk(name):
        raise InputError("--revision", revision, "left out where the checkpoint is a folder")
    checkpoint = Checkpoint("checkpoint", name, revision)
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    width = getattr(checkpoint.model_config, "d_model", None) or checkpoint.model_config.hidden_size
    kind = folder_kind(located(name)[0]) if on_disk(name) else None
    if kind in _QUANTIZED:
        allowed = f"a model in full precision, such as the teacher of this one, which is {_QUANTIZED[kind]} already"
        raise InputError(checkpoint.field, name, allowed)
    corpus = data_of(arguments, **{split: getattr(arguments, split) for split in SPLITS})
    corpus |= checkpoint.corpus(arguments) | {"tokenizer": name, "tokenizer_revision": revision}
    distill = {
        "steps": steps,
        "learning_rate": arguments.learning_rate or min(LARGEST_RATE, RATE * (RATE_WIDTH / width) ** 2),
        "batch_tokens": arguments.batch_tokens,
        "micro_batches": devices if devices > 1 else 1,
        "validations": validations_of(steps),
        "checkpoint_steps": 200 if devices else 25,
        "seed": arguments.seed,
        "precision": arguments.precision,
        "preset": str(_absolute(arguments.preset)) if is_file(arguments.preset) else arguments.preset,
    }
    block = {
        "corpus": corpus,
        "model": {"pretrained": name, "revision": revision},
        "pretrain": None,
        "finetune": None,
        "distill": distill,
        "evaluate": checkpoint.evaluate(arguments),
        "configs": [arguments.config],
    }
    task = checkpoint.task(arguments)
    return task, {"profile": "distill", "results": "results", "compute": {"processes": max(1, devices)}, task: block}
