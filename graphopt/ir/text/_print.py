"""Print a model as text; :mod:`graphopt.ir.text` describes the format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

from graphopt.ir.tensors import (
    SparseInitializer,
    SparseTensor,
    kept_type,
    quantization_annotation,
    string_items,
    tensor_hash,
)

_ALIASES = {"FLOAT": "float", "DOUBLE": "double"}
TYPE_NAMES = {dtype: _ALIASES.get(dtype.name, dtype.name.lower()) for dtype in ir.DataType}
ATTRIBUTE_NAMES = {kind: kind.name.lower() for kind in ir.AttributeType}
COMPOSITE_TYPES = {"seq": ir.SequenceType, "optional": ir.OptionalType, "sparse_tensor": ir.SparseTensorType}
KEPT_TYPES = ("map", "opaque")
LIST_KINDS = {
    ir.AttributeType.INTS: ir.AttributeType.INT,
    ir.AttributeType.FLOATS: ir.AttributeType.FLOAT,
    ir.AttributeType.STRINGS: ir.AttributeType.STRING,
    ir.AttributeType.TENSORS: ir.AttributeType.TENSOR,
    ir.AttributeType.GRAPHS: ir.AttributeType.GRAPH,
    ir.AttributeType.SPARSE_TENSORS: ir.AttributeType.SPARSE_TENSOR,
    ir.AttributeType.TYPE_PROTOS: ir.AttributeType.TYPE_PROTO,
}

# What the elements of a tensor are written as: the value for these, the bit pattern for every other type.
VALUE_DTYPES: dict[ir.DataType, str] = {
    ir.DataType.FLOAT: "<f4",
    ir.DataType.DOUBLE: "<f8",
    ir.DataType.COMPLEX64: "<f4",
    ir.DataType.COMPLEX128: "<f8",
    ir.DataType.INT8: "<i1",
    ir.DataType.INT16: "<i2",
    ir.DataType.INT32: "<i4",
    ir.DataType.INT64: "<i8",
    ir.DataType.UINT32: "<u4",
    ir.DataType.UINT64: "<u8",
}
SIGNED_PACKED = (ir.DataType.INT4, ir.DataType.INT2)

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset([*TYPE_NAMES.values(), *COMPOSITE_TYPES, *KEPT_TYPES, "inf", "infinity", "nan"])
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_QUIET_NAN = {4: (0x7FC00000, 0xFFC00000), 8: (0x7FF8 << 48, 0xFFF8 << 48)}


def print_model(model: ir.Model, weights: int) -> str:
    """Return ``model`` as text; tensors above ``weights`` elements as shape and content hash."""
    printer = _Printer(weights)
    printer.model(model)
    return "\n".join(printer.lines) + "\n"


class _Printer:
    def __init__(self, weights: int):
        self.weights = weights
        self.lines: list[str] = []

    # Models, functions, graphs

    def model(self, model: ir.Model) -> None:
        fields = [f"ir_version: {model.ir_version}", f"opset_import: {_opsets(model.opset_imports)}"]
        fields += _texts(
            producer_name=model.producer_name, producer_version=model.producer_version, domain=model.domain
        )
        if model.model_version:
            fields.append(f"model_version: {model.model_version}")
        fields += _texts(doc_string=model.doc_string) + _map_field("metadata_props", model.metadata_props)
        if model.device_configurations:
            parts = [[c.name, c.num_devices, list(c.device_names)] for c in model.device_configurations]
            fields.append(f"device_configurations: {_plain(parts)}")
        self.header(fields)
        self.graph_into("", model.graph, "", "")
        for function in model.functions.values():
            self.lines.append("")
            self.function(function)

    def header(self, fields: list[str]) -> None:
        self.lines += ["<", *_separated(fields, "   "), ">"]

    def function(self, function: ir.Function) -> None:
        fields = [f"domain: {quote(function.domain)}", *_texts(overload=function.overload)]
        fields += [f"opset_import: {_opsets(function.opset_imports)}", *_texts(doc_string=function.doc_string)]
        fields += _map_field("metadata_props", function.metadata_props)
        self.header(fields)
        required = [_word(attr.name) for attr in function.attributes.values() if attr.value is None]
        defaults = [self.attribute(attr, "") for attr in function.attributes.values() if attr.value is not None]
        attributes = f" <{', '.join(required + defaults)}>" if required or defaults else ""
        self.signature(name(function.name) + attributes, function.inputs, function.outputs, "", "")
        self.body(function, (), [*function.inputs, *function.outputs], "")

    def graph_into(self, prefix: str, graph: ir.Graph, indent: str, suffix: str) -> None:
        notes = _notes(graph.doc_string, graph.metadata_props)
        self.signature(prefix + name(graph.name or ""), graph.inputs, graph.outputs, indent, notes)
        self.body(graph, graph.initializers.values(), [*graph.inputs, *graph.outputs], indent)
        self.lines[-1] += suffix

    def signature(
        self, start: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], indent: str, notes: str
    ) -> None:
        inner = indent + "   "
        self.lines.append(f"{indent}{start} (")
        self.lines += _separated([_value(value) for value in inputs], inner)
        self.lines.append(f"{indent}) => (")
        self.lines += _separated([_value(value) for value in outputs], inner)
        self.lines.append(f"{indent}){notes}")

    def body(
        self, nodes: Iterable[ir.Node], initializers: Iterable[ir.Value], declared: list[ir.Value], indent: str
    ) -> None:
        inner = indent + "   "
        interface = set(declared)
        entries = [
            self.initializer(value, value in interface) for value in initializers if value.const_value is not None
        ]
        for node in nodes:
            entries += [_value(v) for v in node.outputs if v.name and v not in interface and _has_description(v)]
        if entries:
            self.lines += [f"{indent}<", *_separated(entries, inner), f"{indent}>"]
        self.lines.append(f"{indent}{{")
        for node in nodes:
            self.node(node, inner)
        self.lines.append(f"{indent}}}")

    # Nodes and attributes

    def node(self, node: ir.Node, indent: str) -> None:
        label = f"[{name(node.name)}] " if node.name else ""
        outputs = ", ".join([name(value.name or "") for value in node.outputs])
        inputs = ", ".join(['""' if value is None else name(value.name or "") for value in node.inputs])
        overload = f":{_word(node.overload)}" if node.overload else ""
        start = f"{indent}{label}{outputs} = {_operator(node)}{overload}"
        notes = _notes(node.doc_string, node.metadata_props, _device_configurations(node))
        attributes = list(node.attributes.values())
        if any(_holds_graphs(attr) for attr in attributes):
            self.lines.append(f"{start} ({inputs}) <")
            for attr in attributes:
                self.attribute_lines(attr, indent + "   ", "," if attr is not attributes[-1] else "")
            self.lines.append(f"{indent}>{notes}")
            return
        listed = f" <{', '.join([self.attribute(attr, indent) for attr in attributes])}>" if attributes else ""
        self.lines.append(f"{start}{listed} ({inputs}){notes}")

    def attribute_lines(self, attr: ir.Attr, indent: str, end: str) -> None:
        if not _holds_graphs(attr):
            self.lines.append(indent + self.attribute(attr, indent) + end)
            return
        start = f"{_word(attr.name)}: {ATTRIBUTE_NAMES[attr.type]} = "
        end = _notes(attr.doc_string) + end
        if attr.type == ir.AttributeType.GRAPH:
            self.graph_into(start, attr.value, indent, end)
            return
        self.lines.append(f"{indent}{start}[")
        for graph in attr.value:
            self.graph_into("", graph, indent + "   ", "," if graph is not attr.value[-1] else "")
        self.lines.append(f"{indent}]{end}")

    def attribute(self, attr: ir.Attr, indent: str) -> str:
        if _holds_graphs(attr):
            nested = _Printer(self.weights)
            nested.attribute_lines(attr, indent, "")
            return "\n".join(nested.lines).lstrip()
        notes = _notes(attr.doc_string)
        if attr.is_ref():
            return f"{_word(attr.name)}: {ATTRIBUTE_NAMES[attr.type]} = @{_word(attr.ref_attr_name or '')}{notes}"
        if attr.type == ir.AttributeType.UNDEFINED:
            return _word(attr.name) + notes
        return (
            f"{_word(attr.name)}: {ATTRIBUTE_NAMES[attr.type]} = {self.attribute_value(attr.type, attr.value)}{notes}"
        )

    def attribute_value(self, kind: ir.AttributeType, value: Any) -> str:
        if kind in LIST_KINDS:
            return f"[{', '.join([self.attribute_value(LIST_KINDS[kind], item) for item in value])}]"
        match kind:
            case ir.AttributeType.INT:
                return str(value)
            case ir.AttributeType.FLOAT:
                return _float(np.float32(value))
            case ir.AttributeType.STRING:
                return quote(value)
            case ir.AttributeType.TENSOR:
                return self.tensor(value, value.name)
            case ir.AttributeType.SPARSE_TENSOR:
                return f"{_sparse_type(value)} {self.sparse(value, value.values.name)}"
            case ir.AttributeType.TYPE_PROTO:
                return _type(value.type, value.shape)
        raise AssertionError(kind)

    # Tensors

    def initializer(self, value: ir.Value, declared: bool) -> str:
        assert value.const_value is not None
        # A value that is also a graph input or output carries its notes there.
        notes = "" if declared else _value_notes(value)
        if isinstance(value.const_value, SparseInitializer):
            sparse = value.const_value.sparse
            return f"{_sparse_type(sparse)} {name(value.name or '')}{notes} = {self.sparse(sparse, None)}"
        return self.tensor(value.const_value, value.name, notes, " =")

    def sparse(self, sparse: SparseTensor, label: str | None) -> str:
        return f"({self.tensor(sparse.values, label)}, {self.tensor(sparse.indices, sparse.indices.name)})"

    def tensor(self, tensor: ir.TensorProtocol, label: str | None, notes: str = "", equals: str = "") -> str:
        dims = f"[{','.join([str(dim) for dim in tensor.shape])}]" if len(tensor.shape) else ""
        start = f"{TYPE_NAMES[tensor.dtype]}{dims}{' ' + name(label) if label else ''}{notes}"
        end = _notes(tensor.doc_string, tensor.metadata_props)
        if tensor.size > self.weights:
            return f'{start} = ["location": "sha256-{tensor_hash(tensor)}"]{end}'
        return f"{start}{equals} {_elements(tensor)}{end}"


def name(text: str) -> str:
    """Return ``text`` as an identifier, or quoted where it is not one."""
    if _IDENTIFIER.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    return quote(text)


def quote(text: str | bytes) -> str:
    r"""Return ``text`` in quotes with ``\\`` and ``\"`` escaped, or in hexadecimal where it is no printable text."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    try:
        readable = data.decode("utf-8")
    except UnicodeDecodeError:
        return f'x"{data.hex()}"'
    if _UNPRINTABLE.search(readable):
        return f'x"{data.hex()}"'
    escaped = readable.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _elements(tensor: ir.TensorProtocol) -> str:
    if tensor.dtype == ir.DataType.STRING:
        return "{" + ", ".join([quote(item) for item in string_items(tensor)]) + "}"
    data = tensor.tobytes()
    bits = tensor.dtype.bitwidth
    if len(data) != (tensor.size * bits + 7) // 8:
        return f'x"{data.hex()}"'
    if bits < 8:
        return "{" + ", ".join([str(item) for item in _unpack(tensor, data)]) + "}"
    elements = np.frombuffer(data, VALUE_DTYPES.get(tensor.dtype, f"<u{bits // 8}"))
    if elements.dtype.kind != "f":
        return "{" + ", ".join([str(item) for item in elements.tolist()]) + "}"
    patterns = elements.view(f"<u{elements.itemsize}")
    if not np.isin(patterns[np.isnan(elements)], _QUIET_NAN[elements.itemsize]).all():
        return f'x"{data.hex()}"'
    return "{" + ", ".join([_float(item) for item in elements]) + "}"


