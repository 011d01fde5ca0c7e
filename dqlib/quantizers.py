"""Quantizers of weights and activations.

One function is the truth for weights: :func:`quantize` maps a matrix to integer codes and a scale,
and everything else (training, size accounts, export) is made from those codes. During training the
full-precision weight is kept, the forward pass sees what the codes stand for, and the gradient passes the
rounding unchanged (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432).

Symbols: ``w`` a weight, ``q`` its codes, ``s`` the scale, ``z`` the zero point, ``b`` the bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dqlib.config import FULL_PRECISION, WEIGHT_BITS, Granularity, WeightQuantization
from dqlib.errors import InputError
from dqlib.schemes import Grid, Scheme, largest_code

#: Weights that :func:`fake_quantize_weight` takes at a time on a CPU, so that all its passes but the first find
#: them in the cache of a core.
BLOCK = 2**17


@dataclass(frozen=True, slots=True)
class Quantized:
    """Integer codes (int8, shape of the weight) with scales and, on an asymmetric grid, zero points.

    Scales have the shape of :meth:`dqlib.config.Granularity.scale_shape`. ``encoding`` says of which codes the grid
    is: those of :data:`dqlib.storage.packing.ENCODINGS`.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    zero_point: Tensor | None = None
    encoding: str = "bits"

    def dequantize(self, out: Tensor | None = None) -> Tensor:
        """The weight that the codes stand for, ``(q - z) * s``; written to ``out`` if that is given."""
        value = self.codes.to(self.scale.dtype, copy=True) if out is None else out.copy_(self.codes)
        q = value.unflatten(-1, (self.scale.size(-1), -1))  # (rows, groups, k), the same numbers
        if self.zero_point is not None:
            q.sub_(self.zero_point.unsqueeze(-1))
        q.mul_(self.scale.unsqueeze(-1))
        return value


def quantize(
    weight: Tensor,
    bits: int,
    granularity: Granularity | str = "per_row",
    scheme: Scheme | str | None = None,
    learned: Tensor | None = None,
    *,
    clip: float | None = None,
    full_range: bool = False,
    integer_zero_point: bool = True,
) -> Quantized:
    """Quantize a weight: ``w ~ (q - z) * s``.

    * ``binary``, 1 bit, ``q`` in {-1, +1}: ``s = mean|w|`` (XNOR-Net, arXiv:1603.05279, eq. 6).
    * ``ternary``, 2 bits, ``q`` in {-1, 0, +1}: ``q = sign(w)`` where ``|w| > 0.7 mean|w|``, ``s`` the mean of
      those ``|w|`` (TWN, arXiv:1605.04711; the 2-bit weights of DQ-BART, arXiv:2203.11239, section 2.1).
    * ``four_level``, 2 bits, ``q`` in {-3, -1, 1, 3}: the nearest to ``w / s``, ``s = 0.625 mean|w|``, so that two
      neighbours are 1.25 mean|w| apart.
    * ``stretched``, 2 bits: the same levels, ``s = learned / 4``, where ``learned`` is a trained clip (stretched
      elastic quantization of ParetoQ, arXiv:2502.02631).
    * ``symmetric``, 2 to 8 bits: ``q = round(w / s)``, ``s = max|w| / (2^(b-1) - 1)``.
    * ``asymmetric``, 2 to 8 bits: ``s = (max w - min w) / (2^b - 1)``, an integer ``z`` that maps ``min w`` near
      the lowest code, -2^(b-1).
    * ``lsq``, 1 to 8 bits: ``s`` is ``learned``, ``q = clip(round(w / s), -2^(b-1) + 1, 2^(b-1) - 1)`` (Learned
      Step Size Quantization, arXiv:1902.08153, eq. 1, on a symmetric grid). At 2 bits that is ternary with a trained
      threshold, ``s / 2``; at 1 bit ``q = sign(w)`` (elastic binarization of BiT, arXiv:2205.13016).
    * ``dynamic``, 1 to 8 bits: the clip is ``gamma mean|w|`` with ``learned`` gamma, its step that clip over
      2^(b-1) - 1 (module-wise dynamic scaling of QuantGPT, arXiv:2203.10705, section 3.2). At 1 bit, where the
      paper has no grid, ``gamma`` multiplies the binary scale.

    For the others, ``learned`` is a factor on the scale, after the codes are found; ``asymmetric`` has none.

    Args:
        weight: (rows, columns), floating point.
        scheme: one of :data:`dqlib.schemes.SCHEMES`; by default binary, ternary or symmetric, as the bits say.
        learned: trained scale, step or factor, of the shape of the scales.
        clip: weights are clipped to [-clip, clip] first.
        full_range: divide the range into 2^b steps and clip the topmost, as DeepSpeed's quantizers do (XTC);
            for ``symmetric`` and ``asymmetric``.
        integer_zero_point: round the zero point, so that zero itself has a code; False puts the lowest code on
            ``min w`` exactly, as DQ-BART's code does; for ``asymmetric``.

    Returns:
        Codes, scale and zero point. A row of zeros stays zero.

    Raises:
        InputError: bits, granularity or scheme are not supported, or do not fit each other or the weight.
    """
    scheme, granularity = _checked(bits, scheme), Granularity.parse(granularity)
    grid = Grid(bits, full_range, integer_zero_point, None if learned is None else learned.detach().unsqueeze(-1))
    q, scale, zero_point = _codes(weight.detach(), granularity, scheme, grid, clip)
    shape = granularity.scale_shape(*weight.shape)
    zero_points = None if zero_point is None else zero_point.view(shape)
    codes, encoding = q.to(torch.int8).view(weight.shape), scheme.encoding(bits, full_range)
    return Quantized(codes, scale.view(shape), bits, zero_points, encoding=encoding)


