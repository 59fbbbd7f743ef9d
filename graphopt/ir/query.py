"""Read-only questions about a model: constants, shapes, attributes, nested graphs. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir

from graphopt.ir.tensors import size_of

NESTING = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""The operators of ONNX's own domain that hold graphs."""
_GRAPH, _GRAPHS = onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS

Dim = int | str | None
"""One dimension: its size, the name of a symbolic size, or ``None`` when nothing is known."""


def graphs(model: onnx_ir.Model) -> Iterator[onnx_ir.Graph]:
    """Yield the main graph and every graph nested in it, outer before inner. Function bodies are not included."""
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        inner = [sub for node in graph for sub in subgraphs(node)]
        stack.extend(reversed(inner))


def subgraphs(node: onnx_ir.Node) -> list[onnx_ir.Graph]:
    """Return the graphs that ``node`` holds as attributes (branches of If, bodies of Loop and Scan)."""
    if not _may_nest(node.domain, node.op_type):
        return []
    found: list[onnx_ir.Graph] = []
    # ``data`` is the plain dict inside; this runs for every node of every walk.
    for attribute in node.attributes.data.values():
        kind = attribute.type
        if kind is _GRAPH and not attribute.is_ref():
            found.append(attribute.as_graph())
        elif kind is _GRAPHS and not attribute.is_ref():
            found.extend(attribute.as_graphs())
    return found


@lru_cache(maxsize=4096)
def _may_nest(domain: str, operator: str) -> bool:
    """Tell whether an operator may hold graphs: those of ONNX that do, and all that ONNX does not know."""
    return domain != "" or operator in NESTING or not onnx.defs.has(operator)


