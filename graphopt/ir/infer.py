"""Type and shape inference by ONNX's own library, on a copy without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import onnx
import onnx_ir

from graphopt.ir.extract import write_attribute
from graphopt.ir.flood import must_not_propagate
from graphopt.ir.query import Dim, tensor_of

Known = tuple[onnx_ir.DataType | None, tuple[Dim, ...] | None]
"""What is known of a value: its dtype and its shape."""

LIGHT_ELEMENTS = 1024
"""Constants up to this many elements keep their data for inference: shapes, axes and sizes are never longer."""


def infer(
    model: onnx_ir.Model, sizes: Callable[[str | None], int] | None = None
) -> tuple[dict[onnx_ir.Value, Known], str]:
    """Infer dtype and shape of the values in the main graph and the graphs nested in it.

    Declared types of intermediate values and outputs are not believed, except behind operators that ONNX does not
    define. ``sizes`` gives the dimensions of inputs that are no numbers one, by name. Returns what is known of each
    value, and the first contradiction found, empty when there is none.
    """
    names: dict[onnx_ir.Value, str] = {}
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    _write_graph(model.graph, proto.graph, names, model)
    if sizes is not None:
        _set_sizes(proto.graph.input, sizes)
    for domain, version in sorted(model.opset_imports.items()):
        proto.opset_import.add(domain=domain, version=version)
    for function in model.functions.values():
        proto.functions.append(onnx_ir.to_proto(function))
    complaint = ""
    try:
        propagate = not must_not_propagate(model, proto)
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=propagate, strict_mode=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        complaint = str(error).strip()
        inferred = _lenient(proto)
    table = {name: value for value, name in names.items()}
    known: dict[onnx_ir.Value, Known] = {}
    _collect(inferred.graph, table, known)
    return known, complaint


def infer_nodes(order: Sequence[onnx_ir.Node], model: onnx_ir.Model) -> dict[onnx_ir.Value, Known]:
    """Infer the outputs of ``order``, nodes without nested graphs that stand behind those they read, alone.

    What the nodes read from elsewhere counts by its content when constant and by its type otherwise. A node that
    inference refuses has unknown outputs.
    """
    names: dict[onnx_ir.Value, str] = {}
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    proto.graph.name = "g"
    made = {value for node in order for value in node.outputs}
    for value in dict.fromkeys(v for node in order for v in node.inputs if v is not None and v not in made):
        tensor = tensor_of(value)
        if tensor is None:
            _write_value(value, proto.graph.input.add(name=_name(value, names)))
        else:
            _write_tensor(tensor, proto.graph.initializer.add(name=_name(value, names)))
    for node in order:
        _write_node(node, proto.graph, names, model)
    for domain, version in sorted(model.opset_imports.items()):
        proto.opset_import.add(domain=domain, version=version)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return {}
    known: dict[onnx_ir.Value, Known] = {}
    _collect(inferred.graph, {name: value for value, name in names.items()}, known)
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


def _write_graph(
    graph: onnx_ir.Graph, proto: onnx.GraphProto, names: dict[onnx_ir.Value, str], model: onnx_ir.Model
) -> None:
    proto.name = "g"
    for value in graph.inputs:
        _write_value(value, proto.input.add(name=_name(value, names)))
    for value in graph.initializers.values():
        if value.const_value is not None:
            _write_tensor(value.const_value, proto.initializer.add(name=_name(value, names)))
    for node in graph:
        _write_node(node, proto, names, model)
    for value, tensor in _captured_constants(graph) if graph is not model.graph else ():
        _write_tensor(tensor, proto.initializer.add(name=_name(value, names)))
    for value in graph.outputs:
        proto.output.add(name=_name(value, names))


def _captured_constants(graph: onnx_ir.Graph) -> Iterator[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]]:
    """Yield the small constants that ``graph`` reads from outer graphs, whose data inference does not look up there."""
    for value in dict.fromkeys(value for node in graph for value in node.inputs if value is not None):
        tensor = tensor_of(value) if value.graph is not graph else None
        if tensor is not None and tensor.size <= LIGHT_ELEMENTS:
            yield value, tensor


def _write_node(
    node: onnx_ir.Node, proto: onnx.GraphProto, names: dict[onnx_ir.Value, str], model: onnx_ir.Model
) -> None:
    written = proto.node.add(op_type=node.op_type, domain=node.domain, overload=node.overload)
    written.input.extend(["" if value is None else _name(value, names) for value in node.inputs])
    written.output.extend(["" if not value.name else _name(value, names) for value in node.outputs])
    for attribute in node.attributes.values():
        _write_attribute(attribute, written, names, model)
    foreign = node.domain != "" and node.op_identifier() not in model.functions
    for value in node.outputs if foreign else ():
        if value.type is not None and value.name:
            _write_value(value, proto.value_info.add(name=names[value]))


def _write_attribute(
    attribute: onnx_ir.Attr, node: onnx.NodeProto, names: dict[onnx_ir.Value, str], model: onnx_ir.Model
) -> None:
    kinds = onnx_ir.AttributeType
    if attribute.is_ref() or attribute.type not in (kinds.GRAPH, kinds.GRAPHS, kinds.TENSOR):
        write_attribute(attribute, node)
        return
    written = node.attribute.add(name=attribute.name, type=int(attribute.type.value))
    if attribute.type == kinds.TENSOR:
        _write_tensor(attribute.value, written.t)
    elif attribute.type == kinds.GRAPH:
        _write_graph(attribute.as_graph(), written.g, names, model)
    else:
        for graph in attribute.as_graphs():
            _write_graph(graph, written.graphs.add(), names, model)


def _write_tensor(tensor: onnx_ir.TensorProtocol, proto: onnx.TensorProto) -> None:
    proto.data_type = int(tensor.dtype.value)
    proto.dims.extend(tensor.shape.numpy())
    if tensor.size <= LIGHT_ELEMENTS and tensor.dtype != onnx_ir.DataType.STRING:
        proto.raw_data = tensor.tobytes()


def _write_value(value: onnx_ir.Value, proto: onnx.ValueInfoProto) -> None:
    if value.type is not None:
        onnx_ir.serde.serialize_type_into(proto.type, value.type)
        if value.shape is not None:
            onnx_ir.serde.serialize_shape_into(proto.type, value.shape)


def _name(value: onnx_ir.Value, names: dict[onnx_ir.Value, str]) -> str:
    """Return a plain name of our own: branches may share names, and names may be anything."""
    return names.setdefault(value, f"v{len(names)}")


def _collect(graph: onnx.GraphProto, table: dict[str, onnx_ir.Value], known: dict[onnx_ir.Value, Known]) -> None:
    for info in _infos(graph):
        value = table.get(info.name)
        if value is not None:
            known[value] = _known(info)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _collect(attribute.g, table, known)
            for inner in attribute.graphs:
                _collect(inner, table, known)


def _infos(graph: onnx.GraphProto) -> Iterable[onnx.ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _known(info: onnx.ValueInfoProto) -> Known:
    if not info.type.HasField("tensor_type"):
        return None, None
    tensor = info.type.tensor_type
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
