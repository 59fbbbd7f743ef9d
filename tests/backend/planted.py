"""Small quantized networks, right as they are or with one fault planted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"


class Net:
    """Collects nodes and weights of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def constant(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=f"{output}_{operator.lower()}", **attributes)
        )
        return output

    def pair(self, value: str, scale: float, zero: int = 128, kind: type = np.uint8, domain: str = "") -> str:
        """Put a Q/DQ pair behind ``value``."""
        grid = [self.constant(f"{value}_scale", np.float32(scale)), self.constant(f"{value}_zero", kind(zero))]
        for operator, inputs, output in (
            ("QuantizeLinear", [value, *grid], f"{value}_q"),
            ("DequantizeLinear", [f"{value}_q", *grid], f"{value}_d"),
        ):
            self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/pair", domain=domain))
        return f"{value}_d"

    def weight(self, name: str, shape: tuple[int, ...], scale: float, zero: int = 0) -> str:
        """Add weights, a scale and a zero point for each output channel, and dequantize them.

        They take 7 of the 8 bits: with larger ones, processors without VNNI saturate, which is another fault.
        """
        inputs = [
            self.constant(f"{name}_q", self.rng.integers(-63, 64, shape).astype(np.int8)),
            self.constant(f"{name}_scale", np.full(shape[0], scale, np.float32)),
            self.constant(f"{name}_zero", np.full(shape[0], zero, np.int8)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}/pair", axis=0))
        return name

    def save(self, path: Path, inputs: dict[str, list[int | str]], output: str, opset: int = 17) -> Path:
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "planted", ends, [result], self.weights)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path


def convolutions(
    path: Path,
    *,
    batch: int | str = 1,
    between: Callable[[Net, str], str] = lambda net, value: value,
    zero: int = 0,
    paired: bool = True,
) -> Path:
    """Write Conv, Relu, (what ``between`` adds), Conv, HardSwish on an input x of shape [batch, 3, 16, 16].

    ``zero`` is the zero point of the second weights, ``paired`` tells whether a pair stands before HardSwish.
    """
    net = Net()
    inner = net.add("Conv", [net.pair("x", 0.03), net.weight("w1", (8, 3, 3, 3), 0.01)], "first", pads=[1] * 4)
    inner = between(net, net.pair(net.add("Relu", [inner], "relu"), 0.05, 0))
    inner = net.add("Conv", [inner, net.weight("w2", (8, 8, 3, 3), 0.004, zero)], "second", pads=[1] * 4)
    if paired:
        inner = net.pair(inner, 0.1)
    final = net.pair(net.add("HardSwish", [inner], "y"), 0.06, 10)
    return net.save(path, {"x": [batch, 3, 16, 16]}, final)


def erf(net: Net, value: str) -> str:
    return net.pair(net.add("Erf", [value], "erf"), 1 / 128)


def resized(net: Net, value: str) -> str:
    """Double the size by a mode that the HTP takes and computes wrongly."""
    sizes = net.constant("sizes", np.float32([1, 1, 2, 2]))
    mode = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "half_pixel"}
    return net.pair(net.add("Resize", [value, "", sizes], "resized", **mode), 0.05, 0)


def product(path: Path, kind: type) -> Path:
    """Write MatMul of two activations of 16 bits, ``kind`` both."""
    net = Net()
    zero = 1 << 15 if kind is np.uint16 else 0
    operands = [net.pair(name, 4 / 32768, zero, kind, MICROSOFT) for name in ("a", "b")]
    final = net.pair(net.add("MatMul", operands, "y"), 40 / 32768, zero, kind, MICROSOFT)
    return net.save(path, {"a": [1, 8, 16], "b": [1, 16, 8]}, final)
