"""Models that ONNX's inference would drown in.

With data propagation it takes every vector for a possible shape and makes a protobuf of each of its elements, whatever
their type: a vector of a billion elements costs minutes and gigabytes. Such models are inferred without.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir

from graphopt.ir.query import graphs, tensor_of

MAX_ELEMENTS = 1 << 16
"""Vectors up to this many elements take data propagation some milliseconds."""

_SIZES = {"ConstantOfShape": (0,), "Expand": (1,), "Tile": (1,), "Range": (0, 1, 2), "OneHot": (1,), "Pad": (1,)}
"""Operators that make large values from small ones, and their inputs that say how large."""


def must_not_propagate(model: onnx_ir.Model, proto: onnx.ModelProto) -> bool:
    """Tell whether data propagation over ``proto``, written from ``model``, may meet a very long vector."""
    long_inputs = any(_is_long(value) for value in (*model.graph.inputs, *model.graph.initializers.values()))
    if not long_inputs and not _sizes_are_doubtful(model):
        return False
    if _computes_sizes(model):
        return True
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return True
    return any(_length(info) > MAX_ELEMENTS for info in _infos(inferred.graph))


def _is_long(value: onnx_ir.Value) -> bool:
    dims = () if value.shape is None else value.shape.dims
    return len(dims) == 1 and isinstance(dims[0], int) and dims[0] > MAX_ELEMENTS


def _sizes_are_doubtful(model: onnx_ir.Model) -> bool:
    """Tell whether some operator could make a long vector: a cheap question, asked of every model."""
    for graph in graphs(model):
        for node in graph:
            if "sparse_value" in node.attributes or _makes_vector(node):
                return True
            if any(_is_doubtful(node, index) for index in _SIZES.get(node.op_type, ())):
                return True
    return False


def _makes_vector(node: onnx_ir.Node) -> bool:
    shape = tensor_of(node.inputs[1]) if node.op_type == "Reshape" and len(node.inputs) > 1 else None
    return shape is not None and shape.size == 1


def _is_doubtful(node: onnx_ir.Node, index: int) -> bool:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return False
    tensor = tensor_of(value)
    if tensor is None or tensor.size != 1:
        return tensor is None
    return abs(float(tensor.numpy().reshape(-1)[0])) > MAX_ELEMENTS


def _computes_sizes(model: onnx_ir.Model) -> bool:
    """Tell whether constants are calculated with to get the size of a value, which only data propagation would do."""
    made: set[onnx_ir.Value] = set()
    for graph in graphs(model):
        for node in graph:
            for index in _SIZES.get(node.op_type, ()):
                if index < len(node.inputs) and node.inputs[index] in made:
                    return True
            if node.inputs and all(v is None or v in made or tensor_of(v) is not None for v in node.inputs):
                made.update(node.outputs)
    return False


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.output
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _infos(attribute.g)


def _length(info: onnx.ValueInfoProto) -> int:
    dims = info.type.tensor_type.shape.dim
    return int(dims[0].dim_value) if len(dims) == 1 else 0
