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
    """Linear layer on rounded inputs with a quantized weight; the bias stays as it is.

    Keys and values of attention are rounded here, at the output and a head at a time: what a
    generation caches is then rounded once, not again at every step.
    """

    weight_quantizer: WeightFakeQuantizer | None
    activation_bits: int
    output_heads: int | None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        output = nn.functional.linear(fake_quantize_activation(x, self.activation_bits), weight, self.bias)
        if self.output_heads is None:
            return output
        by_head = output.unflatten(-1, (self.output_heads, -1))  # (batch, tokens, heads, head_dim)
        return fake_quantize_activation(by_head, self.activation_bits).flatten(-2)


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
    layer: nn.Linear,
    quantizer: WeightFakeQuantizer | None,
    activation_bits: int = FULL_PRECISION,
    output_heads: int | None = None,
) -> None:
    """Turn a linear layer into a :class:`QuantLinear`, in place; ``output_heads`` if it makes keys or values."""
    layer.__class__ = QuantLinear
    layer.weight_quantizer, layer.activation_bits, layer.output_heads = quantizer, activation_bits, output_heads


def quantize_embedding(layer: nn.Embedding, quantizer: WeightFakeQuantizer) -> None:
    """Turn an embedding of any subclass into a quantized one, in place."""
    layer.__class__ = _quantized_embedding(type(layer))
    layer.weight_quantizer = quantizer
