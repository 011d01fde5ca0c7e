"""What a student is and how it learns, as data: configurations, granularity, loss weights.

A configuration ``W-E-A e-d`` gives bits of weights, embeddings and activations, then layers.

``2-2-8 6-3`` is the DQ-BART headline (16.5x smaller), ``2-2-8 1-1`` its limit (27.7x).
Thirty-two bits stand for full precision, so ``32-32-32 6-3`` is distillation alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dqlib.errors import InputError
from dqlib.schemes import SCHEMES, Scheme

FULL_PRECISION = 32
WEIGHT_BITS = (*range(1, 9), FULL_PRECISION)
ACTIVATION_BITS = (4, 8, FULL_PRECISION)

_PATTERN = re.compile(r"(\d{1,4})-(\d{1,4})-(\d{1,4})[ _](\d{1,4})-(\d{1,4})", re.ASCII)
_FORM = "of the form 'W-E-A e-d', such as '2-2-8 6-3' (bits of weights, embeddings, activations; layers)"


@dataclass(frozen=True, slots=True)
class Config:
    """Shape and precision of a student.

    Args:
        w_bits: bits of a weight of a linear layer, one of :data:`WEIGHT_BITS`.
        e_bits: bits of a weight of the token embedding, which is also the output head.
        a_bits: bits of an activation, one of :data:`ACTIVATION_BITS`.
        encoder_layers: number of encoder layers, at least 1.
        decoder_layers: number of decoder layers, at least 1.

    Raises:
        InputError: a field is out of range.
    """

    w_bits: int
    e_bits: int
    a_bits: int
    encoder_layers: int
    decoder_layers: int

    def __post_init__(self) -> None:
        for field, allowed in (("w_bits", WEIGHT_BITS), ("e_bits", WEIGHT_BITS), ("a_bits", ACTIVATION_BITS)):
            value = getattr(self, field)
            if value not in allowed:
                raise InputError(field, value, f"one of {', '.join(map(str, allowed))}")
        for field in ("encoder_layers", "decoder_layers"):
            if getattr(self, field) < 0:
                raise InputError(field, getattr(self, field), "at least 0")
        if not self.encoder_layers + self.decoder_layers:
            raise InputError("encoder_layers", 0, "at least 1 where decoder_layers is 0")

    @classmethod
    def parse(cls, text: object) -> Config:
        """Read ``2-2-8 6-3`` (or ``2-2-8_6-3``, as file names have it).

        Raises:
            InputError: the text has another form, or a number is out of range.
        """
        match = _PATTERN.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise InputError("config", text, _FORM)
        try:
            return cls(*map(int, match.groups()))
        except InputError as error:
            raise InputError(f"config {text!r}, {error.field}", error.value, error.allowed) from None

    def __str__(self) -> str:
        return f"{self.bits} {self.encoder_layers}-{self.decoder_layers}"

    @property
    def bits(self) -> str:
        """The first half, ``W-E-A``."""
        return f"{self.w_bits}-{self.e_bits}-{self.a_bits}"

    @property
    def slug(self) -> str:
        """The configuration as a file or stage name: ``2-2-8_6-3``."""
        return str(self).replace(" ", "_")

    def check_fits(self, encoder_layers: int, decoder_layers: int) -> None:
        """Check that a teacher of that depth has the layers this student would copy.

        Raises:
            InputError: the student is deeper than the teacher.
        """
        for field, depth in (("encoder_layers", encoder_layers), ("decoder_layers", decoder_layers)):
            if getattr(self, field) > depth:
                raise InputError(
                    f"config '{self}', {field}", getattr(self, field), f"at most {depth}, as many as the teacher has"
                )


@dataclass(frozen=True, slots=True)
class Granularity:
    """How many weights share one scale: the tensor's, a row's, or ``group`` neighbours of a row.

    Raises:
        InputError: the kind is unknown, or a group is not a positive number.
    """

    kind: str = "per_row"
    group: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("per_tensor", "per_row", "per_group") or (self.kind == "per_group") != (self.group > 0):
            raise InputError("granularity", str(self), _GRANULARITIES)

    @classmethod
    def parse(cls, text: str | Granularity) -> Granularity:
        """Read ``per_tensor``, ``per_row`` or ``per_group_64``.

        Raises:
            InputError: the text has another form.
        """
        if isinstance(text, Granularity):
            return text
        match = re.fullmatch(r"(per_tensor|per_row|per_group)(?:_(\d+))?", str(text))
        if match is None or (match[1] == "per_group") != (match[2] is not None) or match[2] == "0":
            raise InputError("granularity", text, _GRANULARITIES)
        return cls(match[1], int(match[2] or 0))

    def __str__(self) -> str:
        return f"{self.kind}_{self.group}" if self.group else self.kind

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Shape of the scales of a matrix: (1, 1), (rows, 1) or (rows, columns / group).

        Raises:
            InputError: the group does not divide the row.
        """
        if self.kind == "per_tensor":
            return 1, 1
        if self.kind == "per_row":
            return rows, 1
        if columns % self.group:
            raise InputError("granularity", str(self), f"a group that divides a row of {columns} weights")
        return rows, columns // self.group


_GRANULARITIES = "per_tensor, per_row, or per_group_k with k weights per scale, such as per_group_64"


