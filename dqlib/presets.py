"""Methods as data: how each paper quantizes and distils, in the same few fields, to be read side by side.

``learning_rate`` multiplies the one of the study's profile, since the papers' own rates belong to models a
hundred times larger; schedules, losses and quantizers are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dqlib.config import BUDGET_BITS, FULL_PRECISION, ActivationQuantization, Config, WeightQuantization
from dqlib.errors import InputError, check_choice, check_fields
from dqlib.loss_weights import LossWeights

#: How a learning rate falls after its warm-up, as transformers names it.
SCHEDULES = ("linear", "cosine", "constant_with_warmup")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a student is trained, apart from steps and batches, which are the study's.

    Args:
        learning_rate: times the profile's.
        schedule: ``linear``, ``cosine`` or ``constant_with_warmup``.
        warmup: part of the steps in which the rate rises.
        scale_learning_rate: rate of trained scales, times that of the weights.
        progressive: part of the steps over which the forward pass turns from full-precision to quantized weights.
        layerwise: part of the steps, at the start, in which each layer learns alone (:mod:`dqlib.layerwise`); it has a
            rise and a fall of the rate of its own.
        layerwise_rate: rate of these steps, times that of the others.
        layer_losses_until: part of the steps over which the weights of attention and hidden states fall to 0, in a
            straight line; at 1 they stay.
        average: part of the steps, at the end, over which weights are averaged (Izmailov et al. 2018,
            arXiv:1803.05407); the averages are what is validated and kept.
        weight_decay: in place of the study's; None for that.
        teacher_targets: share of the training pairs whose target is what the teacher writes, drawn anew in every pass;
            1 is sequence-level distillation (Kim and Rush 2016, arXiv:1606.07947).
        labelled_text: share of the examples that are texts without a reference, with what the teacher writes of them.
        on_policy: share of the steps whose targets are the student's own, judged by the teacher alone (GKD,
            arXiv:2306.13649).
        short_sources: part of the steps, at the start, whose sources are cut short, so that a step of as many tokens
            has more of them, and more targets (sequence length warm-up, Li et al. 2022, arXiv:2108.06084). The teacher
            reads the same, so that what it says of them is right.
        short_length: of these sources, as a part of the corpus's ``source_tokens``.

    Raises:
        InputError: a field is out of range.
    """

    learning_rate: float = 1.0
    schedule: str = "linear"
    warmup: float = 0.05
    scale_learning_rate: float = 1.0
    progressive: float = 0.0
    layerwise: float = 0.0
    layerwise_rate: float = 1.0
    layer_losses_until: float = 1.0
    average: float = 0.0
    weight_decay: float | None = None
    teacher_targets: float = 0.0
    labelled_text: float = 0.0
    on_policy: float = 0.0
    short_sources: float = 0.0
    short_length: float = 0.375

    def __post_init__(self) -> None:
        rates, parts = "learning_rate scale_learning_rate layerwise_rate", "warmup progressive layerwise average"
        check_fields(self, rates, lambda rate: rate > 0, "a positive number")
        check_fields(self, parts, lambda part: 0 <= part < 1, "at least 0 and below 1")
        shares = "teacher_targets labelled_text on_policy short_sources"
        check_fields(self, shares, lambda share: 0 <= share <= 1, "a share, from 0 to 1")
        check_choice("schedule", self.schedule, SCHEDULES)
        check_fields(self, "layer_losses_until short_length", lambda part: 0 < part <= 1, "above 0 and at most 1")
        no_decay_or_any = "at least 0, or None for the study's"
        check_fields(self, "weight_decay", lambda decay: decay is None or decay >= 0, no_decay_or_any)

    def layerwise_steps(self, steps: int) -> int:
        """How many of so many steps are layer-wise; at least one is left for all layers together."""
        return min(round(self.layerwise * steps), steps - 1)

    def averaged_steps(self, steps: int) -> int:
        """How many of so many steps, the last ones, are averaged; none of the layer-wise ones."""
        return min(round(self.average * steps), steps - self.layerwise_steps(steps))

    def layer_losses(self, step: int, steps: int) -> float:
        """What the weights of attention and hidden states are multiplied by in a step, counted from 1, of so many."""
        if self.layer_losses_until == 1:
            return 1.0
        return max(0.0, 1 - (step - 1) / (self.layer_losses_until * steps))

    @property
    def pseudo_labels(self) -> bool:
        """Whether a student is trained on what the teacher writes."""
        return self.teacher_targets > 0 or self.labelled_text > 0


