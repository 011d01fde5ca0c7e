"""What a student is and how it learns, as data: configurations, granularity, loss weights.

A configuration ``W-E-A e-d`` gives bits of weights, embeddings and activations, then layers.

``2-2-8 6-3`` is the DQ-BART headline (16.5x smaller), ``2-2-8 1-1`` its limit (27.7x).
Thirty-two bits stand for full precision, so ``32-32-32 6-3`` is distillation alone.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum

from dqlib.errors import InputError

FULL_PRECISION = 32
WEIGHT_BITS = (1, 2, 3, 4, 8, FULL_PRECISION)
ACTIVATION_BITS = (8, FULL_PRECISION)

_PATTERN = re.compile(r"(\d+)-(\d+)-(\d+)[ _](\d+)-(\d+)")
_FORM = "of the form 'W-E-A e-d', such as '2-2-8 6-3' (bits of weights, embeddings, activations; layers)"


@dataclass(frozen=True, slots=True)
class Configuration:
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
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "at least 1")

    @classmethod
    def parse(cls, text: str) -> Configuration:
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


class Granularity(StrEnum):
    """How many weights share one scale."""

    PER_ROW = "per_row"
    PER_TENSOR = "per_tensor"


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weight of each family of terms in the total; 0 leaves the family out (and its cost).

    Raises:
        InputError: a weight is negative, or ``logits_loss`` is unknown.
    """

    task: float = 1.0
    logits: float = 1.0
    attention: float = 1.0
    hidden: float = 1.0
    logits_loss: str = "kl"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for field, value in asdict(self).items():
            if field == "logits_loss":
                if value not in ("kl", "mse"):
                    raise InputError(field, value, "kl or mse")
            elif value < 0 or (field == "temperature" and value == 0):
                raise InputError(field, value, "a positive number" if field == "temperature" else "at least 0")

    def of(self, term: str) -> float:
        """Weight of one term of :func:`dqlib.losses.distillation_terms`."""
        return getattr(self, term.removeprefix("encoder_").removeprefix("decoder_").removeprefix("cross_"))
