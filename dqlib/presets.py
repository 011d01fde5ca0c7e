"""Methods as data: how each paper quantizes and distils, in the same few fields, to be read side by side.

``learning_rate`` multiplies the one of the study's profile, since the papers' own rates belong to models a
hundred times larger; schedules, losses and quantizers are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dqlib.config import (
    FULL_PRECISION,
    ActivationQuantization,
    Configuration,
    LossWeights,
    WeightQuantization,
)
from dqlib.errors import InputError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a student is trained, apart from steps and batches, which are the study's.

    Args:
        learning_rate: times the profile's.
        schedule: ``linear``, ``cosine`` or ``constant_with_warmup``.
        warmup: part of the steps in which the rate rises.
        scale_learning_rate: rate of trained scales, times that of the weights.
        progressive: part of the steps over which the forward pass turns from full-precision to quantized weights.

    Raises:
        InputError: a field is out of range.
    """

    learning_rate: float = 1.0
    schedule: str = "linear"
    warmup: float = 0.05
    scale_learning_rate: float = 1.0
    progressive: float = 0.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "scale_learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "a positive number")
        for name in ("warmup", "progressive"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "at least 0 and below 1")
        if self.schedule not in ("linear", "cosine", "constant_with_warmup"):
            raise InputError("schedule", self.schedule, "linear, cosine or constant_with_warmup")


@dataclass(frozen=True, slots=True)
class Preset:
    """A method of making a model small.

    Args:
        name: of the preset.
        weights, activations: how each becomes codes.
        loss: terms and weights of the distillation.
        recipe: of the training.
        by_bits: recipes of weight bits that need another one.
        quantize_head: whether the output head uses the quantized embedding that it is tied to.
        position_bits: bits of learned position embeddings.
        single_layer: teacher layer that a stack of one layer is copied from, ``first`` or ``last``.
        weight_bits: bits of weights and embeddings that the method has a grid for.
        architectures: the only ones that it is defined for; all that are known, when None.
    """

    name: str
    weights: WeightQuantization = field(default_factory=WeightQuantization)
    activations: ActivationQuantization = field(default_factory=ActivationQuantization)
    loss: LossWeights = field(default_factory=LossWeights)
    recipe: Recipe = field(default_factory=Recipe)
    by_bits: Mapping[int, Recipe] = field(default_factory=dict)
    quantize_head: bool = True
    position_bits: int = 8
    single_layer: str = "first"
    weight_bits: tuple[int, ...] = (*range(1, 9), FULL_PRECISION)
    architectures: tuple[str, ...] | None = None

    def describe(self) -> dict[str, Any]:
        """How weights and activations become codes, as JSON has it; losses and recipes are left out."""
        return {
            "preset": self.name,
            "weights": asdict(self.weights),
            "activations": asdict(self.activations),
            "quantize_head": self.quantize_head,
            "position_bits": self.position_bits,
        }

    @classmethod
    def described(cls, description: Mapping[str, Any]) -> Preset:
        """The method that :meth:`describe` told; other entries are passed over.

        Raises:
            InputError: an entry is missing or unknown, or out of range.
        """
        try:
            return cls(
                name=description["preset"],
                weights=WeightQuantization(**description["weights"]),
                activations=ActivationQuantization(**description["activations"]),
                quantize_head=description["quantize_head"],
                position_bits=description["position_bits"],
            )
        except (KeyError, TypeError) as error:
            raise InputError("preset", f"without or with {error}", "as Preset.describe told it") from error

    def recipe_for(self, configuration: Configuration) -> Recipe:
        """The recipe for a student of that many weight bits."""
        return self.by_bits.get(configuration.w_bits, self.recipe)

    def check_fits(self, configuration: Configuration, architecture: str) -> None:
        """Check that the method is defined for a configuration and an architecture.

        Raises:
            InputError: it is not.
        """
        for name in ("w_bits", "e_bits"):
            if getattr(configuration, name) not in self.weight_bits:
                allowed = ", ".join(map(str, self.weight_bits))
                raise InputError(f"{name} of '{configuration}'", getattr(configuration, name),
                                 f"one of {allowed} with the preset '{self.name}'")  # fmt: skip
        if self.architectures is not None and architecture not in self.architectures:
            raise InputError("preset", self.name, f"one that serves the architecture '{architecture}'; "
                             f"this one serves {', '.join(self.architectures)}")  # fmt: skip


