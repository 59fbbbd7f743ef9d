"""Looks through a parsed model before the IR is built: refuses contradictions, sets aside what onnx-ir cannot hold.

onnx-ir has no sparse tensors, no map and opaque types and no lists of byte strings. They are taken out of the protobuf,
leaving a mark, and put back onto the IR objects afterwards by :meth:`Inspection.restore`; so they pass through.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import onnx
import onnx_ir
from onnx_ir import AttributeType, DataType

from graphopt.errors import ModelError
from graphopt.io.tensors import DataFolder, sparse_tensor, view_tensor
from graphopt.ir.tensors import TYPE_KEY, SparseInitializer, SparseTensor, light

Kept = TypeVar("Kept", onnx.SparseTensorProto, onnx.AttributeProto, onnx.TypeProto)

_MARK = "graphopt.set_aside"
_BITS = {int(t.value): t.bitwidth for t in DataType if t not in (DataType.UNDEFINED, DataType.STRING)}
_PLAIN = {int(AttributeType[name].value) for name in ("INT", "FLOAT", "STRING", "INTS", "FLOATS")}
_SPARSE = {onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS}
_NEST = {"sequence_type", "optional_type"}
_PACKED = {4: 2, 2: 4}
_TYPED_FIELDS: dict[int, tuple[str, int]] = {
    int(DataType[name].value): entry
    for names, entry in {
        "FLOAT": ("float_data", 1),
        "COMPLEX64": ("float_data", 2),
        "DOUBLE": ("double_data", 1),
        "COMPLEX128": ("double_data", 2),
        "INT64": ("int64_data", 1),
        "UINT64 UINT32": ("uint64_data", 1),
        "STRING": ("string_data", 1),
    }.items()
    for name in names.split()
}


def check_header(proto: onnx.ModelProto) -> None:
    """Raise ModelError when ``proto`` has no graph, or versions that make no sense."""
    if not proto.HasField("graph"):
        raise ModelError("there is no graph in it", hint="is this an ONNX model, and is the file complete?")
    if proto.ir_version < 1:
        raise ModelError("it does not say which version of the ONNX format it is in (ir_version)")
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"it is in version {proto.ir_version} of the ONNX format; the onnx package here knows {onnx.IR_VERSION}",
            hint="upgrade the onnx package, or export the model in an older version",
        )
    if not proto.opset_import:
        raise ModelError("it imports no operator set (opset_import)", hint="export the model again")
    seen: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if entry.version < 1:
            raise ModelError(f"it imports version {entry.version} of the operator set {domain or 'ai.onnx'!r}")
        if seen.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"it imports the operator set {domain or 'ai.onnx'!r} in two versions")


@dataclass
class Inspection:
    """One walk over a model: ``cuts`` is the raw data that was cut out, by position of its initializer."""

    cuts: Mapping[int, memoryview]
    sparse: list[onnx.SparseTensorProto] = field(default_factory=list)
    attributes: list[onnx.AttributeProto] = field(default_factory=list)
    types: list[onnx.TypeProto] = field(default_factory=list)
    external: bool = False
    _texts: list[str] = field(default_factory=list)

    def run(self, proto: onnx.ModelProto) -> None:
        """Check every tensor and name in ``proto`` and set aside, changing it, what onnx-ir cannot hold."""
        self._texts += [proto.producer_name, proto.producer_version, proto.domain, proto.doc_string, *_entries(proto)]
        self._texts += [entry.domain for entry in proto.opset_import]
        self._graph(proto.graph, self.cuts)
        for function in proto.functions:
            self._texts += [function.name, function.domain, function.doc_string, *function.input, *function.output]
            self._texts += [*function.attribute, *_entries(function)]
            self._texts += [entry.domain for entry in function.opset_import]
            self._types(getattr(function, "value_info", ()))
            self._defaults(function)
            self._nodes(function.node)
        _require_text(self._texts)

    def _defaults(self, function: onnx.FunctionProto) -> None:
        for attribute in function.attribute_proto:
            self._texts += [attribute.name, attribute.doc_string]
            if attribute.type in _SPARSE:
                where = f"function {function.name!r}"
                raise ModelError(
                    f"its attribute {attribute.name!r} has a sparse default, which is not supported", where=where
                )
            if attribute.type == onnx.AttributeProto.TENSOR:
                self._tensor(attribute.t, None)

    def _graph(self, graph: onnx.GraphProto, cuts: Mapping[int, memoryview]) -> None:
        _refuse_repeated([info.name for info in graph.input], "input", graph.name)
        names = [tensor.name for tensor in graph.initializer]
        names += [sparse.values.name for sparse in graph.sparse_initializer]
        self._texts += [graph.name, graph.doc_string, *_entries(graph)]
        for annotation in graph.quantization_annotation:
            self._texts.append(annotation.tensor_name)
            self._texts += _texts_of(annotation.quant_parameter_tensor_names)
        _refuse_repeated(names, "initializer", graph.name)
        for position, tensor in enumerate(graph.initializer):
            cut = cuts.get(position)
            self._tensor(tensor, None if cut is None else len(cut))
        self._types(graph.input)
        self._types(graph.output)
        self._types(graph.value_info)
        if graph.sparse_initializer:
            self._sparse_initializers(graph)
        self._nodes(graph.node)

    def _sparse_initializers(self, graph: onnx.GraphProto) -> None:
        for sparse in graph.sparse_initializer:
            self._sparse(sparse)
            values = sparse.values
            stand_in = graph.initializer.add(name=values.name, data_type=values.data_type, dims=sparse.dims)
            stand_in.metadata_props.add(key=_MARK, value=str(len(self.sparse)))
            self.sparse.append(_copy(sparse))
        graph.ClearField("sparse_initializer")

    def _types(self, infos: Iterable[onnx.ValueInfoProto]) -> None:
        for info in infos:
            kind = info.type
            self._texts += [info.name, info.doc_string, kind.denotation, *_entries(info)]
            while (case := kind.WhichOneof("value")) in _NEST:
                kind = getattr(kind, case).elem_type
            if case in ("map_type", "opaque_type"):
                info.metadata_props.add(key=_MARK, value=str(len(self.types)))
                self.types.append(_copy(info.type))
                info.ClearField("type")
            elif case is not None:
                for dim in getattr(kind, case).shape.dim:
                    self._texts += (dim.dim_param, dim.denotation)

    def _nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        for node in nodes:
            attributes = node.attribute
            names = [attribute.name for attribute in attributes]
            self._texts += [node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output, *names]
            if not node.op_type:
                raise ModelError("it has no operator", where=_place(node))
            if len(set(names)) != len(names):
                raise ModelError("it has two attributes of the same name", where=_place(node))
            self._texts += _entries(node)
            for attribute in attributes:
                reference = attribute.ref_attr_name
                self._texts += (attribute.doc_string, reference)
                if attribute.type not in _PLAIN and not reference:
                    self._attribute(attribute, node)

    def _attribute(self, attribute: onnx.AttributeProto, node: onnx.NodeProto) -> None:
        match attribute.type:
            case onnx.AttributeProto.TENSOR:
                self._tensor(attribute.t, None, node)
            case onnx.AttributeProto.TENSORS:
                for tensor in attribute.tensors:
                    self._tensor(tensor, None, node)
            case onnx.AttributeProto.GRAPH:
                self._graph(attribute.g, {})
            case onnx.AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    self._graph(graph, {})
            case onnx.AttributeProto.SPARSE_TENSOR | onnx.AttributeProto.SPARSE_TENSORS:
                single = attribute.type == onnx.AttributeProto.SPARSE_TENSOR
                for sparse in [attribute.sparse_tensor] if single else attribute.sparse_tensors:
                    self._sparse(sparse, node)
                self._set_aside(attribute)
            case onnx.AttributeProto.STRINGS:
                if not all(_is_utf8(item) for item in attribute.strings):
                    self._set_aside(attribute)
            case onnx.AttributeProto.UNDEFINED:
                raise ModelError(f"its attribute {attribute.name!r} has no type", where=_place(node))

    def _set_aside(self, attribute: onnx.AttributeProto) -> None:
        kept = _copy(attribute)
        attribute.Clear()
        attribute.name, attribute.type, attribute.ref_attr_name = (
            kept.name,
            kept.type,
            f"{_MARK}.{len(self.attributes)}",
        )
        self.attributes.append(kept)

    def _sparse(self, sparse: onnx.SparseTensorProto, node: onnx.NodeProto | None = None) -> None:
        self._tensor(sparse.values, None, node)
        self._tensor(sparse.indices, None, node)
        where = _where(sparse.values, node)
        count, rank = math.prod(sparse.values.dims), len(sparse.dims)
        if sparse.indices.data_type != onnx.TensorProto.INT64 or len(sparse.values.dims) != 1:
            raise ModelError("its sparse values need rank 1 and its indices int64", where=where)
        if list(sparse.indices.dims) not in ([count], [count, rank]):
            raise ModelError(
                f"its {count} sparse values have indices of shape {list(sparse.indices.dims)}", where=where
            )
        if any(dim < 0 for dim in sparse.dims):
            raise ModelError(f"it has the shape {list(sparse.dims)}", where=where)
        if sparse.values.data_location or sparse.indices.data_location:
            raise ModelError("sparse tensors with external data are not supported", where=where)

    def _tensor(self, tensor: onnx.TensorProto, cut: int | None, node: onnx.NodeProto | None = None) -> None:
        bits = _BITS.get(tensor.data_type)
        self._texts += [tensor.name, tensor.doc_string, *_entries(tensor)]
        if bits is None and tensor.data_type != onnx.TensorProto.STRING:
            raise ModelError(f"it has the unknown data type {tensor.data_type}", where=_where(tensor, node))
        dims = tensor.dims
        if dims and min(dims) < 0:
            raise ModelError(f"it has the shape {list(dims)}", where=_where(tensor, node))
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            self._external(tensor, bits, node)
            return
        count = math.prod(dims)
        if cut is not None or tensor.HasField("raw_data"):
            size = len(tensor.raw_data) if cut is None else cut
            self._compare(tensor, node, size, None if bits is None else (count * bits + 7) // 8, "bytes of data")
            return
        name, each = _TYPED_FIELDS.get(tensor.data_type, ("int32_data", 1))
        expected = -(-count // _PACKED[bits]) if bits in _PACKED else count * each
        self._compare(tensor, node, len(getattr(tensor, name)), expected, f"entries in {name}")

    def _external(self, tensor: onnx.TensorProto, bits: int | None, node: onnx.NodeProto | None) -> None:
        self.external = True
        where = _where(tensor, node)
        if bits is None:
            raise ModelError("strings cannot be external data", where=where)
        self._texts += _texts_of(tensor.external_data)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        for key in ("offset", "length"):
            text = entries.get(key, "0")
            if not (text.isascii() and text.isdigit() and len(text) < 19):
                raise ModelError(f"the {key} of its external data is {text!r}", where=where)
        if "length" in entries:
            size = (math.prod(tensor.dims) * bits + 7) // 8
            self._compare(tensor, node, int(entries["length"]), size, "bytes of external data")

    def _compare(
        self, tensor: onnx.TensorProto, node: onnx.NodeProto | None, found: int, expected: int | None, what: str
    ) -> None:
        if found == expected:
            return
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        needs = "cannot be stored like that" if expected is None else f"needs {expected}"
        raise ModelError(
            f"it has {found} {what}; {kind}{list(tensor.dims)} {needs}",
            where=_where(tensor, node),
            hint="the file is damaged or was written by a faulty tool; export the model again",
        )

    def restore(self, model: onnx_ir.Model, folder: DataFolder) -> None:
        """Put onto ``model`` the data that was cut out, what was set aside, and the external data, mapped."""
        self._fill_cuts(model.graph)
        if not (self.sparse or self.attributes or self.types or self.external):
            return
        for graph in _all_graphs(model):
            for value in graph.initializers.values():
                self._restore_initializer(value, folder)
            for value in (*graph.inputs, *graph.outputs):
                self._restore_type(value)
            for node in graph:
                for value in node.outputs:
                    self._restore_type(value)
                for attribute in list(node.attributes.values()):
                    self._restore_attribute(node, attribute, folder)

    def _fill_cuts(self, graph: onnx_ir.Graph) -> None:
        for position, value in enumerate(list(graph.initializers.values())):
            cut = self.cuts.get(position)
            if value.const_value is not None:
                tensor = light(value.const_value)
                value.const_value = tensor if cut is None else view_tensor(cut, tensor)

    def _restore_initializer(self, value: onnx_ir.Value, folder: DataFolder) -> None:
        tensor = value.const_value
        if isinstance(tensor, onnx_ir.ExternalTensor):
            value.const_value = folder.tensor(tensor)
        elif tensor is not None and _MARK in tensor.metadata_props:
            value.const_value = SparseInitializer(sparse_tensor(self.sparse[int(tensor.metadata_props[_MARK])]))

    def _restore_type(self, value: onnx_ir.Value) -> None:
        mark = value.metadata_props.pop(_MARK, None)
        if mark is not None:
            value.meta[TYPE_KEY] = self.types[int(mark)]

    def _restore_attribute(self, node: onnx_ir.Node, attribute: onnx_ir.Attr, folder: DataFolder) -> None:
        name, kind, note = attribute.name, attribute.type, attribute.doc_string
        if attribute.is_ref():
            prefix, _, index = (attribute.ref_attr_name or "").rpartition(".")
            if prefix == _MARK:
                kept = self.attributes[int(index)]
                node.attributes[name] = onnx_ir.Attr(name, kind, _attribute_value(kept), doc_string=_doc(kept))
        elif kind == AttributeType.TENSOR and isinstance(attribute.value, onnx_ir.ExternalTensor):
            node.attributes[name] = onnx_ir.Attr(name, kind, folder.tensor(attribute.value), doc_string=note)
        elif kind == AttributeType.TENSORS:
            tensors = [folder.tensor(t) if isinstance(t, onnx_ir.ExternalTensor) else t for t in attribute.value]
            node.attributes[name] = onnx_ir.Attr(name, kind, tensors, doc_string=note)


def _attribute_value(kept: onnx.AttributeProto) -> SparseTensor | list[SparseTensor] | list[str | bytes]:
    if kept.type == onnx.AttributeProto.SPARSE_TENSOR:
        return sparse_tensor(kept.sparse_tensor)
    if kept.type == onnx.AttributeProto.SPARSE_TENSORS:
        return [sparse_tensor(sparse) for sparse in kept.sparse_tensors]
    return [item.decode() if _is_utf8(item) else item for item in kept.strings]


def _doc(kept: onnx.AttributeProto) -> str | None:
    return kept.doc_string if kept.HasField("doc_string") else None


def _all_graphs(model: onnx_ir.Model) -> Iterator[onnx_ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.graph.subgraphs()


def _copy(proto: Kept) -> Kept:
    kept = type(proto)()
    kept.CopyFrom(proto)
    return kept


def _refuse_repeated(names: list[str], what: str, graph: str) -> None:
    if len(set(names)) == len(names) and "" not in names:
        return
    name = "" if "" in names else Counter(names).most_common(1)[0][0]
    complaint = f"two {what}s are named {name!r}" if name else f"an {what} has no name"
    raise ModelError(complaint, where=f"graph {graph!r}")


def _entries(proto: Any) -> list[str]:
    return _texts_of(proto.metadata_props) if proto.metadata_props else []


def _texts_of(entries: Iterable[onnx.StringStringEntryProto]) -> list[str]:
    return [text for entry in entries for text in (entry.key, entry.value)]


def _require_text(texts: list[str]) -> None:
    # Protobuf hands out bytes, not a string, where a string field is no valid UTF-8; joining tells fastest.
    try:
        "".join(texts)
    except TypeError:
        broken = next(text for text in texts if not isinstance(text, str))
        raise ModelError(f"a name or text in it is not UTF-8: {broken!r}") from None


def _is_utf8(item: bytes) -> bool:
    try:
        item.decode()
    except UnicodeDecodeError:
        return False
    return True


def _where(tensor: onnx.TensorProto, node: onnx.NodeProto | None) -> str:
    return f"tensor {tensor.name!r}" if node is None else f"tensor {tensor.name!r} of {_place(node)}"


def _place(node: onnx.NodeProto) -> str:
    return f"{node.op_type} node {node.name or next(iter(node.output), '')!r}"
