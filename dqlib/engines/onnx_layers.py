"""Layers as nodes of a graph: products with low-bit weights, look-ups, norms, activation functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from dqlib.engines.onnx_graph import Graph, Numbers
from dqlib.engines.onnx_model import CANDIDATES, DECODER, ENCODER
from dqlib.engines.onnx_weights import Weights
from dqlib.errors import InputError

_EPSILON = 1e-5  # of torch.nn.LayerNorm

#: Score of a token that is not attended to.
MASKED = -3e38

#: What the size of a head in GroupQueryAttention is a multiple of; no other kernel minds the width.
HEAD_FEATURES = 8


class Layers:
    """What an architecture's graphs are made of.

    Args:
        config: of the model.
        weights: by their names.
        numbers: where the constants of all graphs go.
        rounded: whether kernels round activations to 8 bits.
        pre: whether LayerNorms come before attention and feed-forward layers.
    """

    def __init__(self, config: Any, weights: Weights, numbers: Numbers, rounded: bool, pre: bool) -> None:
        self.config, self.weights, self.numbers = config, weights, numbers
        self.level = 4 if rounded else 0
        self.pre, self.epsilon = pre, _EPSILON
        self.features = config.hidden_size
        self.activation = getattr(config, "activation_function", None)

    def heads(self, side: str) -> tuple[int, int]:
        """Heads of an attention, fewer than the configuration has in a narrow student, and features of one."""
        size = self.features // getattr(self.config, f"{side}_attention_heads")
        return len(self.weights.number(f"model.{side}.layers.0.self_attn.q_proj.bias")) // size, size

    @property
    def embed_scale(self) -> float:
        """What a token's row of the table is multiplied by."""
        return math.sqrt(self.features) if self.config.scale_embedding else 1.0

    def lookup(self, g: Graph, ids: str, name: str, factor: float = 1.0) -> str:
        """Rows of a table: (..., features)."""
        table = self.weights.matrix([name])
        if isinstance(table, np.ndarray):
            rows = g.op("Gather", g.constant(self._shared(name), table), ids)
            return rows if factor == 1 else g.op("Mul", rows, g.constant("embed_scale", np.array(factor, np.float32)))
        columns = table.unsigned.shape[1]
        block = max(16, 2 ** math.ceil(math.log2(columns))) if table.scale.shape[1] == 1 else table.block()
        packed = table.packed(8 // table.bits).reshape(len(table.unsigned), -1)
        rows = g.fused(
            "GatherBlockQuantized",
            g.constant(f"{self._shared(name)} table", packed),
            ids,
            g.constant(f"{self._shared(name)} table scales", table.scales(block) * np.float32(factor)),
            bits=table.bits,
            block_size=block,
            gather_axis=0,
            quantize_axis=1,
        )
        if not table.shifted:
            return rows
        missing = g.constant(f"{self._shared(name)} table missing", table.missing()[:, None] * np.float32(factor))
        return g.op("Add", rows, g.op("Gather", missing, ids))

    def _shared(self, name: str) -> str:
        """One name for all names of a number, so that it is written once."""
        value = self.weights.values[name]
        return next(other for other, each in self.weights.values.items() if each is value)

    # --- attention of a decoder, and what it writes

    def graphs(self) -> Iterator[tuple[str, onnx.ModelProto]]:
        """Each graph with the name of its file."""
        yield ENCODER, self.encoder()
        yield DECODER, self.decoder()
        yield CANDIDATES, self.candidates()

    def encoder(self) -> onnx.ModelProto:
        """What reads a source."""
        raise NotImplementedError

    def decoder(self) -> onnx.ModelProto:
        """One step."""
        raise NotImplementedError

    def give_source(self, g: Graph, y: str, shape: str, parts: int) -> None:
        """Give out keys and values of the decoder's layers, all beside each other in a row of the source."""
        heads, size = self.heads("decoder")
        split = g.op("Concat", shape, g.integers(parts, heads, size), axis=0)
        y = g.op("Transpose", g.op("Reshape", y, split), perm=[2, 0, 3, 1, 4])
        g.output(y, "cross", TensorProto.FLOAT, [parts, "batch", heads, "source", size])

    def attended_to_earlier(self, g: Graph, i: int, joint: str, bias: str = "", **scale: Any) -> str:
        """What a token's heads take from the tokens before it and itself.

        Args:
            g: of one step, with the inputs ``before`` and ``total``.
            i: of the layer.
            joint: query, keys and values beside each other, (rows, 1, features).
            bias: added to the scores, (1, heads, 1, total).
            scale: of the scores; that of the root of a head's size, where nothing is given.
        """
        heads, size = self.heads("decoder")
        shape: list[int | str] = ["rows", heads, "capacity", size]
        keys = g.input(f"keys {i}", TensorProto.FLOAT, shape)
        values = g.input(f"values {i}", TensorProto.FLOAT, shape)
        biased = ("", "", "", bias) if bias else ()
        y, new_keys, new_values = g.fused(
            "GroupQueryAttention", joint, "", "", keys, values, "before", "total", *biased,
            outputs=3, num_heads=heads, kv_num_heads=heads, **scale,
        )  # fmt: skip
        g.output(new_keys, f"new keys {i}", TensorProto.FLOAT, shape)
        g.output(new_values, f"new values {i}", TensorProto.FLOAT, shape)
        return y

    def attended_to_source(self, g: Graph, i: int, query: str, **scale: Any) -> str:
        """What a token's heads take from the source, all beams of a text as so many queries."""
        heads, size = self.heads("decoder")
        shape: list[int | str] = ["texts", heads, "source", size]
        y = g.fused(
            "MultiHeadAttention", g.op("Reshape", query, "by_source"),
            g.input(f"source keys {i}", TensorProto.FLOAT, shape),
            g.input(f"source values {i}", TensorProto.FLOAT, shape),
            "", "mask", num_heads=heads, mask_filter_value=MASKED, **scale,
        )  # fmt: skip
        return g.op("Reshape", y, g.integers(-1, 1, heads * size))

    def candidates(self) -> onnx.ModelProto:
        """Logits (rows, vocabulary) to the ``k`` best tokens of each row and their log-probabilities, best first."""
        g = Graph("candidates", self.numbers)
        logits = g.input("logits", TensorProto.FLOAT, ["rows", self.config.vocab_size])
        count = g.input("k", TensorProto.INT64, [1])
        best, tokens = g.op("TopK", g.op("LogSoftmax", logits, axis=-1), count, outputs=2, axis=-1)
        g.output(best, "best", TensorProto.FLOAT, ["rows", "count"])
        g.output(tokens, "tokens", TensorProto.INT64, ["rows", "count"])
        return g.model()

    # --- products

    def linear(self, g: Graph, x: str | tuple[str, str], paths: Sequence[str], bias: bool = True) -> str:
        """Rows times these weights, beside each other, and their biases; ``x`` may be rounded codes with scales."""
        if isinstance(x, tuple):
            y = self._integer(g, x, paths)
            return g.op("Add", y, self.bias(g, paths)) if bias else y
        return self.multiply(g, x, paths, self.bias(g, paths) if bias else "")

    def multiply(self, g: Graph, x: str, paths: Sequence[str], bias: str = "") -> str:
        """Rows times these weights, by the kernel of few bits where there are codes."""
        weight, name = self.weights.matrix([f"{path}.weight" for path in paths]), _joint(paths)
        if isinstance(weight, np.ndarray):
            y = g.op("MatMul", x, g.constant(f"{name}.weight", np.ascontiguousarray(weight.T)))
            return g.op("Add", y, bias) if bias else y
        block = weight.block()
        rows, columns = weight.unsigned.shape
        inputs = [
            x,
            g.constant(f"{name}.weight codes", weight.packed(block)),
            g.constant(f"{name}.weight scales", weight.scales(block)),
        ]
        y = g.fused(
            "MatMulNBits", *inputs, *(("", "", bias) if bias else ()),
            K=columns, N=rows, bits=weight.bits, block_size=block, accuracy_level=self.level,
        )  # fmt: skip
        if not weight.shifted:
            return y
        return g.op("Add", y, g.op("Mul", g.row_sums(x), g.constant(f"{name}.weight missing", weight.missing())))

    def bias(self, g: Graph, paths: Sequence[str]) -> str:
        """The biases of these layers as one."""
        bias = np.concatenate([self.weights.number(f"{path}.bias") for path in paths])
        return g.constant(f"{_joint(paths)}.bias", bias)

    def activated(self, g: Graph, y: str, path: str, biased: bool = False) -> str:
        """The activation function of ``y`` and the bias, which ``relu`` and ``swish`` may have got already."""
        if self.activation == "gelu":
            return g.fused("BiasGelu", y, self.bias(g, [path]))
        y = y if biased else g.op("Add", y, self.bias(g, [path]))
        return g.op("Relu", y) if self.activation == "relu" else g.op("Mul", y, g.op("Sigmoid", y))

    def norm(self, g: Graph, x: str, path: str) -> str:
        """LayerNorm of the last dimension."""
        gamma, beta = self._norm_numbers(g, path)
        return g.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=self.epsilon)

    def _norm_numbers(self, g: Graph, path: str) -> tuple[str, str]:
        gamma, beta = (g.constant(name, self.weights.number(name)) for name in (f"{path}.weight", f"{path}.bias"))
        return gamma, beta

    def add_norm(self, g: Graph, residual: str, delta: str, norm: str, bias: str = "") -> tuple[str, str]:
        """What the next part reads, and what it is added to."""
        inputs = (residual, delta, *self._norm_numbers(g, norm), *((bias,) if bias else ()))
        if not self.pre:
            x = g.fused("SkipLayerNormalization", *inputs, epsilon=self.epsilon)
            return x, x
        outputs = g.fused("SkipLayerNormalization", *inputs, outputs=4, epsilon=self.epsilon)
        g.nodes[-1].output[1] = g.nodes[-1].output[2] = ""  # mean and deviation
        return outputs[0], outputs[3]

    # --- int8, as a student rounds: one scale per token, one a row of the weight

    def zero_points(self, g: Graph, x: str) -> str:
        """The zero point of each row."""
        rows = g.op("Shape", x, end=1)
        return g.op("ConstantOfShape", rows, value=onnx.helper.make_tensor("128", TensorProto.UINT8, [1], [128]))

    def rounded(self, g: Graph, x: str, zero: str) -> tuple[str, str]:
        """Codes uint8 (rows, features) around 128, and scales (rows, 1)."""
        largest = g.op("ReduceMax", g.op("Abs", x), g.integers(-1), keepdims=1)
        scale = g.op("Mul", largest, g.constant("1/127", np.array(1 / 127, np.float32)))
        scale = g.op("Max", scale, g.constant("tiny", np.array(np.finfo(np.float32).tiny)))
        return g.op("QuantizeLinear", x, g.op("Squeeze", scale, g.integers(-1)), zero, axis=0), scale

    def _integer(self, g: Graph, x: tuple[str, str], paths: Sequence[str]) -> str:
        weight, name = self.weights.matrix([f"{path}.weight" for path in paths]), _joint(paths)
        if isinstance(weight, np.ndarray) or weight.scale.shape[1] > 1:
            raise InputError("encoder", "int8", f"packed, since {name}.weight has no grid of one scale per row")
        codes, scale = weight.signed()
        y = g.fused(
            "MatMulIntegerToFloat",
            x[0],
            g.constant(f"{name}.weight int8", codes),
            g.constant("unit", np.array(1, np.float32)),
            g.constant(f"{name}.weight scale", scale),
            g.constant("128", np.array(128, np.uint8)),
        )
        return g.op("Mul", y, x[1])


def _joint(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
