"""Fake quantization of weights in training: the value of the codes, the gradient of the weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dqlib.config import Granularity, Scheme, WeightQuantization
from dqlib.errors import InputError
from dqlib.quantizers import Quantized, block_of_rows, fake_quantize_weight, initial_learned, quantize

#: Optimizer steps taken in this process. A weight's version counter tells of most changes, but fused
#: optimizers write to weights without touching it.
_optimizer_steps = 0

#: What stands for a trained factor of zero: no sum of single precision tells the two apart.
_NEARLY_ZERO = 2.0**-63


def _count_optimizer_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_optimizer_step)


class WeightFakeQuantizer(nn.Module):
    """Fake-quantizes a weight, once for each value that the weight takes.

    The result is kept until the weight changes (an optimizer step, a loaded checkpoint), so a step with
    several forward passes, or a whole generation, quantizes once. Modules that share a weight (token
    embedding and output head) share one of these.

    Two kinds of change leave no trace in a weight's version counter and are not noticed: what is written through
    ``weight.data``, and what is written to a weight that was made in ``torch.inference_mode()``. Call :meth:`forget`
    after them.

    Args:
        weight: the weight to be quantized; trained scales start from its values.
        bits: 1 to 8.
        granularity: of the scales.
        quantization: schemes, clip and trained factor.

    Attributes:
        learned: trained scale, gamma or factor, in the shape of the scales; None where nothing is trained.
        blend: how much of the quantized weight the forward pass sees, from 0 to 1; the rest is full precision.
        half_scales: whether scales are rounded to fp16, as a packed file stores them.
        quantizations: how often the weight was quantized, for tests and benchmarks.

    Raises:
        InputError: the weight, bits, granularity and scheme do not fit each other, or a weight is not finite.
    """

    learned: nn.Parameter | None

    def __init__(
        self,
        weight: Tensor,
        bits: int,
        granularity: Granularity | str = "per_row",
        quantization: WeightQuantization | None = None,
    ) -> None:
        super().__init__()
        self.quantization = WeightQuantization() if quantization is None else quantization
        self.bits, self.granularity = bits, Granularity.parse(granularity)
        self.scheme = self.quantization.scheme(bits)
        if not torch.isfinite(weight).all():
            raise InputError("weight", "nan or inf", "finite numbers")
        trained = self.scheme.learned or self.quantization.factor
        start = initial_learned(weight, bits, self.granularity, self.scheme)  # checks that all fits, too
        self.learned = nn.Parameter(start) if trained else None
        self.blend, self.half_scales = 1.0, False
        self.quantizations = 0
        self.forget()

    def forget(self) -> None:
        """Forget what is remembered of the weight, so that the next call quantizes anew."""
        self._key: tuple[Any, ...] | None = None
        self._value: Tensor | None = None
        self._inside: Tensor | None = None  # where the weight gets a gradient; None for everywhere
        self._slope: Tensor | None = None  # d value / d learned
        self._factor: Tensor | None = None  # or what the value is to be divided by for that

    def extra_repr(self) -> str:
        """How weights become codes, for ``print(student)``."""
        told = f"{self.bits} bit{'s' * (self.bits > 1)}, {self.scheme}, {self.granularity}"
        if self.quantization.clip is not None:
            told += f", clip={self.quantization.clip:g}"
        return told + ("" if self.learned is None else ", trained " + ("scale" if self.scheme.learned else "factor"))

    def quantize(self, weight: Tensor) -> Quantized:
        """Codes and scale of ``weight`` as this quantizer makes them."""
        return self._quantized(weight, self.learned)

    def _quantized(self, weight: Tensor, learned: Tensor | None) -> Quantized:
        q = self.quantization
        quantized = quantize(
            weight, self.bits, self.granularity, self.scheme, learned, clip=q.clip, full_range=q.full_range
        )
        if not self.half_scales:
            return quantized
        return replace(quantized, scale=quantized.scale.half().to(quantized.scale.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        """The fake-quantized weight, differentiable in ``weight`` (straight-through) and ``learned``."""
        key = (_optimizer_steps, weight.data_ptr(), version_of(weight), weight.device, weight.dtype)
        key += (self.blend, self.half_scales)
        if self.learned is not None:
            key += (self.learned.data_ptr(), version_of(self.learned))
        if key != self._key:
            # What is made in inference mode cannot be saved for a backward pass, which may be the next one.
            with torch.inference_mode(False), torch.no_grad():
                self._remember(weight)
            self._key = key
            self.quantizations += 1
        assert self._value is not None
        if not torch.is_grad_enabled():
            return self._value
        return _FakeQuantize.apply(weight, self.learned, self._value, self._inside, self._slope, self._factor)

    def _remember(self, weight: Tensor) -> None:
        q = self.quantization
        clip, clipped, self._inside, self._slope, self._factor = q.clip, weight, None, None, None
        if clip is not None:
            inside, clipped = weight.abs() < clip, weight.clamp(-clip, clip)
            self._inside = None if inside.all() else inside
        learned, quantized = self.learned, None
        if learned is not None:
            # A factor of zero would hide its own slope; asking whether there is one would wait for a GPU.
            learned = torch.where(learned == 0, max(_NEARLY_ZERO, torch.finfo(learned.dtype).tiny), learned)
        if self._is_linear and not self.half_scales:
            value = fake_quantize_weight(
                weight, self.bits, self.granularity, self.scheme, learned, clip=clip, full_range=q.full_range
            )
        else:
            quantized = self._quantized(weight, learned)
            value = quantized.dequantize()
        self._value = value.to(weight.dtype)
        if self._value.stride() != weight.stride():
            # GPT-2's weight comes transposed. Products add up in the order of the memory, so the layout is
            # the weight's own, as it is where the weight was read from a packed file.
            self._value = torch.empty_like(weight).copy_(self._value)
        if learned is not None and not self._is_linear:
            self._remember_slope(clipped, quantized, learned)
        elif learned is not None and self.blend < 1:
            self._slope = self._value / _spread(learned, weight)
        elif learned is not None:
            self._factor = learned
        if self.blend < 1:
            self._value = torch.lerp(weight, self._value, self.blend)
            if self._slope is not None:
                self._slope = self._slope * self.blend
            if self._inside is not None:  # outside, the part that is full precision still passes the gradient
                self._inside = torch.lerp(torch.ones_like(weight), self._inside.to(weight.dtype), self.blend)

    @property
    def _is_linear(self) -> bool:
        """Whether the value is linear in what is trained: factor * (q * s), or gamma * mean|w| * sign(w)."""
        return not self.scheme.learned or self.bits == 1

    def _remember_slope(self, weight: Tensor, quantized: Quantized, learned: Tensor) -> None:
        # LSQ (arXiv:1902.08153, eq. 3): d value / d step is q - w / s inside the grid, q outside.
        grouped = weight.reshape(*self.learned.shape, -1)  # (rows, groups, k); GPT-2's weight comes transposed
        step = _spread(quantized.scale, weight)
        ratio = weight / step
        codes = quantized.codes
        inside = ratio.abs() <= codes.abs().amax().clamp(min=2 ** (self.bits - 1) - 1)
        slope = torch.where(inside, codes - ratio, codes.to(ratio.dtype))
        if self.scheme == Scheme.LSQ:
            count = grouped.size(-1) * (2 ** (self.bits - 1) - 1)
            slope = slope * count**-0.5  # the paper's gradient scale
        else:  # the step is gamma * mean|w| / levels
            unit = grouped.abs().mean(dim=-1, keepdim=True) / (2 ** (self.bits - 1) - 1)
            slope = slope * _spread(unit.squeeze(-1), weight)
        self._slope = slope
        self._inside = inside if self._inside is None else inside & self._inside

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightFakeQuantizer:
        copy = type(self).__new__(type(self))  # the cache belongs to one weight; a copy starts without
        memo[id(self)] = copy
        nn.Module.__init__(copy)
        copy.quantization, copy.bits = self.quantization, self.bits
        copy.granularity, copy.scheme = self.granularity, self.scheme
        copy.learned = None if self.learned is None else nn.Parameter(self.learned.detach().clone())
        copy.blend, copy.half_scales, copy.quantizations = self.blend, self.half_scales, 0
        copy.forget()
        return copy


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        learned: Tensor | None,
        value: Tensor,
        inside: Tensor | None,
        slope: Tensor | None,
        factor: Tensor | None,
    ) -> Tensor:
        ctx.inside, ctx.slope, ctx.factor = inside, value if slope is None else slope, factor
        ctx.shape = None if learned is None else learned.shape
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        to_learned = None
        if ctx.shape is not None:
            to_learned = _grouped_dot(grad, ctx.slope, ctx.shape, ctx.factor)
        return grad if ctx.inside is None else grad * ctx.inside, to_learned, None, None, None, None


def version_of(x: Tensor) -> int:
    """How often a tensor was changed in place; 0 for one that does not count it."""
    return 0 if x.is_inference() else x._version


def _spread(scale: Tensor, weight: Tensor) -> Tensor:
    """Scales repeated over the weights that share them: (rows, columns), or a shape that broadcasts to it."""
    return scale if scale.size(-1) == 1 else scale.repeat_interleave(weight.size(-1) // scale.size(-1), dim=-1)


def _grouped_dot(x: Tensor, y: Tensor, shape: tuple[int, int], divisor: Tensor | None = None) -> Tensor:
    """Sum of ``x * (y / divisor)`` in each group; on a CPU a block of rows at a time, which stays in the cache.

    Args:
        x: (rows, columns).
        y: (rows, columns).
        shape: (rows, groups), or (1, 1) for one sum of all.
        divisor: of that shape; None for 1.
    """
    rows = block_of_rows(x) if y.is_contiguous() else None
    if shape[0] != x.size(0) or rows is None:
        scaled = y if divisor is None else y / _spread(divisor, y)
        return (x * scaled).reshape(*shape, -1).sum(dim=-1)
    sums = y.new_empty(shape)
    for start in range(0, len(x), rows):
        block = slice(start, start + rows)
        part = None if divisor is None else divisor[block]
        sums[block] = _grouped_dot(x[block], y[block], sums[block].shape, part)
    return sums
