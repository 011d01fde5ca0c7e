"""The parameters of the benchmark of presets, and the runs that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.presets import get_preset
from dqlib.study.params.evaluation import Evaluation
from dqlib.study.params.presets import preset_named
from dqlib.study.params.schema import MANY, a_seed, each, no_repetitions
from dqlib.study.params.training import Distillation

#: What maps a configuration to presets that run there beside those of ``configs``.
MAPPINGS = ("own_configs", "ablations", "longer")


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

    Presets run at all ``configs`` that they have a grid for, each from all ``seeds``. A ``p_value`` compares with
    ``baseline`` or, where that has no grid, ``fallback``. Three mappings from a configuration to presets say what runs
    beside: ``own_configs``, shapes and budgets of some presets alone; ``ablations``, presets with one part changed,
    from ``ablation_seeds`` (all ``seeds``, when left out); and ``longer``, for each number of ``longer_steps`` from
    ``longer_seeds`` (the first one, when left out): what more training is worth.
    """

    presets: list[str]
    configs: list[str]
    seeds: list[int]
    distill: Distillation
    evaluate: Evaluation
    own_configs: Mapping[str, list[str]] = field(default_factory=dict)
    ablations: Mapping[str, list[str]] = field(default_factory=dict)
    ablation_seeds: list[int] = field(default_factory=list)
    longer: Mapping[str, list[str]] = field(default_factory=dict)
    longer_steps: list[int] = field(default_factory=list)
    longer_seeds: list[int] = field(default_factory=list)
    baseline: str = "dq-bart-faithful"
    fallback: str = "xtc"

    def __post_init__(self) -> None:
        for name in ("presets", "configs", "seeds"):
            if not getattr(self, name):
                raise InputError(name, getattr(self, name), "a list that is not empty")
        object.__setattr__(self, "presets", each(self, "presets", preset_named))
        for name in MAPPINGS:
            named = getattr(self, name)
            known = {text: each(named, text, preset_named, f"{name}.") for text in named}
            object.__setattr__(self, name, known)
        for name in ("baseline", "fallback"):
            object.__setattr__(self, name, preset_named(getattr(self, name)))
        for name in ("configs", *MAPPINGS):
            each(self, name, Config.parse)
        each(self, "longer_steps", self._check_steps)
        each(self, "seeds", a_seed)
        for name in ("longer_steps", "seeds"):
            no_repetitions(name, getattr(self, name))
        for name in ("ablation_seeds", "longer_seeds"):
            if not set(getattr(self, name)) <= set(self.seeds):
                raise InputError(name, getattr(self, name), f"some of the seeds {self.seeds}")

    def _check_steps(self, steps: int) -> None:
        if not self.distill.steps < steps <= MANY:
            allowed = f"more than distill.steps, {self.distill.steps}, and at most {MANY}"
            raise InputError("steps", steps, allowed)

    def runs(self) -> list[Run]:
        """Every run, by what it decides: configs one after another, then ablations, then longer runs, as they end.

        Of a config, what others are compared with comes first, and all seeds of a preset together.
        """
        return [*self.runs_of_equal_steps(), *self.longer_runs()]

    def runs_of_equal_steps(self) -> list[Run]:
        """Presets and ablations at all of their configurations and seeds; ``own_configs`` stand between the two."""
        first = [name for name in (self.baseline, self.fallback) if name in self.presets]
        presets = list(dict.fromkeys([*first, *self.presets]))
        runs = [
            *_runs_at(dict.fromkeys(self.configs, presets), self.seeds),
            *_runs_at(self.own_configs, self.seeds),
            *_runs_at(self.ablations, self.ablation_seeds or self.seeds),
        ]
        return list(dict.fromkeys(runs))  # a run that two of them name is one

    def longer_runs(self) -> list[Run]:
        """What more training is worth; those that end soonest first."""
        seeds = self.longer_seeds or self.seeds[:1]
        runs = (run for steps in sorted(self.longer_steps) for run in _runs_at(self.longer, seeds, steps))
        return list(dict.fromkeys(runs))

    @property
    def ablation_presets(self) -> list[str]:
        """The presets that ``ablations`` names, each once."""
        return list(dict.fromkeys(name for names in self.ablations.values() for name in names))

    def distillation(self, run: Run) -> Distillation:
        """The training of a run."""
        return dataclasses.replace(
            self.distill, preset=run.preset, seed=run.seed, steps=run.steps or self.distill.steps
        )


def _runs_at(presets: Mapping[str, list[str]], seeds: Sequence[int], steps: int | None = None) -> Iterator[Run]:
    """The runs of presets by configuration, of those that have a grid for it, from all seeds."""
    for text, names in presets.items():
        config = Config.parse(text)
        for name in names:
            if get_preset(name).has_grids(config):
                yield from (Run(name, config, seed, steps) for seed in seeds)