def fake_quantize_weight(
    weight: Tensor,
    bits: int,
    granularity: Granularity | str = "per_row",
    scheme: Scheme | str | None = None,
    learned: Tensor | None = None,
    *,
    clip: float | None = None,
    full_range: bool = False,
    integer_zero_point: bool = True,
) -> Tensor:
    """What the codes of a weight stand for: ``quantize(...).dequantize()``, the same numbers three to six times faster.

    Codes are not stored, and on a CPU a large weight is taken a block of rows at a time.
    """
    scheme, granularity, weight = _checked(bits, scheme), Granularity.parse(granularity), weight.detach()
    learned = None if learned is None else learned.detach().unsqueeze(-1)

    def value(some: Tensor, out: Tensor | None, factor: Tensor | None) -> Tensor:
        grid = Grid(bits, full_range, integer_zero_point, factor)
        q, scale, zero_point = _codes(some, granularity, scheme, grid, clip)
        q = q.add_(0.0).to(scale.dtype)  # -0 becomes 0, as it does in an integer
        if zero_point is not None:
            q = q.sub_(zero_point)
        return torch.mul(q, scale, out=None if out is None else out.view(q.shape)).view(some.shape)

    rows = block_of_rows(weight)
    if granularity.kind == "per_tensor" or rows is None:
        return value(weight, None, learned)
    whole = torch.empty_like(weight)
    blocks = weight.split(rows), whole.split(rows)
    for i, (some, out) in enumerate(zip(*blocks, strict=True)):
        value(some, out, None if learned is None else learned[i * rows : (i + 1) * rows])
    return whole


def block_of_rows(weight: Tensor) -> int | None:
    """How many rows of a weight to take at a time; None for all of them."""
    rows, columns = weight.shape
    on_cpu = weight.device.type == "cpu" and weight.is_contiguous()
    return BLOCK // columns if on_cpu and BLOCK // rows < columns <= BLOCK // 8 else None


def initial_learned(weight: Tensor, bits: int, granularity: Granularity | str, scheme: Scheme | str) -> Tensor:
    """Where training of a scale starts, in the shape of the scales.

    ``lsq``: ``2 mean|w| / sqrt(2^(b-1) - 1)`` (arXiv:1902.08153, section 2.1), at 1 bit ``mean|w|``. ``stretched``:
    ``2.5 mean|w|``, the clip of least squared error for a normal weight; ParetoQ's code starts from ``max|w|``.
    ``dynamic``: the gamma of least squared error between the weight and what its codes stand for, to 1/16. Others: 1.

    Raises:
        InputError: as :func:`quantize`.
    """
    scheme = _checked(bits, scheme)
    granularity = Granularity.parse(granularity)
    w = _grouped(weight.detach(), granularity)
    start = torch.ones_like(w[..., :1]) if scheme.trained is None else scheme.trained.start(w, bits)
    return start.view(granularity.scale_shape(*weight.shape))


