"""The graphs of each architecture: what it has of its own beside :mod:`dqlib.engines.onnx_stacks`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from onnx import TensorProto
from transformers.models.t5.modeling_t5 import T5Attention

from dqlib.engines.onnx_graph import Graph
from dqlib.engines.onnx_model import CLASSIFIER
from dqlib.engines.onnx_stacks import HEAD_FEATURES, Stacks
from dqlib.errors import InputError


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
        tokens = self.tokens(g, ids, side, scale)
        return g.op("Add", tokens, self.lookup(g, places, f"model.{side}.embed_positions.weight"))

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
            x = g.op("Mul", x, g.scalar("head_scale", self.features**-0.5))
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
        places = g.op("Range", g.scalar("zero", 0, np.int64), total, g.scalar("one", 1, np.int64))
        distances = g.op("Sub", g.op("Add", places, "one"), total)  # -total + 1 to 0
        biases = self._by_distance(g, "decoder", -most)
        return self._looked_up(g, biases, g.op("Unsqueeze", distances, g.integers(0)), most)

    def _looked_up(self, g: Graph, table: str, distances: str, most: int) -> str:
        low, high = g.scalar("nearest", -most, np.int64), g.scalar("farthest", most, np.int64)
        places = g.op("Add", g.op("Clip", distances, low, high), high)
        return g.op("Unsqueeze", g.op("Gather", table, places, axis=1), g.integers(0))


class Gpt2Graphs(Stacks):
    """The two graphs of a model."""

    norms: ClassVar = {"decoder": ("ln_1", "ln_2")}
    last_norm = "transformer.ln_f"
    activations = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "relu", "swish", "silu")
    sized = (("n_head", "n_embd"),)
    first_position = 0
    joins_bias = False

    def decoder(self, g: Graph) -> None:
        """Tokens (rows, tokens) to logits (rows, vocabulary) of the one after the last of each row.

        A text is read in one go, all of its tokens beside each other; then come steps of one token. Texts of a batch
        are filled up at their end, where nothing looks: ``before`` says how many tokens a row has before its last one.
        """
        ids = g.input("ids", TensorProto.INT64, ["rows", "tokens"])
        places = g.input("position", TensorProto.INT64, ["rows", "tokens"])
        last = g.input("last", TensorProto.INT64, ["rows", 1])  # of the tokens that are read now
        g.input("before", TensorProto.INT32, ["rows"])
        g.input("total", TensorProto.INT32, [])
        tables = (*self.names.token_embeddings, *self.names.positions)
        rows = [self.lookup(g, each, f"{table}.weight") for each, table in zip((ids, places), tables, strict=True)]
        x = self.decoded(g, g.op("Add", *rows))
        self.give_logits(g, g.op("GatherND", x, last, batch_dims=1))  # (rows, features)


class BertGraphs(Stacks):
    """The graph of a model."""

    norms: ClassVar = {"encoder": ("attention.output.LayerNorm", "output.LayerNorm")}
    pre = False

    @property
    def parts(self) -> dict[str, Callable[[Graph], None]]:
        """As :attr:`Stacks.parts`."""
        return {CLASSIFIER: self.classifier}

    def classifier(self, g: Graph) -> None:
        """Ids, types of tokens and mask, (texts, length) each, to logits (texts, classes)."""
        ids = g.input("input_ids", TensorProto.INT64, ["texts", "length"])
        types = g.input("types", TensorProto.INT64, ["texts", "length"])
        g.input("mask", TensorProto.INT32, ["texts", "length"])
        shape, (heads, size) = g.op("Shape", ids), self.heads("encoder")
        by_text = g.op("Concat", shape, g.integers(heads * size), axis=0)
        x = self._embedded(g, ids, types, shape)
        x = self.encoded(g, x, by_text, self.zero_points(g, x))
        x = g.op("Reshape", x, g.op("Concat", shape, g.integers(self.features), axis=0))
        first = g.op("Gather", x, g.integers(0), axis=1)  # token of each text, (texts, 1, features)
        first = g.op("Reshape", first, g.integers(-1, self.features))
        pooler = self.linear(g, self.read(g, first, self.zero_points(g, first)), self.names.linears[:1])
        logits = self.linear(g, g.op("Tanh", pooler), ["classifier"])
        g.output(logits, "logits", TensorProto.FLOAT, ["texts", self.config.num_labels])

    def _embedded(self, g: Graph, ids: str, types: str, shape: str) -> str:
        """Tokens, their places and their types, (rows, features)."""
        places = g.op("Reshape", g.places(shape), g.integers(-1))  # else it is fused to a Slice that cannot be run
        tables = [f"{path}.weight" for path in (*self.names.token_embeddings, *self.names.positions)]
        x = ""
        for each, table in zip((ids, places, types), tables, strict=True):
            rows = self.lookup(g, each, table)
            x = g.op("Add", x, rows) if x else rows
        return self.norm(g, g.op("Reshape", x, g.integers(-1, self.features)), "bert.embeddings.LayerNorm")


#: What makes the graphs of each architecture that is served.
GRAPHS: dict[str, type[Stacks]] = {
    "bart": BartGraphs,
    "mbart": MBartGraphs,
    "marian": MarianGraphs,
    "t5": T5Graphs,
    "bert": BertGraphs,
    "gpt2": Gpt2Graphs,
}