#: What DQ-BART's code computes (amazon-science/dq-bart): the head stays in full precision, activations have one
#: scale a tensor, losses count padding.
DQ_BART_FAITHFUL = Preset(
    name="dq-bart-faithful",
    weights=WeightQuantization(linear="per_tensor", clip=2.5),
    activations=ActivationQuantization(granularity="per_tensor", unsigned=False, clip=2.5),
    loss=LossWeights(logits_loss="mse", reduction="reference"),
    quantize_head=False,
    position_bits=FULL_PRECISION,
    single_layer="last",
    weight_bits=(*range(2, 9), FULL_PRECISION),
    architectures=("bart", "mbart"),
)

#: DQ-BART's method (arXiv:2203.11239): the same grids, with the head quantized and padding left out of losses.
DQ_BART = Preset(
    name="dq-bart",
    weights=WeightQuantization(linear="per_tensor"),
    loss=LossWeights(logits_loss="mse"),
    weight_bits=(*range(2, 9), FULL_PRECISION),
)

#: XTC (arXiv:2206.01859): binary or ternary weights, all losses in one stage, a larger rate where bits are few,
#: falling linearly. The paper's longer training is left out: on the bench all methods take the same steps.
XTC = Preset(
    name="xtc",
    weights=WeightQuantization(full_range=True),
    loss=LossWeights(task=0.0),
    by_bits={1: Recipe(learning_rate=4.0)},
)

#: QuantGPT (arXiv:2203.10705): trained clipping factor a module, contrast of tokens, logits; nothing else. The
#: paper stops at 2 bits; at 1 bit the factor multiplies the binary scale.
QUANTGPT = Preset(
    name="quantgpt",
    weights=WeightQuantization(binary="dynamic", ternary="dynamic", uniform="dynamic", linear="per_tensor"),
    loss=LossWeights(task=0.0, attention=0.0, hidden=0.0, contrastive=0.1),
    recipe=Recipe(scale_learning_rate=0.1),
    by_bits={1: Recipe(learning_rate=4.0, scale_learning_rate=0.1)},
)

#: Ours: one scale a row, little of the hidden states, much of the teacher's distribution, a rate that stays small
#: for long at its end and is larger for one bit.
DQLIB = Preset(
    name="dqlib",
    loss=LossWeights(logits=10.0, hidden=0.1),
    recipe=Recipe(schedule="cosine"),
    by_bits={bits: Recipe(rate, "cosine") for bits, rate in ((1, 4.0), (2, 1.5), (8, 0.5))},
)

PRESETS: dict[str, Preset] = {p.name: p for p in (DQ_BART_FAITHFUL, DQ_BART, XTC, QUANTGPT, DQLIB)}


def _variants() -> dict[str, Preset]:
    d = DQLIB
    changed = {
        "logits-1": {"loss": replace(d.loss, logits=1.0)},
        "no-task": {"loss": replace(d.loss, task=0.0)},
        "no-attention": {"loss": replace(d.loss, attention=0.0)},
        "no-hidden": {"loss": replace(d.loss, hidden=0.0)},
        "linear-rate": {"recipe": replace(d.recipe, schedule="linear")},
        "scale-a-tensor": {"weights": replace(d.weights, linear="per_tensor")},
        "token-contrast": {"loss": replace(d.loss, contrastive=0.1)},
        "trained-scales": {
            "weights": replace(d.weights, factor=True),
            "recipe": replace(d.recipe, scale_learning_rate=0.1),
        },
        "progressive": {"recipe": replace(d.recipe, progressive=0.5)},
    }
    return {f"dqlib-{name}": replace(d, name=f"dqlib-{name}", **change) for name, change in changed.items()}


#: ``dqlib`` with one part left out or made plain, and with one part more that we tried and did not keep.
VARIANTS: dict[str, Preset] = _variants()


def preset(name: str | Preset) -> Preset:
    """The preset of that name, or itself.

    Raises:
        InputError: there is none.
    """
    if isinstance(name, Preset):
        return name
    known = PRESETS | VARIANTS
    if name not in known:
        raise InputError("preset", name, f"one of {', '.join(known)}")
    return known[name]
