"""The content hash of a whole model.

Two models have the same fingerprint exactly when they would be written to the same file, apart from what carries no
meaning: the order of initializers, attributes, metadata and opset imports, and how a tensor's bytes are stored (typed
fields, raw bytes or an external file). Types of intermediate values are left out, because analyses annotate them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.tensors import kept_type, quantization_annotation, tensor_hash

__all__ = ["fingerprint", "tensor_hash"]


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
    parts += sorted(_initializer(v, v.const_value) for v in graph.initializers.values() if v.const_value is not None)
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
    kept = kept_type(value)
    kind = _type(value.type, value.shape) if kept is None else kept.SerializeToString(deterministic=True)
    return *_value(value), kind


def _initializer(value: ir.Value, tensor: ir.TensorProtocol) -> tuple[object, ...]:
    return *_value(value), _tensor(tensor)


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


def operation_key(node: ir.Node) -> tuple[str, ...] | None:
    """Return what ``node`` does, its inputs apart, as something to compare: operator, overload and attributes.

    Tensors count by content. ``None`` for a node with nested graphs or references to attributes of a function.
    """
    parts = [node.domain, node.op_type, node.overload]
    for name in sorted(node.attributes):
        attr = node.attributes[name]
        if attr.is_ref() or attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return None
        tensor = attr.type == ir.AttributeType.TENSOR
        value = tensor_hash(attr.as_tensor()) if tensor else _attribute_value(attr.type, attr.value)
        parts += [name, attr.type.name, ascii(value)]
    return tuple(parts)


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
