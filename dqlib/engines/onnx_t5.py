"""Graphs of T5: no positions but a bias of attention by distance, RMSNorm, feed-forward layers gated or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from onnx import TensorProto
from transformers.models.t5.modeling_t5 import T5Attention

from dqlib.engines.onnx_graph import Graph
from dqlib.engines.onnx_stacks import HEAD_FEATURES, Stacks
from dqlib.errors import InputError


class T5Graphs(Stacks):
    """The three graphs of a model."""

    norms: ClassVar = {
        "encoder": ("layer.0.layer_norm", "layer.1.layer_norm"),
        "decoder": ("layer.0.layer_norm", "layer.1.layer_norm", "layer.2.layer_norm"),
    }
    last_norm = "{side}.final_layer_norm"
    activations = ("gelu", "gelu_new", "relu", "silu")
    scale = 1.0

    @classmethod
    def check(cls, config: Any) -> None:
        """As :meth:`Stacks.check`."""
        super().check(config)
        if config.d_kv % HEAD_FEATURES:
            raise InputError("d_kv", config.d_kv, f"a multiple of {HEAD_FEATURES}, for the engine onnxruntime")

    def encoder(self, g: Graph) -> None:
        """As :meth:`Stacks.encoder`."""
        ids = g.input("input_ids", TensorProto.INT64, ["batch", "source"])
        g.input("mask", TensorProto.INT32, ["batch", "source"])
        shape, (heads, size) = g.op("Shape", ids), self.heads("encoder")
        by_text = g.op("Concat", shape, g.integers(heads * size), axis=0)
        x = g.op("Reshape", self.tokens(g, ids, "encoder"), g.integers(-1, self.features))
        zero = self.zero_points(g, x)
        x = self.encoded(g, x, by_text, zero, self._distances_in_source(g, shape))
        self.give_source(g, x, shape, zero)

    def decoder(self, g: Graph) -> None:
        """As :meth:`Stacks.decoder`."""
        ids = g.input("ids", TensorProto.INT64, ["rows", 1])
        self.declare_source(g)
        x = self.tokens(g, ids, "decoder")
        x = g.op("Reshape", self.decoded(g, x, self._distances_to_earlier(g)), g.integers(-1, self.features))
        if self.config.scale_decoder_outputs:
            x = g.op("Mul", x, g.constant("head_scale", np.array(self.features**-0.5, np.float32)))
        self.give_logits(g, x)

    def activated(self, g: Graph, y: str, paths: Sequence[str], biased: bool = False) -> str:
        """The activation function; where the layer is gated, one product made both halves of ``y``."""
        if len(paths) == 1:
            return self.function(g, y)
        y, gate = g.op("Split", y, outputs=2, axis=-1, num_outputs=2)
        return g.op("Mul", self.function(g, y), gate)

    def function(self, g: Graph, y: str) -> str:
        """The activation function alone."""
        if self.activation.startswith("gelu"):
            return g.op("Gelu", y, approximate="tanh" if self.activation == "gelu_new" else "none")
        return super().function(g, y)

    # --- what attention adds to its scores, by the distance of two tokens

    def _by_distance(self, g: Graph, side: str, first: int) -> str:
        """The biases of distances from ``first`` to 0, or to as much after the query: (heads, distances)."""
        last = 0 if side == "decoder" else -first
        buckets = T5Attention._relative_position_bucket(
            torch.arange(first, last + 1), side == "encoder", self.config.relative_attention_num_buckets, -first
        )
        bias = f"{self.layers(side)[0]}.{self.names.attentions[0]}.{self.names.head_bias}.weight"
        table = self.weights.number(bias)[buckets.numpy()]  # (distances, heads)
        return g.constant(f"distances of the {side}", np.ascontiguousarray(table.T))

    def _distances_in_source(self, g: Graph, shape: str) -> str:
        """(1, heads, source, source); as far as ``relative_attention_max_distance`` and farther is the same."""
        most = self.config.relative_attention_max_distance
        places = g.places(shape)
        distances = g.op("Sub", places, g.op("Unsqueeze", places, g.integers(1)))  # of a key (columns) from a query
        return self._looked_up(g, self._by_distance(g, "encoder", -most), distances, most)

    def _distances_to_earlier(self, g: Graph) -> str:
        """(1, heads, 1, total), of the token that is written from those before it and itself."""
        most = self.config.relative_attention_max_distance
        total = g.op("Cast", "total", to=TensorProto.INT64)
        places = g.op(
            "Range", g.constant("zero", np.array(0, np.int64)), total, g.constant("one", np.array(1, np.int64))
        )
        distances = g.op("Sub", g.op("Add", places, "one"), total)  # -total + 1 to 0
        return self._looked_up(
            g, self._by_distance(g, "decoder", -most), g.op("Unsqueeze", distances, g.integers(0)), most
        )

    def _looked_up(self, g: Graph, table: str, distances: str, most: int) -> str:
        low, high = (
            g.constant(name, np.array(value, np.int64)) for name, value in (("nearest", -most), ("farthest", most))
        )
        places = g.op("Add", g.op("Clip", distances, low, high), high)
        return g.op("Unsqueeze", g.op("Gather", table, places, axis=1), g.integers(0))
