"""A small writer of ONNX graphs whose numbers lie in one file beside them, to be mapped into memory and shared."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Operators of ONNX, of its version 21 (1.16), and those of ONNX Runtime.
OPSET, MICROSOFT = 21, "com.microsoft"

#: Bytes from which on numbers go to the file beside the graph, and what their places are multiples of.
EXTERNAL, ALIGNED = 1024, 4096


class Numbers:
    """The file that holds the numbers of several graphs, the same bytes once; as a context, it is closed at the end."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file: BinaryIO = path.open("wb")
        self._tensors: dict[str, TensorProto] = {}
        self._places: dict[bytes, int] = {}  # of what was written, by its digest

    def tensor(self, name: str, array: np.ndarray) -> TensorProto:
        """The tensor of that name, written when it is asked for the first time."""
        if name not in self._tensors:
            self._tensors[name] = self._write(name, np.ascontiguousarray(array))
        return self._tensors[name]

    def _write(self, name: str, array: np.ndarray) -> TensorProto:
        if array.nbytes < EXTERNAL:
            return numpy_helper.from_array(array, name)
        data = array.tobytes()
        digest = sha256(data).digest()
        if digest not in self._places:  # a table and the head tied to it are the same bytes in two shapes
            self._file.write(b"\0" * (-self._file.tell() % ALIGNED))
            self._places[digest] = self._file.tell()
            self._file.write(data)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, dims=array.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.name), ("offset", self._places[digest]), ("length", len(data))):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Graph:
    """Nodes and constants in the making."""

    def __init__(self, name: str, numbers: Numbers) -> None:
        self.name, self.numbers = name, numbers
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._sums: dict[str, str] = {}
        self._count = 0

    def input(self, name: str, kind: int, shape: list[int | str]) -> str:
        """Declare an input and return its name."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, kind: int, shape: list[int | str]) -> None:
        """Give a value out under that name."""
        for node in self.nodes:
            for field in (node.output, node.input):
                for i, each in enumerate(field):
                    if each == value:
                        field[i] = name
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def constant(self, name: str, array: np.ndarray) -> str:
        """A constant of that name, in all graphs the same numbers."""
        self.constants[name] = self.numbers.tensor(name, array)
        return name

    def scalar(self, name: str, value: float, kind: Any = np.float32) -> str:
        """A constant of one number."""
        return self.constant(name, np.array(value, kind))

    def integers(self, *values: int) -> str:
        """A small int64 vector."""
        return self.constant("integers " + " ".join(map(str, values)), np.array(values, np.int64))

    def places(self, shape: str) -> str:
        """0, 1, 2 and so on, as many as the second number of a shape says, and the constants ``zero`` and ``one``."""
        length = self.op("Gather", shape, self.scalar("one", 1, np.int64))
        return self.op("Range", self.scalar("zero", 0, np.int64), length, "one")

    def op(self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node.

        Returns:
            The output's name, or a list of names.
        """
        names = []
        for _ in range(outputs):
            self._count += 1
            names.append(f"{kind} {self._count}")
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def fused(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node of an operator of ONNX Runtime's own."""
        return self.op(kind, *inputs, outputs=outputs, domain=MICROSOFT, **attributes)

    def row_sums(self, value: str) -> str:
        """The sum of each row of a value, (..., 1); the same node however often it is asked for."""
        if value not in self._sums:
            self._sums[value] = self.op("ReduceSum", value, self.integers(-1), keepdims=1)
        return self._sums[value]

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        constants = list(self.constants.values())
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, initializer=constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="dqlib")
