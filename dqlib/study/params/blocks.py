"""The blocks of a task: its corpus, its model, its trainings, its tests. Each checks itself when made."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.presets import Recipe, get_preset
from dqlib.study.params.schema import a_name, below_one, bounded, one_of

#: Tasks that a parameter file may have, in the order in which they are shown.
TASKS = ("summarization", "eli5", "translation")

ORIGINS = ("embedded", "files", "hub")
#: Corpora that are made from what is installed.
EMBEDDED = ("pydoc", "pydoc-qa", "cldr")
SCHEDULES = ("linear", "cosine", "constant_with_warmup")

#: Most of what is counted, and most tokens of a text; beyond it nothing that is here could be done.
MANY, LONGEST = 10**9, 10**5
#: That random numbers can start from.
SEEDS = (0, 2**32 - 1)

#: Test documents that results can be told of: one for each of :data:`dqlib.study.evaluation.positions.GROUPS`.
FEWEST_DOCUMENTS = 4


@dataclass(frozen=True)
class Support:
    """Support documents of a hub's questions, in a data set of its own whose rows have the same ``id``.

    ``text`` is the path of the passages' texts. A source becomes ``question: Q context: <P> TEXT <P> TEXT``;
    questions without a passage are left out.
    """

    dataset: str
    text: str
    revision: str | None = None
    id: str = "id"


@dataclass(frozen=True)
class Corpus:
    """Where the pairs come from and how they become tokens.

    The origin ``embedded`` makes the corpus of that ``name``: ``pydoc`` and ``pydoc-qa`` from ``packages``, ``cldr``
    for ``languages`` from ``seed``. The origin ``files`` reads ``train``, ``validation``, ``test`` and, where given,
    ``test_unseen``, the origin ``hub`` the ``dataset`` with ``dataset_config`` and ``revision``; in both ``source``
    and ``target`` name the columns. ``limit`` is the most pairs (of each file; null for all).

    A ``dataset`` is a name on the hub, or the folder of a snapshot. Its splits are those of the same names, unless
    ``train``, ``validation`` or ``test`` say otherwise (``train[1%:]``). A column may be a path through nested columns
    (``translation.ro``); of a list, the first text that is not empty is taken. ``support`` adds support documents.

    A path with ``*`` names two text files whose lines are pairs: with ``source: en`` and ``target: ro``,
    ``data/train.*`` stands for ``data/train.en`` and ``data/train.ro``.

    ``languages`` makes it a translation: each target starts with its language's token (``<ro>``), and the first
    language is the one that is judged. With several, the column ``language`` of files or hub says which a row is in.

    ``tokenizer`` names a ready one (folder or hub, at ``tokenizer_revision``); without it, one of ``vocab_size`` tokens
    is trained. mBART's needs ``source_language``, whose token ends each source.
    """

    name: str
    origin: str
    vocab_size: int
    source_tokens: int
    target_tokens: int
    packages: list[str] = field(default_factory=list)
    limit: int | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    test_unseen: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    source: str = "source"
    target: str = "target"
    languages: list[str] = field(default_factory=list)
    language: str | None = None
    seed: int = 28
    tokenizer: str | None = None
    tokenizer_revision: str | None = None
    source_language: str | None = None
    support: Support | None = None

    def __post_init__(self) -> None:
        one_of("origin", self.origin, ORIGINS)
        a_name("name", self.name)
        bounded(
            self, vocab_size=(300, 10**7), source_tokens=(8, LONGEST), target_tokens=(8, LONGEST), limit=(100, MANY),
            seed=SEEDS,
        )  # fmt: skip
        self._check_languages()
        if self.origin == "embedded":
            self._check_embedded()
        if self.origin == "hub" and not self.dataset:
            raise InputError("dataset", self.dataset, "the name of a dataset when origin is 'hub'")
        if self.support is not None and self.origin != "hub":
            raise InputError("support", self.support.dataset, "left out: only data sets of the hub have it")
        if self.origin == "files":
            for name in ("train", "validation", "test"):
                if not getattr(self, name):
                    raise InputError(name, getattr(self, name), "a file when origin is 'files'")

    def _check_languages(self) -> None:
        for language in [*self.languages, *([self.source_language] if self.source_language else [])]:
            if not re.fullmatch(r"[a-z]{2,3}(_[A-Za-z0-9]+)*", language):
                raise InputError("languages", language, "codes of languages, such as ro or pt_BR")
        if len(set(self.languages)) < len(self.languages):
            raise InputError("languages", self.languages, "a list without repetitions")
        if len(self.languages) > 1 and self.origin != "embedded" and not self.language:
            raise InputError("language", self.language, "the column of a row's language, where there are several")
        if self.language and not self.languages:
            raise InputError("languages", self.languages, "the languages that the column 'language' may name")

    def _check_embedded(self) -> None:
        if self.name not in EMBEDDED:
            raise InputError("name", self.name, f"one of {', '.join(EMBEDDED)} when origin is 'embedded'")
        if self.name == "cldr":
            for name in ("languages", "limit"):
                if not getattr(self, name):
                    raise InputError(name, getattr(self, name), "given for the corpus 'cldr'")
        elif not self.packages:
            raise InputError("packages", self.packages, "a list of installed packages when origin is 'embedded'")
        elif self.languages:
            raise InputError("languages", self.languages, f"left out: '{self.name}' is no translation")


@dataclass(frozen=True)
class Model:
    """Shape of the teacher: a pre-LayerNorm encoder-decoder, or that of the ``pretrained`` model to start from.

    ``pretrained`` is a folder, a name on the hub (at ``revision``), or another task of the file: then the teacher
    starts from that task's model after text infilling, with its tokenizer, and the shape must be the same.
    ``architecture`` is that of a folder's or a hub's model; all others are mBART's.
    """

    d_model: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    ffn_dim: int
    max_positions: int
    dropout: float = 0.0
    init_std: float = 0.02
    pretrained: str | None = None
    revision: str | None = None
    architecture: str = "bart"

    def __post_init__(self) -> None:
        one_of("architecture", self.architecture, ("bart", "mbart"))
        if not self.init_std > 0:
            raise InputError("init_std", self.init_std, "a positive number")
        widths = dict.fromkeys(("d_model", "heads", "ffn_dim"), (1, 10**6))
        bounded(self, **widths, encoder_layers=(1, 1000), decoder_layers=(1, 1000), max_positions=(1, LONGEST))
        if self.d_model % self.heads:
            raise InputError("heads", self.heads, f"a divisor of d_model, {self.d_model}")
        below_one("dropout", self.dropout)

    @property
    def base_task(self) -> str | None:
        """The task whose pre-trained model this one starts from, if it is another task's."""
        return self.pretrained if self.pretrained in TASKS else None


