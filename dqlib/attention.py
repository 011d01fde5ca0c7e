"""Attention with quantized inputs and probabilities, through the transformers attention interface.

Registered as ``"dqlib"``: a model switched to it with ``set_attn_implementation("dqlib")`` keeps its
own code. Queries are rounded one token and head at a time, the probabilities on an unsigned grid; keys
and values come rounded from their projections (:class:`dqlib.layers.QuantLinear`), so that a cache of them
is not rounded again at every step. A module without ``activation_bits`` computes in full precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from dqlib.config import FULL_PRECISION
from dqlib.quantizers import fake_quantize_activation

NAME = "dqlib"


def quantized_attention(
    module: nn.Module,
    query: Tensor,  # (batch, heads, query, head_dim)
    key: Tensor,  # (batch, heads, key, head_dim)
    value: Tensor,  # (batch, heads, key, head_dim)
    attention_mask: Tensor | None,  # (batch or 1, 1, query, key), added to the scores
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention on quantized inputs.

    Returns:
        Output (batch, query, heads, head_dim) and probabilities (batch, heads, query, key). The
        probabilities are those before rounding and dropout, which is what a student's maps are compared by.
    """
    bits = getattr(module, "activation_bits", FULL_PRECISION)
    query = fake_quantize_activation(query, bits)
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling  # (batch, heads, query, key)
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = torch.softmax(scores, dim=-1)
    rounded = fake_quantize_activation(probabilities, bits, unsigned=True)
    rounded = nn.functional.dropout(rounded, p=dropout, training=module.training)
    output = torch.matmul(rounded, value)  # (batch, heads, query, head_dim)
    return output.transpose(1, 2).contiguous(), probabilities


def register() -> None:
    """Make ``"dqlib"`` known to transformers, with the mask that it needs."""
    AttentionInterface.register(NAME, quantized_attention)
    # Without a mask function of its own, an attention loses the padding mask and says nothing.
    AttentionMaskInterface.register(NAME, eager_mask)


register()