@dataclass(frozen=True, slots=True)
class WeightQuantization:
    """How weights of each bit width become codes.

    Args:
        binary, ternary, uniform: scheme at 1 bit, at 2 bits, and above.
        linear, embedding: granularity of the scales in linear layers and in embeddings.
        clip: weights are clipped to [-clip, clip] first, and get no gradient outside; None for no clipping.
        factor: train a factor on each scale, starting from 1, where the scheme's own scale is not trained.
        full_range: see :func:`dqlib.quantizers.quantize`.

    Raises:
        InputError: a scheme has no grid for its bits, or a field is out of range.
    """

    binary: str = "binary"
    ternary: str = "ternary"
    uniform: str = "symmetric"
    linear: str = "per_row"
    embedding: str = "per_row"
    clip: float | None = None
    factor: bool = False
    full_range: bool = False

    def __post_init__(self) -> None:
        for field, bits in (("binary", 1), ("ternary", 2), ("uniform", 8)):
            allowed = [name for name, scheme in SCHEMES.items() if bits in scheme.bits]
            if getattr(self, field) not in allowed:
                raise InputError(field, getattr(self, field), f"one of {', '.join(allowed)}")
        for field in ("linear", "embedding"):
            Granularity.parse(getattr(self, field))
        if self.clip is not None and not self.clip > 0:
            raise InputError("clip", self.clip, "a positive number, or left out")

    def scheme(self, bits: int) -> Scheme:
        """The scheme of weights of that many bits."""
        return Scheme.parse({1: self.binary, 2: self.ternary}.get(bits, self.uniform))


@dataclass(frozen=True, slots=True)
class ActivationQuantization:
    """How activations are rounded: one dynamic scale per token (the last dimension) or a tensor.

    Args:
        granularity: ``per_token`` or ``per_tensor``.
        unsigned: attention probabilities use the grid 0 .. 2^b - 1 instead of the signed one.
        clip: activations are clipped to [-clip, clip] first, and get no gradient outside; None for no clipping.

    Raises:
        InputError: a field is out of range.
    """

    granularity: str = "per_token"
    unsigned: bool = True
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.granularity not in ("per_token", "per_tensor"):
            raise InputError("granularity", self.granularity, "per_token or per_tensor")
        if self.clip is not None and not self.clip > 0:
            raise InputError("clip", self.clip, "a positive number, or left out")


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weight of each family of terms in the total; 0 leaves the family out (and its cost).

    Args:
        task, logits, attention, hidden, contrastive: weights.
        logits_loss: ``kl`` (at ``temperature``), ``tsld`` (the same, a token counting as much as the teacher finds it
            hard, see :func:`dqlib.losses.token_scale`) or ``mse``.
        attention_maps: compare ``probabilities``, ``scores`` (before the softmax) or, in self-attention, ``relations``
            (of queries, of keys and of values among themselves).
        reduction: ``tokens`` averages over tokens that are not padding and over layers; ``reference`` as DQ-BART's
            code does: over all positions, padding too, summed over layers, embeddings' output counted as one.
        contrastive_temperature, momentum: of the contrastive loss and its memory bank.
        token_temperature: softens what ``tsld`` makes of hard and easy tokens.
        layers: of the student that attention and hidden states are compared in: ``all``, or the ``last`` of each stack.

    Raises:
        InputError: a weight is negative, or a choice is unknown or one that the reduction does not have.
    """

    task: float = 1.0
    logits: float = 1.0
    attention: float = 1.0
    hidden: float = 1.0
    contrastive: float = 0.0
    logits_loss: str = "kl"
    temperature: float = 1.0
    attention_maps: str = "probabilities"
    reduction: str = "tokens"
    contrastive_temperature: float = 0.1
    momentum: float = 0.5
    token_temperature: float = 10.0
    layers: str = "all"

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise InputError(field, getattr(self, field), " or ".join(allowed))
        for field in ("task", "logits", "attention", "hidden", "contrastive"):
            if not getattr(self, field) >= 0:
                raise InputError(field, getattr(self, field), "at least 0")
        for field in ("temperature", "contrastive_temperature", "token_temperature"):
            if not getattr(self, field) > 0:
                raise InputError(field, getattr(self, field), "a positive number")
        if not 0 <= self.momentum < 1:
            raise InputError("momentum", self.momentum, "at least 0 and below 1")
        if self.reduction == "reference":  # which has terms of one kind only
            for field, weight, there in _OF_REFERENCE:
                if getattr(self, weight) and getattr(self, field) != there:
                    raise InputError(field, getattr(self, field), f"{there} with the reduction 'reference'")

    @property
    def of_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any((self.logits, self.attention, self.hidden, self.contrastive))

    def of(self, term: str) -> float:
        """Weight of one term of :func:`dqlib.losses.distillation_terms`, such as ``cross_attention``."""
        return getattr(self, term.rpartition("_")[2])


#: Fields that the reduction ``reference`` has one value of, where the weight beside them is not 0.
_OF_REFERENCE = (
    ("logits_loss", "logits", "mse"),
    ("attention_maps", "attention", "probabilities"),
    ("layers", "attention", "all"),
    ("layers", "hidden", "all"),
    ("contrastive", "contrastive", 0.0),
)

_CHOICES = {
    "logits_loss": ("kl", "tsld", "mse"),
    "attention_maps": ("probabilities", "scores", "relations"),
    "reduction": ("tokens", "reference"),
    "layers": ("all", "last"),
}
