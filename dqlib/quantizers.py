"""Quantizers of weights and activations.

One function is the truth for weights: :func:`quantize` maps a matrix to integer codes and a scale,
and everything else (training, size accounts, export) is made from those codes. During training the
full-precision weight is kept, the forward pass sees ``codes * scale``, and the gradient passes the
rounding unchanged (straight-through estimator, Bengio et al. 2013, arXiv:1308.3432).

Symbols: ``w`` a weight, ``q`` its codes, ``s`` the scale, ``b`` the bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from dqlib.config import FULL_PRECISION, WEIGHT_BITS, Granularity
from dqlib.errors import InputError

#: Threshold of ternary weights as a part of mean|w| (Ternary Weight Networks, arXiv:1605.04711, eq. 5).
TERNARY_THRESHOLD = 0.7


@dataclass(frozen=True, slots=True)
class Quantized:
    """Integer codes (int8, shape of the weight) with their scale (broadcasts over the codes)."""

    codes: Tensor
    scale: Tensor
    bits: int

    def dequantize(self) -> Tensor:
        """The weight that the codes stand for, ``q * s``."""
        return self.codes.to(self.scale.dtype) * self.scale


def quantize(weight: Tensor, bits: int, granularity: Granularity | str = Granularity.PER_ROW) -> Quantized:
    """Quantize a weight symmetrically: ``w ~ q * s``.

    * 1 bit, ``q`` in {-1, +1}: ``s = mean|w|`` (XNOR-Net, arXiv:1603.05279, eq. 6).
    * 2 bits, ``q`` in {-1, 0, +1}: ternary, ``q = sign(w)`` where ``|w| > 0.7 mean|w|``, ``s`` the mean of
      those ``|w|`` (TWN, arXiv:1605.04711; the 2-bit weights of DQ-BART, arXiv:2203.11239, section 2.1).
    * 3, 4 and 8 bits: uniform, ``q = round(w / s)``, ``s = max|w| / (2^(b-1) - 1)``.

    Args:
        weight: (rows, columns), floating point.
        bits: one of 1, 2, 3, 4, 8.
        granularity: one scale a row, shape (rows, 1), or one for the tensor, shape (1, 1).

    Returns:
        Codes and scale. A row of zeros has scale 0 and stays zero.

    Raises:
        InputError: bits or granularity are not supported.
    """
    if bits not in WEIGHT_BITS or bits == FULL_PRECISION:
        raise InputError("bits", bits, f"one of {', '.join(str(b) for b in WEIGHT_BITS if b != FULL_PRECISION)}")
    if granularity not in list(Granularity):
        raise InputError("granularity", granularity, f"one of {', '.join(Granularity)}")
    w = weight.detach()
    magnitude = w.abs()
    dims = (-1,) if granularity == Granularity.PER_ROW else tuple(range(w.dim()))
    mean = magnitude.mean(dim=dims, keepdim=True)
    if bits == 1:
        codes = torch.where(w < 0, -1.0, 1.0)
        return Quantized(codes.to(torch.int8), mean, bits)
    if bits == 2:
        kept = magnitude > TERNARY_THRESHOLD * mean
        scale = (magnitude * kept).sum(dim=dims, keepdim=True) / kept.sum(dim=dims, keepdim=True).clamp(min=1)
        return Quantized((w.sign() * kept).to(torch.int8), scale, bits)
    levels = 2 ** (bits - 1) - 1
    scale = magnitude.amax(dim=dims, keepdim=True) / levels
    codes = torch.round(w / _no_zeros(scale)).clamp(-levels, levels)
    return Quantized(codes.to(torch.int8), scale, bits)


def fake_quantize_activation(x: Tensor, bits: int = 8, unsigned: bool = False) -> Tensor:
    """Round an activation to ``bits`` with one dynamic scale a token (the last dimension).

    The scale comes from that token alone, so neither padding nor neighbours in the batch change a
    result. The gradient is passed straight through: nothing is clipped, since the scale is the maximum.

    Args:
        x: (..., features).
        bits: bits of the grid; 32 returns ``x`` itself.
        unsigned: use the grid 0 .. 2^b - 1, for attention probabilities.

    Returns:
        Rounded values, same shape and type.
    """
    if bits >= FULL_PRECISION:
        return x
    return _RoundToGrid.apply(x, 2**bits - 1 if unsigned else 2 ** (bits - 1) - 1)


def straight_through(weight: Tensor, quantized: Tensor) -> Tensor:
    """Value of ``quantized`` with the gradient of ``weight``: d out / d weight = 1."""
    return _StraightThrough.apply(weight, quantized)


#: Optimizer steps taken in this process. A weight's version counter tells of most changes, but fused
#: optimizers write to weights without touching it.
_optimizer_steps = 0


def _count_optimizer_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_optimizer_step)


class WeightFakeQuantizer:
    """Fake-quantizes a weight, once for each value that the weight takes.

    The result is kept until the weight changes (an optimizer step, a loaded checkpoint), so a step with
    several forward passes, or a whole generation, quantizes once. Modules that share a weight (token
    embedding and output head) share one of these.

    Attributes:
        quantizations: how often the weight was quantized, for tests and benchmarks.
    """

    def __init__(self, bits: int, granularity: Granularity | str = Granularity.PER_ROW) -> None:
        self.bits, self.granularity = bits, Granularity(granularity)
        self.quantizations = 0
        self._key: tuple[Any, ...] | None = None
        self._value: Tensor | None = None

    def quantize(self, weight: Tensor) -> Quantized:
        """Codes and scale of ``weight`` as this quantizer makes them."""
        return quantize(weight, self.bits, self.granularity)

    def __call__(self, weight: Tensor) -> Tensor:
        """The fake-quantized weight, differentiable in ``weight`` by the straight-through estimator."""
        key = (_optimizer_steps, weight.data_ptr(), weight._version, weight.device, weight.dtype)
        if key != self._key:
            with torch.no_grad():
                self._value = self.quantize(weight).dequantize().to(weight.dtype)
            self._key = key
            self.quantizations += 1
        assert self._value is not None
        return straight_through(weight, self._value) if torch.is_grad_enabled() else self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightFakeQuantizer:
        copy = type(self)(self.bits, self.granularity)  # the cache belongs to one weight; a copy starts without
        memo[id(self)] = copy
        return copy


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantized: Tensor) -> Tensor:
        return quantized.detach()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        # Largest and smallest apart: no copy of |x|, and five times faster on a CPU than the norm of order infinity.
        magnitude = torch.maximum(x.amax(dim=-1, keepdim=True), -x.amin(dim=-1, keepdim=True))
        scale = magnitude.div_(levels).clamp_(min=torch.finfo(x.dtype).tiny)
        return torch.div(x, scale).round_().mul_(scale)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


def _no_zeros(scale: Tensor) -> Tensor:
    """The scale with 1 in place of 0, to divide by."""
    return torch.where(scale > 0, scale, 1.0)
