"""The parameters of a task: its corpus, its teacher and its students."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dqlib.config import Config
from dqlib.errors import InputError, check_choice, within
from dqlib.generation_settings import MOST_BEAMS
from dqlib.presets import QUANTIZATION_ONLY, get_preset
from dqlib.study.params.corpus import EMBEDDED, Corpus
from dqlib.study.params.evaluation import Evaluation
from dqlib.study.params.kinds import KINDS, SEQ2SEQ, Kind
from dqlib.study.params.methods import MAPPINGS, Methods
from dqlib.study.params.model import Model
from dqlib.study.params.schema import MANY, a_seed, bounded, each, no_repetitions
from dqlib.study.params.training import Distillation, Finetuning, Pretraining


@dataclass(frozen=True)
class Repeats:
    """Students that are trained again: ``configs``, from each of ``seeds``, beside that of the task's own students."""

    configs: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        each(self, "seeds", a_seed)
        for name, other in (("configs", "seeds"), ("seeds", "configs")):
            if getattr(self, name) and not getattr(self, other):
                raise InputError(other, [], f"a list that is not empty, since {name} are given")


@dataclass(frozen=True)
class PseudoLabels:
    """Targets that the teacher writes, once, for students whose preset asks for them.

    It labels the first ``pairs`` of the training split (null for all) and at most ``texts`` texts that are in no pair,
    by a search of ``beams``. Embedded corpora know such texts themselves; for files and the hub, ``unpaired``
    names the file or the split that has them, in the column of the pairs' sources.
    """

    pairs: int | None = None
    texts: int = 20_000
    beams: int = 4
    batch_size: int = 64
    unpaired: str | None = None

    def __post_init__(self) -> None:
        bounded(self, pairs=(1, MANY), texts=(1, MANY), beams=(1, MOST_BEAMS), batch_size=(1, 10**6))


