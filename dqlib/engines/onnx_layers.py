"""Layers as nodes of a graph: products with low-bit weights, look-ups, norms, activation functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from dqlib.engines.base import activation_field
from dqlib.engines.onnx_graph import Graph
from dqlib.engines.onnx_weights import Weights
from dqlib.errors import InputError

#: Kernels that add a bias and compute an activation function at once.
_WITH_BIAS = {"gelu": "BiasGelu"} | dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "FastGelu")


class Layers:
    """What an architecture's graphs are made of.

    Attributes:
        int8_encoder: whether an encoder multiplies codes of 8 bits.
    """

    #: Activation functions that there are kernels for.
    activations: tuple[str, ...] = ("gelu", "relu", "swish", "silu")
    #: Whether LayerNorms come before attention and feed-forward layers.
    pre = True

    int8_encoder = False

    def __init__(self, config: Any, weights: Weights, rounded: bool) -> None:
        self.config, self.weights, self.level = config, weights, 4 if rounded else 0
        self.features, self.activation = config.hidden_size, getattr(config, activation_field(config))
        epsilons = (getattr(config, name, None) for name in ("layer_norm_epsilon", "layer_norm_eps"))
        self.epsilon = next((each for each in epsilons if each is not None), 1e-5)  # which torch.nn.LayerNorm has

    def lookup(self, g: Graph, ids: str, name: str, factor: float = 1.0) -> str:
        """Rows of a table: (..., features)."""
        table = self.weights.matrix([name])
        if isinstance(table, np.ndarray):
            rows = g.op("Gather", g.constant(self._shared(name), table), ids)
            return rows if factor == 1 else g.op("Mul", rows, g.scalar("embed_scale", factor))
        columns = table.unsigned.shape[1]
        block = max(16, 2 ** math.ceil(math.log2(columns))) if table.scale.shape[1] == 1 else table.block()
        packed = table.packed(8 // table.bits).reshape(len(table.unsigned), -1)
        written, times = f"{self._shared(name)} table", np.float32(factor)
        codes = g.constant(written, packed)
        scales = g.constant(f"{written} scales", table.scales(block) * times)
        how = {"bits": table.bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
        rows = g.fused("GatherBlockQuantized", codes, ids, scales, **how)
        if not table.shifted:
            return rows
        missing = g.constant(f"{written} missing", table.missing()[:, None] * times)
        return g.op("Add", rows, g.op("Gather", missing, ids))

    def _shared(self, name: str) -> str:
        """One name for all names of a number, so that it is written once."""
        value = self.weights.values[name]
        return next(other for other, each in self.weights.values.items() if each is value)

    # --- products

    def linear(self, g: Graph, x: str | tuple[str, str], paths: Sequence[str], bias: bool = True) -> str:
        """Rows times these weights, beside each other, and their biases; ``x`` may be rounded codes with scales."""
        if isinstance(x, tuple):
            y = self._integer(g, x, paths)
            added = self.bias(g, paths) if bias else ""
            return g.op("Add", y, added) if added else y
        return self.multiply(g, x, paths, self.bias(g, paths) if bias else "")

    def multiply(self, g: Graph, x: str, paths: Sequence[str], bias: str = "") -> str:
        """Rows times these weights, by the kernel of few bits where there are codes."""
        weight, name = self.weights.matrix([f"{path}.weight" for path in paths]), _joint(paths)
        if isinstance(weight, np.ndarray):
            y = g.op("MatMul", x, g.constant(f"{name}.weight", np.ascontiguousarray(weight.T)))
            return g.op("Add", y, bias) if bias else y
        block = weight.block()
        rows, columns = weight.unsigned.shape
        codes = g.constant(f"{name}.weight codes", weight.packed(block))
        scales = g.constant(f"{name}.weight scales", weight.scales(block))
        how = {"K": columns, "N": rows, "bits": weight.bits, "block_size": block, "accuracy_level": self.level}
        y = g.fused("MatMulNBits", x, codes, scales, *(("", "", bias) if bias else ()), **how)
        if not weight.shifted:
            return y
        return g.op("Add", y, g.op("Mul", g.row_sums(x), g.constant(f"{name}.weight missing", weight.missing())))

    def bias(self, g: Graph, paths: Sequence[str]) -> str:
        """The biases of these layers as one; "" where they have none."""
        if f"{paths[0]}.bias" not in self.weights.values:
            return ""
        bias = np.concatenate([self.weights.number(f"{path}.bias") for path in paths])
        return g.constant(f"{_joint(paths)}.bias", bias)

    @property
    def adds_bias(self) -> bool:
        """Whether the activation function's kernel adds the bias of the layer before it."""
        return self.activation in _WITH_BIAS

    def activated(self, g: Graph, y: str, paths: Sequence[str], biased: bool = False) -> str:
        """The activation function of ``y`` and the bias of these layers, if ``y`` has not got it already."""
        if self.adds_bias:
            return g.fused(_WITH_BIAS[self.activation], y, self.bias(g, paths))
        return self.function(g, y if biased else g.op("Add", y, self.bias(g, paths)))

    def function(self, g: Graph, y: str) -> str:
        """The activation function alone."""
        return g.op("Relu", y) if self.activation == "relu" else g.op("Mul", y, g.op("Sigmoid", y))

    def norm(self, g: Graph, x: str, path: str) -> str:
        """LayerNorm of the last dimension; RMSNorm (https://arxiv.org/abs/1910.07467) where there is no bias."""
        kind, numbers = self._norm_numbers(g, path)
        return g.op(f"{kind}LayerNormalization", x, *numbers, axis=-1, epsilon=self.epsilon)

    def _norm_numbers(self, g: Graph, path: str) -> tuple[str, list[str]]:
        """What the kernel's name begins with, and the norm's numbers."""
        names = [name for name in (f"{path}.weight", f"{path}.bias") if name in self.weights.values]
        return "" if len(names) == 2 else "Simplified", [g.constant(name, self.weights.number(name)) for name in names]

    def add_norm(self, g: Graph, residual: str, delta: str, norm: str, bias: str = "") -> tuple[str, str]:
        """What the next part reads, and what it is added to."""
        kind, numbers = self._norm_numbers(g, norm)
        inputs, kind = (residual, delta, *numbers, *([bias] if bias else [])), f"Skip{kind}LayerNormalization"
        if not self.pre:
            x = g.fused(kind, *inputs, epsilon=self.epsilon)
            return x, x
        outputs = g.fused(kind, *inputs, outputs=4, epsilon=self.epsilon)
        g.nodes[-1].output[1] = g.nodes[-1].output[2] = ""  # mean and deviation
        return outputs[0], outputs[3]

    # --- int8, as a student rounds: one scale per token, one per row of the weight

    def zero_points(self, g: Graph, x: str) -> str:
        """The zero point of each row; "" where an encoder multiplies numbers as they are."""
        if not self.int8_encoder:
            return ""
        rows = g.op("Shape", x, end=1)
        return g.op("ConstantOfShape", rows, value=onnx.helper.make_tensor("128", TensorProto.UINT8, [1], [128]))

    def read(self, g: Graph, x: str, zero: str) -> str | tuple[str, str]:
        """What a product reads: ``x``, or codes uint8 (rows, features) around ``zero``, 128, and scales (rows, 1)."""
        if not zero:
            return x
        largest = g.op("ReduceMax", g.op("Abs", x), g.integers(-1), keepdims=1)
        scale = g.op("Mul", largest, g.scalar("1/127", 1 / 127))
        scale = g.op("Max", scale, g.scalar("tiny", float(np.finfo(np.float32).tiny)))
        return g.op("QuantizeLinear", x, g.op("Squeeze", scale, g.integers(-1)), zero, axis=0), scale

    def _integer(self, g: Graph, x: tuple[str, str], paths: Sequence[str]) -> str:
        weight, name = self.weights.matrix([f"{path}.weight" for path in paths]), _joint(paths)
        if isinstance(weight, np.ndarray) or weight.scale.shape[1] > 1:
            raise InputError("encoder", "int8", f"packed, since {name}.weight has no grid of one scale per row")
        codes, scale = weight.signed()
        weights, unit = g.constant(f"{name}.weight int8", codes), g.scalar("unit", 1)
        scales, zero = g.constant(f"{name}.weight scale", scale), g.scalar("128", 128, np.uint8)
        return g.op("Mul", g.fused("MatMulIntegerToFloat", x[0], weights, unit, scales, zero), x[1])


def _joint(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
