"""Graphs of GPT-2: a text, or one token after it, to the next token's logits; the best tokens of a step."""

from __future__ import annotations

from typing import ClassVar

from onnx import TensorProto

from dqlib.engines.onnx_graph import Graph
from dqlib.engines.onnx_stacks import Stacks


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
        tokens, positions = (
            self.lookup(g, each, f"{table}.weight") for each, table in zip((ids, places), tables, strict=True)
        )
        x = self.decoded(g, g.op("Add", tokens, positions))
        self.give_logits(g, g.op("GatherND", x, last, batch_dims=1))  # (rows, features)
