"""Type and shape inference by ONNX's own library, on a copy without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import onnx
import onnx_ir

from graphopt.ir.flood import must_not_propagate
from graphopt.ir.query import Dim
from graphopt.ir.skeleton import Skeleton, Written

Known = tuple[onnx_ir.DataType | None, tuple[Dim, ...] | None]
"""What is known of a value: its dtype and its shape."""


def infer(
    model: onnx_ir.Model, sizes: Callable[[str | None], int] | None = None, written: Written | None = None
) -> tuple[dict[onnx_ir.Value, Known], str]:
    """Infer dtype and shape of the values in the main graph and the graphs nested in it.

    Declared types of intermediate values and outputs are not believed, except behind operators that ONNX does not
    define, calls of functions among them: ONNX's library would expand calls within calls, however often. ``sizes``
    gives the dimensions of inputs that are no numbers one, by name. Returns what is known of each value, and the first
    contradiction found, empty when there is none. ``written`` keeps for the next time what was written this time.
    """
    skeleton = Skeleton(model, written)
    proto = skeleton.proto
    skeleton.graph(model.graph, proto.graph)
    if sizes is not None:
        _set_sizes(proto.graph.input, sizes)
    complaint = ""
    try:
        propagate = not must_not_propagate(model, proto)
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=propagate, strict_mode=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        complaint = str(error).strip()
        inferred = _lenient(proto)
    known: dict[onnx_ir.Value, Known] = {}
    _collect(inferred.graph, skeleton.table(), known, nested=skeleton.nested)
    return known, complaint


def infer_nodes(order: Sequence[onnx_ir.Node], model: onnx_ir.Model) -> dict[onnx_ir.Value, Known]:
    """Infer the outputs of ``order``, nodes without nested graphs that stand behind those they read, alone.

    What the nodes read from elsewhere counts by its content when constant and by its type otherwise. A node that
    inference refuses has unknown outputs.
    """
    skeleton = Skeleton(model)
    made = {value for node in order for value in node.outputs}
    skeleton.reads(dict.fromkeys(v for node in order for v in node.inputs if v is not None and v not in made))
    for node in order:
        skeleton.node(node, skeleton.proto.graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton.proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return {}
    known: dict[onnx_ir.Value, Known] = {}
    _collect(inferred.graph, skeleton.table(), known, nested=False)
    return {value: facts for value, facts in known.items() if value in made}


def _set_sizes(inputs: Iterable[onnx.ValueInfoProto], sizes: Callable[[str | None], int]) -> None:
    for info in inputs:
        if info.type.WhichOneof("value") != "tensor_type":
            continue
        for dim in info.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = sizes(dim.dim_param or None)


def _lenient(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return proto


def _collect(
    graph: onnx.GraphProto, table: dict[str, onnx_ir.Value], known: dict[onnx_ir.Value, Known], *, nested: bool
) -> None:
    for info in _infos(graph):
        value = table.get(info.name)
        if value is not None:
            known[value] = _known(info.type.SerializeToString())
    for attribute in (attribute for node in graph.node for attribute in node.attribute) if nested else ():
        if attribute.type == onnx.AttributeProto.GRAPH:
            _collect(attribute.g, table, known, nested=True)
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            for inner in attribute.graphs:
                _collect(inner, table, known, nested=True)


def _infos(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


@lru_cache(maxsize=1 << 15)
def _known(serialized: bytes) -> Known:
    """Read a type; most values of a model have one of a few."""
    proto = onnx.TypeProto.FromString(serialized)
    if not proto.HasField("tensor_type"):
        return None, None
    tensor = proto.tensor_type
    dtype = onnx_ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, tuple(_dim(dim) for dim in tensor.shape.dim)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    size = dim.dim_value
    if size > 0:
        return size
    if dim.WhichOneof("value") == "dim_value":
        return 0 if size == 0 else None
    return dim.dim_param or None
