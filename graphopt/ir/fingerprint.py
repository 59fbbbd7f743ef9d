"""Content hashes: of one tensor, and of a whole model.

Two models have the same fingerprint exactly when they would be written to the same file, apart from what carries no
meaning: the order of initializers, attributes, metadata and opset imports, and how a tensor's bytes are stored (typed
fields, raw bytes or an external file). Types of intermediate values are left out, because analyses annotate them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError

_CACHE_KEY = "graphopt.sha256"
_QUANTIZATION_KEY = "quant_parameter_tensor_names"


class UnresolvedTensor(ir.LazyTensor):
    """A tensor known by dtype, shape and content hash only, as a text dump without its weights leaves it.

    It has a :func:`tensor_hash` and so a place in a :func:`fingerprint`; asking for its data raises ModelError.
    """

    def __init__(self, dtype: ir.DataType, dims: Iterable[int], content_hash: str, *, name: str | None = None):
        super().__init__(self._refuse, dtype, ir.Shape(dims, frozen=True), name=name)
        self.meta[_CACHE_KEY] = content_hash

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"the data of tensor {self.name!r} is not here, only its hash sha256-{tensor_hash(self)}",
            hint="parse the text with resolve=..., or take the tensor from the model that was dumped",
        )


def tensor_hash(tensor: ir.TensorProtocol) -> str:
    """Return the hex sha256 over dtype, shape and content of ``tensor``; its name does not count.

    The bytes are those of ONNX's raw form (little endian, packed below one byte an element). An external tensor is read
    in chunks. The result is kept on the tensor, whose content never changes. Raises OSError or ValueError when external
    data is missing or lies outside the model's folder.
    """
    known = tensor.meta.get(_CACHE_KEY)
    if isinstance(known, str):
        return known
    digest = hashlib.sha256(f"{tensor.dtype.name}{list(tensor.shape.dims)}\n".encode())
    if tensor.dtype == ir.DataType.STRING:
        for item in string_items(tensor):
            digest.update(struct.pack("<q", len(item)) + item)
    elif isinstance(tensor, ir.ExternalTensor) and tensor.size:
        tensor.tofile(_DigestFile(digest))
    else:
        digest.update(_mask_padding(tensor, tensor.tobytes()))
    result = digest.hexdigest()
    tensor.meta[_CACHE_KEY] = result
    return result


def string_items(tensor: ir.TensorProtocol) -> list[bytes]:
    """Return the elements of a string tensor, in order, as bytes."""
    items = tensor.string_data() if isinstance(tensor, ir.StringTensor) else tensor.numpy().reshape(-1).tolist()
    return [item.encode() if isinstance(item, str) else bytes(item) for item in items]


def quantization_annotation(value: ir.Value) -> dict[str, str]:
    """Return the names of the tensors that hold the quantization parameters of ``value``, by role."""
    return dict(value.meta.get(_QUANTIZATION_KEY) or {})


def set_quantization_annotation(value: ir.Value, names: Mapping[str, str]) -> None:
    """Record the names of the tensors that hold the quantization parameters of ``value``, by role."""
    value.meta[_QUANTIZATION_KEY] = dict(names)


def fingerprint(model: ir.Model) -> str:
    """Return the hex sha256 of everything that a saved ``model`` would hold, types of intermediate values apart."""
    functions = sorted((f.identifier(), _function_digest(f)) for f in model.functions.values())
    header = (
        model.ir_version,
        sorted(model.opset_imports.items()),
        model.producer_name or "",
        model.producer_version or "",
        model.domain or "",
        model.model_version or 0,
        model.doc_string or "",
        sorted(model.metadata_props.items()),
        [dataclasses.astuple(configuration) for configuration in model.device_configurations],
    )
    return _digest([header, _graph_digest(model.graph), *functions])


class _DigestFile:
    """A file to write to, which keeps only the hash."""

    def __init__(self, digest: Any):
        self._digest = digest

    def write(self, data: bytes) -> None:
        self._digest.update(data)


def _mask_padding(tensor: ir.TensorProtocol, data: bytes) -> bytes:
    # ONNX leaves the unused high bits of the last byte of a 2- or 4-bit tensor open; they are no content.
    used = tensor.size * tensor.dtype.bitwidth % 8
    if not used or not data:
        return data
    return data[:-1] + bytes([data[-1] & ((1 << used) - 1)])


def _digest(parts: Iterable[object]) -> str:
    # ascii() of nested tuples of str, bytes and int is unambiguous, and fast because it is one call into C.
    digest = hashlib.sha256()
    for part in parts:
        digest.update(ascii(part).encode())
    return digest.hexdigest()


def _graph_digest(graph: ir.Graph) -> str:
    parts: list[object] = [(graph.name or "", graph.doc_string or "", sorted(graph.metadata_props.items()))]
    parts.append([_typed_value(value) for value in graph.inputs])
    parts.append([_typed_value(value) for value in graph.outputs])
    parts += sorted(_initializer(name, value) for name, value in graph.initializers.items())
    parts += (_node(node) for node in graph)
    return _digest(parts)


def _function_digest(function: ir.Function) -> str:
    header = (
        sorted(function.opset_imports.items()),
        function.doc_string or "",
        sorted(function.metadata_props.items()),
        [value.name for value in function.inputs],
        [value.name for value in function.outputs],
        sorted(_attribute(attr) for attr in function.attributes.values()),
    )
    return _digest([header, *(_node(node) for node in function)])


def _node(node: ir.Node) -> tuple[object, ...]:
    outputs = [_value(value) for value in node.outputs]
    while outputs and not outputs[-1][0]:
        outputs.pop()  # an unnamed last output is the same as none, and is not written
    return (
        node.domain,
        node.op_type,
        node.overload,
        node.name or "",
        [value.name if value is not None else "" for value in node.inputs],
        outputs,
        sorted(_attribute(attr) for attr in node.attributes.values()),
        node.doc_string or "",
        sorted(node.metadata_props.items()),
        [_device_part(part) for part in node.device_configurations],
    )


def _device_part(part: Any) -> object:
    if isinstance(part, ir.Value):
        return part.name
    if isinstance(part, ir.ModelConfiguration):
        return part.name
    if isinstance(part, ir.SymbolicDim):
        return part.value
    if isinstance(part, tuple):
        return [_device_part(item) for item in part]
    if dataclasses.is_dataclass(part):
        return [_device_part(getattr(part, field.name)) for field in dataclasses.fields(part)]
    return part


def _value(value: ir.Value) -> tuple[object, ...]:
    annotation = sorted(quantization_annotation(value).items())
    return value.name or "", value.doc_string or "", sorted(value.metadata_props.items()), annotation


def _typed_value(value: ir.Value) -> tuple[object, ...]:
    return *_value(value), _type(value.type, value.shape)


def _initializer(name: str, value: ir.Value) -> tuple[object, ...]:
    tensor = value.const_value
    return name, _value(value), _tensor(tensor) if tensor is not None else ()


def _tensor(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    return tensor_hash(tensor), tensor.doc_string or "", sorted(tensor.metadata_props.items())


def _type(kind: ir.TypeProtocol | None, shape: ir.Shape | None) -> tuple[object, ...]:
    if kind is None:
        return ()
    denotation = kind.denotation or ""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return type(kind).__name__, denotation, _type(kind.elem_type, shape)
    dims = None if shape is None else [_dim(dim, shape.get_denotation(i)) for i, dim in enumerate(shape)]
    return type(kind).__name__, denotation, kind.dtype.name, dims


def _dim(dim: int | ir.SymbolicDim, denotation: str | None) -> object:
    size = dim if isinstance(dim, int) else dim.value
    return (size, denotation) if denotation else size


def _attribute(attr: ir.Attr) -> tuple[object, ...]:
    value = ("ref", attr.ref_attr_name) if attr.is_ref() else _attribute_value(attr.type, attr.value)
    return attr.name, attr.type.name, value, attr.doc_string or ""


_LISTS = {
    ir.AttributeType.FLOATS: ir.AttributeType.FLOAT,
    ir.AttributeType.STRINGS: ir.AttributeType.STRING,
    ir.AttributeType.TENSORS: ir.AttributeType.TENSOR,
    ir.AttributeType.GRAPHS: ir.AttributeType.GRAPH,
    ir.AttributeType.SPARSE_TENSORS: ir.AttributeType.SPARSE_TENSOR,
    ir.AttributeType.TYPE_PROTOS: ir.AttributeType.TYPE_PROTO,
}


def _attribute_value(kind: ir.AttributeType, value: Any) -> object:
    if value is None:
        return None
    if kind in _LISTS:
        return [_attribute_value(_LISTS[kind], item) for item in value]
    match kind:
        case ir.AttributeType.FLOAT:
            return np.float32(value).tobytes()
        case ir.AttributeType.STRING:
            return value.encode() if isinstance(value, str) else bytes(value)
        case ir.AttributeType.TENSOR:
            return value.name or "", _tensor(value)
        case ir.AttributeType.GRAPH:
            return _graph_digest(value)
        case ir.AttributeType.SPARSE_TENSOR:
            parts = [(part.name or "", _tensor(part)) for part in (value.values, value.indices)]
            return list(value.dims), parts
        case ir.AttributeType.TYPE_PROTO:
            return _type(value.type, value.shape)
    return value
