"""Layers as nodes of a graph: products with low-bit weights, look-ups, norms, activation functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from dqlib.engines.onnx_graph import Graph, Numbers
from dqlib.engines.onnx_weights import Weights
from dqlib.errors import InputError

_EPSILON = 1e-5  # of torch.nn.LayerNorm


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
        self.pre = pre
        self.features = config.d_model

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
        if self.config.activation_function == "gelu":
            return g.fused("BiasGelu", y, self.bias(g, [path]))
        y = y if biased else g.op("Add", y, self.bias(g, [path]))
        return g.op("Relu", y) if self.config.activation_function == "relu" else g.op("Mul", y, g.op("Sigmoid", y))

    def norm(self, g: Graph, x: str, path: str) -> str:
        """LayerNorm of the last dimension."""
        gamma, beta = self._norm_numbers(g, path)
        return g.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=_EPSILON)

    def _norm_numbers(self, g: Graph, path: str) -> tuple[str, str]:
        gamma, beta = (g.constant(name, self.weights.number(name)) for name in (f"{path}.weight", f"{path}.bias"))
        return gamma, beta

    def add_norm(self, g: Graph, residual: str, delta: str, norm: str, bias: str = "") -> tuple[str, str]:
        """What the next part reads, and what it is added to."""
        inputs = (residual, delta, *self._norm_numbers(g, norm), *((bias,) if bias else ()))
        if not self.pre:
            x = g.fused("SkipLayerNormalization", *inputs, epsilon=_EPSILON)
            return x, x
        outputs = g.fused("SkipLayerNormalization", *inputs, outputs=4, epsilon=_EPSILON)
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