@dataclass(frozen=True)
class Task:
    """One experiment: its corpus, its teacher and the configurations of its students.

    ``controls`` are configurations that are trained once more by quantization alone, without a teacher. ``repeats``
    are students, and their controls, that are trained again from more seeds.
    ``pretrain: null`` leaves pre-training out: the teacher starts from the model that ``model.pretrained`` names, or
    from random weights. ``finetune: null`` takes a checkpoint that has been fine-tuned as the teacher.
    """

    corpus: Corpus
    model: Model
    pretrain: Pretraining | None
    finetune: Finetuning | None
    distill: Distillation
    evaluate: Evaluation
    configs: list[str]
    controls: list[str] = field(default_factory=list)
    repeats: Repeats = field(default_factory=Repeats)
    methods: Methods | None = None
    pseudo_labels: PseudoLabels = field(default_factory=PseudoLabels)
    kind: str = SEQ2SEQ

    def __post_init__(self) -> None:
        self._check_kind()
        if not self.configs:
            raise InputError("configs", self.configs, "a list with at least one configuration")
        lists = [("configs", self, ""), ("controls", self, ""), ("configs", self.repeats, "repeats.")]
        for name, block, where in lists:
            slugs = [config.slug for config in each(block, name, self._config, where)]
            no_repetitions(where + name, slugs, getattr(block, name))
        for config, preset in self.students():
            get_preset(preset).check_fits(config, self.architecture)
        for name in ("configs", *MAPPINGS) if self.methods else ():
            each(self.methods, name, self._config, "methods.")
        for run in self.methods.runs() if self.methods else ():
            with within("methods"):
                get_preset(run.preset).check_fits(run.config, self.architecture)
        most, tested = self.evaluate.documents, self.methods.evaluate.documents if self.methods else 0
        if most is not None and (tested is None or tested > most):
            allowed = f"at most evaluate.documents, {most}: runs are held against the teacher on the same documents"
            raise InputError("methods.evaluate.documents", tested, allowed)
        for preset in self._presets:
            self.uses_pseudo_labels(preset)
        self._check_repeats()
        if self.corpus.origin == "embedded" and self.pseudo_labels.unpaired is not None:
            allowed = f"left out: '{self.corpus.name}' knows its texts without a target itself"
            raise InputError("pseudo_labels.unpaired", self.pseudo_labels.unpaired, allowed)
        if self.pretrain is not None and self.model.pretrained is not None:
            raise InputError("pretrain", "a block", f"null: the model starts from '{self.model.pretrained}'")
        if self.finetune is None and self.model.checkpoint is None:
            raise InputError("finetune", None, "a block, unless model.pretrained names a checkpoint that is fine-tuned")
        if self.finetune is None and self.methods is not None:
            allowed = "null where finetune is: runs are held against the validation loss of the teacher's training"
            raise InputError("methods", "a block", allowed)
        longest = max(self.corpus.source_tokens, self.corpus.target_tokens, self.longest_window)
        if self.model.max_positions < longest:
            raise InputError("model.max_positions", self.model.max_positions, f"at least {longest}, the longest input")

    def students(self) -> list[tuple[Config, str]]:
        """Every student, as configuration and preset: ``configs``, then ``controls``; one that is both comes once."""
        lists = (self.configs, self.distill.preset), (self.controls, QUANTIZATION_ONLY.name)
        return list(dict.fromkeys((Config.parse(text), preset) for texts, preset in lists for text in texts))

    def seeded_students(self) -> list[tuple[Config, str, int]]:
        """Every student with each of its seeds: all of the task's own seed, then those of ``repeats``, seed by seed."""
        slugs = {Config.parse(text).slug for text in self.repeats.configs}
        again = [each for each in self.students() if each[0].slug in slugs]
        repeats = [(config, preset, seed) for seed in self.repeats.seeds for config, preset in again]
        return [(config, preset, self.distill.seed) for config, preset in self.students()] + repeats

    def distillation(self, preset: str | None = None, seed: int | None = None) -> Distillation:
        """How a student is trained: by a preset, from a seed; the task's own, when None."""
        own = self.distill
        return replace(own, preset=preset or own.preset, seed=own.seed if seed is None else seed)

    @property
    def headline(self) -> Config:
        """The student that the task's notebook shows: at one or two bits without some layers, or else the first.

        One whose bits a budget chooses, only where all are.
        """
        every = [Config.parse(text) for text in self.configs]
        students = [c for c in every if not c.is_open] or every
        whole = [c for c in students if not c.narrow]
        layers = self.model.encoder_layers + self.model.decoder_layers
        small = [c for c in whole if c.w_bits <= 2 and c.encoder_layers + c.decoder_layers < layers]
        return (small or whole or students)[0]

    @property
    def longest_window(self) -> int:
        """Tokens of an input of pre-training: BERT's marks are in its window, the end of other texts comes after it."""
        return self.pretrain.window + self.form.writes if self.pretrain else 0

    @property
    def architecture(self) -> str:
        """Of the teacher: mBART's, unless it comes from elsewhere."""
        return self.form.architecture if self.model.checkpoint is None else self.model.architecture

    @property
    def form(self) -> Kind:
        """What is known of its kind."""
        return KINDS[self.kind]

    def _check_repeats(self) -> None:
        """Refuse repeats of students that are not there, and seeds that are taken twice."""
        known = {config.slug: str(config) for config, _ in self.students()}

        def check(text: str) -> None:
            if Config.parse(text).slug not in known:
                raise InputError("config", text, f"one of {', '.join(known.values())}")

        each(self.repeats, "configs", check, "repeats.")
        seeds = self.repeats.seeds
        if len({*seeds, self.distill.seed}) <= len(seeds):
            allowed = f"a list without repetitions, and without distill.seed, which is {self.distill.seed}"
            raise InputError("repeats.seeds", seeds, allowed)

    def _check_kind(self) -> None:
        """Refuse a corpus or a shape that is for tasks of another kind."""
        check_choice("kind", self.kind, tuple(KINDS))
        corpus, kind = self.corpus, self.form
        if corpus.origin == "embedded" and EMBEDDED[corpus.name].kind != self.kind:
            names = ", ".join(name for name, each in EMBEDDED.items() if each.kind == self.kind)
            raise InputError("corpus.name", corpus.name, f"one of {names}, whose rows are {kind.description}")
        if kind.writes and corpus.target_tokens < 8:
            raise InputError("corpus.target_tokens", corpus.target_tokens, "at least 8")
        for name in ("target_tokens", "support") if not kind.writes else ():
            if getattr(corpus, name):
                raise InputError(f"corpus.{name}", getattr(corpus, name), f"left out, for {kind.description}")
        if corpus.second and "second" not in kind.columns:
            raise InputError("corpus.second", corpus.second, f"left out, for {kind.description}")
        for name, wanted in kind.layers.items():
            if bool(getattr(self.model, name)) != wanted:
                allowed = "at least 1" if wanted else f"0, for {kind.description}"
                raise InputError(f"model.{name}", getattr(self.model, name), allowed)
        if self.model.checkpoint is not None:
            check_choice("model.architecture", self.model.architecture, kind.architectures)
        if self.pretrain is not None and kind.pretraining is None:
            raise InputError("pretrain", "a block", f"null, for {kind.description}: fine-tuning is all of its training")

    def check_fits(self, config: Config) -> None:
        """Check that the task's teacher has the layers, heads and neurons that a student would copy.

        Raises:
            InputError: the student is deeper or wider than the teacher.
        """
        model = self.model
        config.check_fits(model.encoder_layers, model.decoder_layers, model.heads, model.ffn_dim)

    def uses_pseudo_labels(self, preset: str) -> bool:
        """Whether students of a preset, of some bits at least, are trained on what the teacher writes.

        Raises:
            InputError: it is to be trained on texts without a target, and the corpus has none; on what models write,
                and these write nothing.
        """
        recipes = get_preset(preset).recipes
        if not self.form.writes:
            for name in ("pseudo_labels", "on_policy"):
                if any(getattr(recipe, name) for recipe in recipes):
                    raise InputError(f"preset '{preset}', {name}", True, f"off, for {self.form.description}")
            return False
        for share in (recipe.labelled_text for recipe in recipes if not self.has_unpaired_text):
            if share:
                allowed = f"0 for the corpus '{self.corpus.name}', unless pseudo_labels.unpaired names texts in no pair"
                raise InputError(f"preset '{preset}', labelled_text", share, allowed)
        return any(recipe.pseudo_labels for recipe in recipes)

    @property
    def asks_for_pseudo_labels(self) -> bool:
        """Whether a student or a run of the benchmark is trained on what the teacher writes."""
        return any(map(self.uses_pseudo_labels, self._presets))

    @property
    def _presets(self) -> list[str]:
        """Of all students and of all runs of the benchmark, each once."""
        runs = self.methods.runs() if self.methods else []
        return list(dict.fromkeys([*(preset for _, preset in self.students()), *(run.preset for run in runs)]))

    @property
    def has_unpaired_text(self) -> bool:
        """Whether there are texts that are in no pair, which a teacher may label."""
        if self.corpus.origin != "embedded":
            return self.pseudo_labels.unpaired is not None
        return EMBEDDED[self.corpus.name].unpaired

    def _config(self, text: str) -> Config:
        """A configuration that the task's teacher has the layers for."""
        config = Config.parse(text)
        self.check_fits(config)
        for side, wanted in self.form.layers.items():
            if wanted and not getattr(config, side) and not config.all_layers:
                raise InputError(f"config '{config}', {side}", 0, "at least 1")
        return config