@dataclass(frozen=True, slots=True)
class Preset:
    """A method of making a model small.

    Args:
        weights, activations: how each becomes codes.
        by_bits: recipes of weight bits that need another one.
        rate_exponent: the rate of a student whose layers keep a part ``kept`` of their teacher's weights is
            ``kept ** -rate_exponent`` times that of one that keeps them all.
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
    rate_exponent: float = 0.0
    quantize_head: bool = True
    position_bits: int = 8
    single_layer: str = "first"
    weight_bits: tuple[int, ...] = (*range(1, 9), FULL_PRECISION)
    architectures: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "rate_exponent", lambda exponent: exponent >= 0, "at least 0")
        check_fields(self, "single_layer", lambda layer: layer in ("first", "last"), "first or last")
        if unknown := {self.position_bits, *self.weight_bits} - {*range(1, 9), FULL_PRECISION}:
            raise InputError("weight_bits, position_bits", min(unknown), f"1 to 8, or {FULL_PRECISION}")
        if unknown := set(self.by_bits) - set(self.weight_bits):
            raise InputError("by_bits", min(unknown), f"bits of weights, of {', '.join(map(str, self.weight_bits))}")
        for recipe in self.recipes:
            if not self.loss.of_teacher:
                none = "0 where no loss compares with a teacher"
                check_fields(recipe, "layerwise on_policy", lambda share: share == 0, none)
            if not (self.loss.task or self.loss.logits):
                check_fields(recipe, "layer_losses_until", lambda part: part == 1, "1 where task and logits weigh 0")

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """All recipes, whatever the bits."""
        return self.recipe, *self.by_bits.values()

    def recipe_for(self, config: Config, kept: float = 1.0) -> Recipe:
        """The recipe for a student of that many weight bits.

        Args:
            kept: part of the weights in its teacher's layers that the student's layers have, as
                :func:`dqlib.architectures.layer_weights` counts them; 1 for as many layers, heads and neurons.
        """
        recipe = self.by_bits.get(config.w_bits, self.recipe)
        return replace(recipe, learning_rate=recipe.learning_rate * kept**-self.rate_exponent)

    @property
    def budget_bits(self) -> tuple[int, ...]:
        """Bits that a budget of bytes chooses from: those of :data:`BUDGET_BITS` that there is a grid for."""
        return tuple(bits for bits in BUDGET_BITS if bits in self.weight_bits)

    def has_grids(self, config: Config) -> bool:
        """Whether the method is defined for the bits of a configuration."""
        return config.is_open or {config.w_bits, config.e_bits} <= set(self.weight_bits)

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
        """The preset that :meth:`describe` described; other entries are passed over.

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
            raise InputError("preset", f"without or with {error}", "as Preset.describe gives it") from error

    def check_fits(self, config: Config, architecture: str) -> None:
        """Raise an ``InputError`` unless the method is defined for a configuration and an architecture."""
        bits = {"w_bits": config.w_bits, "e_bits": config.e_bits} | dict(config.modules)
        for name, value in () if config.is_open else bits.items():
            if value not in self.weight_bits:
                allowed = ", ".join(map(str, self.weight_bits))
                raise InputError(f"{name} of '{config}'", value, f"one of {allowed} with the preset '{self.name}'")
        if self.architectures is not None and architecture not in self.architectures:
            raise InputError("preset", self.name, f"one that serves the architecture '{architecture}'; "
                             f"this one serves {', '.join(self.architectures)}")  # fmt: skip


#: What DQ-BART's code computes (amazon-science/dq-bart): the head stays in full precision, activations have one
#: scale per tensor, losses count padding.
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

#: QuantGPT (arXiv:2203.10705): trained clipping factor per module, contrast of tokens, logits; nothing else. The
#: paper stops at 2 bits; at 1 bit the factor multiplies the binary scale.
QUANTGPT = Preset(
    name="quantgpt",
    weights=WeightQuantization(one_bit="dynamic", two_bits="dynamic", more_bits="dynamic", linear="per_tensor"),
    loss=LossWeights(task=0.0, attention=0.0, hidden=0.0, contrastive=0.1),
    recipe=Recipe(scale_learning_rate=0.1),
    by_bits={1: Recipe(learning_rate=4.0, scale_learning_rate=0.1)},
)


def _by_rate(rates: Mapping[int, float], **recipe: Any) -> dict[int, Recipe]:
    """Recipes of weight bits that need a rate of their own, alike in all else."""
    return {bits: Recipe(rate, **recipe) for bits, rate in rates.items()}


#: What all recipes of ours share: a rate that stays small for long at its end, and short sources for most of the steps.
_OURS: dict[str, Any] = {"schedule": "cosine", "short_sources": 0.85}

#: Ours: one scale per row, times a trained factor, and four levels at 2 bits; the four losses of DQ-BART, the
#: divergence from the teacher's next token far above the others; a larger rate where bits are few or layers missing.
DQLIB = Preset(
    name="dqlib",
    weights=WeightQuantization(two_bits="four_level", factor=True),
    loss=LossWeights(logits=10.0, hidden=0.1),
    recipe=Recipe(**_OURS),
    by_bits=_by_rate({1: 4.0, 2: 1.25, 8: 0.5}, **_OURS),
    rate_exponent=1.0,
)

#: Ours with three levels at 2 bits, which take 1.6 bits in a file: the smallest.
DQLIB_TERNARY = replace(
    DQLIB,
    name="dqlib-ternary",
    weights=WeightQuantization(factor=True),
    by_bits=_by_rate({1: 4.0, 2: 2.0, 8: 0.5}, **_OURS),
)

