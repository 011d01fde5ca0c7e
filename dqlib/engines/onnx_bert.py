"""The graph of a BERT that classifies: texts, or pairs of texts, to the logits of their classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from onnx import TensorProto

from dqlib.engines.onnx_graph import Graph
from dqlib.engines.onnx_model import CLASSIFIER
from dqlib.engines.onnx_stacks import Stacks


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
