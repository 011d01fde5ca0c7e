"""The parameters of a study: read from YAML, checked at once, before any work.

A parameter file is a profile: it sets sizes and sources, never code. Every key is a field of a
dataclass below, an unknown key is an error, and a wrong value is told with its full name.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dqlib.config import Configuration
from dqlib.errors import InputError
from dqlib.presets import Recipe, preset
from dqlib.study.paths import Folders, project_root

SOURCES = ("embedded", "files", "hub")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")


@dataclass(frozen=True)
class Corpus:
    """Where the pairs come from and how they become tokens.

    ``packages`` and ``limit`` (most pairs; null for all) belong to the source ``embedded``; ``train``,
    ``validation``, ``test`` (paths) and the column names to the source ``files``; ``dataset``,
    ``dataset_config``, ``revision`` and the column names to the source ``hub``. ``tokenizer`` names a ready one
    (folder or hub); without it, one of ``vocab_size`` tokens is trained.
    """

    name: str
    source: str
    vocab_size: int
    source_tokens: int
    target_tokens: int
    packages: list[str] = field(default_factory=list)
    limit: int | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    document: str = "document"
    summary: str = "summary"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        _one_of("source", self.source, SOURCES)
        _at_least("vocab_size", self.vocab_size, 300)
        for name in ("source_tokens", "target_tokens"):
            _at_least(name, getattr(self, name), 8)
        if self.limit is not None:
            _at_least("limit", self.limit, 100)
        if self.source == "embedded" and not self.packages:
            raise InputError("packages", self.packages, "a list of installed packages when source is 'embedded'")
        if self.source == "hub" and not self.dataset:
            raise InputError("dataset", self.dataset, "the name of a dataset when source is 'hub'")
        if self.source == "files":
            for name in ("train", "validation", "test"):
                if not getattr(self, name):
                    raise InputError(name, getattr(self, name), "a file when source is 'files'")


@dataclass(frozen=True)
class Model:
    """Shape of the teacher: a pre-LayerNorm encoder-decoder, or that of the ``pretrained`` model to start from."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    ffn_dim: int
    max_positions: int
    dropout: float = 0.0
    init_std: float = 0.02
    pretrained: str | None = None

    def __post_init__(self) -> None:
        if not self.init_std > 0:
            raise InputError("init_std", self.init_std, "a positive number")
        for name in ("d_model", "encoder_layers", "decoder_layers", "heads", "ffn_dim", "max_positions"):
            _at_least(name, getattr(self, name), 1)
        if self.d_model % self.heads:
            raise InputError("heads", self.heads, f"a divisor of d_model, {self.d_model}")
        _below_one("dropout", self.dropout)


