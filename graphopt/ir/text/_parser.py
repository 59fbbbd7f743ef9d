"""Read the text of a model into a syntax tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.ir.tensors import SparseTensor
from graphopt.ir.text._lexer import Name, nearest
from graphopt.ir.text._print import ATTRIBUTE_NAMES, COMPOSITE_TYPES, LIST_KINDS
from graphopt.ir.text._values import DTYPES, SPECIAL_FLOATS, ValueParser

_KINDS = {text: kind for kind, text in ATTRIBUTE_NAMES.items() if kind != ir.AttributeType.UNDEFINED}
_LIST_OF = {element: kind for kind, element in LIST_KINDS.items()}


@dataclass(slots=True)
class ValueSyntax:
    """A declared value. ``notes`` are what stands in ``@{...}`` behind it."""

    name: Name
    type: ir.TypeProtocol | None
    shape: ir.Shape | None
    notes: dict[str, Any]
    data: ir.TensorProtocol | SparseTensor | None = None
    kept_type: onnx.TypeProto | None = None


@dataclass(slots=True)
class GraphSyntax:
    """A graph: what it declares, then its nodes."""

    name: str
    inputs: list[ValueSyntax]
    outputs: list[ValueSyntax]
    notes: dict[str, Any]
    entries: list[ValueSyntax] = field(default_factory=list)
    nodes: list[NodeSyntax] = field(default_factory=list)


@dataclass(slots=True)
class AttributeSyntax:
    """An attribute that holds graphs; every other kind is an ``Attr`` already."""

    name: str
    kind: ir.AttributeType
    graphs: list[GraphSyntax]
    notes: dict[str, Any]


@dataclass(slots=True)
class NodeSyntax:
    """One node, its values by name."""

    name: str
    outputs: list[Name]
    domain: str
    op_type: str
    overload: str
    attributes: list[ir.Attr | AttributeSyntax]
    inputs: list[Name]
    notes: dict[str, Any]


@dataclass(slots=True)
class FunctionSyntax:
    """A function: header fields, attributes and body."""

    header: dict[str, Any]
    attributes: list[ir.Attr]
    graph: GraphSyntax


class Parser(ValueParser):
    """Recursive descent over models, functions, graphs, nodes and attributes."""

    def model(self) -> tuple[dict[str, Any], GraphSyntax, list[FunctionSyntax]]:
        header: dict[str, Any] = {}
        texts = ("producer_name", "producer_version", "domain", "doc_string")
        known: dict[str, Callable[[], Any]] = dict.fromkeys(texts, self.string)
        known |= {"ir_version": self.integer, "model_version": self.integer, "metadata_props": self.strings}
        known |= {"opset_import": lambda: self.pairs(self.integer), "device_configurations": self.plain}
        if self.accept("<"):
            header = self.fields(known, ">")
        graph = self.graph()
        functions = []
        while self.kinds[self.i] != "end":
            functions.append(self.function())
        return header, graph, functions

    def function(self) -> FunctionSyntax:
        header: dict[str, Any] = {}
        known: dict[str, Callable[[], Any]] = dict.fromkeys(("domain", "overload", "doc_string"), self.string)
        known |= {"metadata_props": self.strings, "opset_import": lambda: self.pairs(self.integer)}
        if self.accept("<"):
            header = self.fields(known, ">")
        name = self.name().text
        at = self.i
        attributes = self.attributes() if self.accept("<") else []
        plain = [attr for attr in attributes if isinstance(attr, ir.Attr)]
        if len(plain) != len(attributes):
            raise self.error("an attribute of a function cannot have a graph as its default", at)
        return FunctionSyntax(header, plain, self.graph_after(name))

    # Graphs

    def graph(self) -> GraphSyntax:
        return self.graph_after(self.name().text)

    def graph_after(self, name: str) -> GraphSyntax:
        inputs = self.several(self.value, ")") if self.accept("(") else []
        self.expect("=>")
        self.expect("(")
        graph = GraphSyntax(name, inputs, self.several(self.value, ")"), self.notes())
        if self.accept("<"):
            graph.entries = self.several(self.value, ">")
        self.expect("{")
        while not self.accept("}"):
            graph.nodes.append(self.node())
        return graph

    def value(self) -> ValueSyntax:
        at = self.i
        kind: ir.TypeProtocol | None = None
        shape: ir.Shape | None = None
        kept = None
        if self.is_type():
            if self.holds_kept_type():
                kept = self.kept_type()
            else:
                kind, shape = self.type()
        value = ValueSyntax(self.name(), kind, shape, self.notes(), kept_type=kept)
        if self.accept("="):
            value.data = self.tensor_data(kind, shape, value.name.text, at)
        return value

    def node(self) -> NodeSyntax:
        label = ""
        if self.accept("["):
            label = "" if self.kinds[self.i] == "]" else self.name().text
            self.expect("]")
        outputs = self.names("=")
        words = [self.name().text]
        while self.accept("."):
            words.append(self.name().text)
        overload = self.name().text if self.accept(":") else ""
        attributes = self.attributes() if self.accept("<") else []
        self.expect("(")
        inputs = self.names(")")
        if not attributes and self.accept("<"):
            attributes = self.attributes()
        return NodeSyntax(label, outputs, ".".join(words[:-1]), words[-1], overload, attributes, inputs, self.notes())

    def names(self, close: str) -> list[Name]:
        names: list[Name] = []
        while not self.accept(close):
            if names:
                self.expect(",")
                if self.accept(close):
                    break
            # An empty name may be left out before a comma, as in Op(,x).
            names.append(Name("", self.i) if self.kinds[self.i] == "," else self.name())
        return names

    # Attributes

    def attributes(self) -> list[ir.Attr | AttributeSyntax]:
        at = self.i
        attributes = self.several(self.attribute, ">")
        if len({attribute.name for attribute in attributes}) < len(attributes):
            raise self.error("an attribute is given twice", at)
        return attributes

    def attribute(self) -> ir.Attr | AttributeSyntax:
        name = self.name().text
        kind: ir.AttributeType | None = None
        if self.accept(":"):
            word = self.expect("word")
            if word not in _KINDS:
                raise self.error(f"unknown kind of attribute {word!r}", self.i - 1, nearest(word, _KINDS))
            kind = _KINDS[word]
        elif self.kinds[self.i] != "=":
            return self.attr(name, ir.AttributeType.UNDEFINED, None)
        self.expect("=")
        if self.kinds[self.i] == "@":
            self.i += 1
            reference = self.name().text
            notes = self.notes()
            return ir.RefAttr(name, reference, kind or ir.AttributeType.UNDEFINED, notes.get("doc_string"))
        at = self.i
        found, value = self.attribute_values(kind) if self.accept("[") else self.attribute_value(kind)
        if kind not in (None, found):
            raise self.error(f"attribute {name!r} is declared {ATTRIBUTE_NAMES[kind]}, its value is not", at)
        return self.attr(name, found, value)

    def attr(self, name: str, kind: ir.AttributeType, value: Any) -> ir.Attr | AttributeSyntax:
        notes = self.notes()
        if kind == ir.AttributeType.GRAPH:
            return AttributeSyntax(name, kind, [value], notes)
        if kind == ir.AttributeType.GRAPHS:
            return AttributeSyntax(name, kind, value, notes)
        return ir.Attr(name, kind, value, doc_string=notes.get("doc_string"))

    def attribute_values(self, kind: ir.AttributeType | None) -> tuple[ir.AttributeType, list[Any]]:
        at = self.i
        element = LIST_KINDS.get(kind) if kind else None
        if kind and element is None:
            raise self.error(f"one {ATTRIBUTE_NAMES[kind]} is no list", at - 1)
        items = self.several(lambda: self.attribute_value(element), "]")
        kinds = {found for found, _ in items}
        if kinds == {ir.AttributeType.INT, ir.AttributeType.FLOAT}:
            kinds = {ir.AttributeType.FLOAT}
        found = kinds.pop() if kinds else element
        if found is None:
            raise self.error("the kind of an empty list has to be given, as in `axes: ints = []`", at)
        if kinds:
            raise self.error("the elements of a list must be of one kind", at)
        return _LIST_OF[found], [value for _, value in items]

    def attribute_value(self, kind: ir.AttributeType | None) -> tuple[ir.AttributeType, Any]:
        token = self.kinds[self.i]
        if kind == ir.AttributeType.FLOAT or token == "float":
            return ir.AttributeType.FLOAT, self.float32()
        if kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return ir.AttributeType.GRAPH, self.graph()
        if kind == ir.AttributeType.TYPE_PROTO:
            return ir.AttributeType.TYPE_PROTO, ir.TypeAndShape(*self.type())
        if token in ("string", "hex"):
            data = self.data()
            try:
                return ir.AttributeType.STRING, data.decode()
            except UnicodeDecodeError:
                return ir.AttributeType.STRING, data
        if token == "int":
            return ir.AttributeType.INT, self.integer()
        if token == "word" and self.words[self.i] in SPECIAL_FLOATS:
            return ir.AttributeType.FLOAT, self.float32()
        if token == "?" or (
            token == "word" and (self.words[self.i] in DTYPES or self.words[self.i] in COMPOSITE_TYPES)
        ):
            return self.tensor_or_type()
        if token == "word":
            return ir.AttributeType.GRAPH, self.graph()
        raise self.error(f"expected the value of an attribute, found {self.found()}")

    def tensor_or_type(self) -> tuple[ir.AttributeType, Any]:
        at = self.i
        kind, shape = self.type()
        if self.kinds[self.i] not in ("{", "(", "=", "word", "string", "hex"):
            return ir.AttributeType.TYPE_PROTO, ir.TypeAndShape(kind, shape)
        return self.tensor_after(kind, shape, at)
