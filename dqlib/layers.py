"""Layers with quantized weights and inputs.

A layer becomes quantized in place: its class changes, its parameters, names and ties stay. A student
therefore saves and loads in the standard Hugging Face layout, with full-precision weights to go on
training from.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dqlib.config import FULL_PRECISION, ActivationQuantization
from dqlib.fake_quantize import WeightFakeQuantizer
from dqlib.quantizers import Quantized, fake_quantize_activation

#: Rounded inputs that are kept while the inputs live. A decoder layer has six others between two uses of the
#: encoder's output, which so is rounded once for all layers.
RECENT = 8


class ActivationFakeQuantizer:
    """Rounds activations, and the input that several layers share (queries, keys, values) once for all of them.

    Args:
        bits: of the grid; 32 leaves activations as they are.
    """

    def __init__(self, bits: int = FULL_PRECISION, quantization: ActivationQuantization | None = None) -> None:
        self.bits = bits
        self.quantization = ActivationQuantization() if quantization is None else quantization
        self._recent: list[tuple[weakref.ref[Tensor], int, bool, Tensor]] = []

    @property
    def per_tensor(self) -> bool:
        """Whether one scale serves a whole tensor, so that a part of it cannot be rounded alone."""
        return self.bits < FULL_PRECISION and self.quantization.granularity == "per_tensor"

    def __call__(self, x: Tensor, unsigned: bool = False, in_place: bool = False) -> Tensor:
        """``x`` rounded; ``unsigned`` for attention probabilities, ``in_place`` to write over it."""
        q = self.quantization
        return fake_quantize_activation(x, self.bits, unsigned and q.unsigned, self.per_tensor, q.clip, in_place)

    def shared(self, x: Tensor) -> Tensor:
        """``x`` rounded, or what one of the last calls gave for this very tensor."""
        if self.bits >= FULL_PRECISION:
            return x
        # A compiled graph holds no state, and a tensor made in inference mode does not count its changes.
        if torch.compiler.is_compiling() or x.is_inference():
            return self(x)
        version, with_gradient = x._version, torch.is_grad_enabled()
        for source, of_version, of_gradient, rounded in self._recent:
            if source() is x and of_version == version and of_gradient == with_gradient:
                return rounded
        rounded = self(x)
        self._recent = [*self._recent[1 - RECENT :], (weakref.ref(x, self._forget), version, with_gradient, rounded)]
        return rounded

    def _forget(self, gone: weakref.ref[Tensor]) -> None:
        self._recent = [each for each in self._recent if each[0] is not gone]

    def __repr__(self) -> str:
        notes = [f"{self.bits} bits"]
        if self.bits < FULL_PRECISION:
            notes.append(self.quantization.granularity)
            notes += [] if self.quantization.clip is None else [f"clip={self.quantization.clip:g}"]
        return f"{type(self).__name__}({', '.join(notes)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bits, self.quantization)  # a copy or a pickle remembers nothing


def matrix(layer: nn.Module) -> Tensor:
    """The weight of a layer as it is quantized: (outputs, inputs), which GPT-2 has transposed, or (rows, features)."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


class QuantLayer(nn.Module):
    """What all layers with a quantized weight share."""

    weight: nn.Parameter
    weight_quantizer: WeightFakeQuantizer | None

    @property
    def quantizer(self) -> WeightFakeQuantizer:
        """The quantizer of the weight, in a layer that has one."""
        assert self.weight_quantizer is not None
        return self.weight_quantizer

    def quantized(self) -> Quantized:
        """Codes and scales of the weight, in the shape of :func:`matrix`."""
        return self.quantizer.quantize(matrix(self))

    def extra_repr(self) -> str:
        """What the plain layer prints of itself, what is rounded, and a quantizer that another layer lists."""
        notes = f"nf={self.nf}, nx={self.nx}" if isinstance(self, Conv1D) else super().extra_repr()
        if isinstance(self, _QuantLinear):
            outputs = "" if self.output_heads is None else ", outputs a head at a time"
            notes += f", inputs={self.activation}{outputs}"
        tied = vars(self).get("weight_quantizer")
        return notes if tied is None else f"{notes}, tied {tied}"


