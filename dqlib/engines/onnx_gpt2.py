"""Graphs of GPT-2: a text, or one token after it, to the next token's logits; the best tokens of a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from onnx import TensorProto

from dqlib.engines.onnx_graph import Graph, Numbers
from dqlib.engines.onnx_layers import HEAD_FEATURES, Layers
from dqlib.engines.onnx_model import CANDIDATES, DECODER
from dqlib.engines.onnx_weights import Weights
from dqlib.errors import InputError

#: Activation functions; the first three are one, a GELU by a hyperbolic tangent.
_ACTIVATIONS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu", "relu", "swish", "silu")

#: What a configuration may say otherwise, and what the kernels have.
_SAID = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


class Gpt2Graphs(Layers):
    """The two graphs of a model.

    Args:
        config, weights, numbers, rounded: as of :class:`dqlib.engines.onnx_layers.Layers`.
        int8_encoder: of no meaning here, since there is no encoder.
    """

    first_position = 0
    of_encoder = None

    def __init__(self, config: Any, weights: Weights, numbers: Numbers, rounded: bool, int8_encoder: bool) -> None:
        super().__init__(config, weights, numbers, rounded, pre=True)
        self.epsilon = config.layer_norm_epsilon

    @staticmethod
    def check(config: Any) -> None:
        """Check that the kernels serve a configuration.

        Raises:
            InputError: they do not.
        """
        if config.activation_function not in _ACTIVATIONS:
            raise InputError("activation_function", config.activation_function, f"one of {', '.join(_ACTIVATIONS)}")
        for field, value in _SAID.items():
            if getattr(config, field) != value:
                raise InputError(field, getattr(config, field), f"{value} for the engine onnxruntime")
        if config.n_embd // config.n_head % HEAD_FEATURES:
            allowed = f"one that gives each head a multiple of {HEAD_FEATURES} of the {config.n_embd} features (n_embd)"
            raise InputError("n_head", config.n_head, f"{allowed}, for the engine onnxruntime")

    def heads(self, side: str) -> tuple[int, int]:
        """Heads of an attention, fewer than the configuration has in a narrow student, and features of one."""
        size = self.features // self.config.n_head
        return len(self.weights.number("transformer.h.0.attn.c_attn.bias")) // (3 * size), size

    def graphs(self) -> Iterator[tuple[str, onnx.ModelProto]]:
        """Each graph with the name of its file."""
        yield DECODER, self.decoder()
        yield CANDIDATES, self.candidates()

    def decoder(self) -> onnx.ModelProto:
        """Tokens (rows, tokens) to logits (rows, vocabulary) of the one after the last of each row.

        A text is read in one go, all of its tokens beside each other; then come steps of one token. Texts of a batch
        are filled up at their end, where nothing looks: ``before`` says how many tokens a row has before its last one.
        """
        g = Graph("decoder", self.numbers)
        ids = g.input("ids", TensorProto.INT64, ["rows", "tokens"])
        places = g.input("position", TensorProto.INT64, ["rows", "tokens"])
        last = g.input("last", TensorProto.INT64, ["rows", 1])  # of the tokens that are read now
        g.input("before", TensorProto.INT32, ["rows"])
        g.input("total", TensorProto.INT32, [])
        residual = g.op(
            "Add", self.lookup(g, ids, "transformer.wte.weight"), self.lookup(g, places, "transformer.wpe.weight")
        )
        layers = self.config.n_layer
        x = self.norm(g, residual, "transformer.h.0.ln_1")
        for i in range(layers):
            layer = f"transformer.h.{i}"
            y = self.attended_to_earlier(g, i, self.linear(g, x, [f"{layer}.attn.c_attn"]))
            x, residual = self.add_norm(g, residual, self.linear(g, y, [f"{layer}.attn.c_proj"]), f"{layer}.ln_2")
            y = self.activated(g, self.linear(g, x, [f"{layer}.mlp.c_fc"], bias=False), f"{layer}.mlp.c_fc")
            following = "transformer.ln_f" if i + 1 == layers else f"transformer.h.{i + 1}.ln_1"
            x, residual = self.add_norm(g, residual, self.linear(g, y, [f"{layer}.mlp.c_proj"]), following)
        x = g.op("GatherND", x, last, batch_dims=1)  # (rows, features)
        g.output(self.multiply(g, x, ["lm_head"]), "logits", TensorProto.FLOAT, ["rows", self.config.vocab_size])
        return g.model()

    def activated(self, g: Graph, y: str, path: str, biased: bool = False) -> str:
        """The activation function of ``y`` and the bias."""
        if self.config.activation_function in _ACTIVATIONS[:3]:
            return g.fused("FastGelu", y, self.bias(g, [path]))
        return super().activated(g, y, path, biased)