def fake_quantize_activation(
    x: Tensor,
    bits: int = 8,
    unsigned: bool = False,
    per_tensor: bool = False,
    clip: float | None = None,
    in_place: bool = False,
) -> Tensor:
    """Round an activation to ``bits`` with one dynamic scale per token (the last dimension) or a tensor.

    With one scale per token, neither padding nor neighbours in the batch change a result; with one per tensor, as
    DQ-BART's code has it, both do. The gradient is passed straight through, except outside of ``clip``.

    Args:
        x: (..., features).
        bits: 2 to 8 bits of the grid; 32 returns ``x`` itself.
        unsigned: use the grid 0 .. 2^b - 1, for attention probabilities.
        in_place: write the result over ``x``, which must not need a gradient.

    Returns:
        Rounded values, same shape and type.
    """
    if bits >= FULL_PRECISION:
        return x
    levels = 2**bits - 1 if unsigned else largest_code(bits)
    if not (x.requires_grad and torch.is_grad_enabled()):  # an autograd function costs more than a small tensor
        out = x if in_place else None
        return _round_to_grid(x if clip is None else x.clamp(-clip, clip), levels, per_tensor, out)
    assert not in_place, "a tensor that needs a gradient is not rounded in place"
    if clip is not None:
        x = _ClipStrictly.apply(x, clip)
    return _RoundToGrid.apply(x, levels, per_tensor)


def _checked(bits: int, scheme: Scheme | str | None) -> Scheme:
    if bits not in WEIGHT_BITS or bits == FULL_PRECISION:
        raise InputError("bits", bits, "a whole number from 1 to 8")
    scheme = WeightQuantization().scheme(bits) if scheme is None else Scheme.parse(scheme)
    if bits not in scheme.bits:
        raise InputError("bits", bits, f"from {scheme.bits[0]} to {scheme.bits[-1]} with the scheme '{scheme}'")
    return scheme


def _grouped(w: Tensor, granularity: Granularity) -> Tensor:
    """The weight with the values that share a scale in its last dimension: (rows, groups, k) or (1, 1, all)."""
    return w.reshape(*granularity.scale_shape(*w.shape), -1)


def _codes(
    w: Tensor, granularity: Granularity, scheme: Scheme, grid: Grid, clip: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (in floating point), scales and zero points of a weight, grouped, a trained factor included."""
    w = _grouped(w, granularity)
    q, scale, zero_point = scheme.codes(w if clip is None else w.clamp(-clip, clip), grid)
    return q, scale if scheme.learned or grid.learned is None else scale * grid.learned, zero_point


def _round_to_grid(x: Tensor, levels: int, per_tensor: bool, out: Tensor | None = None) -> Tensor:
    # The smallest normal number of fp16 is larger than many a scale of probabilities, and 127 steps of a scale in bf16
    # end elsewhere than at the maximum.
    if x.dtype in (torch.float16, torch.bfloat16):
        rounded = _round_to_grid(x.float(), levels, per_tensor).to(x.dtype)
        return rounded if out is None else out.copy_(rounded)
    # Largest and smallest apart: no copy of |x|, and five times faster on a CPU than the norm of order infinity.
    if per_tensor:
        low, high = torch.aminmax(x)
    else:
        low, high = x.amin(dim=-1, keepdim=True), x.amax(dim=-1, keepdim=True)
    scale = torch.maximum(high, low.neg_()).div_(levels).clamp_(min=torch.finfo(x.dtype).tiny)
    return torch.div(x, scale, out=out).round_().mul_(scale)


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, levels: int, per_tensor: bool) -> Tensor:
        return _round_to_grid(x, levels, per_tensor)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return grad_output, None, None


class _ClipStrictly(torch.autograd.Function):
    """Clip, with no gradient at the limits themselves either."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, limit: float) -> Tensor:
        # Not saved as a tensor: a checkpoint that is computed again may find the rounded input of several layers still
        # known, or known no longer, and has to save as many tensors as it did at first.
        ctx.inside = x.abs() < limit
        return x.clamp(-limit, limit)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output * ctx.inside, None
