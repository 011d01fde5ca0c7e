"""Graphs of T5: no positions but a bias of attention by distance, RMSNorm, feed-forward layers gated or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from transformers.models.t5.modeling_t5 import T5Attention

from dqlib.engines.onnx_graph import Graph, Numbers
from dqlib.engines.onnx_layers import HEAD_FEATURES, MASKED, Layers
from dqlib.engines.onnx_weights import Weights
from dqlib.errors import InputError

#: Activation functions by the names that T5's configuration has for them.
_ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")


class T5Graphs(Layers):
    """The three graphs of a model.

    Args:
        config, weights, numbers, rounded: as of :class:`dqlib.engines.onnx_layers.Layers`.
        int8_encoder: whether the encoder multiplies codes of 8 bits.
    """

    first_position = None
    of_encoder = (
        r"encoder\.block\..*\.(q|k|v|o|wi|wi_0|wi_1|wo)\.weight|decoder\.block\..*\.EncDecAttention\.[kv]\.weight"
    )

    def __init__(self, config: Any, weights: Weights, numbers: Numbers, rounded: bool, int8_encoder: bool) -> None:
        super().__init__(config, weights, numbers, rounded, pre=True)
        self.int8_encoder = int8_encoder

    @staticmethod
    def check(config: Any) -> None:
        """Check that the kernels serve a configuration.

        Raises:
            InputError: they do not.
        """
        if config.dense_act_fn not in _ACTIVATIONS:
            raise InputError("dense_act_fn", config.dense_act_fn, f"one of {', '.join(_ACTIVATIONS)}")
        if config.d_kv % HEAD_FEATURES:
            raise InputError("d_kv", config.d_kv, f"a multiple of {HEAD_FEATURES}, for the engine onnxruntime")

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return self.config.num_decoder_layers

    def heads(self, side: str) -> tuple[int, int]:
        """Heads of an attention, fewer than the configuration has in a narrow student, and features of one."""
        return self.weights.number(_distances(side)).shape[1], self.config.d_kv

    def encoder(self) -> onnx.ModelProto:
        """Ids (batch, source) and mask to keys and values (2 x decoder layers, batch, heads, source, head_dim)."""
        g = Graph("encoder", self.numbers)
        ids = g.input("input_ids", TensorProto.INT64, ["batch", "source"])
        mask = g.input("mask", TensorProto.INT32, ["batch", "source"])
        shape = g.op("Shape", ids)
        heads, size = self.heads("encoder")
        by_text = g.op("Concat", shape, g.integers(heads * size), axis=0)  # (batch, source, features of all heads)
        residual = g.op("Reshape", self.lookup(g, ids, "encoder.embed_tokens.weight"), g.integers(-1, self.features))
        zero = self.zero_points(g, residual) if self.int8_encoder else None
        distances = self._distances_in_source(g, shape)
        x = self.norm(g, residual, "encoder.block.0.layer.0.layer_norm")
        for i in range(self.config.num_layers):
            block = f"encoder.block.{i}"
            own, rows = f"{block}.layer.0.SelfAttention", self._read(g, x, zero)
            q, k, v = (g.op("Reshape", self.linear(g, rows, [f"{own}.{name}"], bias=False), by_text) for name in "qkv")
            y = g.fused(
                "MultiHeadAttention", q, k, v, "", mask, distances,
                num_heads=heads, scale=1.0, mask_filter_value=MASKED,
            )  # fmt: skip
            y = g.op("Reshape", y, g.integers(-1, heads * size))
            delta = self.linear(g, self._read(g, y, zero), [f"{own}.o"], bias=False)
            x, residual = self.add_norm(g, residual, delta, f"{block}.layer.1.layer_norm")
            delta = self._fed_forward(g, x, f"{block}.layer.1.DenseReluDense", zero)
            last = i + 1 == self.config.num_layers
            following = "encoder.final_layer_norm" if last else f"encoder.block.{i + 1}.layer.0.layer_norm"
            x, residual = self.add_norm(g, residual, delta, following)
        names = [
            f"decoder.block.{i}.layer.1.EncDecAttention.{name}" for i in range(self.decoder_layers) for name in "kv"
        ]
        self.give_source(g, self.linear(g, self._read(g, x, zero), names, bias=False), shape, len(names))
        return g.model()

    def decoder(self) -> onnx.ModelProto:
        """One step, as that of :class:`dqlib.engines.onnx_bart.BartGraphs`, but without positions."""
        g = Graph("decoder", self.numbers)
        ids = g.input("ids", TensorProto.INT64, ["rows", 1])
        g.input("by_source", TensorProto.INT64, [3])  # texts, beams, features of all heads
        g.input("mask", TensorProto.INT32, ["texts", "source"])
        g.input("before", TensorProto.INT32, ["rows"])
        g.input("total", TensorProto.INT32, [])
        residual = self.lookup(g, ids, "decoder.embed_tokens.weight")
        distances = self._distances_to_earlier(g)
        x = self.norm(g, residual, "decoder.block.0.layer.0.layer_norm")
        for i in range(self.decoder_layers):
            block = f"decoder.block.{i}"
            own, across = f"{block}.layer.0.SelfAttention", f"{block}.layer.1.EncDecAttention"
            joint = self.linear(g, x, [f"{own}.{name}" for name in "qkv"], bias=False)
            y = self.attended_to_earlier(g, i, joint, distances, scale=1.0)
            x, residual = self.add_norm(
                g, residual, self.linear(g, y, [f"{own}.o"], bias=False), f"{block}.layer.1.layer_norm"
            )
            y = self.attended_to_source(g, i, self.linear(g, x, [f"{across}.q"], bias=False), scale=1.0)
            x, residual = self.add_norm(
                g, residual, self.linear(g, y, [f"{across}.o"], bias=False), f"{block}.layer.2.layer_norm"
            )
            last = i + 1 == self.decoder_layers
            following = "decoder.final_layer_norm" if last else f"decoder.block.{i + 1}.layer.0.layer_norm"
            x, residual = self.add_norm(
                g, residual, self._fed_forward(g, x, f"{block}.layer.2.DenseReluDense"), following
            )
        x = g.op("Reshape", x, g.integers(-1, self.features))
        if self.config.scale_decoder_outputs:
            x = g.op("Mul", x, g.constant("head_scale", np.array(self.features**-0.5, np.float32)))
        g.output(self.multiply(g, x, ["lm_head"]), "logits", TensorProto.FLOAT, ["rows", self.config.vocab_size])
        return g.model()

    def norm(self, g: Graph, x: str, path: str) -> str:
        """RMSNorm of the last dimension (https://arxiv.org/abs/1910.07467)."""
        gamma = g.constant(f"{path}.weight", self.weights.number(f"{path}.weight"))
        return g.op("SimplifiedLayerNormalization", x, gamma, axis=-1, epsilon=self.config.layer_norm_epsilon)

    def add_norm(self, g: Graph, residual: str, delta: str, norm: str, bias: str = "") -> tuple[str, str]:
        """What the next part reads, and what it is added to."""
        gamma = g.constant(f"{norm}.weight", self.weights.number(f"{norm}.weight"))
        outputs = g.fused(
            "SkipSimplifiedLayerNormalization", residual, delta, gamma, *((bias,) if bias else ()),
            outputs=4, epsilon=self.config.layer_norm_epsilon,
        )  # fmt: skip
        g.nodes[-1].output[1] = g.nodes[-1].output[2] = ""  # mean and deviation
        return outputs[0], outputs[3]

    def _read(self, g: Graph, x: str, zero: str | None) -> str | tuple[str, str]:
        """What a product reads: as it is, or rounded to codes with scales."""
        return x if zero is None else self.rounded(g, x, zero)

    def _fed_forward(self, g: Graph, x: str, path: str, zero: str | None = None) -> str:
        """The feed-forward layer; where it is gated, one product makes both of its halves."""
        names = [f"{path}.wi_0", f"{path}.wi_1"] if self.config.is_gated_act else [f"{path}.wi"]
        y = self.linear(g, self._read(g, x, zero), names, bias=False)
        if self.config.is_gated_act:
            y, gate = g.op("Split", y, outputs=2, axis=-1, num_outputs=2)
            y = g.op("Mul", self._activated(g, y), gate)
        else:
            y = self._activated(g, y)
        return self.linear(g, self._read(g, y, zero), [f"{path}.wo"], bias=False)

    def _activated(self, g: Graph, y: str) -> str:
        kind = self.config.dense_act_fn
        if kind.startswith("gelu"):
            return g.op("Gelu", y, approximate="tanh" if kind == "gelu_new" else "none")
        return g.op("Relu", y) if kind == "relu" else g.op("Mul", y, g.op("Sigmoid", y))

    # --- what attention adds to its scores, by the distance of two tokens

    def _by_distance(self, g: Graph, side: str, first: int) -> str:
        """The biases of distances from ``first`` to 0, or to as much after the query: (heads, distances)."""
        last = 0 if side == "decoder" else -first
        buckets = T5Attention._relative_position_bucket(
            torch.arange(first, last + 1), side == "encoder", self.config.relative_attention_num_buckets, -first
        )
        table = self.weights.number(_distances(side))[buckets.numpy()]  # (distances, heads)
        return g.constant(f"distances of the {side}", np.ascontiguousarray(table.T))

    def _distances_in_source(self, g: Graph, shape: str) -> str:
        """(1, heads, source, source); as far as ``relative_attention_max_distance`` and farther is the same."""
        most = self.config.relative_attention_max_distance
        length = g.op("Gather", shape, g.constant("one", np.array(1, np.int64)))
        places = g.op("Range", g.constant("zero", np.array(0, np.int64)), length, "one")
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


def _distances(side: str) -> str:
    return f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
