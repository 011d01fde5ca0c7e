"""What a student is, as data: configurations, granularity, how weights and activations become codes.

A configuration ``W-E-A e-d`` gives bits of weights, embeddings and activations, then layers.

``2-2-8 6-3`` is the DQ-BART headline (16.5x smaller), ``2-2-8 1-1`` its limit (27.7x).
Thirty-two bits stand for full precision, so ``32-32-32 6-3`` is distillation alone.
``auto:0.45MB 6-3`` gives a budget of bytes instead of bits, which are then chosen module by module.
Layers may be narrower, too: ``2-2-8 6-3 h8 f2048`` has 8 heads in every attention, and 2048 neurons in every
feed-forward layer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from decimal import Decimal

from dqlib.errors import InputError, check_choice, check_fields, within
from dqlib.schemes import SCHEMES, Scheme

FULL_PRECISION = 32
WEIGHT_BITS = (*range(1, 9), FULL_PRECISION)
ACTIVATION_BITS = (4, 8, FULL_PRECISION)

#: Bits that a budget of bytes chooses from, and those of its activations.
BUDGET_BITS = (1, 2, 4, 8)
BUDGET_ACTIVATION_BITS = 8

_SHAPE = r"(\d{1,4})-(\d{1,4})(?:[ _]h(\d{1,4}))?(?:[ _]f(\d{1,6}))?"
_PATTERN = re.compile(rf"(\d{{1,4}})-(\d{{1,4}})-(\d{{1,4}})[ _]{_SHAPE}", re.ASCII)
_BUDGET = re.compile(rf"auto[:-](\d{{1,9}}(?:\.\d{{1,6}})?)(MB|kB)(?:[ _]{_SHAPE})?", re.ASCII)
_UNITS = {"MB": 10**6, "kB": 10**3}
_FORM = (
    "of the form 'W-E-A e-d', such as '2-2-8 6-3' (bits of weights, embeddings, activations; layers), or "
    "'auto:0.45MB e-d' (bytes in MB or kB; without layers, those of the teacher), with heads and neurons after the "
    "layers where they are fewer, as in '2-2-8 6-3 h8 f2048'"
)


@dataclass(frozen=True, slots=True)
class Config:
    """Shape and precision of a student.

    Args:
        w_bits: bits of a weight of a linear layer, one of :data:`WEIGHT_BITS`.
        e_bits: bits of a weight of the token embedding, which is also the output head.
        a_bits: bits of an activation, one of :data:`ACTIVATION_BITS`.
        budget: bytes of all tensors of its packed file. Bits are then chosen per module, of :data:`BUDGET_BITS`;
            ``w_bits`` is then the number nearest to their mean in linear layers, which a preset's recipe goes by,
            ``e_bits`` that of embeddings, and both are 0 until they are chosen.
        modules: bits of each module with a weight of its own, by its path, once they are chosen.
        all_layers: the text names no layers, those of the teacher are meant; both numbers are 0 until it is known.
        heads: of every attention; None for as many as the teacher has.
        ffn: neurons of every feed-forward layer; None for as many as the teacher has.

    Raises:
        InputError: a field is out of range.
    """

    w_bits: int
    e_bits: int
    a_bits: int
    encoder_layers: int
    decoder_layers: int
    budget: int | None = None
    modules: tuple[tuple[str, int], ...] = ()
    all_layers: bool = False
    heads: int | None = None
    ffn: int | None = None

    def __post_init__(self) -> None:
        for field, bits in (("w_bits", self.w_bits), ("e_bits", self.e_bits)):
            if not (self.is_open and bits == 0):
                check_choice(field, bits, WEIGHT_BITS)
        check_choice("a_bits", self.a_bits, ACTIVATION_BITS)
        for path, bits in self.modules:
            check_choice(f"bits of {path}", bits, WEIGHT_BITS)
        check_fields(self, "encoder_layers decoder_layers", lambda number: number >= 0, "at least 0")
        if not self.encoder_layers + self.decoder_layers and not self.all_layers:
            raise InputError("encoder_layers", 0, "at least 1 where decoder_layers is 0")
        check_fields(self, "heads ffn", lambda number: number is None or number >= 1, "at least 1")

    @classmethod
    def parse(cls, text: object) -> Config:
        """Read ``2-2-8 6-3``, ``2-2-8 6-3 h8 f2048`` or ``auto:0.45MB 6-3``, with ``_`` for spaces as in file names.

        Raises:
            InputError: the text has another form, or a number is out of range.
        """
        stripped = text.strip() if isinstance(text, str) else ""
        match = _PATTERN.fullmatch(stripped) or _BUDGET.fullmatch(stripped)
        if match is None:
            raise InputError("config", text, _FORM)
        *bits, encoder, decoder, heads, ffn = match.groups()
        depths = int(encoder or 0), int(decoder or 0)
        widths = [None if number is None else int(number) for number in (heads, ffn)]
        with within(f"config {text!r}"):
            if match.re is _PATTERN:
                w_bits, e_bits, a_bits = map(int, bits)
                return cls(w_bits, e_bits, a_bits, *depths, heads=widths[0], ffn=widths[1])
            size, whole_depth = int(Decimal(bits[0]) * _UNITS[bits[1]]), encoder is None
            return cls(0, 0, BUDGET_ACTIVATION_BITS, *depths, size, (), whole_depth, *widths)

    def __str__(self) -> str:
        layers = [] if self.all_layers else [f"{self.encoder_layers}-{self.decoder_layers}"]
        return " ".join([self.bits, *layers, *self.widths])

    @property
    def bits(self) -> str:
        """The first half, ``W-E-A`` or ``auto:0.45MB``."""
        if self.budget is not None:
            return f"auto:{in_megabytes(self.budget)}"
        return f"{self.w_bits}-{self.e_bits}-{self.a_bits}"

    @property
    def widths(self) -> list[str]:
        """The last part, ``h8`` and ``f2048``, as far as they differ from the teacher's."""
        return [f"{letter}{n}" for letter, n in (("h", self.heads), ("f", self.ffn)) if n is not None]

    @property
    def narrow(self) -> bool:
        """Whether layers have fewer heads or neurons than the teacher's."""
        return bool(self.widths)

    @property
    def slug(self) -> str:
        """The configuration as a file or stage name: ``2-2-8_6-3_h8_f2048``, ``auto-0.45MB_6-3``."""
        return str(self).replace(" ", "_").replace(":", "-")

    @property
    def is_open(self) -> bool:
        """Whether there is a budget, and no bits have been chosen for it yet."""
        return self.budget is not None and not self.modules

    def with_layers_of(self, encoder_layers: int, decoder_layers: int) -> Config:
        """The configuration for a teacher of that depth, whose layers it has where it names none."""
        if not self.all_layers:
            return self
        return replace(self, encoder_layers=encoder_layers, decoder_layers=decoder_layers)

    def uniform(self, bits: int) -> Config:
        """The same shape and activations, with so many bits in all linear layers and embeddings."""
        return replace(self, w_bits=bits, e_bits=bits, budget=None, modules=(), all_layers=False)

    def check_fits(self, encoder_layers: int, decoder_layers: int, heads: int, ffn: int) -> None:
        """Check that a teacher has the layers, heads and neurons that this student would copy.

        Raises:
            InputError: the student is deeper or wider than the teacher.
        """
        teacher = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers, "heads": heads, "ffn": ffn}
        for field, most in teacher.items():
            value = getattr(self, field)
            if value is not None and value > most:
                raise InputError(f"config '{self}', {field}", value, f"at most {most}, as many as the teacher has")


