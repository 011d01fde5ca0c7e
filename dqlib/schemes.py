"""How a weight becomes codes: one entry of :data:`SCHEMES` per scheme, which everything else derives from.

A new scheme is one more entry: presets, checks, trained scales, packed files and figures then know it by its name.

Symbols: ``w`` a weight, ``q`` its codes, ``s`` the scale, ``z`` the zero point, ``b`` the bits; :func:`largest_code` is
2^(b-1) - 1. Weights come grouped, with the values that share a scale in the last dimension: (rows, groups, k).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dqlib.errors import check_choice

if TYPE_CHECKING:  # names and bits are asked for without torch, which takes seconds to import
    from torch import Tensor

#: Threshold of ternary weights as a part of mean|w| (Ternary Weight Networks, arXiv:1605.04711, eq. 5).
TERNARY_THRESHOLD = 0.7

#: Distance of two neighbours of four levels, as a part of mean|w|. For a normal distribution, of which mean|w| is 0.798
#: standard deviations, the step of least squared error is 1.25 mean|w| (Max 1960, table II: 0.996 deviations).
FOUR_LEVEL_STEP = 1.25


@dataclass(frozen=True, slots=True)
class Grid:
    """What a scheme is asked for besides the weight.

    Args:
        full_range: divide the range into 2^b steps and clip the topmost, where the scheme has that choice.
        integer_zero_point: round the zero point, so that zero itself has a code.
        learned: the trained scale, for a scheme that has one: (rows, groups, 1).
    """

    bits: int
    full_range: bool = False
    integer_zero_point: bool = True
    learned: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TrainedScale:
    """The scale of a scheme that is trained with the weights.

    Args:
        start: (w, bits) to where its training starts, (rows, groups, 1).
        slope: (w, bits) to what d value / d step is multiplied by, so that it becomes the gradient of what is trained.
        reach: (bits) to the largest |w| / step on the grid; beyond it the weight gets no gradient.
        linear_bits: of grids whose codes do not depend on what is trained: the value is linear in it, and the weight
            gets a gradient everywhere.
    """

    start: Callable[[Tensor, int], Tensor]
    slope: Callable[[Tensor, int], Tensor | float]
    reach: Callable[[int], float]
    linear_bits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to make codes of a weight.

    Args:
        codes: (w, grid) to codes (in floating point), scales (rows, groups, 1) and zero points, or None without.
        trained: how its scale is trained; None where it follows from the weight. A trained factor may multiply that.
        lowest: whether the lowest code, -2^(b-1), is used: ``never``, ``always``, or with ``full_range``.
        odd: whether codes are the odd numbers from -(2^b - 1) to 2^b - 1, as they always are at 1 bit.
    """

    name: str
    bits: tuple[int, ...]
    codes: Callable[[Tensor, Grid], tuple[Tensor, Tensor, Tensor | None]]
    source: str
    trained: TrainedScale | None = None
    lowest: str = "never"
    odd: bool = False

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Callable[[str], Scheme], tuple[str]]:
        return Scheme.parse, (self.name,)  # copies and pickles are the entry of the table itself

    @classmethod
    def parse(cls, name: str | Scheme) -> Scheme:
        """The scheme of that name, or itself.

        Raises:
            InputError: there is none.
        """
        if isinstance(name, Scheme):
            return name
        check_choice("scheme", name, SCHEMES)
        return SCHEMES[name]

    @property
    def learned(self) -> bool:
        """Whether the scale is trained with the weights."""
        return self.trained is not None

    def grid(self, bits: int, full_range: bool = False) -> Sequence[int]:
        """The codes that a weight of that many bits may have."""
        if bits == 1 or self.odd:
            return range(1 - 2**bits, 2**bits, 2)
        top, whole = largest_code(bits), self.lowest == "always" or (full_range and self.lowest == "full_range")
        return range(-top - whole, top + 1)

    def encoding(self, bits: int, full_range: bool = False) -> str:
        """How codes become digits in :func:`dqlib.storage.packing.pack`: ``ternary``, ``odd`` or ``bits``."""
        if self.odd and bits > 1:
            return "odd"
        return "ternary" if self.grid(bits, full_range) == range(-1, 2) else "bits"