def nodes(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    """Yield every node of the main graph and of the graphs nested in it."""
    for graph in graphs(model):
        yield from graph


def opset(model: onnx_ir.Model, domain: str = "") -> int:
    """Return the version of ``domain`` that the model imports, 0 when it imports none."""
    return model.opset_imports.get(domain, 0)


def attr(node: onnx_ir.Node, name: str, default: Any = None) -> Any:
    """Return an attribute as a plain Python value (int, float, str, list, tensor or graph), or ``default``."""
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref():
        return default
    value = attribute.value
    return list(value) if isinstance(value, tuple) else value


def is_constant(value: onnx_ir.Value | None) -> bool:
    """Tell whether ``value`` is an initializer that no caller can override, or the output of a Constant node."""
    if value is None:
        return False
    if value.const_value is not None:
        return value.is_initializer() and not value.is_graph_input()
    producer = value.producer()
    return producer is not None and producer.op_type == "Constant" and producer.domain == ""


def tensor_of(value: onnx_ir.Value | None) -> onnx_ir.TensorProtocol | None:
    """Return the tensor behind a constant without touching its data, or ``None``."""
    if value is None or not is_constant(value):
        return None
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    return constant_node_tensor(producer) if producer is not None else None


def constant_node_tensor(node: onnx_ir.Node) -> onnx_ir.TensorProtocol | None:
    """Return what a Constant node holds as a tensor; ``None`` for a sparse one or an attribute reference."""
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return cast("onnx_ir.TensorProtocol", attribute.value)
        if name in ("value_float", "value_floats"):
            return onnx_ir.Tensor(np.asarray(attribute.value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return onnx_ir.Tensor(np.asarray(attribute.value, dtype=np.int64))
        if name == "value_string":
            return onnx_ir.StringTensor([_as_bytes(attribute.value)], shape=onnx_ir.Shape([]))
        if name == "value_strings":
            texts = [_as_bytes(text) for text in attribute.value]
            return onnx_ir.StringTensor(texts, shape=onnx_ir.Shape([len(texts)]))
    return None


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def constant(value: onnx_ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Return the array of a constant (initializer or Constant node), or ``None`` when ``value`` is computed.

    The array may be a view of a memory-mapped file: do not write to it.
    """
    tensor = tensor_of(value)
    return None if tensor is None else tensor.numpy()


def constant_size(value: onnx_ir.Value | None) -> int | None:
    """Return the number of elements of a constant without touching its data, or ``None``."""
    tensor = tensor_of(value)
    return None if tensor is None else size_of(tensor)


def scalar(value: onnx_ir.Value | None) -> Any:
    """Return the single element of a one-element constant as a Python number, or ``None``."""
    tensor = tensor_of(value)
    if tensor is None or size_of(tensor) != 1:
        return None
    return tensor.numpy().reshape(-1)[0].item()


def ints(value: onnx_ir.Value | None) -> list[int] | None:
    """Return a constant integer tensor, flattened, as a list of ints, or ``None``."""
    tensor = tensor_of(value)
    if tensor is None or tensor.dtype not in (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32):
        return None
    return [int(item) for item in tensor.numpy().reshape(-1)]


def shape_of(value: onnx_ir.Value | None) -> tuple[Dim, ...] | None:
    """Return the known shape, symbolic dimensions by name and unknown ones as ``None``; ``None`` for unknown rank."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape.dims)


def static_shape(value: onnx_ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape when every dimension is a known size, else ``None``."""
    if value is None or value.shape is None:
        return None
    dims = value.shape.dims
    for dim in dims:
        if not isinstance(dim, int):
            return None
    return cast("tuple[int, ...]", tuple(dims))


def rank_of(value: onnx_ir.Value | None) -> int | None:
    """Return the number of dimensions, or ``None`` when unknown."""
    return None if value is None or value.shape is None else len(value.shape.dims)


def same_shape(a: onnx_ir.Value | None, b: onnx_ir.Value | None) -> bool:
    """Tell whether both shapes are known and provably equal (symbolic dimensions compare by name)."""
    left, right = shape_of(a), shape_of(b)
    return left is not None and left == right and None not in left


def reads(node: onnx_ir.Node) -> list[onnx_ir.Value]:
    """Return what ``node`` reads, captures of its nested graphs included, each value once."""
    found: dict[onnx_ir.Value, None] = {value: None for value in node.inputs if value is not None}
    stack = subgraphs(node)
    inner: set[onnx_ir.Graph] = set()
    while stack:
        graph = stack.pop()
        inner.add(graph)
        found.update((value, None) for value in graph.outputs)
        for nested in graph:
            found.update((value, None) for value in nested.inputs if value is not None)
            stack.extend(subgraphs(nested))
    return [value for value in found if value.graph not in inner]


def use_count(value: onnx_ir.Value) -> int:
    """Return how many inputs read ``value``; constant time, where ``len(value.uses())`` copies them all."""
    return len(value._uses)


def is_used_by(value: onnx_ir.Value, node: onnx_ir.Node, index: int) -> bool:
    """Tell whether ``value`` knows that input ``index`` of ``node`` reads it; constant time."""
    return (node, index) in value._uses


def is_read(value: onnx_ir.Value) -> bool:
    """Tell whether a node or a graph output reads ``value``; constant time."""
    return bool(value._uses) or value.is_graph_output()


def sole_use(value: onnx_ir.Value) -> onnx_ir.Node | None:
    """Return the only node that reads ``value``, provided it reads it once and ``value`` is no graph output."""
    if use_count(value) != 1 or value.is_graph_output():
        return None
    return next(iter(value.uses())).node


def describe(node: onnx_ir.Node) -> str:
    """Return one node as a line of text, attributes shortened."""
    outputs = ", ".join(_quoted(value) for value in node.outputs)
    inputs = ", ".join(_quoted(value) for value in node.inputs)
    attributes = ", ".join(f"{name}={_short(attribute)}" for name, attribute in node.attributes.items())
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"{outputs} = {operator}{f' <{attributes}>' if attributes else ''}({inputs})"


def around(node: onnx_ir.Node, lines: int = 1) -> str:
    """Return the lines of IR around ``node``, its own marked with ``>``: its producers, itself, its consumers."""
    before = [value.producer() for value in node.inputs if value is not None]
    after = [use.node for value in node.outputs for use in value.uses()]
    text = [f"  {describe(n)}" for n in dict.fromkeys(before) if n is not None][-lines - 1 :]
    text.append(f"> {describe(node)}")
    text += [f"  {describe(n)}" for n in dict.fromkeys(after)][: lines + 1]
    return "\n".join(text)


def place(node: onnx_ir.Node) -> str:
    """Return how an error names ``node``: its operator and its name, or its first output when it has no name."""
    name = node.name or next((value.name for value in node.outputs if value.name), "")
    return f"{node.op_type} node {name!r}"


def _quoted(value: onnx_ir.Value | None) -> str:
    return "''" if value is None else f"%{value.name}"


def _short(attribute: onnx_ir.Attr) -> str:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type in (onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS):
        return "{...}"
    if attribute.type in (onnx_ir.AttributeType.TENSOR, onnx_ir.AttributeType.TENSORS):
        return "<tensor>"
    text = repr(list(attribute.value) if isinstance(attribute.value, tuple) else attribute.value)
    return text if len(text) <= 40 else f"{text[:37]}..."
