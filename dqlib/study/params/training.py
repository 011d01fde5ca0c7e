"""The parameters of the trainings: pre-training, fine-tuning, distillation."""

from __future__ import annotations

from dataclasses import dataclass

from dqlib.errors import check_choice, check_fields
from dqlib.presets import SCHEDULES
from dqlib.study.params.presets import preset_named
from dqlib.study.params.schema import LONGEST, MANY, SEEDS, below_one, bounded

#: Of matrix products; weights, their gradients and the optimizer are fp32.
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """What every training is given.

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
        check_choice("precision", self.precision, PRECISIONS)
        check_fields(self, "learning_rate clip", lambda number: number > 0, "a positive number")
        check_fields(self, "weight_decay", lambda number: number >= 0, "at least 0")


@dataclass(frozen=True, kw_only=True)
class Training(Loop):
    """A run whose schedule is the profile's."""

    warmup: float = 0.05
    schedule: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one(self, "warmup")
        check_choice("schedule", self.schedule, SCHEDULES)


@dataclass(frozen=True, kw_only=True)
class Finetuning(Training):
    """Training of the teacher on pairs."""

    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one(self, "label_smoothing")


@dataclass(frozen=True, kw_only=True)
class Pretraining(Training):
    """Text infilling: spans of a window of ``window`` tokens are masked, ``mask_ratio`` of it in all."""

    window: int = 96
    mask_ratio: float = 0.3
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, window=(8, LONGEST))
        check_fields(self, "mask_ratio", lambda share: 0 < share < 1, "between 0 and 1")
        check_fields(self, "mean_span", lambda number: number >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Distillation(Loop):
    """Training of a student against the teacher; schedule and losses are the preset's.

    ``preset`` is a name, or a YAML file of :func:`dqlib.study.params.presets.load_preset`.
    """

    preset: str = "dqlib"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "preset", preset_named(self.preset))
