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

from dqlib.config import FULL_PRECISION, WEIGHT_BITS, Granularity, Scheme
from dqlib.errors import InputError

#: Threshold of ternary weights as a part of mean|w| (Ternary Weight Networks, arXiv:1605.04711, eq. 5).
TERNARY_THRESHOLD = 0.7

#: Weights that :func:`fake_quantize_weight` takes at a time on a CPU, so that all its passes but the first find
#: them in the cache of a core.
BLOCK = 2**17


@dataclass(frozen=True, slots=True)
class Quantized:
    """Integer codes (int8, shape of the weight) with scales and, on an asymmetric grid, zero points.

    Scales have the shape of :meth:`dqlib.config.Granularity.scale_shape`. ``ternary`` says that the grid of the
    two bits has only the codes -1, 0, 1.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    zero_point: Tensor | None = None
    ternary: bool = False

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
    * ``symmetric``, 2 to 8 bits: ``q = round(w / s)``, ``s = max|w| / (2^(b-1) - 1)``.
    * ``asymmetric``, 2 to 8 bits: ``s = (max w - min w) / (2^b - 1)``, an integer ``z`` that maps ``min w`` near
      the lowest code, -2^(b-1).
    * ``lsq``, 2 to 8 bits: ``s`` is ``learned``, ``q = clip(round(w / s), -2^(b-1) + 1, 2^(b-1) - 1)`` (Learned
      Step Size Quantization, arXiv:1902.08153, eq. 1, on a symmetric grid).
    * ``dynamic``, 1 to 8 bits: the clip is ``gamma mean|w|`` with ``learned`` gamma, its step that clip over
      2^(b-1) - 1 (module-wise dynamic scaling of QuantGPT, arXiv:2203.10705, section 3.2). At 1 bit, where the
      paper has no grid, ``gamma`` multiplies the binary scale.

    For ``binary``, ``ternary`` and ``symmetric``, ``learned`` is a factor on the scale, after the codes are found.

    Args:
        weight: (rows, columns), floating point.
        bits: 1 to 8.
        granularity: of the scales.
        scheme: one of :class:`dqlib.config.Scheme`; by default binary, ternary or symmetric, as the bits say.
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
    scheme = _checked(bits, scheme)
    w = _grouped(weight.detach(), granularity)  # (rows, groups, k)
    if clip is not None:
        w = w.clamp(-clip, clip)
    factor = None if learned is None else learned.detach().unsqueeze(-1)
    q, scale, zero_point = _codes(w, bits, scheme, factor, full_range, integer_zero_point)
    shape = Granularity.parse(granularity).scale_shape(*weight.shape)
    return Quantized(
        q.to(torch.int8).view(weight.shape),
        scale.view(shape),
        bits,
        None if zero_point is None else zero_point.view(shape),
        ternary=bits == 2 and scheme != Scheme.ASYMMETRIC and not (full_range and scheme == Scheme.SYMMETRIC),
    )


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
    learned = None if learned is None else learned.detach()

    def value(some: Tensor, out: Tensor | None, factor: Tensor | None) -> Tensor:
        w = _grouped(some, granularity)
        if clip is not None:
            w = w.clamp(-clip, clip)
        factor = None if factor is None else factor.unsqueeze(-1)
        q, scale, zero_point = _codes(w, bits, scheme, factor, full_range, integer_zero_point)
        q = q.add_(0.0).to(scale.dtype)  # -0 becomes 0, as it does in an integer
        if zero_point is not None:
            q = q.sub_(zero_point)
        return torch.mul(q, scale, out=None if out is None else out.view(w.shape)).view(some.shape)

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

    ``lsq``: ``2 mean|w| / sqrt(2^(b-1) - 1)`` (arXiv:1902.08153, section 2.1). ``dynamic``: the gamma of least
    squared error between the weight and what its codes stand for, to 1/16. Others: 1.

    Raises:
        InputError: as :func:`quantize`.
    """
    scheme = _checked(bits, scheme)
    w = _grouped(weight.detach(), granularity)
    mean = w.abs().mean(dim=-1, keepdim=True)
    start = torch.ones_like(mean)
    if scheme == Scheme.LSQ:
        start = 2 * mean / _levels(bits) ** 0.5
    elif scheme == Scheme.DYNAMIC and bits > 1:
        least = torch.full_like(mean, torch.inf)
        for sixteenths in range(8, 129):
            gamma = torch.full_like(mean, sixteenths / 16)
            q, scale, _ = _codes(w, bits, scheme, gamma)
            error = (q * scale - w).square().mean(dim=-1, keepdim=True)
            start = torch.where(error < least, gamma, start)
            least = torch.minimum(error, least)
    return start.view(Granularity.parse(granularity).scale_shape(*weight.shape))


