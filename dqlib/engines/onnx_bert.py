"""The graph of a BERT that classifies: texts, or pairs of texts, to the logits of their classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from dqlib.engines.onnx_classifier import CLASSIFIER
from dqlib.engines.onnx_graph import Graph, Numbers
from dqlib.engines.onnx_layers import MASKED, Layers
from dqlib.engines.onnx_weights import Weights
from dqlib.errors import InputError

_ACTIVATIONS = ("gelu", "relu", "swish", "silu")


class BertGraphs(Layers):
    """The graph of a model.

    Args:
        config, weights, numbers, rounded: as of :class:`dqlib.engines.onnx_layers.Layers`.
        int8_encoder: whether it multiplies codes of 8 bits.
    """

    of_encoder = r"bert\.(encoder\.layer\..*\.(query|key|value|dense)|pooler\.dense)\.weight"

    def __init__(self, config: Any, weights: Weights, numbers: Numbers, rounded: bool, int8_encoder: bool) -> None:
        super().__init__(config, weights, numbers, rounded, pre=False)
        self.int8_encoder, self.epsilon, self.activation = int8_encoder, config.layer_norm_eps, config.hidden_act

    @staticmethod
    def check(config: Any) -> None:
        """Check that the kernels serve a configuration.

        Raises:
            InputError: they do not.
        """
        if config.hidden_act not in _ACTIVATIONS:
            raise InputError("hidden_act", config.hidden_act, f"one of {', '.join(_ACTIVATIONS)}")

    def heads(self, side: str) -> tuple[int, int]:
        """Heads of an attention, fewer than the configuration has in a narrow student, and features of one."""
        size = self.features // self.config.num_attention_heads
        return len(self.weights.number("bert.encoder.layer.0.attention.self.query.bias")) // size, size

    def graphs(self) -> Iterator[tuple[str, onnx.ModelProto]]:
        """The graph with the name of its file."""
        yield CLASSIFIER, self.classifier()

    def classifier(self) -> onnx.ModelProto:
        """Ids, types of tokens and mask, (texts, length) each, to logits (texts, classes)."""
        g = Graph("classifier", self.numbers)
        ids = g.input("input_ids", TensorProto.INT64, ["texts", "length"])
        types = g.input("types", TensorProto.INT64, ["texts", "length"])
        mask = g.input("mask", TensorProto.INT32, ["texts", "length"])
        shape, (heads, size) = g.op("Shape", ids), self.heads("encoder")
        by_text = g.op("Concat", shape, g.integers(heads * size), axis=0)  # (texts, length, features of all heads)
        x = self._embedded(g, ids, types, shape)
        zero = self.zero_points(g, x) if self.int8_encoder else None
        for i in range(self.config.num_hidden_layers):
            layer = f"bert.encoder.layer.{i}"
            own = [f"{layer}.attention.self.{name}" for name in ("query", "key", "value")]
            rows = self._read(g, x, zero)
            q, k, v = (g.op("Reshape", self.linear(g, rows, [name], bias=False), by_text) for name in own)
            y = g.fused(
                "MultiHeadAttention", q, k, v, self.bias(g, own), mask, num_heads=heads, mask_filter_value=MASKED
            )
            y = g.op("Reshape", y, g.integers(-1, heads * size))
            x = self._added(g, x, y, f"{layer}.attention.output", zero)
            y = self.linear(g, self._read(g, x, zero), [f"{layer}.intermediate.dense"], bias=False)
            x = self._added(g, x, self.activated(g, y, f"{layer}.intermediate.dense"), f"{layer}.output", zero)
        x = g.op("Reshape", x, g.op("Concat", shape, g.integers(self.features), axis=0))
        first = g.op("Gather", x, g.integers(0), axis=1)  # token of each text, (texts, 1, features)
        first = g.op("Reshape", first, g.integers(-1, self.features))
        zero = self.zero_points(g, first) if self.int8_encoder else None
        pooled = g.op("Tanh", self.linear(g, self._read(g, first, zero), ["bert.pooler.dense"]))
        logits = self.linear(g, pooled, ["classifier"])
        g.output(logits, "logits", TensorProto.FLOAT, ["texts", self.config.num_labels])
        return g.model()

    def _embedded(self, g: Graph, ids: str, types: str, shape: str) -> str:
        """Tokens, their places and their types, (rows, features)."""
        length = g.op("Gather", shape, g.constant("one", np.array(1, np.int64)))
        places = g.op("Range", g.constant("zero", np.array(0, np.int64)), length, "one")
        places = g.op("Reshape", places, g.integers(-1))  # else it is fused to a Slice that cannot be run
        x, table = "", "bert.embeddings.{}_embeddings.weight"
        for each, name in ((ids, "word"), (places, "position"), (types, "token_type")):
            rows = self.lookup(g, each, table.format(name))
            x = g.op("Add", x, rows) if x else rows
        return self.norm(g, g.op("Reshape", x, g.integers(-1, self.features)), "bert.embeddings.LayerNorm")

    def _read(self, g: Graph, x: str, zero: str | None) -> str | tuple[str, str]:
        """What a product reads: as it is, or rounded to codes with scales."""
        return x if zero is None else self.rounded(g, x, zero)

    def _added(self, g: Graph, x: str, y: str, path: str, zero: str | None) -> str:
        """The norm of ``x`` and what the layer at this path makes of ``y``."""
        delta = self.linear(g, self._read(g, y, zero), [f"{path}.dense"], bias=False)
        return self.add_norm(g, x, delta, f"{path}.LayerNorm", self.bias(g, [f"{path}.dense"]))[0]
