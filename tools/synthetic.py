"""Synthetic models for measuring scale: long networks with branches, and one with gigabytes of weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

CHANNELS = 4
BLOCK = 12


def network(nodes: int) -> onnx.ModelProto:
    """Return a chain of about ``nodes`` nodes: blocks with a branch and something to fold, cancel, merge and fuse."""
    rng = np.random.default_rng(0)
    graph = helper.make_graph([], "synthetic", [], [])
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, 8, 8]))
    current = "x"
    for index in range(nodes // BLOCK):
        current = _block(graph, index, current, rng)
    graph.node.append(helper.make_node("Identity", [current], ["y"]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CHANNELS, 8, 8]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _block(graph: onnx.GraphProto, index: int, source: str, rng: np.random.Generator) -> str:
    """Append twelve nodes: Conv and BatchNormalization, a transpose pair, a computed Reshape, a repeated expression."""
    weights = {
        "w": rng.normal(0, 0.1, (CHANNELS, CHANNELS, 1, 1)).astype(np.float32),
        "c": np.full(CHANNELS, 0.5, np.float32),
        "s": np.array([0, CHANNELS, -1], np.int64),
        "f": np.array([8, 8], np.int64),
    }
    names = {key: f"b{index}/{key}" for key in weights}
    for key, array in weights.items():
        graph.initializer.append(onnx.numpy_helper.from_array(array, names[key]))

    def add(operator: str, inputs: list[str], name: str, **attributes: object) -> str:
        graph.node.append(
            helper.make_node(operator, inputs, [f"b{index}/{name}"], name=f"b{index}/n_{name}", **attributes)
        )
        return f"b{index}/{name}"

    conv = add("Conv", [source, names["w"]], "conv")
    norm = add("BatchNormalization", [conv, *[names["c"]] * 4], "norm")
    there = add("Transpose", [norm], "there", perm=[0, 2, 3, 1])
    back = add("Transpose", [there], "back", perm=[0, 3, 1, 2])
    left, right = add("Relu", [back], "left"), add("Relu", [back], "right")
    both = add("Add", [left, right], "both")
    flat = add("Reshape", [both, names["s"]], "flat")
    shape = add("Shape", [source], "shape", start=0, end=2)
    whole = add("Concat", [shape, names["f"]], "whole", axis=0)
    image = add("Reshape", [flat, whole], "image")
    return add("Identity", [image], "out")


def heavy(folder: Path, megabytes: int, layers: int = 24) -> Path:
    """Write a model whose MatMul weights, ``megabytes`` in all, lie in an external file; return its path."""
    side = int((megabytes * 1e6 / layers / 4) ** 0.5)
    graph = helper.make_graph([], "heavy", [], [])
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", side]))
    rng = np.random.default_rng(0)
    current = "x"
    with (folder / "heavy.bin").open("wb") as file:
        for index in range(layers):
            weight = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[side, side])
            weight.data_location = TensorProto.EXTERNAL
            facts = {"location": "heavy.bin", "offset": str(file.tell()), "length": str(side * side * 4)}
            for key, value in facts.items():
                weight.external_data.add(key=key, value=value)
            rng.random((side, side), dtype=np.float32).tofile(file)
            graph.initializer.append(weight)
            graph.node.append(helper.make_node("MatMul", [current, f"w{index}"], [f"m{index}"]))
            graph.node.append(helper.make_node("Identity", [f"m{index}"], [f"i{index}"]))
            graph.node.append(helper.make_node("Relu", [f"i{index}"], [f"r{index}"]))
            current = f"r{index}"
    graph.output.append(helper.make_tensor_value_info(current, TensorProto.FLOAT, ["batch", side]))
    path = folder / "heavy.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
