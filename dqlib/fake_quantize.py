"""Fake quantization of weights in training: the value of the codes, the gradient of the weight."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from dqlib.config import Granularity, WeightQuantization
from dqlib.errors import InputError
from dqlib.quantizers import Quantized, block_of_rows, fake_quantize_weight, initial_learned, quantize

#: Optimizer steps taken in this process. A weight's version counter shows most changes, but fused
#: optimizers write to weights without touching it.
_optimizer_steps = 0

#: How the names of trained scales end, which stand beside the weights of a student.
LEARNED = "weight_quantizer.learned"

#: What a quantizer remembers of a weight, while it remembers nothing.
_NOTHING = dict.fromkeys(("_of", "_with", "_key", "_value", "_inside", "_slope", "_factor"))

#: What stands for a trained factor of zero: no sum of single precision tells the two apart.
_NEARLY_ZERO = 2.0**-63


def _count_optimizer_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_optimizer_step)


class WeightFakeQuantizer(nn.Module):
    """Fake-quantizes a weight, once for each value that the weight takes.

    The result is kept until the weight changes (an optimizer step, a loaded checkpoint, another tensor in its
    place), so a step with several forward passes, or a whole generation, quantizes once. Modules that share a weight
    (token embedding and output head) share one of these.

    What is written through ``weight.data``, as some optimizers and moving averages do, leaves no trace in a weight's
    version counter and is not noticed: call :meth:`forget`, or ``dqlib.forget(model)`` for all of a model, after it.
    A weight that was made in ``torch.inference_mode()`` counts no versions and is quantized at each call; so is one
    in a graph of ``torch.compile`` or ``torch.export``, which holds no state.

    Args:
        weight: the weight to be quantized; trained scales start from its values.
        bits: 1 to 8.

    Attributes:
        learned: trained scale, gamma or factor, in the shape of the scales; None where nothing is trained.
        blend: how much of the quantized weight the forward pass sees, from 0 to 1; the rest is full precision.
        half_scales: whether scales are rounded to fp16, as a packed file stores them.
        quantizations: how often the weight was quantized, for tests and benchmarks.

    Raises:
        InputError: the weight, bits, granularity and scheme do not fit each other, or a weight is not finite.
    """

    learned: nn.Parameter | None
    _key: tuple[Any, ...] | None
    _of: Callable[[], Tensor | None]  # this and the next are there while there is a key
    _with: Callable[[], Tensor | None]

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
        self.__dict__.update(_NOTHING)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | _NOTHING  # which belongs to one weight: a copy or a pickle starts without

    def extra_repr(self) -> str:
        """How weights become codes, for ``print(student)``."""
        note = f"{self.bits} bit{'s' * (self.bits > 1)}, {self.scheme}, {self.granularity}"
        if self.quantization.clip is not None:
            note += f", clip={self.quantization.clip:g}"
        return note + ("" if self.learned is None else ", trained " + ("scale" if self.scheme.learned else "factor"))

    def resize(self, weight: Tensor) -> None:
        """Go on with a weight that gained or lost rows at its end; a new row starts from its initial scale."""
        self.forget()
        if self.learned is None or tuple(self.learned.shape) == self.granularity.scale_shape(*weight.shape):
            return
        learned = initial_learned(weight, self.bits, self.granularity, self.scheme)
        kept = min(len(learned), len(self.learned))
        learned[:kept] = self.learned.detach()[:kept]
        self.learned.data = learned  # the same parameter, as that of the weight stays the same

    def quantize(self, weight: Tensor) -> Quantized:
        """Codes and scale of ``weight`` as this quantizer makes them."""
        return self._quantized(weight, self.learned)

    def _quantized(self, weight: Tensor, learned: Tensor | None) -> Quantized:
        quantized = quantize(weight, self.bits, self.granularity, self.scheme, learned, **self._options)
        if not self.half_scales:
            return quantized
        return replace(quantized, scale=quantized.scale.half().to(quantized.scale.dtype))

    @property
    def _options(self) -> dict[str, Any]:
        return {"clip": self.quantization.clip, "full_range": self.quantization.full_range}

    def forward(self, weight: Tensor) -> Tensor:
        """The fake-quantized weight, differentiable in ``weight`` (straight-through) and ``learned``."""
        if torch.compiler.is_compiling():
            with torch.no_grad():
                value, *backward = self._made(weight.contiguous())  # graphs write into no other layout
            return _FakeQuantize.apply(weight, self.learned, value, *backward) if torch.is_grad_enabled() else value
        learned, base = self.learned, weight._base
        source = weight if base is None else base  # a transposed weight is another object at each call
        key = self._key_of(weight, learned)
        if key is None or key != self._key or self._of() is not source or self._with() is not learned:
            self._key = None
            # What is made in inference mode cannot be saved for a backward pass, which may be the next one.
            with torch.inference_mode(False), torch.no_grad():
                self._remember(weight)
            self._of, self._key = weakref.ref(source), key
            self._with = (lambda: None) if learned is None else weakref.ref(learned)
            self.quantizations += 1
        assert self._value is not None
        if not torch.is_grad_enabled():
            return self._value
        return _FakeQuantize.apply(weight, learned, self._value, self._inside, self._slope, self._factor)

    def _key_of(self, weight: Tensor, learned: Tensor | None) -> tuple[Any, ...] | None:
        """What changes with the weight, the trained scale and how they are used; None of tensors without versions."""
        tensors = [weight] if learned is None else [weight, learned]
        if any(each.is_inference() for each in tensors):
            return None
        key = _optimizer_steps, self.blend, self.half_scales, *((each.data_ptr(), each._version) for each in tensors)
        return *key, weight.shape, weight.stride(), weight.device, weight.dtype

    def _remember(self, weight: Tensor) -> None:
        self._value, self._inside, self._slope, self._factor = self._made(weight)

    def _made(self, weight: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The fake-quantized weight and what its gradients need.

        Returns:
            The value; where the weight gets a gradient, None for everywhere; d value / d learned, or None where that
            is the value, over what is last (None for 1). All in the shape of the weight but the last, in that of
            the scales.
        """
        clip, clipped, inside, slope, factor = self.quantization.clip, weight, None, None, None
        if clip is not None:
            inside, clipped = weight.abs() < clip, weight.clamp(-clip, clip)
            if not torch.compiler.is_compiling() and inside.all():  # a graph cannot ask
                inside = None
        learned, quantized = self.learned, None
        if learned is not None:
            # A factor of zero would hide its own slope; asking whether there is one would wait for a GPU.
            learned = torch.where(learned == 0, max(_NEARLY_ZERO, torch.finfo(learned.dtype).tiny), learned)
        if self._is_linear and not self.half_scales:
            value = fake_quantize_weight(weight, self.bits, self.granularity, self.scheme, learned, **self._options)
        else:
            quantized = self._quantized(weight, learned)
            value = quantized.dequantize()
        value = value.to(weight.dtype)
        if value.stride() != weight.stride():
            # GPT-2's weight comes transposed. Products add up in the order of the memory, so the layout is
            # the weight's own, as it is where the weight was read from a packed file.
            value = torch.empty_like(weight).copy_(value)
        if learned is not None and not self._is_linear:
            assert quantized is not None
            slope, inside = self._slope_of(clipped, quantized, inside)
        elif learned is not None and self.blend < 1:
            slope = value / _spread(learned, weight)
        elif learned is not None:
            factor = learned
        if self.blend < 1:
            value = torch.lerp(weight, value, self.blend)
            if slope is not None:
                slope = slope * self.blend
            if inside is not None:  # outside, the part that is full precision still passes the gradient
                inside = torch.lerp(torch.ones_like(weight), inside.to(weight.dtype), self.blend)
        return value, inside, slope, factor

    @property
    def _is_linear(self) -> bool:
        """Whether the value is linear in what is trained: factor * (q * s), or gamma * mean|w| * sign(w) of dynamic."""
        return self.scheme.trained is None or self.bits in self.scheme.trained.linear_bits

    def _slope_of(self, weight: Tensor, quantized: Quantized, clipped: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.learned is not None
        # LSQ (arXiv:1902.08153, eq. 3): d value / d step is q - w / s inside the grid, q outside. Of one bit, it is
        # the sign of the weight (BiT, arXiv:2205.13016). A row of zeros stays zero whatever its step is.
        assert self.scheme.trained is not None
        grouped = weight.reshape(*self.learned.shape, -1)  # (rows, groups, k); GPT-2's weight comes transposed
        step = _spread(quantized.scale, weight)
        ratio = weight / step.where(step > 0, 1.0)
        codes = quantized.codes.to(ratio.dtype)
        inside = ratio.abs() <= self.scheme.trained.reach(self.bits)
        slope = codes if self.bits == 1 else torch.where(inside, codes - ratio, codes)
        unit = self.scheme.trained.slope(grouped, self.bits)
        slope = slope * (_spread(unit.squeeze(-1), weight) if isinstance(unit, Tensor) else unit)
        return slope.where(step > 0, 0.0), inside if clipped is None else inside & clipped


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