def fake_quantize_activation(
    x: Tensor,
    bits: int = 8,
    unsigned: bool = False,
    per_tensor: bool = False,
    clip: float | None = None,
    in_place: bool = False,
) -> Tensor:
    """Round an activation to ``bits`` with one dynamic scale a token (the last dimension) or a tensor.

    With a scale a token, neither padding nor neighbours in the batch change a result; with one a tensor, as
    DQ-BART's code has it, both do. The gradient is passed straight through, except outside of ``clip``.

    Args:
        x: (..., features).
        bits: 2 to 8 bits of the grid; 32 returns ``x`` itself.
        unsigned: use the grid 0 .. 2^b - 1, for attention probabilities.
        per_tensor: one scale for all of ``x``.
        clip: values are clipped to [-clip, clip] first.
        in_place: write the result over ``x``, which must not need a gradient.

    Returns:
        Rounded values, same shape and type.
    """
    if bits >= FULL_PRECISION:
        return x
    levels = 2**bits - 1 if unsigned else _levels(bits)
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
    if scheme is None:
        return {1: Scheme.BINARY, 2: Scheme.TERNARY}.get(bits, Scheme.SYMMETRIC)
    if scheme not in list(Scheme):
        raise InputError("scheme", scheme, f"one of {', '.join(Scheme)}")
    scheme = Scheme(scheme)
    if bits not in scheme.bits:
        raise InputError("bits", bits, f"from {scheme.bits[0]} to {scheme.bits[-1]} with the scheme '{scheme}'")
    return scheme


def _levels(bits: int) -> int:
    """Largest code of the symmetric grid; a single bit has the codes -1 and 1."""
    return max(1, 2 ** (bits - 1) - 1)


def _grouped(w: Tensor, granularity: Granularity | str) -> Tensor:
    """The weight with the values that share a scale in its last dimension: (rows, groups, k) or (1, 1, all)."""
    granularity = Granularity.parse(granularity)
    rows, groups = granularity.scale_shape(*w.shape)
    return w.reshape(rows, groups, -1)


def _codes(
    w: Tensor,
    bits: int,
    scheme: Scheme,
    learned: Tensor | None = None,
    full_range: bool = False,
    integer_zero_point: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes (in floating point), scales and zero points of a grouped weight."""
    top = _levels(bits)
    if scheme.learned:
        assert learned is not None, f"{scheme} needs a learned scale"
        scale = _learned_step(w, bits, scheme, learned)
        if bits == 1:
            return _signs(w), scale, None
        return torch.round(w / scale).clamp(-top, top), scale, None
    half = 2 ** (bits - 1)
    if scheme == Scheme.ASYMMETRIC:
        low, high = w.amin(dim=-1, keepdim=True), w.amax(dim=-1, keepdim=True)
        scale = (high - low) / (2 * half if full_range else 2 * half - 1)
        scale = torch.where(scale > 0, scale, _no_zeros(high.abs()))  # all weights alike: one step from zero
        zero_point = -low / scale
        zero_point = (torch.round(zero_point) if integer_zero_point else zero_point) - half
        q = torch.div(w, scale).add_(zero_point).round_().clamp_(-half, half - 1)
        scale = scale if learned is None else scale * learned
        return q, scale, zero_point
    if scheme == Scheme.BINARY:
        q, scale = _signs(w), w.abs().mean(dim=-1, keepdim=True)
    elif scheme == Scheme.TERNARY:
        spare = w.abs()
        threshold = TERNARY_THRESHOLD * spare.mean(dim=-1, keepdim=True)
        q, negative = torch.gt(w, threshold, out=torch.empty_like(w)), torch.lt(w, -threshold, out=spare)
        exact = torch.float32 if w.size(-1) < 2**24 else torch.int64  # to count ones in
        kept = q.sum(dim=-1, keepdim=True, dtype=exact) + negative.sum(dim=-1, keepdim=True, dtype=exact)
        q -= negative
        summed_in = torch.float32 if w.dtype in (torch.float16, torch.bfloat16) else None  # fp16 holds no large sum
        scale = torch.mul(q, w, out=spare).sum(dim=-1, keepdim=True, dtype=summed_in) / kept.long().clamp(min=1)
        scale = scale.to(w.dtype)
    else:
        scale = w.abs().amax(dim=-1, keepdim=True) / (half if full_range else top)
        q = torch.div(w, _no_zeros(scale)).round_().clamp_(-half if full_range else -top, half - 1)
    return q, scale if learned is None else scale * learned, None


def _learned_step(w: Tensor, bits: int, scheme: Scheme, learned: Tensor) -> Tensor:
    """Step of a grid whose scale is trained, kept away from zero.

    The floor, a thousandth of mean|w| (and the smallest normal number for a row of zeros), keeps a step that
    training drives to zero from turning every code into an extreme one.
    """
    mean = w.abs().mean(dim=-1, keepdim=True)
    if scheme == Scheme.DYNAMIC and bits == 1:
        return learned * mean
    step = learned if scheme == Scheme.LSQ else learned * mean / _levels(bits)
    return torch.maximum(step, mean * 1e-3).clamp(min=torch.finfo(w.dtype).tiny)


def _signs(w: Tensor) -> Tensor:
    return torch.ge(w, 0, out=torch.empty_like(w)).mul_(2).sub_(1)


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


def _no_zeros(scale: Tensor) -> Tensor:
    """The scale with 1 in place of 0, to divide by."""
    return torch.where(scale > 0, scale, 1.0)
