"""Attention with quantized inputs and probabilities, through the transformers attention interface.

Registered as ``"dqlib"``: a model switched to it with ``set_attn_implementation("dqlib")`` keeps its
own code. Queries are rounded one token and head at a time, the probabilities on an unsigned grid; keys
and values come rounded from their projections (:class:`dqlib.layers.QuantLinear`), so that a cache of them
is not rounded again at every step. Where one scale serves a whole tensor, as in DQ-BART's code, keys and
values are rounded here, with all that a cache holds. A module without ``activation`` computes in full precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from dqlib.layers import ActivationFakeQuantizer

NAME = "dqlib"

_FULL_PRECISION = ActivationFakeQuantizer()


def quantized_attention(
    module: nn.Module,
    query: Tensor,  # (batch, heads, query, head_dim)
    key: Tensor,  # (batch, heads, key, head_dim)
    value: Tensor,  # (batch, heads, key, head_dim)
    attention_mask: Tensor | None,  # (batch or 1, 1 or heads, query, key), added to the scores
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,  # (1, heads, query, key), T5's
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention on quantized inputs.

    Returns:
        Output (batch, query, heads, head_dim) and attention maps (batch, heads, query, key), which are what a
        student is compared by: the probabilities before rounding and dropout, or, in a module whose
        ``attention_maps`` is ``"scores"``, what the softmax is taken of, zero where masked; or, in one of
        ``"relations"`` that sees a whole text, what :func:`relations` gives.
    """
    round_to_grid = getattr(module, "activation", _FULL_PRECISION)
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    if round_to_grid.per_tensor:  # as DQ-BART's code has it: the query is scaled before it is clipped
        query, key, value = round_to_grid(query * scaling), round_to_grid(key), round_to_grid(value)
        scores = torch.matmul(query, key.transpose(2, 3))  # (batch, heads, query, key)
    else:
        scores = torch.matmul(round_to_grid(query), key.transpose(2, 3)).mul_(scaling)
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = torch.softmax(scores, dim=-1)
    kind = getattr(module, "attention_maps", "probabilities")
    dropped = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    output = torch.matmul(round_to_grid(dropped, unsigned=True), value)  # (batch, heads, query, head_dim)
    maps = probabilities
    if kind == "scores":
        maps = scores.masked_fill(scores < torch.finfo(scores.dtype).min / 2, 0.0)
    elif kind == "relations" and query.size(2) == key.size(2):  # a generation's last token has no relations to others
        maps = relations((query, key, value), attention_mask)
    return output.transpose(1, 2).contiguous(), maps


def relations(states: Sequence[Tensor], attention_mask: Tensor | None) -> Tensor:
    """How much the tokens of a text have to do with each other, in their queries, their keys and their values.

    ``softmax(A A^T / sqrt(d))`` for each kind A (MiniLMv2, arXiv:2012.15828, eq. 5), with what is masked left out.

    Args:
        states: of each kind, (batch, heads, token, head_dim).
        attention_mask: as for :func:`quantized_attention`.

    Returns:
        (batch, heads, kinds x token, token), kind after kind.
    """
    scores = [torch.matmul(x, x.transpose(2, 3)) * x.size(-1) ** -0.5 for x in states]
    scores = scores if attention_mask is None else [each + attention_mask for each in scores]
    return torch.softmax(torch.cat(scores, dim=2), dim=-1)


AttentionInterface.register(NAME, quantized_attention)
# Without a mask function of its own, an attention loses the padding mask and says nothing.
AttentionMaskInterface.register(NAME, eager_mask)
