"""Cuts out of a model what computes some values from constants, as a small model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir

from graphopt.errors import ModelError
from graphopt.ir.query import is_constant, place, subgraphs, tensor_of
from graphopt.ir.tensors import SparseTensor, string_items


def extract(
    model: onnx_ir.Model, values: Sequence[onnx_ir.Value]
) -> tuple[bytes, dict[str, np.ndarray[Any, Any]], list[str]]:
    """Return (serialized model, its feeds, its output names) that computes ``values`` from the constants behind them.

    Constants become inputs of the small model, so that large ones are not serialized. Raises ModelError when a value
    depends on something that is not constant.
    """
    order, feeds = _behind(values)
    names = {value: f"v{index}" for index, value in enumerate([*feeds, *(o for node in order for o in node.outputs)])}
    graph = onnx.GraphProto(name="constants")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for value, tensor in feeds.items():
        arrays[names[value]] = _array(tensor)
        info = onnx.helper.make_tensor_value_info(names[value], int(tensor.dtype.value), list(tensor.shape.numpy()))
        graph.input.append(info)
    for node in order:
        graph.node.append(_renamed(node, names))
    for value in values:
        graph.output.append(onnx.ValueInfoProto(name=names[value]))
    imports = [onnx.OperatorSetIdProto(domain=d, version=v) for d, v in sorted(model.opset_imports.items())]
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4), graph=graph, opset_import=imports)
    return proto.SerializeToString(), arrays, [names[value] for value in values]


def _behind(
    values: Sequence[onnx_ir.Value],
) -> tuple[list[onnx_ir.Node], dict[onnx_ir.Value, onnx_ir.TensorProtocol]]:
    """Return the nodes behind ``values`` in an order in which they can run, and the constants that they read."""
    feeds: dict[onnx_ir.Value, onnx_ir.TensorProtocol] = {}
    order: dict[onnx_ir.Node, None] = {}
    stack: list[tuple[onnx_ir.Value, bool]] = [(value, False) for value in reversed(values)]
    while stack:
        value, ready = stack.pop()
        node = value.producer()
        if value in feeds or (node is not None and node in order):
            continue
        tensor = tensor_of(value) if is_constant(value) else None
        if tensor is not None:
            feeds[value] = tensor
        elif node is None or subgraphs(node):
            raise ModelError(f"value {value.name!r} does not depend on constants alone")
        elif ready:
            order[node] = None
        else:
            stack.append((value, True))
            stack.extend((read, False) for read in node.inputs if read is not None)
    return list(order), feeds


def _renamed(node: onnx_ir.Node, names: dict[onnx_ir.Value, str]) -> onnx.NodeProto:
    """Return the node as a protobuf with plain names, which cannot clash whatever the model's own names are."""
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=place(node))
    proto.input.extend("" if value is None else names[value] for value in node.inputs)
    proto.output.extend(names[value] if value.name else "" for value in node.outputs)
    for attribute in node.attributes.values():
        write_attribute(attribute, proto)
    return proto


def write_attribute(attribute: onnx_ir.Attr, node: onnx.NodeProto) -> None:
    """Append an attribute to a node's protobuf, sparse tensors included, which onnx-ir does not know."""
    kinds, kind = onnx_ir.AttributeType, attribute.type
    # Nearly every attribute is one of these two, and onnx-ir's general way takes ten times as long.
    if kind == kinds.INTS and not attribute.is_ref():
        node.attribute.add(name=attribute.name, type=kind.value, ints=attribute.value)
    elif kind == kinds.INT and not attribute.is_ref():
        node.attribute.add(name=attribute.name, type=kind.value, i=attribute.value)
    elif attribute.is_ref():
        onnx_ir.serde.serialize_reference_attribute_into(node.attribute.add(), attribute)
    elif attribute.type in (kinds.SPARSE_TENSOR, kinds.SPARSE_TENSORS):
        proto = node.attribute.add(name=attribute.name, type=int(attribute.type.value))
        one = attribute.type == kinds.SPARSE_TENSOR
        for sparse in [attribute.value] if one else attribute.value:
            _write_sparse(sparse, proto.sparse_tensor if one else proto.sparse_tensors.add())
    else:
        onnx_ir.serde.serialize_attribute_into(node.attribute.add(), attribute)


def _array(tensor: onnx_ir.TensorProtocol) -> np.ndarray[Any, Any]:
    """Return the tensor's array; strings as text, because the runtime reads past the end of byte strings."""
    if tensor.dtype != onnx_ir.DataType.STRING:
        return tensor.numpy()
    try:
        texts = [item.decode() for item in string_items(tensor)]
    except UnicodeDecodeError as error:
        raise ModelError(f"tensor {tensor.name!r} holds bytes that are no UTF-8 text") from error
    return np.array(texts, dtype=object).reshape(tensor.shape.numpy())


def _write_sparse(sparse: SparseTensor, proto: onnx.SparseTensorProto) -> None:
    onnx_ir.serde.serialize_tensor_into(proto.values, sparse.values)
    onnx_ir.serde.serialize_tensor_into(proto.indices, sparse.indices)
    proto.dims.extend(sparse.dims)