def _unpack(tensor: ir.TensorProtocol, data: bytes) -> list[int]:
    width = tensor.dtype.bitwidth
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: tensor.size * width]
    elements: list[int] = (bits.reshape(-1, width).astype(int) @ (1 << np.arange(width))).tolist()
    if tensor.dtype in SIGNED_PACKED:
        return [item - (1 << width) if item >= 1 << (width - 1) else item for item in elements]
    return elements


def _float(value: Any) -> str:
    if np.isnan(value):
        data = value.tobytes()
        pattern = int.from_bytes(data, "little")
        plain, negative = _QUIET_NAN[len(data)]
        return {plain: "nan", negative: "-nan"}.get(pattern, f'x"{data.hex()}"')
    text = str(value)
    # Read as a double and then rounded, the shortest text may miss its float by one unit; the long one cannot.
    if type(value)(float(text)) != value:
        text = repr(float(value))
    return text if any(c in text for c in ".en") else text + ".0"


def _operator(node: ir.Node) -> str:
    operator = _word(node.op_type)
    if not node.domain:
        return operator
    plain = all(_IDENTIFIER.fullmatch(part) for part in node.domain.split("."))
    return f"{node.domain if plain else quote(node.domain)}.{operator}"


def _word(text: str) -> str:
    return text if _IDENTIFIER.fullmatch(text) else quote(text)