class _QuantLinear(QuantLayer):
    """Linear layer on rounded inputs with a quantized weight; the bias stays as it is.

    Keys and values of attention are rounded here, at the output and a head at a time: what a
    generation caches is then rounded once, not again at every step.
    """

    activation: ActivationFakeQuantizer
    output_heads: int | None
    output_skip: int

    def forward(self, x: Tensor) -> Tensor:
        weight = matrix(self)
        if self.weight_quantizer is not None:
            weight = self.weight_quantizer(weight)
        output = nn.functional.linear(self.activation.shared(x), weight, self.bias)
        if self.output_heads is None:
            return output
        # (batch, tokens, heads, head_dim)
        by_head = output[..., self.output_skip :].unflatten(-1, (self.output_heads, -1))
        if not output.requires_grad and not torch.compiler.is_compiling():
            self.activation(by_head, in_place=True)
            return output
        rounded = self.activation(by_head).flatten(-2)
        return torch.cat([output[..., : self.output_skip], rounded], dim=-1) if self.output_skip else rounded


class QuantLinear(_QuantLinear, nn.Linear):
    """A quantized ``nn.Linear``."""


class QuantConv1D(_QuantLinear, Conv1D):
    """GPT-2's linear layer, quantized."""

    __repr__ = nn.Module.__repr__  # Conv1D's own would hide the quantizer


class QuantEmbedding(QuantLayer, nn.Embedding):
    """Embedding that looks up rows of a quantized table."""

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.quantizer(self.weight), self.padding_idx)

    def __reduce__(self) -> tuple[Any, ...]:
        plain = next(each for each in type(self).__mro__ if not issubclass(each, QuantLayer))
        return _new_embedding, (plain,), self.__dict__  # the class may be one made at run time


@cache
def _quantized_embedding(base: type[nn.Embedding]) -> type[nn.Embedding]:
    # A scaled or positional embedding computes around ``super().forward``; placed before QuantEmbedding
    # in the order of resolution, it keeps doing so around the quantized look-up.
    return QuantEmbedding if base is nn.Embedding else type(f"Quant{base.__name__}", (base, QuantEmbedding), {})


def _new_embedding(base: Any) -> QuantEmbedding:
    made: Any = _quantized_embedding(base)
    return made.__new__(made)


def quantize_linear(
    layer: nn.Linear | Conv1D,
    quantizer: WeightFakeQuantizer | None,
    activation: ActivationFakeQuantizer,
    output_heads: int | None = None,
    output_skip: int = 0,
    tied: bool = False,
) -> None:
    """Turn a linear layer into a quantized one, in place.

    Args:
        quantizer: of its weight; None leaves the weight as it is.
        output_heads: heads of the keys or values that it makes, which are rounded; None if it makes none.
        output_skip: leading outputs that are not among them (a query made by the same projection).
        tied: whether the quantizer is that of another layer, which has the same weight.
    """
    layer.__class__ = QuantConv1D if isinstance(layer, Conv1D) else QuantLinear
    give_quantizer(layer, quantizer, tied)
    layer.activation, layer.output_heads, layer.output_skip = activation, output_heads, output_skip


def quantize_embedding(layer: nn.Embedding, quantizer: WeightFakeQuantizer, tied: bool = False) -> None:
    """Turn an embedding of any subclass into a quantized one, in place; ``tied`` as in :func:`quantize_linear`."""
    base: Any = type(layer)  # which mypy holds to be not hashable
    layer.__class__ = _quantized_embedding(base)
    give_quantizer(layer, quantizer, tied)


def give_quantizer(layer: nn.Module, quantizer: WeightFakeQuantizer | None, tied: bool) -> None:
    """Let a layer use a quantizer, which is a submodule of the first of several tied layers only.

    For ``torch.func.functional_call`` does not put back what has two places.
    """
    if tied:
        vars(layer)["weight_quantizer"] = quantizer
    else:
        layer.weight_quantizer = quantizer
