"""Graphs of BART, mBART and Marian: a source to keys and values, one step of decoding, the best tokens of a step."""

from __future__ import annotations

import math
from typing import ClassVar

from onnx import TensorProto

from dqlib.engines.onnx_graph import Graph
from dqlib.engines.onnx_stacks import Stacks


class BartGraphs(Stacks):
    """The three graphs of a BART."""

    norms: ClassVar = {
        "encoder": ("self_attn_layer_norm", "final_layer_norm"),
        "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    }
    last_norm = "model.{side}.layer_norm"
    sized = (("decoder_attention_heads", "d_model"),)
    first_position = 2
    pre = False
    #: Whether embeddings have a norm, too.
    embedding_norm = True

    def encoder(self, g: Graph) -> None:
        """As :meth:`Stacks.encoder`."""
        ids = g.input("input_ids", TensorProto.INT64, ["batch", "source"])
        g.input("mask", TensorProto.INT32, ["batch", "source"])
        shape = g.op("Shape", ids)
        # Range straight into Gather is fused to a Slice that some versions of ONNX Runtime cannot run; 0 is not added.
        places, first = g.places(shape), self.first_position
        places = g.op("Add", places, g.integers(first)) if first else g.op("Reshape", places, g.integers(-1))
        x = self._looked_up(g, "encoder", ids, places)
        heads, size = self.heads("encoder")
        by_text = g.op("Concat", shape, g.integers(heads * size), axis=0)
        x = self._embedded(g, g.op("Reshape", x, g.integers(-1, self.features)), "encoder")
        zero = self.zero_points(g, x)
        self.give_source(g, self.encoded(g, x, by_text, zero), shape, zero)

    def decoder(self, g: Graph) -> None:
        """As :meth:`Stacks.decoder`."""
        ids = g.input("ids", TensorProto.INT64, ["rows", 1])
        place = g.input("position", TensorProto.INT64, [1, 1])
        self.declare_source(g)
        x = self.decoded(g, self._embedded(g, self._looked_up(g, "decoder", ids, place), "decoder"))
        x = g.op("Reshape", x, g.integers(-1, self.features))
        numbers = self.weights.number("final_logits_bias").reshape(-1)
        bias = g.constant("final_logits_bias", numbers) if numbers.any() else ""
        self.give_logits(g, x, bias)

    def _looked_up(self, g: Graph, side: str, ids: str, places: str) -> str:
        """Rows of tokens and of their places, added."""
        scale = math.sqrt(self.features) if self.config.scale_embedding else 1.0
        return g.op(
            "Add", self.tokens(g, ids, side, scale), self.lookup(g, places, f"model.{side}.embed_positions.weight")
        )

    def _embedded(self, g: Graph, x: str, side: str) -> str:
        """Embeddings as the first layer gets them."""
        return self.norm(g, x, f"model.{side}.layernorm_embedding") if self.embedding_norm else x


class MBartGraphs(BartGraphs):
    """The three graphs of an mBART."""

    pre = True


class MarianGraphs(BartGraphs):
    """The three graphs of a Marian."""

    first_position = 0
    embedding_norm = False