@dataclass(frozen=True)
class Training:
    """One run of the training loop."""

    steps: int
    learning_rate: float
    batch_tokens: int
    warmup: float = 0.05
    schedule: str = "linear"
    weight_decay: float = 0.01
    clip: float = 1.0
    micro_batches: int = 2
    validations: int = 4
    seed: int = 28

    def __post_init__(self) -> None:
        for name in ("steps", "batch_tokens", "micro_batches", "validations"):
            _at_least(name, getattr(self, name), 1)
        _at_least("seed", self.seed, 0)
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "a positive number")
        _below_one("warmup", self.warmup)
        _one_of("schedule", self.schedule, SCHEDULES)
        if self.weight_decay < 0:
            raise InputError("weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True)
class Finetuning(Training):
    """Training of the teacher on pairs."""

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _below_one("label_smoothing", self.label_smoothing)


@dataclass(frozen=True)
class Pretraining(Training):
    """Text infilling: spans of a window of ``window`` tokens are masked, ``mask_ratio`` of it in all."""

    window: int = 96
    mask_ratio: float = 0.3
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("window", self.window, 8)
        if not 0 < self.mask_ratio < 1:
            raise InputError("mask_ratio", self.mask_ratio, "between 0 and 1")
        if self.mean_span < 1:
            raise InputError("mean_span", self.mean_span, "at least 1")


@dataclass(frozen=True)
class Distillation:
    """Training of a student against the teacher; schedule and losses are the preset's."""

    steps: int
    learning_rate: float
    batch_tokens: int
    preset: str = "dqlib"
    weight_decay: float = 0.01
    clip: float = 1.0
    micro_batches: int = 2
    validations: int = 4
    seed: int = 28

    def __post_init__(self) -> None:
        preset(self.preset)
        self.training(Recipe())

    def training(self, recipe: Recipe) -> Training:
        """The training that a preset's recipe makes of this."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "preset"}
        values["learning_rate"] *= recipe.learning_rate
        return Training(**values, schedule=recipe.schedule, warmup=recipe.warmup)


@dataclass(frozen=True)
class Evaluation:
    """Test of a model: beam search on the first ``documents`` of the test split (null for all)."""

    documents: int | None = None
    beams: int = 4
    batch_size: int = 32
    bootstrap: int = 1000
    validation_documents: int | None = 500

    def __post_init__(self) -> None:
        for name in ("documents", "validation_documents"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("beams", "batch_size", "bootstrap"):
            _at_least(name, getattr(self, name), 1)


@dataclass(frozen=True)
class Methods:
    """The bench: presets against each other at equal bits and equal steps, one thread a run.

    Presets run at all ``configs`` that they have a grid for, ``ablations`` (presets again) at
    ``ablation_configs`` from ``ablation_seeds`` (all ``seeds``, when left out). A ``p_value`` compares with
    ``baseline`` or, where that has no grid, ``fallback``.
    """

    presets: list[str]
    configs: list[str]
    seeds: list[int]
    distill: Distillation
    evaluate: Evaluation
    ablations: list[str] = field(default_factory=list)
    ablation_configs: list[str] = field(default_factory=list)
    ablation_seeds: list[int] = field(default_factory=list)
    baseline: str = "dq-bart-faithful"
    fallback: str = "xtc"

    def __post_init__(self) -> None:
        for name in ("presets", "configs", "seeds"):
            if not getattr(self, name):
                raise InputError(name, getattr(self, name), "a list that is not empty")
        for name in (*self.presets, *self.ablations, self.baseline, self.fallback):
            preset(name)
        for text in (*self.configs, *self.ablation_configs):
            Configuration.parse(text)
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError("seeds", self.seeds, "a list without repetitions")
        if not set(self.ablation_seeds) <= set(self.seeds):
            raise InputError("ablation_seeds", self.ablation_seeds, f"some of the seeds {self.seeds}")

    def cells(self) -> list[tuple[str, Configuration, int]]:
        """Every run, as preset, configuration and seed: presets before ablations, a seed of all before the next."""
        return [
            (name, configuration, seed)
            for names, texts, seeds in (
                (self.presets, self.configs, self.seeds),
                (self.ablations, self.ablation_configs, self.ablation_seeds or self.seeds),
            )
            for seed in seeds
            for configuration in map(Configuration.parse, texts)
            for name in names
            if {configuration.w_bits, configuration.e_bits} <= set(preset(name).weight_bits)
        ]


@dataclass(frozen=True)
class Task:
    """One experiment: its corpus, its teacher and the configurations of its students."""

    corpus: Corpus
    model: Model
    pretrain: Pretraining
    finetune: Finetuning
    distill: Distillation
    evaluate: Evaluation
    configs: list[str]
    methods: Methods | None = None

    def __post_init__(self) -> None:
        if not self.configs:
            raise InputError("configs", self.configs, "a list with at least one configuration")
        method = preset(self.distill.preset)
        for text in self.configs:
            self._check(Configuration.parse(text))
            method.check_fits(Configuration.parse(text), "mbart" if self.model.pretrained is None else "bart")
        for _, configuration, _ in self.methods.cells() if self.methods else []:
            self._check(configuration)
        slugs = [Configuration.parse(text).slug for text in self.configs]
        if len(set(slugs)) < len(slugs):
            raise InputError("configs", self.configs, "a list without repetitions")
        longest = max(self.corpus.source_tokens, self.corpus.target_tokens, self.pretrain.window + 1)
        if self.model.max_positions < longest:
            raise InputError("model.max_positions", self.model.max_positions, f"at least {longest}, the longest input")

    def _check(self, configuration: Configuration) -> None:
        configuration.check_fits(self.model.encoder_layers, self.model.decoder_layers)
        for side in ("encoder_layers", "decoder_layers"):
            if not getattr(configuration, side):
                raise InputError(f"config '{configuration}', {side}", 0, "at least 1")


@dataclass(frozen=True)
class Compute:
    """Processes of a stage (each micro-batch of a step goes to one of them)."""

    processes: int = 2

    def __post_init__(self) -> None:
        _at_least("processes", self.processes, 1)


@dataclass(frozen=True)
class Settings:
    """Everything that a profile sets."""

    profile: str
    results: str
    compute: Compute
    summarization: Task

    def __post_init__(self) -> None:
        for name in ("profile", "results"):
            if not getattr(self, name):
                raise InputError(name, getattr(self, name), "a name")
        for part in ("pretrain", "finetune", "distill"):
            micro_batches = getattr(self.summarization, part).micro_batches
            if micro_batches % self.compute.processes:
                raise InputError(
                    f"summarization.{part}.micro_batches",
                    micro_batches,
                    f"a multiple of compute.processes, {self.compute.processes}",
                )

    @property
    def runs(self) -> Path:
        """Folder of everything this profile makes but the results."""
        return project_root() / "runs" / self.profile

    def folders(self, task: str) -> Folders:
        """Where a task keeps what it makes under this profile."""
        self.task(task)
        return Folders(self.runs / task)

    def task(self, name: str) -> Task:
        """The experiment of that name.

        Raises:
            InputError: there is none.
        """
        if name not in TASKS:
            raise InputError("task", name, f"one of {', '.join(TASKS)}")
        return getattr(self, name)


TASKS = ("summarization",)


def load_settings(params: str | Path = "tutorial") -> Settings:
    """Read and check a parameter file, given by path or by the name of a profile.

    Raises:
        InputError: no such file or profile, not YAML, or any value that is not allowed.
    """
    path = profile_path(str(params)) if not str(params).endswith((".yaml", ".yml")) else project_root() / params
    if not path.is_file():
        raise InputError("params", str(params), "a YAML file or the name of a profile")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("params", str(params), f"valid YAML ({' '.join(str(error).split())})") from None
    return _build(Settings, data, "")


def profile_path(profile: str) -> Path:
    """File of a profile.

    Raises:
        InputError: there is no such profile.
    """
    folder = project_root() / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if profile not in known:
        raise InputError("profile", profile, f"one of {', '.join(known)}")
    return folder / f"{profile}.yaml"


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _build(cls: type, data: Any, where: str) -> Any:
    """An instance of a dataclass from nested dictionaries, every error with its full name."""
    if not isinstance(data, dict):
        raise InputError(where or "params", data, f"a block with {', '.join(f.name for f in dataclasses.fields(cls))}")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    dotted = f"{where}." if where else ""
    for key in data:
        if key not in known:
            raise InputError(f"{dotted}{key}", data[key], f"left out: the keys here are {', '.join(known)}")
    values = {}
    for name, spec in known.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{dotted}{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise InputError(f"{dotted}{name}", None, "given")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{dotted}{error.field}", error.value, error.allowed) from None


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
        if dataclasses.is_dataclass(hint):
            return _build(hint, value, where)
    if typing.get_origin(hint) is list:
        item = typing.get_args(hint)[0]
        if not isinstance(value, list) or not all(isinstance(v, item) for v in value):
            raise InputError(where, value, f"a list of {item.__name__}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or isinstance(value, bool) != (hint is bool) or value != value:
        raise InputError(where, value, {"int": "a whole number", "float": "a number", "str": "text"}[hint.__name__])
    return value


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(name, value, f"one of {', '.join(allowed)}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(name, value, f"at least {least}")


def _below_one(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(name, value, "at least 0 and below 1")