def largest_code(bits: int) -> int:
    """Largest code of the symmetric grid; a single bit has the codes -1 and 1."""
    return max(1, 2 ** (bits - 1) - 1)


def _mean(w: Tensor) -> Tensor:
    """mean|w|, (rows, groups, 1)."""
    return w.abs().mean(dim=-1, keepdim=True)


def _binary(w: Tensor, grid: Grid) -> tuple[Tensor, Tensor, None]:
    return _signs(w), _mean(w), None


def _ternary(w: Tensor, grid: Grid) -> tuple[Tensor, Tensor, None]:
    import torch

    spare = w.abs()
    threshold = TERNARY_THRESHOLD * spare.mean(dim=-1, keepdim=True)
    q, negative = torch.gt(w, threshold, out=torch.empty_like(w)), torch.lt(w, -threshold, out=spare)
    exact = torch.float32 if w.size(-1) < 2**24 else torch.int64  # to count ones in
    kept = q.sum(dim=-1, keepdim=True, dtype=exact) + negative.sum(dim=-1, keepdim=True, dtype=exact)
    q -= negative
    summed_in = torch.float32 if w.dtype in (torch.float16, torch.bfloat16) else None  # fp16 holds no large sum
    scale = torch.mul(q, w, out=spare).sum(dim=-1, keepdim=True, dtype=summed_in) / kept.long().clamp(min=1)
    return q, scale.to(w.dtype), None


def _four_level(w: Tensor, grid: Grid) -> tuple[Tensor, Tensor, None]:
    scale = _mean(w) * (FOUR_LEVEL_STEP / 2)
    return _odd(w, scale, grid.bits), scale, None


def _stretched(w: Tensor, grid: Grid) -> tuple[Tensor, Tensor, None]:
    assert grid.learned is not None, "stretched needs a learned scale"
    step = _kept_from_zero(grid.learned / 2**grid.bits, _mean(w))
    return _odd(w, step, grid.bits), step, None