def in_megabytes(size: int) -> str:
    """Bytes as a configuration has them, exactly: ``0.45MB``."""
    return f"{Decimal(size).scaleb(-6).normalize():f}MB"


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
_CLIPS = "a positive number, or left out"


def _is_clip(limit: float | None) -> bool:
    return limit is None or limit > 0


@dataclass(frozen=True, slots=True)
class WeightQuantization:
    """How weights of each bit width become codes.

    Args:
        one_bit, two_bits, more_bits: scheme at 1 bit, at 2 bits, and above.
        linear, embedding: granularity of the scales in linear layers and in embeddings.
        clip: weights are clipped to [-clip, clip] first, and get no gradient outside; None for no clipping.
        factor: train a factor on each scale, starting from 1, where the scheme's own scale is not trained.
        full_range: see :func:`dqlib.quantizers.quantize`.

    Raises:
        InputError: a scheme has no grid for its bits, or a field is out of range.
    """

    one_bit: str = "binary"
    two_bits: str = "ternary"
    more_bits: str = "symmetric"
    linear: str = "per_row"
    embedding: str = "per_row"
    clip: float | None = None
    factor: bool = False
    full_range: bool = False

    def __post_init__(self) -> None:
        for field, bits in (("one_bit", 1), ("two_bits", 2), ("more_bits", 8)):
            check_choice(field, getattr(self, field), [name for name, scheme in SCHEMES.items() if bits in scheme.bits])
        for granularity in (self.linear, self.embedding):
            Granularity.parse(granularity)
        check_fields(self, "clip", _is_clip, _CLIPS)

    def scheme(self, bits: int) -> Scheme:
        """The scheme of weights of that many bits."""
        return Scheme.parse({1: self.one_bit, 2: self.two_bits}.get(bits, self.more_bits))


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
        check_fields(self, "clip", _is_clip, _CLIPS)