def _type(kind: ir.TypeProtocol | None, shape: Any) -> str:
    if kind is None:
        return "?"
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        keyword = "seq" if isinstance(kind, ir.SequenceType) else "optional"
        text = f"{keyword}({_type(kind.elem_type, shape)})"
    elif isinstance(kind, ir.SparseTensorType):
        text = f"sparse_tensor({TYPE_NAMES[kind.dtype]}{_shape(shape)})"
    else:
        text = TYPE_NAMES[kind.dtype] + _shape(shape)
    return f"{text} @{quote(kind.denotation)}" if kind.denotation else text


def _shape(shape: ir.Shape | None) -> str:
    if shape is None:
        return "[]"
    if not len(shape):
        return ""
    dims = []
    for index, dim in enumerate(shape):
        text = str(dim) if isinstance(dim, int) else "?" if dim.value is None else name(dim.value)
        denotation = shape.get_denotation(index)
        dims.append(f"{text} @{quote(denotation)}" if denotation else text)
    return f"[{','.join(dims)}]"


def _sparse_type(sparse: SparseTensor) -> str:
    return _type(ir.SparseTensorType(sparse.values.dtype), ir.Shape(sparse.dims))


def _kept_type(proto: onnx.TypeProto) -> str:
    case = proto.WhichOneof("value")
    match case:
        case "map_type":
            key = TYPE_NAMES[ir.DataType(proto.map_type.key_type)]
            text = f"map({key}, {_kept_type(proto.map_type.value_type)})"
        case "sequence_type" | "optional_type":
            keyword = "seq" if case == "sequence_type" else "optional"
            text = f"{keyword}({_kept_type(getattr(proto, case).elem_type)})"
        case "opaque_type":
            text = f"opaque({quote(proto.opaque_type.domain)}, {quote(proto.opaque_type.name)})"
        case _:
            return _type(*_type_and_shape(proto))
    return f"{text} @{quote(proto.denotation)}" if proto.denotation else text


