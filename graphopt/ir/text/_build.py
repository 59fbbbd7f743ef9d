"""Turn a syntax tree into a model: names become values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from graphopt.ir.tensors import TYPE_KEY, SparseInitializer, SparseTensor, set_quantization_annotation
from graphopt.ir.text._lexer import Name, Source, nearest
from graphopt.ir.text._parser import AttributeSyntax, FunctionSyntax, GraphSyntax, NodeSyntax, ValueSyntax

DEFAULT_IR_VERSION = 10
DEFAULT_OPSET = 21

Scope = dict[str, ir.Value]


class Builder:
    """Builds IR objects; ``source`` is for messages."""

    def __init__(self, source: Source):
        self.source = source
        self.configurations: dict[str, ir.ModelConfiguration] = {}

    def model(self, header: Mapping[str, Any], graph: GraphSyntax, functions: list[FunctionSyntax]) -> ir.Model:
        configurations = [
            ir.ModelConfiguration(name, devices, tuple(names))
            for name, devices, names in header.get("device_configurations", ())
        ]
        self.configurations = {configuration.name: configuration for configuration in configurations}
        main = self.graph(graph, [])
        main.opset_imports.update(header.get("opset_import", {"": DEFAULT_OPSET}))
        return ir.Model(
            main,
            ir_version=header.get("ir_version", DEFAULT_IR_VERSION),
            producer_name=header.get("producer_name"),
            producer_version=header.get("producer_version"),
            domain=header.get("domain"),
            model_version=header.get("model_version"),
            doc_string=header.get("doc_string"),
            functions=[self.function(function) for function in functions],
            metadata_props=header.get("metadata_props"),
            device_configurations=tuple(configurations),
        )

    def function(self, syntax: FunctionSyntax) -> ir.Function:
        header = syntax.header
        graph = self.graph(syntax.graph, [])
        graph.name = ""
        graph.doc_string = header.get("doc_string")
        graph.metadata_props.update(header.get("metadata_props", {}))
        graph.opset_imports.update(header.get("opset_import", {}))
        return ir.Function(
            header.get("domain", ""),
            syntax.graph.name,
            header.get("overload", ""),
            graph=graph,
            attributes=syntax.attributes,
        )

    def graph(self, syntax: GraphSyntax, outer: list[Scope]) -> ir.Graph:
        scope: Scope = {}
        scopes = [*outer, scope]
        inputs = [self.define(value.name, scope) for value in syntax.inputs]
        for value, declared in zip(inputs, syntax.inputs, strict=True):
            _describe(value, declared)
        initializers = [
            self.initializer(entry, scope) for entry in [*syntax.inputs, *syntax.entries] if entry.data is not None
        ]
        # Outputs first: the nodes of a graph need not be in order, and a subgraph may come before what it captures.
        outputs = [[self.define(name, scope) for name in node.outputs] for node in syntax.nodes]
        for entry in syntax.entries:
            if entry.data is None:
                _describe(self.find(entry.name, [scope]), entry)
        nodes = [self.node(node, values, scopes) for node, values in zip(syntax.nodes, outputs, strict=True)]
        results = [self.find(value.name, [scope]) for value in syntax.outputs]
        for value, declared in zip(results, syntax.outputs, strict=True):
            _describe(value, declared)
        return ir.Graph(
            inputs,
            results,
            nodes=nodes,
            initializers=initializers,
            name=syntax.name,
            doc_string=syntax.notes.get("doc_string"),
            metadata_props=syntax.notes.get("metadata_props"),
        )

    def define(self, name: Name, scope: Scope) -> ir.Value:
        value = ir.Value(name=name.text)
        if not name.text:
            return value  # an output that is left out
        if name.text in scope:
            raise self.source.error(f"{name.text!r} is defined twice", name.at)
        scope[name.text] = value
        return value

    def initializer(self, entry: ValueSyntax, scope: Scope) -> ir.Value:
        value = scope.get(entry.name.text)
        if value is None:
            value = self.define(entry.name, scope)
            _describe(value, entry)
        if value.const_value is not None:
            raise self.source.error(f"{entry.name.text!r} is defined twice", entry.name.at)
        if isinstance(entry.data, SparseTensor):
            entry.data.values.name = entry.name.text
            value.const_value = SparseInitializer(entry.data)
            value.type = ir.TensorType(entry.data.values.dtype)
        else:
            value.const_value = entry.data
        return value

    def find(self, name: Name, scopes: list[Scope]) -> ir.Value:
        for scope in reversed(scopes):
            if name.text in scope:
                return scope[name.text]
        known = [text for scope in scopes for text in scope]
        raise self.source.error(f"{name.text!r} is not defined", name.at, nearest(name.text, known))

    def node(self, syntax: NodeSyntax, outputs: list[ir.Value], scopes: list[Scope]) -> ir.Node:
        notes = syntax.notes
        return ir.Node(
            syntax.domain,
            syntax.op_type,
            [self.find(name, scopes) if name.text else None for name in syntax.inputs],
            [a if isinstance(a, ir.Attr) else self.attribute(a, scopes) for a in syntax.attributes],
            overload=syntax.overload,
            outputs=outputs,
            name=syntax.name,
            doc_string=notes.get("doc_string"),
            metadata_props=notes.get("metadata_props"),
            device_configurations=tuple(
                self.device_configuration(part, scopes) for part in notes.get("device_configurations", ())
            ),
        )

    def attribute(self, syntax: AttributeSyntax, scopes: list[Scope]) -> ir.Attr:
        graphs = [self.graph(graph, scopes) for graph in syntax.graphs]
        value = graphs[0] if syntax.kind == ir.AttributeType.GRAPH else graphs
        return ir.Attr(syntax.name, syntax.kind, value, doc_string=syntax.notes.get("doc_string"))

    def device_configuration(self, part: Any, scopes: list[Scope]) -> ir.NodeDeviceConfiguration:
        name, shardings, stage = part
        configuration = self.configurations.get(name) if name else None
        if name and configuration is None:
            configuration = ir.ModelConfiguration(name, 0)
        specs = tuple(_sharding(spec, scopes) for spec in shardings)
        return ir.NodeDeviceConfiguration(configuration, specs, stage)


def _describe(value: ir.Value, declared: ValueSyntax) -> None:
    if declared.type is not None:
        value.type, value.shape = declared.type, declared.shape
    if declared.kept_type is not None:
        value.meta[TYPE_KEY] = declared.kept_type
    notes = declared.notes
    if not notes:
        return
    value.doc_string = notes.get("doc_string", value.doc_string)
    value.metadata_props.update(notes.get("metadata_props", {}))
    if names := notes.get("quantization_annotation"):
        set_quantization_annotation(value, names)


def _sharding(spec: Any, scopes: list[Scope]) -> ir.ShardingSpec:
    name, devices, groups, dims = spec
    value = None
    if name is not None:
        value = next((scope[name] for scope in reversed(scopes) if name in scope), None) or ir.Value(name=name)
    return ir.ShardingSpec(
        value,
        tuple(devices),
        tuple(ir.IndexToDeviceGroupMapEntry(key, tuple(group)) for key, group in groups),
        tuple(ir.ShardedDim(axis, tuple(_simple(*part) for part in parts)) for axis, parts in dims),
    )


def _simple(size: int | str | None, shards: int) -> ir.SimpleShardedDim:
    return ir.SimpleShardedDim(size if isinstance(size, int) else ir.SymbolicDim(size), shards)