#: Of matrix products; weights, their gradients and the optimizer are fp32.
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What every run of the training loop is told.

    ``checkpoint_steps`` are the steps between two checkpoints, from which a run that was killed goes on; ``precision``
    is that of matrix products; ``compile`` lets torch compile the model, which on two cores costs a short training more
    than it saves (``benchmarks/processes.py`` measures it).
    """

    steps: int
    learning_rate: float
    batch_tokens: int
    weight_decay: float = 0.01
    clip: float = 1.0
    micro_batches: int = 2
    validations: int = 4
    seed: int = 28
    checkpoint_steps: int = 200
    precision: str = "fp32"
    compile: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "batch_tokens", "micro_batches", "validations", "checkpoint_steps")
        bounded(self, **dict.fromkeys(counts, (1, MANY)), seed=SEEDS)
        one_of("precision", self.precision, PRECISIONS)
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "a positive number")
        if self.weight_decay < 0:
            raise InputError("weight_decay", self.weight_decay, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Training(Loop):
    """A run whose schedule is the profile's."""

    warmup: float = 0.05
    schedule: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one("warmup", self.warmup)
        one_of("schedule", self.schedule, SCHEDULES)


@dataclass(frozen=True, kw_only=True)
class Finetuning(Training):
    """Training of the teacher on pairs."""

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one("label_smoothing", self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Pretraining(Training):
    """Text infilling: spans of a window of ``window`` tokens are masked, ``mask_ratio`` of it in all."""

    window: int = 96
    mask_ratio: float = 0.3
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, window=(8, LONGEST))
        if not 0 < self.mask_ratio < 1:
            raise InputError("mask_ratio", self.mask_ratio, "between 0 and 1")
        if self.mean_span < 1:
            raise InputError("mean_span", self.mean_span, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Distillation(Loop):
    """Training of a student against the teacher; schedule and losses are the preset's."""

    preset: str = "dqlib"

    def __post_init__(self) -> None:
        super().__post_init__()
        get_preset(self.preset)

    def training(self, recipe: Recipe) -> Training:
        """The training that a preset's recipe makes of this."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(Loop)}
        values["learning_rate"] *= recipe.learning_rate
        return Training(**values, schedule=recipe.schedule, warmup=recipe.warmup)


@dataclass(frozen=True)
class Evaluation:
    """Test of a model: beam search on the first ``documents`` of each test set (null for all)."""

    documents: int | None = None
    beams: int = 4
    batch_size: int = 32
    bootstrap: int = 1000
    validation_documents: int | None = 500

    def __post_init__(self) -> None:
        if self.documents is not None and self.documents < FEWEST_DOCUMENTS:
            allowed = f"at least {FEWEST_DOCUMENTS}: results tell groups of documents apart by their length"
            raise InputError("documents", self.documents, allowed)
        counts = {"documents": (1, MANY), "validation_documents": (1, MANY), "batch_size": (1, 10**6)}
        bounded(self, **counts, beams=(1, 1000), bootstrap=(1, 10**6))


@dataclass(frozen=True)
class Run:
    """One run of the benchmark; its steps are those of all runs where they are None."""

    preset: str
    config: Config
    seed: int
    steps: int | None = None

    def __str__(self) -> str:
        steps = "" if self.steps is None else f", {self.steps} steps"
        return f"{self.preset} at {self.config}, seed {self.seed}{steps}"


@dataclass(frozen=True)
class Methods:
    """The benchmark: presets against each other at equal bits and equal steps, one thread a run.

    Presets run at all ``configs`` that they have a grid for, ``ablations`` (presets again) at
    ``ablation_configs`` from ``ablation_seeds`` (all ``seeds``, when left out). A ``p_value`` compares with
    ``baseline`` or, where that has no grid, ``fallback``. Then ``longer_preset`` runs from the first seed at
    ``longer_configs`` for each number of ``longer_steps``, and of these the ``longest_configs`` alone (all, when left
    out) for the largest number: what more training is worth.
    """

    presets: list[str]
    configs: list[str]
    seeds: list[int]
    distill: Distillation
    evaluate: Evaluation
    ablations: list[str] = field(default_factory=list)
    ablation_configs: list[str] = field(default_factory=list)
    ablation_seeds: list[int] = field(default_factory=list)
    longer_steps: list[int] = field(default_factory=list)
    longer_configs: list[str] = field(default_factory=list)
    longest_configs: list[str] = field(default_factory=list)
    longer_preset: str = "dqlib"
    baseline: str = "dq-bart-faithful"
    fallback: str = "xtc"

    def __post_init__(self) -> None:
        for name in ("presets", "configs", "seeds"):
            if not getattr(self, name):
                raise InputError(name, getattr(self, name), "a list that is not empty")
        for name in (*self.presets, *self.ablations, self.longer_preset, self.baseline, self.fallback):
            get_preset(name)
        for text in (*self.configs, *self.ablation_configs, *self.longer_configs):
            Config.parse(text)
        for steps in self.longer_steps:
            if not self.distill.steps < steps <= MANY:
                allowed = f"more than distill.steps, {self.distill.steps}, and at most {MANY}"
                raise InputError("longer_steps", steps, allowed)
        for seed in self.seeds:
            if not SEEDS[0] <= seed <= SEEDS[1]:
                raise InputError("seeds", seed, "from {} to {}".format(*SEEDS))
        if len(set(self.longer_steps)) < len(self.longer_steps):
            raise InputError("longer_steps", self.longer_steps, "a list without repetitions")
        if not set(self.longest_configs) <= set(self.longer_configs):
            allowed = f"some of the longer_configs {self.longer_configs}"
            raise InputError("longest_configs", self.longest_configs, allowed)
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError("seeds", self.seeds, "a list without repetitions")
        if not set(self.ablation_seeds) <= set(self.seeds):
            raise InputError("ablation_seeds", self.ablation_seeds, f"some of the seeds {self.seeds}")

    def runs(self) -> list[Run]:
        """Every run: presets before ablations, one seed of all before the next; then the longer ones, as they end."""
        return [*self.runs_of_equal_steps(), *self.longer_runs()]

    def runs_of_equal_steps(self) -> list[Run]:
        """Presets and ablations at all of their configurations and seeds."""
        return [
            Run(name, config, seed)
            for names, texts, seeds in (
                (self.presets, self.configs, self.seeds),
                (self.ablations, self.ablation_configs, self.ablation_seeds or self.seeds),
            )
            for seed in seeds
            for config in map(Config.parse, texts)
            for name in names
            if {config.w_bits, config.e_bits} <= set(get_preset(name).weight_bits)
        ]

    def longer_runs(self) -> list[Run]:
        """What more training is worth; those that end soonest first."""
        steps = sorted(self.longer_steps)
        runs = [(n, text) for n in steps[:-1] for text in self.longer_configs]
        runs += [(n, text) for n in steps[-1:] for text in self.longest_configs or self.longer_configs]
        return [Run(self.longer_preset, Config.parse(text), self.seeds[0], n) for n, text in runs]

    def distillation(self, run: Run) -> Distillation:
        """The training of a run."""
        return dataclasses.replace(
            self.distill, preset=run.preset, seed=run.seed, steps=run.steps or self.distill.steps
        )
