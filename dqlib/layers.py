"""Layers with quantized weights and inputs.

A layer becomes quantized in place: its class changes, its parameters, names and ties stay. A student
therefore saves and loads in the standard Hugging Face layout, with full-precision weights to go on
training from.
"""

from __future__ import annotations

from functools import cache

from torch import Tensor, nn

from dqlib.config import FULL_PRECISION
from dqlib.quantizers import WeightFakeQuantizer, fake_quantize_activation


class QuantLinear(nn.Linear):
    """Linear layer on rounded inputs with a quantized weight; the bias stays as it is."""

    weight_quantizer: WeightFakeQuantizer | None
    activation_bits: int

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        return nn.functional.linear(fake_quantize_activation(x, self.activation_bits), weight, self.bias)


class QuantEmbedding(nn.Embedding):
    """Embedding that looks up rows of a quantized table."""

    weight_quantizer: WeightFakeQuantizer

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.weight_quantizer(self.weight), self.padding_idx)


@cache
def _quantized_embedding(base: type[nn.Embedding]) -> type[nn.Embedding]:
    # A scaled or positional embedding computes around ``super().forward``; placed before QuantEmbedding
    # in the order of resolution, it keeps doing so around the quantized look-up.
    return QuantEmbedding if base is nn.Embedding else type(f"Quant{base.__name__}", (base, QuantEmbedding), {})


def quantize_linear(
    layer: nn.Linear, quantizer: WeightFakeQuantizer | None, activation_bits: int = FULL_PRECISION
) -> None:
    """Turn a linear layer into a :class:`QuantLinear`, in place."""
    layer.__class__ = QuantLinear
    layer.weight_quantizer, layer.activation_bits = quantizer, activation_bits


def quantize_embedding(layer: nn.Embedding, quantizer: WeightFakeQuantizer) -> None:
    """Turn an embedding of any subclass into a quantized one, in place."""
    layer.__class__ = _quantized_embedding(type(layer))
    layer.weight_quantizer = quantizer
