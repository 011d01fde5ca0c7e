"""Stacks of layers as nodes of a graph: encoders and decoders, whose layers have the names of their architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from onnx import TensorProto

from dqlib.architectures import architecture_of
from dqlib.engines.base import check_computed
from dqlib.engines.onnx_graph import Graph
from dqlib.engines.onnx_layers import Layers
from dqlib.engines.onnx_model import CANDIDATES, DECODER, ENCODER, OnnxEngine
from dqlib.engines.onnx_weights import Weights
from dqlib.errors import InputError
from dqlib.quantizers import Quantized

#: Score of a token that is not attended to.
MASKED = -3e38

#: What the size of a head in GroupQueryAttention is a multiple of; no other kernel minds the width.
HEAD_FEATURES = 8


class Stacks(Layers):
    """The graphs of a model: what an architecture has in place of these attributes and methods makes them its own."""

    #: Names, within a layer, of the norms of its parts, by side, and that of the last norm where they come first.
    norms: ClassVar[dict[str, tuple[str, ...]]]
    last_norm = ""
    #: Fields of the configuration with the decoder's heads and the features of all, where these give a head's size.
    sized: tuple[tuple[str, str], ...] = ()
    #: Row of the table of positions that the first token has; None of a model without such a table.
    first_position: int | None = None
    #: Of the scores of attention; None for the root of a head's size.
    scale: float | None = None
    #: Whether a decoder's product adds the bias that no kernel of an activation function adds.
    joins_bias = True

    def __init__(self, config: Any, weights: Weights, rounded: bool, encoder: str | None) -> None:
        super().__init__(config, weights, rounded)
        self.names = architecture_of(config)
        if rounded and self.names.encoder is not None:
            self.int8_encoder = self._int8_serves() if encoder is None else encoder == "int8"

    @classmethod
    def check(cls, config: Any) -> None:
        """Check that the kernels serve a configuration.

        Raises:
            InputError: they do not.
        """
        check_computed(config, OnnxEngine.name, cls.activations)
        for heads, features in cls.sized:
            count, of_all = getattr(config, heads), getattr(config, features)
            if of_all // count % HEAD_FEATURES:
                allowed = f"one that gives each head a multiple of {HEAD_FEATURES} of the {of_all} features"
                raise InputError(heads, count, f"{allowed} ({features}), for the engine onnxruntime")

    @property
    def parts(self) -> dict[str, Callable[[Graph], None]]:
        """What makes each graph, by the name of its file."""
        parts: dict[str, Callable[[Graph], None]] = {DECODER: self.decoder, CANDIDATES: self.candidates}
        return parts if self.names.encoder is None else {ENCODER: self.encoder, **parts}

    def encoder(self, g: Graph) -> None:
        """Ids (batch, source) and mask to keys and values (2 x decoder layers, batch, heads, source, head_dim)."""
        raise NotImplementedError

    def decoder(self, g: Graph) -> None:
        """One step: one token per row to logits (rows, vocabulary)."""
        raise NotImplementedError

    def candidates(self, g: Graph) -> None:
        """Logits (rows, vocabulary) to the ``k`` best tokens of each row and their log-probabilities, best first."""
        logits = g.input("logits", TensorProto.FLOAT, ["rows", self.config.vocab_size])
        count = g.input("k", TensorProto.INT64, [1])
        best, tokens = g.op("TopK", g.op("LogSoftmax", logits, axis=-1), count, outputs=2, axis=-1)
        g.output(best, "best", TensorProto.FLOAT, ["rows", "count"])
        g.output(tokens, "tokens", TensorProto.INT64, ["rows", "count"])

    # --- names

    def layers(self, side: str) -> list[str]:
        """Paths of the layers of a stack."""
        depth = self.names.depths(self.config)[side == "decoder"]
        return [f"{self.names.stacks[side].layers}.{i}" for i in range(depth)]

    def tokens(self, g: Graph, ids: str, side: str, factor: float = 1.0) -> str:
        """Rows of the table that a stack of an encoder-decoder looks its tokens up in."""
        table = next(path for path in self.names.token_embeddings if side in path)
        return self.lookup(g, ids, f"{table}.weight", factor)

    def projections(self, layer: str, attention: int = 0) -> list[str]:
        """Paths of what makes query, keys and values, of the first or second attention of a layer."""
        path = f"{layer}.{self.names.attentions[attention]}"
        return [f"{path}.{name}" for name in (self.names.query, *self.names.key_value) if name]

    def output(self, layer: str, attention: int = 0) -> list[str]:
        """Path of what reads the heads of an attention."""
        return [f"{layer}.{self.names.outputs[attention]}"]

    def neurons(self, layer: str) -> tuple[list[str], list[str]]:
        """Paths of what makes neurons, and of what reads them."""
        makers, readers = (
            [path for name in names if f"{(path := f'{layer}.{name}')}.weight" in self.weights.values]
            for names in (self.names.neurons, self.names.neurons_to)
        )
        return makers, readers

    def _int8_serves(self) -> bool:
        """Whether all weights that an encoder of int8 multiplies have codes with one scale per row, around zero."""
        paths = self.source_projections() if self.names.decoder is not None else list(self.names.linears[:1])
        for layer in self.layers("encoder"):
            neurons, down = self.neurons(layer)
            paths += [*self.projections(layer), *self.output(layer), *neurons, *down]
        values = [self.weights.values[f"{path}.weight"] for path in paths]
        codes = [each for each in values if isinstance(each, Quantized) and each.zero_point is None]
        return len(codes) == len(values) and all(each.scale.size(-1) == 1 for each in codes)

    def source_projections(self) -> list[str]:
        """Paths of what makes the keys and values that a decoder's layers attend to."""
        return [path for layer in self.layers("decoder") for path in self.projections(layer, 1)[1:]]

    def heads(self, side: str) -> tuple[int, int]:
        """Heads of an attention, fewer than the configuration has in a narrow student, and features of one."""
        fields = self.names.head_fields  # one for both sides, or one for each
        count = getattr(self.config, fields[0] if side == "encoder" else fields[-1])
        size = getattr(self.config, "head_dim", self.features // count)
        *_, values = self.projections(self.layers(side)[0])
        parts = 3 if self.names.joint_projection else 1
        return self.weights.rows(f"{values}.weight") // (parts * size), size

    def _norms(self, side: str) -> Iterator[str]:
        """Paths of the norms of a stack, in the order in which they are computed."""
        yield from (f"{layer}.{norm}" for layer in self.layers(side) for norm in self.norms[side])
        if self.pre:
            yield self.last_norm.format(side=side)

    # --- stacks

    def encoded(self, g: Graph, x: str, by_text: str, zero: str, distances: str = "") -> str:
        """What an encoder's layers make of rows.

        Args:
            g: with the input ``mask``, (texts, tokens).
            x: (rows, features), the tokens of all texts.
            by_text: the shape (texts, tokens, features of all heads).
            distances: added to the scores, (1, heads, tokens, tokens).
        """
        (heads, size), norms, residual = self.heads("encoder"), self._norms("encoder"), x
        if self.pre:
            x = self.norm(g, x, next(norms))
        for layer in self.layers("encoder"):
            own, out, (neurons, down) = self.projections(layer), self.output(layer), self.neurons(layer)
            rows = self.read(g, x, zero)
            q, k, v = (g.op("Reshape", self.linear(g, rows, [path], bias=False), by_text) for path in own)
            y = g.fused(
                "MultiHeadAttention", q, k, v, self.bias(g, own), "mask", *filter(None, [distances]),
                num_heads=heads, mask_filter_value=MASKED, scale=self.scale,
            )  # fmt: skip
            y = g.op("Reshape", y, g.integers(-1, heads * size))
            delta = self.linear(g, self.read(g, y, zero), out, bias=False)
            x, residual = self.add_norm(g, residual, delta, next(norms), self.bias(g, out))
            y = self.activated(g, self.linear(g, self.read(g, x, zero), neurons, bias=False), neurons)
            delta = self.linear(g, self.read(g, y, zero), down, bias=False)
            x, residual = self.add_norm(g, residual, delta, next(norms), self.bias(g, down))
        return x

    @staticmethod
    def declare_source(g: Graph) -> None:
        """Inputs of a step beside an encoder."""
        g.input("by_source", TensorProto.INT64, [3])  # texts, beams, features of all heads
        g.input("mask", TensorProto.INT32, ["texts", "source"])
        g.input("before", TensorProto.INT32, ["rows"])
        g.input("total", TensorProto.INT32, [])

    def give_source(self, g: Graph, x: str, shape: str, zero: str) -> None:
        """Give out keys and values of the decoder's layers, made of an encoder's rows; ``shape`` is (texts, tokens)."""
        (heads, size), paths = self.heads("decoder"), self.source_projections()
        y = self.linear(g, self.read(g, x, zero), paths)
        split = g.op("Concat", shape, g.integers(len(paths), heads, size), axis=0)
        y = g.op("Transpose", g.op("Reshape", y, split), perm=[2, 0, 3, 1, 4])
        g.output(y, "cross", TensorProto.FLOAT, [len(paths), "batch", heads, "source", size])

    def decoded(self, g: Graph, x: str, distances: str = "") -> str:
        """What a decoder's layers make of tokens.

        Rows are texts x beams. All beams of a text attend to the same source, as so many queries. Keys and values of
        earlier tokens are read from, and those of these tokens written to, buffers (rows, heads, capacity, head_dim)
        that are bound as input and as output.

        Args:
            g: with the inputs ``before`` and ``total``; beside an encoder, ``by_source`` and ``mask``, too.
            x: (rows, tokens, features).
            distances: added to the scores of earlier tokens, (1, heads, 1, total).
        """
        norms, residual, joined = self._norms("decoder"), x, self.joins_bias and not self.adds_bias
        if self.pre:
            x = self.norm(g, x, next(norms))
        for i, layer in enumerate(self.layers("decoder")):
            joint = self.linear(g, x, self.projections(layer))
            delta = self.linear(g, self._attended_to_earlier(g, i, joint, distances), self.output(layer))
            x, residual = self.add_norm(g, residual, delta, next(norms))
            if self.names.encoder is not None:
                query = self.linear(g, x, self.projections(layer, 1)[:1])
                delta = self.linear(g, self._attended_to_source(g, i, query), self.output(layer, 1))
                x, residual = self.add_norm(g, residual, delta, next(norms))
            neurons, down = self.neurons(layer)
            y = self.activated(g, self.linear(g, x, neurons, bias=joined), neurons, joined)
            x, residual = self.add_norm(g, residual, self.linear(g, y, down), next(norms))
        return x

    def give_logits(self, g: Graph, x: str, bias: str = "") -> None:
        """Give out logits (rows, vocabulary) of rows (rows, features)."""
        logits = self.multiply(g, x, self.names.heads_of_vocabulary, bias)
        g.output(logits, "logits", TensorProto.FLOAT, ["rows", self.config.vocab_size])

    def _attended_to_earlier(self, g: Graph, i: int, joint: str, distances: str) -> str:
        """What heads of layer ``i`` take from the tokens before a token and from itself, of query, keys and values."""
        heads, size = self.heads("decoder")
        shape: list[int | str] = ["rows", heads, "capacity", size]
        keys = g.input(f"keys {i}", TensorProto.FLOAT, shape)
        values = g.input(f"values {i}", TensorProto.FLOAT, shape)
        y, new_keys, new_values = g.fused(
            "GroupQueryAttention", joint, "", "", keys, values, "before", "total",
            *(("", "", "", distances) if distances else ()), outputs=3, num_heads=heads, kv_num_heads=heads,
            scale=self.scale,
        )  # fmt: skip
        g.output(new_keys, f"new keys {i}", TensorProto.FLOAT, shape)
        g.output(new_values, f"new values {i}", TensorProto.FLOAT, shape)
        return y

    def _attended_to_source(self, g: Graph, i: int, query: str) -> str:
        """What heads of layer ``i`` take from the source, all beams of a text as so many queries."""
        heads, size = self.heads("decoder")
        shape: list[int | str] = ["texts", heads, "source", size]
        y = g.fused(
            "MultiHeadAttention", g.op("Reshape", query, "by_source"),
            g.input(f"source keys {i}", TensorProto.FLOAT, shape),
            g.input(f"source values {i}", TensorProto.FLOAT, shape),
            "", "mask", num_heads=heads, mask_filter_value=MASKED, scale=self.scale,
        )  # fmt: skip
        return g.op("Reshape", y, g.integers(-1, 1, heads * size))
