"""Copies of a model-local function's body, made for one call of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir

from graphopt.ir.query import subgraphs

Identifier = tuple[str, str, str]


def instantiate(
    function: onnx_ir.Function, call: onnx_ir.Node, rename: Callable[[str], str]
) -> tuple[list[onnx_ir.Node], list[onnx_ir.Value | None]]:
    """Return copies of the nodes of ``function``, reading the inputs of ``call``, and the values for its outputs.

    ``rename`` makes names unique. References to attributes are resolved by those of ``call``, then by the function's
    defaults; an attribute that neither gives is left out. An output is ``None`` when the body passes on an input that
    ``call`` lacks.
    """
    attributes = {name: attr for name, attr in function.attributes.items() if attr.value is not None}
    attributes.update(call.attributes)
    given = [*call.inputs, *[None] * (len(function.inputs) - len(call.inputs))]
    copier = _Copier(attributes, dict(zip(function.inputs, given, strict=False)), rename)
    nodes = [copier.node(node) for node in function]
    return nodes, [copier.values.get(value) for value in function.outputs]


def call_graph(model: onnx_ir.Model) -> dict[Identifier, list[Identifier]]:
    """Return for each model-local function the functions that its body calls, once for each call."""
    return {key: calls(function, model) for key, function in model.functions.items()}


def calls(body: Iterable[onnx_ir.Node], model: onnx_ir.Model) -> list[Identifier]:
    """Return the model-local functions that nodes, and the graphs nested in them, call, once for each call."""
    return [node.op_identifier() for node in all_nodes(body) if node.op_identifier() in model.functions]


def all_nodes(body: Iterable[onnx_ir.Node]) -> list[onnx_ir.Node]:
    """Return nodes together with those of the graphs nested in them."""
    found: list[onnx_ir.Node] = []
    stack = list(body)
    while stack:
        node = stack.pop()
        found.append(node)
        stack.extend(inner for graph in subgraphs(node) for inner in graph)
    return found


def expanded_sizes(model: onnx_ir.Model) -> dict[Identifier, int | None]:
    """Return how many nodes each function has with all calls inlined, ``None`` for one that calls itself."""
    called = call_graph(model)
    sizes: dict[Identifier, int | None] = {}
    open_calls: set[Identifier] = set()
    stack = [(key, False) for key in called]
    while stack:
        key, done = stack.pop()
        if done:
            open_calls.discard(key)
            inner = [sizes.get(callee) for callee in called[key]]
            known = [size for size in inner if size is not None]
            own = len(all_nodes(model.functions[key])) - len(inner)
            sizes[key] = own + sum(known) if len(known) == len(inner) else None
        elif key not in sizes and key not in open_calls:
            open_calls.add(key)
            stack.append((key, True))
            stack.extend((callee, False) for callee in called[key])
    return sizes


class _Copier:
    def __init__(
        self,
        attributes: dict[str, onnx_ir.Attr],
        values: dict[onnx_ir.Value, onnx_ir.Value | None],
        rename: Callable[[str], str],
    ):
        self.attributes = attributes
        self.values = values
        self.rename = rename

    def node(self, node: onnx_ir.Node) -> onnx_ir.Node:
        inputs = [None if value is None else self.values.get(value, value) for value in node.inputs]
        attributes = [copy for attr in node.attributes.values() if (copy := self._attribute(attr)) is not None]
        outputs = [self._define(value) for value in node.outputs]
        return onnx_ir.Node(
            node.domain,
            node.op_type,
            inputs,
            attributes,
            overload=node.overload,
            outputs=outputs,
            name=self.rename(node.name or node.op_type),
            doc_string=node.doc_string,
            metadata_props=dict(node.metadata_props),
        )

    def _define(self, value: onnx_ir.Value) -> onnx_ir.Value:
        copy = onnx_ir.Value(name=self.rename(value.name) if value.name else "")
        self.values[value] = copy
        return copy

    def _attribute(self, attr: onnx_ir.Attr) -> onnx_ir.Attr | None:
        if attr.is_ref():
            found = self.attributes.get(attr.ref_attr_name or "")
            return None if found is None else onnx_ir.Attr(attr.name, found.type, found.value)
        if attr.type == onnx_ir.AttributeType.GRAPH:
            return onnx_ir.AttrGraph(attr.name, self._graph(attr.as_graph()))
        if attr.type == onnx_ir.AttributeType.GRAPHS:
            return onnx_ir.AttrGraphs(attr.name, [self._graph(graph) for graph in attr.as_graphs()])
        return attr

    def _graph(self, graph: onnx_ir.Graph) -> onnx_ir.Graph:
        inputs = [self._define(value) for value in graph.inputs]
        initializers = []
        for value in graph.initializers.values():
            copy = self.values.get(value) if value.is_graph_input() else self._define(value)
            if copy is not None:
                copy.const_value = value.const_value
                initializers.append(copy)
        nodes = [self.node(node) for node in graph]
        outputs = [copy for value in graph.outputs if (copy := self.values.get(value, value)) is not None]
        return onnx_ir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=initializers,
            opset_imports=dict(graph.opset_imports),
            name=graph.name,
            doc_string=graph.doc_string,
            metadata_props=dict(graph.metadata_props),
        )
