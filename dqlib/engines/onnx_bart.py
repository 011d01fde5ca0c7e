"""Graphs of BART, mBART and Marian: a source to keys and values, one step of decoding, the best tokens of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from dqlib.engines.onnx_graph import Graph, Numbers
from dqlib.engines.onnx_layers import HEAD_FEATURES, MASKED, Layers
from dqlib.engines.onnx_weights import Weights
from dqlib.errors import InputError


@dataclass(frozen=True, slots=True)
class Shape:
    """Where architectures of this kind differ.

    Args:
        pre: whether LayerNorms come before attention and feed-forward layers.
        embedding_norm: whether embeddings have one, too.
        first_position: row of the table of positions that the first token has.
    """

    pre: bool
    embedding_norm: bool
    first_position: int


_SHAPES = {"bart": Shape(False, True, 2), "mbart": Shape(True, True, 2), "marian": Shape(False, False, 0)}

_ACTIVATIONS = ("gelu", "relu", "swish", "silu")


class BartGraphs(Layers):
    """The three graphs of a model.

    Args:
        config, weights, numbers, rounded: as of :class:`dqlib.engines.onnx_layers.Layers`.
        int8_encoder: whether the encoder multiplies codes of 8 bits.
    """

    of_encoder = r"model\.encoder\.layers\..*(_proj|fc\d)\.weight|model\.decoder\..*\.encoder_attn\.[kv]_proj\.weight"

    def __init__(self, config: Any, weights: Weights, numbers: Numbers, rounded: bool, int8_encoder: bool) -> None:
        self.shape = _SHAPES[config.model_type]
        super().__init__(config, weights, numbers, rounded, self.shape.pre)
        self.int8_encoder = int8_encoder

    @staticmethod
    def check(config: Any) -> None:
        """Check that the kernels serve a configuration.

        Raises:
            InputError: they do not.
        """
        tables = getattr(config, "decoder_vocab_size", None)
        if tables not in (None, config.vocab_size):
            raise InputError("decoder_vocab_size", tables, f"{config.vocab_size}, as many ids as the source has")
        if config.activation_function not in _ACTIVATIONS:
            raise InputError("activation_function", config.activation_function, f"one of {', '.join(_ACTIVATIONS)}")
        heads, features = config.decoder_attention_heads, config.d_model
        if features // heads % HEAD_FEATURES:
            allowed = f"one that gives each head a multiple of {HEAD_FEATURES} of the {features} features (d_model)"
            raise InputError("decoder_attention_heads", heads, f"{allowed}, for the engine onnxruntime")

    @property
    def first_position(self) -> int:
        """Row of the table of positions that the first token has."""
        return self.shape.first_position

    def encoder(self) -> onnx.ModelProto:
        """Ids (batch, source) and mask to keys and values (2 x decoder layers, batch, heads, source, head_dim)."""
        c, d, int8 = self.config, self.features, self.int8_encoder
        heads, size = self.heads("encoder")
        g = Graph("encoder", self.numbers)
        ids = g.input("input_ids", TensorProto.INT64, ["batch", "source"])
        mask = g.input("mask", TensorProto.INT32, ["batch", "source"])
        shape = g.op("Shape", ids)
        length = g.op("Gather", shape, g.constant("one", np.array(1, np.int64)))
        # Range straight into Gather is fused to a Slice that some versions of ONNX Runtime cannot run; 0 is not added.
        places = g.op("Range", g.constant("zero", np.array(0, np.int64)), length, "one")
        first = self.shape.first_position
        places = g.op("Add", places, g.integers(first)) if first else g.op("Reshape", places, g.integers(-1))
        x = g.op(
            "Add",
            self.lookup(g, ids, "model.encoder.embed_tokens.weight", self.embed_scale),
            self.lookup(g, places, "model.encoder.embed_positions.weight"),
        )
        by_text = g.op("Concat", shape, g.integers(heads * size), axis=0)  # (batch, source, features of all heads)
        x = residual = self._embedded(g, g.op("Reshape", x, g.integers(-1, d)), "encoder")
        zero = self.zero_points(g, x) if int8 else None
        sublayers = [
            (f"model.encoder.layers.{i}.{part}", part) for i in range(c.encoder_layers) for part in ("attention", "ffn")
        ]
        final = "model.encoder.layer_norm"  # where the norms come first
        if self.pre:
            x = self.norm(g, x, "model.encoder.layers.0.self_attn_layer_norm")
        for n, (path, part) in enumerate(sublayers):
            layer = path.rpartition(".")[0]
            if part == "attention":
                attention = f"{layer}.self_attn"
                rows = self.rounded(g, x, zero) if zero is not None else x
                q, k, v = (
                    g.op("Reshape", self.linear(g, rows, [f"{attention}.{name}_proj"], bias=False), by_text)
                    for name in "qkv"
                )
                bias = self.bias(g, [f"{attention}.{name}_proj" for name in "qkv"])
                y = g.fused(
                    "MultiHeadAttention", q, k, v, bias, mask,
                    num_heads=heads, mask_filter_value=MASKED,
                )  # fmt: skip
                y = g.op("Reshape", y, g.integers(-1, heads * size))
                out, own = f"{attention}.out_proj", f"{layer}.self_attn_layer_norm"
                following = f"{layer}.final_layer_norm"
            else:
                rows = self.rounded(g, x, zero) if zero is not None else x
                y = self.activated(g, self.linear(g, rows, [f"{layer}.fc1"], bias=False), f"{layer}.fc1")
                out, own = f"{layer}.fc2", f"{layer}.final_layer_norm"
                last = n + 1 == len(sublayers)
                following = final if last else f"{sublayers[n + 1][0].rpartition('.')[0]}.self_attn_layer_norm"
            delta = self.linear(g, self.rounded(g, y, zero) if zero is not None else y, [out], bias=False)
            x, residual = self.add_norm(g, residual, delta, following if self.pre else own, self.bias(g, [out]))
        names = [f"model.decoder.layers.{i}.encoder_attn.{name}_proj" for i in range(c.decoder_layers) for name in "kv"]
        y = self.linear(g, self.rounded(g, x, zero) if zero is not None else x, names)  # (rows, 2 layers x features)
        self.give_source(g, y, shape, len(names))
        return g.model()

    def decoder(self) -> onnx.ModelProto:
        """One step: a token a row to logits (rows, vocabulary).

        Rows are texts x beams. All beams of a text attend to the same source, as so many queries. Keys and values of
        earlier tokens are read from, and this token's written to, buffers (rows, heads, capacity, head_dim) that are
        bound as input and as output.
        """
        c, d = self.config, self.features
        g = Graph("decoder", self.numbers)
        ids = g.input("ids", TensorProto.INT64, ["rows", 1])
        place = g.input("position", TensorProto.INT64, [1, 1])
        g.input("by_source", TensorProto.INT64, [3])  # texts, beams, features of all heads
        g.input("mask", TensorProto.INT32, ["texts", "source"])
        g.input("before", TensorProto.INT32, ["rows"])
        g.input("total", TensorProto.INT32, [])
        x = g.op(
            "Add",
            self.lookup(g, ids, "model.decoder.embed_tokens.weight", self.embed_scale),
            self.lookup(g, place, "model.decoder.embed_positions.weight"),
        )
        x = residual = self._embedded(g, x, "decoder")
        if self.pre:
            x = self.norm(g, x, "model.decoder.layers.0.self_attn_layer_norm")
        for i in range(c.decoder_layers):
            x, residual = self._decoder_layer(g, i, x, residual)
        x = g.op("Reshape", x, g.integers(-1, d))
        numbers = self.weights.number("final_logits_bias").reshape(-1)
        bias = g.constant("final_logits_bias", numbers) if numbers.any() else ""
        logits = self.multiply(g, x, ["lm_head"], bias)
        g.output(logits, "logits", TensorProto.FLOAT, ["rows", c.vocab_size])
        return g.model()

    def _embedded(self, g: Graph, x: str, side: str) -> str:
        """Embeddings as the first layer gets them."""
        return self.norm(g, x, f"model.{side}.layernorm_embedding") if self.shape.embedding_norm else x

    def _decoder_layer(self, g: Graph, i: int, x: str, residual: str) -> tuple[str, str]:
        """The next layer's input, and what its result is added to."""
        c, layer = self.config, f"model.decoder.layers.{i}"
        own, across = f"{layer}.self_attn", f"{layer}.encoder_attn"
        joint = self.linear(g, x, [f"{own}.{name}_proj" for name in "qkv"])
        delta = self.linear(g, self.attended_to_earlier(g, i, joint), [f"{own}.out_proj"])
        norm = f"{layer}.encoder_attn_layer_norm" if self.pre else f"{layer}.self_attn_layer_norm"
        x, residual = self.add_norm(g, residual, delta, norm)
        y = self.attended_to_source(g, i, self.linear(g, x, [f"{across}.q_proj"]))
        delta = self.linear(g, y, [f"{across}.out_proj"])
        norm = f"{layer}.final_layer_norm" if self.pre else f"{layer}.encoder_attn_layer_norm"
        x, residual = self.add_norm(g, residual, delta, norm)
        y = self.linear(g, x, [f"{layer}.fc1"], bias=c.activation_function != "gelu")
        delta = self.linear(g, self.activated(g, y, f"{layer}.fc1", biased=True), [f"{layer}.fc2"])
        following = f"model.decoder.layers.{i + 1}.self_attn_layer_norm"
        if i + 1 == c.decoder_layers:
            following = "model.decoder.layer_norm"
        norm = following if self.pre else f"{layer}.final_layer_norm"
        return self.add_norm(g, residual, delta, norm)
