"""The parameters of the benchmark of presets, and the runs that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.presets import get_preset
from dqlib.study.params.evaluation import Evaluation
from dqlib.study.params.presets import preset_named
from dqlib.study.params.schema import MANY, a_seed, each, no_repetitions
from dqlib.study.params.training import Distillation


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
    """The benchmark: presets, by name or YAML file, against each other at equal bits and steps, one thread per run.

    Presets run at all ``configs`` that they have a grid for, ``longer_preset`` alone at ``own_configs`` as well (shapes
    and budgets against each other); ``ablations`` names further presets by configuration, which run from
    ``ablation_seeds`` (all ``seeds``, when left out). A ``p_value`` compares with ``baseline`` or, where that has no
    grid, ``fallback``. Then ``longer_preset`` runs from ``longer_seeds`` (the first one, when left out) at
    ``longer_configs`` for each number of ``longer_steps``, and of these the ``longest_configs`` alone (all, when left
    out) for the largest number: what more training is worth.
    """

    presets: list[str]
    configs: list[str]
    seeds: list[int]
    distill: Distillation
    evaluate: Evaluation
    own_configs: list[str] = field(default_factory=list)
    ablations: Mapping[str, list[str]] = field(default_factory=dict)
    ablation_seeds: list[int] = field(default_factory=list)
    longer_steps: list[int] = field(default_factory=list)
    longer_configs: list[str] = field(default_factory=list)
    longest_configs: list[str] = field(default_factory=list)
    longer_preset: str = "dqlib"
    longer_seeds: list[int] = field(default_factory=list)
    baseline: str = "dq-bart-faithful"
    fallback: str = "xtc"

    def __post_init__(self) -> None:
        for name in ("presets", "configs", "seeds"):
            if not getattr(self, name):
                raise InputError(name, getattr(self, name), "a list that is not empty")
        object.__setattr__(self, "presets", each(self, "presets", preset_named))
        changed = {text: each(self.ablations, text, preset_named, "ablations.") for text in self.ablations}
        object.__setattr__(self, "ablations", changed)
        for name in ("longer_preset", "baseline", "fallback"):
            object.__setattr__(self, name, preset_named(getattr(self, name)))
        for name in ("configs", "own_configs", "ablations", "longer_configs"):
            each(self, name, Config.parse)
        each(self, "longer_steps", self._check_steps)
        each(self, "seeds", a_seed)
        for name in ("longer_steps", "seeds"):
            no_repetitions(name, getattr(self, name))
        some = {"longest_configs": "longer_configs", "ablation_seeds": "seeds", "longer_seeds": "seeds"}
        for name, whole in some.items():
            if not set(getattr(self, name)) <= set(getattr(self, whole)):
                raise InputError(name, getattr(self, name), f"some of the {whole} {getattr(self, whole)}")

    def _check_steps(self, steps: int) -> None:
        if not self.distill.steps < steps <= MANY:
            allowed = f"more than distill.steps, {self.distill.steps}, and at most {MANY}"
            raise InputError("steps", steps, allowed)

    def runs(self) -> list[Run]:
        """Every run, by what it decides: configs one after another, then ablations, then longer runs, as they end.

        Of a config, ``longer_preset`` and what it is compared with come first, and all seeds of a preset together.
        """
        return [*self.runs_of_equal_steps(), *self.longer_runs()]

    def runs_of_equal_steps(self) -> list[Run]:
        """Presets and ablations at all of their configurations and seeds; ``own_configs`` stand between the two."""
        first = [name for name in (self.longer_preset, self.baseline, self.fallback) if name in self.presets]
        presets = list(dict.fromkeys([*first, *self.presets]))
        runs = (
            Run(name, config, seed)
            for names, texts, seeds in (
                (presets, self.configs, self.seeds),
                ([self.longer_preset], self.own_configs, self.seeds),
                *((names, [text], self.ablation_seeds or self.seeds) for text, names in self.ablations.items()),
            )
            for config in map(Config.parse, texts)
            for name in names
            if get_preset(name).has_grids(config)
            for seed in seeds
        )
        return list(dict.fromkeys(runs))  # a run that two of them name is one

    def longer_runs(self) -> list[Run]:
        """What more training is worth; those that end soonest first."""
        steps = sorted(self.longer_steps)
        runs = [(n, text) for n in steps[:-1] for text in self.longer_configs]
        runs += [(n, text) for n in steps[-1:] for text in self.longest_configs or self.longer_configs]
        every = [(n, text, seed) for n, text in runs for seed in self.seeds_of_longer]
        return [Run(self.longer_preset, Config.parse(text), seed, n) for n, text, seed in every]

    @property
    def ablation_presets(self) -> list[str]:
        """The presets that ``ablations`` names, each once."""
        return list(dict.fromkeys(name for names in self.ablations.values() for name in names))

    @property
    def seeds_of_longer(self) -> list[int]:
        """Seeds that the longer runs are from."""
        return self.longer_seeds or self.seeds[:1]

    def distillation(self, run: Run) -> Distillation:
        """The training of a run."""
        return dataclasses.replace(
            self.distill, preset=run.preset, seed=run.seed, steps=run.steps or self.distill.steps
        )
