"""Turns the IR into ONNX protobufs. Who calls decides where tensor data goes and whether value types are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import onnx
import onnx_ir
from onnx_ir import AttributeType, serde

from graphopt.io.importer import HAD_VALUE_INFO, TRAINING_INFO
from graphopt.ir.tensors import TYPE_KEY, SparseInitializer, SparseTensor, quantization_annotation

UNKNOWN_DIM_PREFIX = "unk__"
"""Symbolic dimensions with this prefix were made up by shape inference and are written as unknown."""

_FUNCTION_VALUE_INFO_SINCE = 10
_DEVICES_SINCE = 11


@dataclass(frozen=True)
class Stored:
    """Where the data of a tensor lies in an external file: offset and length in bytes."""

    location: str
    offset: int
    length: int


Place = Callable[[onnx_ir.TensorProtocol], Stored | None]
"""Tells where the data of a tensor was put, ``None`` to keep it in the model."""


class _HasMetadata(Protocol):
    @property
    def metadata_props(self) -> Any: ...


def keep_inside(tensor: onnx_ir.TensorProtocol) -> Stored | None:
    """Place every tensor in the model."""
    return None


@dataclass(frozen=True)
class Serializer:
    """Writes one model: ``value_types`` says whether types of intermediate values are written."""

    ir_version: int
    value_types: bool
    place: Place = keep_inside

    @classmethod
    def of(cls, model: onnx_ir.Model, place: Place = keep_inside) -> Serializer:
        """Return the serializer for ``model``, which writes value types when the model came with some."""
        return cls(model.ir_version, bool(model.graph.meta.get(HAD_VALUE_INFO, True)), place)

    def model(self, model: onnx_ir.Model) -> onnx.ModelProto:
        """Return everything but the main graph."""
        proto = onnx.ModelProto(ir_version=model.ir_version)
        for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
            if (text := getattr(model, name)) is not None:
                setattr(proto, name, text)
        _opset_imports(proto.opset_import, model.opset_imports)
        _metadata(proto, model.metadata_props)
        for function in model.functions.values():
            self._function(proto.functions.add(), function)
        for entry in model.graph.meta.get(TRAINING_INFO) or ():
            proto.training_info.add().ParseFromString(entry)
        if self.ir_version >= _DEVICES_SINCE:
            proto.configuration.extend(map(serde.serialize_model_configuration, model.device_configurations))
        return proto

    def main_graph(self, model: onnx_ir.Model, proto: onnx.GraphProto) -> None:
        """Fill ``proto`` with the main graph of ``model``, dense initializers apart."""
        self._graph(proto, model.graph, initializers=False)
        if self.value_types and self.ir_version < _FUNCTION_VALUE_INFO_SINCE:
            for function in model.functions.values():
                prefix = f"{function.domain}::{function.name}/"
                self._value_infos(proto.value_info, _function_values(function), prefix)

    def tensor(self, proto: onnx.TensorProto, tensor: onnx_ir.TensorProtocol, name: str | None) -> None:
        """Fill ``proto`` with ``tensor``, data included unless it was placed elsewhere."""
        stored = self.header(proto, tensor, name)
        if stored is None and not isinstance(tensor, serde.TensorProtoTensor | onnx_ir.StringTensor):
            proto.raw_data = tensor.tobytes()

    def header(self, proto: onnx.TensorProto, tensor: onnx_ir.TensorProtocol, name: str | None) -> Stored | None:
        """Fill ``proto`` with what describes ``tensor``, and with its content if that is in typed fields or strings."""
        stored = self.place(tensor)
        if stored is None and isinstance(tensor, serde.TensorProtoTensor):
            proto.CopyFrom(tensor.raw)
            proto.ClearField("metadata_props")
        else:
            proto.data_type = int(tensor.dtype.value)
            proto.dims.extend(tensor.shape.numpy())
            if tensor.doc_string:
                proto.doc_string = tensor.doc_string
        if name:
            proto.name = name
        _metadata(proto, tensor.metadata_props)
        if stored is not None:
            proto.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", stored.location), ("offset", stored.offset), ("length", stored.length)):
                proto.external_data.add(key=key, value=str(value))
        elif isinstance(tensor, onnx_ir.StringTensor):
            proto.string_data.extend(tensor.string_data())
        return stored

    def _graph(self, proto: onnx.GraphProto, graph: onnx_ir.Graph, *, initializers: bool = True) -> None:
        if graph.name:
            proto.name = graph.name
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        _metadata(proto, graph.metadata_props)
        inputs = set(graph.inputs)
        for value in graph.inputs:
            self._value_info(proto.input.add(), value)
            _annotate(proto, value)
        for value in graph.initializers.values():
            if value not in inputs:
                _annotate(proto, value)
                if value.metadata_props or value.doc_string:
                    self._value_info(proto.value_info.add(), value)
            if isinstance(value.const_value, SparseInitializer):
                self._sparse(proto.sparse_initializer.add(), value.const_value.sparse, value.name)
            elif initializers and value.const_value is not None:
                self.tensor(proto.initializer.add(), value.const_value, value.name)
        for node in graph:
            self._node(proto.node.add(), node)
            self._value_infos(proto.value_info, [value for value in node.outputs if not value.is_graph_output()])
            for value in node.outputs:
                _annotate(proto, value)
        for value in graph.outputs:
            self._value_info(proto.output.add(), value)

    def _function(self, proto: onnx.FunctionProto, function: onnx_ir.Function) -> None:
        proto.domain, proto.name = function.domain, function.name
        if function.overload:
            proto.overload = function.overload
        if function.doc_string:
            proto.doc_string = function.doc_string
        _opset_imports(proto.opset_import, function.opset_imports)
        _metadata(proto, function.metadata_props)
        proto.input.extend(value.name or "" for value in function.inputs)
        proto.output.extend(value.name or "" for value in function.outputs)
        for attribute in function.attributes.values():
            if attribute.value is None:
                proto.attribute.append(attribute.name)
            else:
                self._attribute(proto.attribute_proto.add(), attribute)
        for node in function:
            self._node(proto.node.add(), node)
        if self.ir_version >= _FUNCTION_VALUE_INFO_SINCE:
            self._value_infos(proto.value_info, _function_values(function))

    def _node(self, proto: onnx.NodeProto, node: onnx_ir.Node) -> None:
        proto.op_type = node.op_type
        if node.domain:
            proto.domain = node.domain
        if node.name:
            proto.name = node.name
        if node.overload:
            proto.overload = node.overload
        if node.doc_string:
            proto.doc_string = node.doc_string
        if node.metadata_props:
            _metadata(proto, node.metadata_props)
        proto.input.extend([value.name or "" if value is not None else "" for value in node.inputs])
        proto.output.extend([value.name or "" for value in node.outputs])
        for attribute in node.attributes.values():
            self._attribute(proto.attribute.add(), attribute)
        if node.device_configurations and self.ir_version >= _DEVICES_SINCE:
            proto.device_configurations.extend(
                map(serde.serialize_node_device_configuration, node.device_configurations)
            )

    def _attribute(self, proto: onnx.AttributeProto, attribute: onnx_ir.Attr) -> None:
        if attribute.is_ref():
            serde.serialize_reference_attribute_into(proto, attribute)
            return
        kind, value = attribute.type, attribute.value
        writer = _NESTED.get(kind)
        if writer is None:
            serde.serialize_attribute_into(proto, attribute)
            return
        proto.name = attribute.name
        proto.type = cast("onnx.AttributeProto.AttributeType", kind.value)
        if attribute.doc_string:
            proto.doc_string = attribute.doc_string
        writer(self, proto, value)

    def _sparse(self, proto: onnx.SparseTensorProto, sparse: SparseTensor, name: str | None = None) -> None:
        self.tensor(proto.values, sparse.values, name or sparse.values.name)
        self.tensor(proto.indices, sparse.indices, sparse.indices.name)
        proto.dims.extend(sparse.dims)

    def _value_infos(self, protos: Any, values: Iterable[onnx_ir.Value], prefix: str = "") -> None:
        for value in values:
            typed = self.value_types and (value.type is not None or TYPE_KEY in value.meta)
            if value.name and (typed or value.metadata_props or value.doc_string):
                self._value_info(protos.add(), value, prefix, typed=typed)

    def _value_info(
        self, proto: onnx.ValueInfoProto, value: onnx_ir.Value, prefix: str = "", *, typed: bool = True
    ) -> None:
        proto.name = f"{prefix}{value.name or ''}"
        if value.metadata_props:
            _metadata(proto, value.metadata_props)
        if value.doc_string:
            proto.doc_string = value.doc_string
        if not typed:
            return
        if value.type is None:
            if (kept := value.meta.get(TYPE_KEY)) is not None:
                proto.type.CopyFrom(kept)
            return
        serde.serialize_type_into(proto.type, value.type)
        if value.shape is not None:
            serde.serialize_shape_into(proto.type, value.shape)
            if any(_made_up(dim) for dim in value.shape):
                _forget_made_up_dims(proto.type)


def _write_strings(writer: Serializer, proto: onnx.AttributeProto, value: Iterable[str | bytes]) -> None:
    proto.strings.extend(item.encode() if isinstance(item, str) else item for item in value)


def _write_tensor(writer: Serializer, proto: onnx.AttributeProto, value: onnx_ir.TensorProtocol) -> None:
    writer.tensor(proto.t, value, value.name)


def _write_tensors(writer: Serializer, proto: onnx.AttributeProto, value: Iterable[onnx_ir.TensorProtocol]) -> None:
    for tensor in value:
        writer.tensor(proto.tensors.add(), tensor, tensor.name)


def _write_graph(writer: Serializer, proto: onnx.AttributeProto, value: onnx_ir.Graph) -> None:
    proto.g.SetInParent()
    writer._graph(proto.g, value)


def _write_graphs(writer: Serializer, proto: onnx.AttributeProto, value: Iterable[onnx_ir.Graph]) -> None:
    for graph in value:
        writer._graph(proto.graphs.add(), graph)


def _write_sparse(writer: Serializer, proto: onnx.AttributeProto, value: SparseTensor) -> None:
    writer._sparse(proto.sparse_tensor, value)


def _write_sparses(writer: Serializer, proto: onnx.AttributeProto, value: Iterable[SparseTensor]) -> None:
    for sparse in value:
        writer._sparse(proto.sparse_tensors.add(), sparse)


_NESTED: dict[AttributeType, Callable[[Serializer, onnx.AttributeProto, Any], None]] = {
    AttributeType.STRINGS: _write_strings,
    AttributeType.TENSOR: _write_tensor,
    AttributeType.TENSORS: _write_tensors,
    AttributeType.GRAPH: _write_graph,
    AttributeType.GRAPHS: _write_graphs,
    AttributeType.SPARSE_TENSOR: _write_sparse,
    AttributeType.SPARSE_TENSORS: _write_sparses,
}


def _function_values(function: onnx_ir.Function) -> list[onnx_ir.Value]:
    return [*function.inputs, *(value for node in function for value in node.outputs)]


def _opset_imports(protos: Any, imports: Mapping[str, int]) -> None:
    for domain, version in imports.items():
        protos.add(domain=domain, version=version)


def _metadata(proto: _HasMetadata, entries: Mapping[str, str]) -> None:
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)


def _annotate(proto: onnx.GraphProto, value: onnx_ir.Value) -> None:
    if not value.meta:
        return
    names = quantization_annotation(value)
    if not names:
        return
    annotation = proto.quantization_annotation.add(tensor_name=value.name or "")
    for key, name in names.items():
        annotation.quant_parameter_tensor_names.add(key=key, value=name)


def _made_up(dim: int | onnx_ir.SymbolicDim) -> bool:
    return not isinstance(dim, int) and dim.value is not None and dim.value.startswith(UNKNOWN_DIM_PREFIX)


def _forget_made_up_dims(proto: onnx.TypeProto) -> None:
    case = proto.WhichOneof("value")
    if case in ("sequence_type", "optional_type"):
        _forget_made_up_dims(getattr(proto, case).elem_type)
        return
    for dim in getattr(proto, case or "tensor_type").shape.dim:
        if dim.dim_param.startswith(UNKNOWN_DIM_PREFIX):
            dim.ClearField("dim_param")
