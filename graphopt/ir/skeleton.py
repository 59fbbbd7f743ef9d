"""A model as a protobuf without its weights: what ONNX's inference needs to know, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx
import onnx_ir

from graphopt.ir.extract import write_attribute
from graphopt.ir.query import is_constant, subgraphs, tensor_of
from graphopt.ir.tensors import dims_of, size_of

LIGHT_ELEMENTS = 1024
"""Integer constants up to this many elements keep their data: shapes, axes and sizes are never longer."""
LIGHT_FLOATS = 16
"""Others up to this many: the scales of a Resize, the bounds of a Range."""
_INTEGERS = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32)
_KINDS = onnx_ir.AttributeType


def is_light(tensor: onnx_ir.TensorProtocol) -> bool:
    """Tell whether inference may want to know the data of ``tensor``."""
    dtype = tensor.dtype
    return dtype != onnx_ir.DataType.STRING and size_of(tensor) <= (
        LIGHT_ELEMENTS if dtype in _INTEGERS else LIGHT_FLOATS
    )


@dataclass
class Written:
    """What was written of a model, to be used again: names of values and protobufs of nodes without nested graphs.

    Whoever changes a node has to take it out of ``nodes``.
    """

    names: dict[onnx_ir.Value, str] = field(default_factory=dict)
    nodes: dict[onnx_ir.Node, onnx.NodeProto] = field(default_factory=dict)
    tensors: dict[onnx_ir.TensorProtocol, onnx.TensorProto] = field(default_factory=dict)


class Skeleton:
    """Writes graphs into protobufs with plain names of its own: branches may share names, and names may be anything.

    ``nested`` tells whether a nested graph was written, ``table`` gives the value behind each name.
    """

    def __init__(self, model: onnx_ir.Model, written: Written | None = None):
        self.model = model
        self.nested = False
        self._written = written if written is not None else Written()
        self._names = self._written.names
        self.proto = onnx.ModelProto(ir_version=max(model.ir_version, 4))
        self.proto.graph.name = "g"
        for domain, version in sorted(model.opset_imports.items()):
            self.proto.opset_import.add(domain=domain, version=version)

    def table(self) -> dict[str, onnx_ir.Value]:
        """Return the value behind each name."""
        return {name: value for value, name in self._names.items()}

    def name(self, value: onnx_ir.Value) -> str:
        """Return the name that stands for ``value``."""
        name = self._names.get(value)
        if name is None:
            name = self._names[value] = f"v{len(self._names)}"
        return name

    def graph(self, graph: onnx_ir.Graph, proto: onnx.GraphProto) -> None:
        """Write a graph; constants that a nested one captures are repeated there, where inference looks for data."""
        proto.name = "g"
        for value in graph.inputs:
            self.value(value, proto.input.add(name=self.name(value)))
        for value in graph.initializers.values():
            if value.const_value is not None:
                self.tensor(value.const_value, proto.initializer.add(name=self.name(value)))
        for node in graph:
            self.node(node, proto)
        for value, tensor in _captured_constants(graph) if graph is not self.model.graph else ():
            self.tensor(tensor, proto.initializer.add(name=self.name(value)))
        for value in graph.outputs:
            proto.output.add(name=self.name(value))

    def node(self, node: onnx_ir.Node, proto: onnx.GraphProto) -> None:
        """Write a node; the declared types of its outputs only where ONNX does not define the operator."""
        known = self._written.nodes.get(node)
        if known is not None:
            proto.node.append(known)
            return
        written = proto.node.add(op_type=node.op_type)
        written.input.extend(["" if value is None else self.name(value) for value in node.inputs])
        written.output.extend([self.name(value) if value.name else "" for value in node.outputs])
        for attribute in node.attributes.data.values():
            self._attribute(attribute, written)
        if not node.domain:
            if not subgraphs(node):
                self._written.nodes[node] = written
            return
        written.domain, written.overload = node.domain, node.overload
        for value in node.outputs:
            if value.type is not None and value.name:
                self.value(value, proto.value_info.add(name=self.name(value)))

    def _attribute(self, attribute: onnx_ir.Attr, node: onnx.NodeProto) -> None:
        kind = attribute.type
        if kind not in (_KINDS.TENSOR, _KINDS.GRAPH, _KINDS.GRAPHS) or attribute.is_ref():
            write_attribute(attribute, node)
            return
        written = node.attribute.add(name=attribute.name, type=kind.value)
        if kind == _KINDS.TENSOR:
            self.tensor(attribute.value, written.t)
            return
        self.nested = True
        if kind == _KINDS.GRAPH:
            self.graph(attribute.as_graph(), written.g)
            return
        for graph in attribute.as_graphs():
            self.graph(graph, written.graphs.add())

    def tensor(self, tensor: onnx_ir.TensorProtocol, proto: onnx.TensorProto) -> None:
        """Write dtype and shape of a constant, and its data when that is light."""
        known = self._written.tensors.get(tensor)
        if known is not None:
            proto.MergeFrom(known)
            return
        self._written.tensors[tensor] = bare = onnx.TensorProto()
        self._fill(tensor, bare)
        proto.MergeFrom(bare)

    def _fill(self, tensor: onnx_ir.TensorProtocol, proto: onnx.TensorProto) -> None:
        proto.data_type = tensor.dtype.value
        proto.dims.extend(dims_of(tensor))
        if is_light(tensor):
            proto.raw_data = tensor.tobytes()

    def value(self, value: onnx_ir.Value, proto: onnx.ValueInfoProto) -> None:
        """Write what type and shape a value is declared to have."""
        if value.type is not None:
            onnx_ir.serde.serialize_type_into(proto.type, value.type)
            if value.shape is not None:
                onnx_ir.serde.serialize_shape_into(proto.type, value.shape)

    def reads(self, values: Iterable[onnx_ir.Value]) -> None:
        """Write what nodes read from elsewhere: constants with their data, other values with their type."""
        for value in values:
            tensor = tensor_of(value)
            if tensor is None:
                self.value(value, self.proto.graph.input.add(name=self.name(value)))
            else:
                self.tensor(tensor, self.proto.graph.initializer.add(name=self.name(value)))


def _captured_constants(graph: onnx_ir.Graph) -> Iterator[tuple[onnx_ir.Value, onnx_ir.TensorProtocol]]:
    """Yield the light initializers of outer graphs that ``graph`` reads."""
    for value in dict.fromkeys(value for node in graph for value in node.inputs if value is not None):
        tensor = value.const_value
        if tensor is not None and value.graph is not graph and is_constant(value) and is_light(tensor):
            yield value, tensor
