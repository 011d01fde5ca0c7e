"""Random models of real shape, and examples of random tokens: they suffice for size and speed."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
)

from dqlib.study.training.examples import Example

CLASSES = {"bart": (BartConfig, BartForConditionalGeneration), "mbart": (MBartConfig, MBartForConditionalGeneration)}


def random_bart(
    layers: tuple[int, int], vocabulary: int, features: int, heads: int, inner: int, kind: str = "bart", **fields: Any
) -> PreTrainedModel:
    """A random BART or mBART.

    Args:
        layers: of encoder and decoder.
        vocabulary, features, heads, inner: sizes, of both sides.
        kind: ``bart`` or ``mbart``.
        fields: of its configuration besides.
    """
    sides = dict(zip(("encoder_layers", "decoder_layers"), layers, strict=True))
    for side in ("encoder", "decoder"):
        sides |= {f"{side}_attention_heads": heads, f"{side}_ffn_dim": inner}
    config, model = CLASSES[kind]
    torch.manual_seed(0)
    return model(config(vocab_size=vocabulary, d_model=features, **sides, **fields)).eval()


def random_examples(vocabulary: int, count: int) -> list[Example]:
    """Pairs of the lengths that summarization has, of random tokens."""
    order = random.Random(0)
    draw = lambda n: [order.randrange(5, vocabulary) for _ in range(n)]  # noqa: E731
    return [Example(draw(order.randrange(30, 128)), draw(order.randrange(6, 24))) for _ in range(count)]