def _odd(w: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The odd number nearest to w / scale, of those that the bits have; of two, the higher one."""
    half = 2 ** (bits - 1)
    return w.div(2 * _no_zeros(scale)).floor_().clamp_(-half, half - 1).mul_(2).add_(1)


def _symmetric(w: Tensor, grid: Grid) -> tuple[Tensor, Tensor, None]:
    half, top = 2 ** (grid.bits - 1), largest_code(grid.bits)
    scale = w.abs().amax(dim=-1, keepdim=True) / (half if grid.full_range else top)
    q = w.div(_no_zeros(scale)).round_().clamp_(-half if grid.full_range else -top, half - 1)
    return q, scale, None


def _asymmetric(w: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    half = 2 ** (grid.bits - 1)
    low, high = w.amin(dim=-1, keepdim=True), w.amax(dim=-1, keepdim=True)
    scale = (high - low) / (2 * half if grid.full_range else 2 * half - 1)
    scale = scale.where(scale > 0, _no_zeros(high.abs()))  # all weights alike: one step from zero
    zero_point = -low / scale
    zero_point = (zero_point.round() if grid.integer_zero_point else zero_point) - half
    return w.div(scale).add_(zero_point).round_().clamp_(-half, half - 1), scale, zero_point


def _lsq(w: Tensor, grid: Grid) -> tuple[Tensor, Tensor, None]:
    assert grid.learned is not None, "lsq needs a learned scale"
    if grid.bits == 1:
        return _signs(w), _kept_from_zero(grid.learned, _mean(w)), None
    return _on_a_trained_grid(w, grid.learned, _mean(w), grid.bits)


def _dynamic(w: Tensor, grid: Grid) -> tuple[Tensor, Tensor, None]:
    assert grid.learned is not None, "dynamic needs a learned scale"
    mean = _mean(w)
    if grid.bits == 1:
        return _signs(w), grid.learned * mean, None
    return _on_a_trained_grid(w, grid.learned * mean / largest_code(grid.bits), mean, grid.bits)


def _on_a_trained_grid(w: Tensor, step: Tensor, mean: Tensor, bits: int) -> tuple[Tensor, Tensor, None]:
    """Codes of a grid whose step is trained, kept away from zero."""
    step, top = _kept_from_zero(step, mean), largest_code(bits)
    return w.div(_no_zeros(step)).round_().clamp_(-top, top), step, None


def _kept_from_zero(step: Tensor, mean: Tensor) -> Tensor:
    """A trained step that is at least a thousandth of mean|w|, and zero for a row of zeros.

    A step that training drives to zero would turn every code into an extreme one; codes that cannot be zero need a
    step that is, where the weights are.
    """
    import torch

    return torch.maximum(step, mean * 1e-3).clamp(min=torch.finfo(mean.dtype).tiny).where(mean > 0, 0.0)


def _start_of_lsq(w: Tensor, bits: int) -> Tensor:
    return _mean(w) if bits == 1 else 2 * _mean(w) / largest_code(bits) ** 0.5


def _start_of_dynamic(w: Tensor, bits: int) -> Tensor:
    """The gamma of least squared error between the weight and what its codes stand for, to 1/16."""
    start = w.new_ones(*w.shape[:-1], 1)
    least = start * float("inf")
    for sixteenths in range(8, 129) if bits > 1 else ():
        gamma = w.new_full(start.shape, sixteenths / 16)
        q, scale, _ = _dynamic(w, Grid(bits, learned=gamma))
        error = (q * scale - w).square().mean(dim=-1, keepdim=True)
        start = gamma.where(error < least, start)
        least = error.minimum(least)
    return start


def _signs(w: Tensor) -> Tensor:
    import torch

    return torch.ge(w, 0, out=torch.empty_like(w)).mul_(2).sub_(1)


def _no_zeros(scale: Tensor) -> Tensor:
    """The scale with 1 in place of 0, to divide by."""
    return scale.where(scale > 0, 1.0)


_SOME_BITS = tuple(range(2, 9))

#: Every scheme by its name; :func:`dqlib.quantizers.quantize` has the formulas.
SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("symmetric", _SOME_BITS, _symmetric, "uniform quantization", lowest="full_range"),
        Scheme("asymmetric", _SOME_BITS, _asymmetric, "uniform quantization with a zero point", lowest="always"),
        Scheme("ternary", (2,), _ternary, "Ternary Weight Networks, arXiv:1605.04711"),
        Scheme("binary", (1,), _binary, "XNOR-Net, arXiv:1603.05279, eq. 6"),
        Scheme("four_level", (2,), _four_level, "four levels around zero, as in ParetoQ, arXiv:2502.02631", odd=True),
        Scheme(
            "stretched",
            (2,),
            _stretched,
            "stretched elastic quantization of ParetoQ, arXiv:2502.02631",
            TrainedScale(  # a clip, which is four steps; its gradient is divided as LSQ's is
                lambda w, bits: _mean(w) * (FOUR_LEVEL_STEP / 2 * 2**bits),
                lambda w, bits: (w.size(-1) * largest_code(bits)) ** -0.5 / 2**bits,
                lambda bits: 2**bits,
            ),
            odd=True,
        ),
        Scheme(
            "lsq",
            (1, *_SOME_BITS),
            _lsq,
            "Learned Step Size Quantization, arXiv:1902.08153, eq. 1 and 3, sections 2.1 and 2.2; at 1 bit the elastic "
            "binarization of BiT, arXiv:2205.13016",
            TrainedScale(_start_of_lsq, lambda w, bits: (w.size(-1) * largest_code(bits)) ** -0.5, largest_code),
        ),
        Scheme(
            "dynamic",
            (1, *_SOME_BITS),
            _dynamic,
            "module-wise dynamic scaling of QuantGPT, arXiv:2203.10705, section 3.2",
            TrainedScale(
                _start_of_dynamic, lambda w, bits: _mean(w) / largest_code(bits), largest_code, linear_bits=(1,)
            ),
        ),
    )
}