#: Quantization alone, without a teacher: what joint distillation is measured against.
QUANTIZATION_ONLY = replace(DQLIB, name="quantization-only", loss=LossWeights(logits=0.0, attention=0.0, hidden=0.0))

PRESETS: dict[str, Preset] = {p.name: p for p in (DQ_BART_FAITHFUL, DQ_BART, XTC, QUANTGPT, DQLIB_TERNARY, DQLIB)}


def _recipes(preset: Preset, **change: Any) -> dict[str, Any]:
    """The same change in every recipe of a preset, whatever the bits."""
    by_bits = {bits: replace(recipe, **change) for bits, recipe in preset.by_bits.items()}
    return {"recipe": replace(preset.recipe, **change), "by_bits": by_bits}


def _variants(base: Preset, changes: Mapping[str, dict[str, Any]]) -> dict[str, Preset]:
    """Presets that differ from another one in what is changed, named after it."""
    return {f"{base.name}-{n}": replace(base, name=f"{base.name}-{n}", **change) for n, change in changes.items()}


#: ``dqlib`` with one part left out or made plain, and with one part more that we tried and did not keep.
_OF_DQLIB: dict[str, dict[str, Any]] = {
    "fixed-scales": {"weights": replace(DQLIB.weights, factor=False)},
    "scale-a-tensor": {"weights": replace(DQLIB.weights, linear="per_tensor")},
    "linear-rate": _recipes(DQLIB, schedule="linear"),
    "squared-logits": {"loss": replace(DQLIB.loss, logits_loss="mse")},
    "equal-losses": {"loss": LossWeights()},
    "more-task": {"loss": replace(DQLIB.loss, task=3.0)},
    "no-task": {"loss": replace(DQLIB.loss, task=0.0)},
    "no-attention": {"loss": replace(DQLIB.loss, attention=0.0)},
    "no-hidden": {"loss": replace(DQLIB.loss, hidden=0.0)},
    "only-logits": {"loss": replace(DQLIB.loss, task=0.0, attention=0.0, hidden=0.0)},
    "with-contrast": {"loss": replace(DQLIB.loss, contrastive=1.0)},
    "progressive": _recipes(DQLIB, progressive=0.4),
    "whole-sources": _recipes(DQLIB, short_sources=0.0),
    "first": {  # before these two, at the rates that it had
        "weights": DQLIB_TERNARY.weights,
        "recipe": Recipe(schedule="cosine"),
        "by_bits": _by_rate({1: 4.0, 2: 1.5, 8: 0.5}, schedule="cosine"),
    },
    "stretched": {"weights": replace(DQLIB.weights, two_bits="stretched")},
    "learned-threshold": {"weights": replace(DQLIB.weights, two_bits="lsq")},
    "elastic-binary": {"weights": replace(DQLIB.weights, one_bit="lsq")},
    "groups-of-32": {"weights": replace(DQLIB.weights, linear="per_group_32")},
    "layerwise": _recipes(DQLIB, layerwise=0.2),
    "token-scaled": {"loss": replace(DQLIB.loss, logits_loss="tsld")},
    "warm-logits": {"loss": replace(DQLIB.loss, temperature=2.0)},
    "relations": {"loss": replace(DQLIB.loss, attention_maps="relations")},
    "last-layer": {"loss": replace(DQLIB.loss, layers="last")},
    "fading-layers": _recipes(DQLIB, layer_losses_until=0.5),
    "averaged": _recipes(DQLIB, average=0.2),
    "no-decay": _recipes(DQLIB, weight_decay=0.0),
    "sequence-level": _recipes(DQLIB, teacher_targets=1.0),
    "sequence-level-mixed": _recipes(DQLIB, teacher_targets=0.5),
    "labelled-text": _recipes(DQLIB, labelled_text=0.5),
    "on-policy": _recipes(DQLIB, on_policy=0.25),
}

#: What QuantGPT's paper compares itself with, all else as in QuantGPT. The fixed clip is that of Ternary Weight
#: Networks, the nearest here to the paper's LAQ; the learned one is LSQ's step, whose gradient has PACT's as a part.
_OF_QUANTGPT: dict[str, dict[str, Any]] = {
    "no-contrast": {"loss": replace(QUANTGPT.loss, contrastive=0.0)},
    "fixed-clip": {"weights": replace(QUANTGPT.weights, one_bit="binary", two_bits="ternary", more_bits="symmetric")},
    "learned-clip": {"weights": replace(QUANTGPT.weights, one_bit="lsq", two_bits="lsq", more_bits="lsq")},
}

#: These, and training without any teacher.
VARIANTS = _variants(DQLIB, _OF_DQLIB) | _variants(QUANTGPT, _OF_QUANTGPT) | {QUANTIZATION_ONLY.name: QUANTIZATION_ONLY}


def get_preset(name: str | Preset) -> Preset:
    """The preset of that name, or itself.

    Raises:
        InputError: there is none.
    """
    if isinstance(name, Preset):
        return name
    known = PRESETS | VARIANTS
    check_choice("preset", name, known)
    return known[name]