def _type_and_shape(proto: onnx.TypeProto) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
    return serde.deserialize_type_proto_for_type(proto), serde.deserialize_type_proto_for_shape(proto)


def _has_description(value: ir.Value) -> bool:
    return value.type is not None or kept_type(value) is not None or bool(_value_notes(value))


def _value(value: ir.Value) -> str:
    kept = kept_type(value)
    start = "" if value.type is None else _type(value.type, value.shape) + " "
    if kept is not None:
        start = _kept_type(kept) + " "
    return f"{start}{name(value.name or '')}{_value_notes(value)}"


def _value_notes(value: ir.Value) -> str:
    annotation = _map_field("quantization_annotation", quantization_annotation(value))
    return _notes(value.doc_string, value.metadata_props, annotation)


def _notes(doc_string: str | None, metadata: Mapping[str, str] | None = None, more: Sequence[str] = ()) -> str:
    if not (doc_string or metadata or more):
        return ""
    return f" @{{{', '.join([*_texts(doc_string=doc_string), *_map_field('metadata_props', metadata or {}), *more])}}}"


def _texts(**fields: str | None) -> list[str]:
    return [f"{key}: {quote(text)}" for key, text in fields.items() if text]


def _map_field(key: str, entries: Mapping[str, str]) -> list[str]:
    if not entries:
        return []
    return [f"{key}: [{', '.join(f'{quote(k)}: {quote(v)}' for k, v in entries.items())}]"]


def _opsets(opsets: Mapping[str, int]) -> str:
    return f"[{', '.join(f'{quote(domain)} : {version}' for domain, version in opsets.items())}]"


def _separated(items: Sequence[str], indent: str) -> list[str]:
    return [indent + item + ("," if index < len(items) else "") for index, item in enumerate(items, 1)]


def _holds_graphs(attr: ir.Attr) -> bool:
    return attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) and not attr.is_ref()


def _device_configurations(node: ir.Node) -> list[str]:
    if not node.device_configurations:
        return []
    parts = []
    for config in node.device_configurations:
        shardings = [_sharding(spec) for spec in config.sharding_specs]
        parts.append([config.configuration and config.configuration.name, shardings, config.pipeline_stage])
    return [f"device_configurations: {_plain(parts)}"]


def _sharding(spec: Any) -> list[object]:
    groups = [[entry.key, list(entry.value)] for entry in spec.index_to_device_group_map]
    dims = []
    for dim in spec.sharded_dims:
        simple = [[s.dim if isinstance(s.dim, int) else s.dim.value, s.num_shards] for s in dim.simple_shardings]
        dims.append([dim.axis, simple])
    return [spec.value and spec.value.name, list(spec.device), groups, dims]


def _plain(value: object) -> str:
    if value is None:
        return "?"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, list):
        return f"[{', '.join([_plain(item) for item in value])}]"
    return str(value)
