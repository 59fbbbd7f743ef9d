"""The only place that writes to a model.

:class:`Editor` keeps uses, names, graph outputs and its index of nodes by operator right, counts revisions, and
remembers which nodes were touched so that the verifier can look at those alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import onnx_ir

from graphopt.errors import PassError
from graphopt.ir.build import Attribute, as_attr, as_tensor
from graphopt.ir.inline import instantiate
from graphopt.ir.query import Dim, around, graphs, is_read, place, reads, subgraphs
from graphopt.ir.skeleton import Written
from graphopt.ir.tensors import dims_of


def operator_key(node: onnx_ir.Node) -> str:
    """Return the key of a node in the index: its operator, with the domain in front when it is not ONNX's own."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


class Editor:
    """Writes to ``model``; one editor a model at a time."""

    def __init__(self, model: onnx_ir.Model):
        self.model = model
        self.revision = 0
        self.touched: dict[onnx_ir.Node, None] = {}
        self.written = Written()
        self._rebuild()

    def _rebuild(self) -> None:
        self._names: Counter[str] = Counter()
        self._node_names: set[str] = set()
        self._last_suffix: dict[str, int] = {}
        self._index: dict[str, dict[onnx_ir.Node, None]] = {}
        self._owner: dict[onnx_ir.Graph, onnx_ir.Node | None] = {self.model.graph: None}
        for graph in graphs(self.model):
            self._names.update(value.name for value in graph.inputs if value.name)
            self._names.update(name for name, value in graph.initializers.items() if not value.is_graph_input())
            for node in graph:
                self._register(node)

    def _register(self, node: onnx_ir.Node) -> None:
        self._index.setdefault(operator_key(node), {})[node] = None
        self._names.update(value.name for value in node.outputs if value.name)
        if node.name:
            self._node_names.add(node.name)
        for graph in subgraphs(node):
            self._owner[graph] = node

    def _touch(self, *touched: onnx_ir.Node | None) -> None:
        self.revision += 1
        for node in touched:
            if node is not None:
                self.touched[node] = None
                self.written.nodes.pop(node, None)

    # -- looking things up ------------------------------------------------------------------------------------------

    def nodes(self, *operators: str) -> list[onnx_ir.Node]:
        """Return the nodes with one of these operators (``"Conv"``, ``"com.microsoft::Gelu"``), in a stable order.

        The list is a snapshot: a node erased meanwhile is still in it, with ``node.graph`` None.
        """
        return [node for operator in operators for node in self._index.get(operator, ())]

    def operators(self) -> list[str]:
        """Return the operators that the model has nodes of."""
        return [operator for operator, found in self._index.items() if found]

    def owner(self, graph: onnx_ir.Graph) -> onnx_ir.Node | None:
        """Return the node that holds ``graph`` as an attribute, ``None`` for the main graph."""
        return self._owner[graph]

    def new_name(self, base: str) -> str:
        """Return ``base``, or ``base_2``, ``base_3``, ... when it is taken, and reserve it."""
        name, count = base, self._last_suffix.get(base, 1)
        while name in self._names or name in self._node_names:
            count += 1
            name = f"{base}_{count}"
        self._last_suffix[base] = count
        self._names[name] += 1
        return name

    # -- adding -----------------------------------------------------------------------------------------------------

    def constant(self, array: np.ndarray[Any, Any] | onnx_ir.TensorProtocol, name: str) -> onnx_ir.Value:
        """Add an initializer to the main graph, visible in every nested graph; its name is derived from ``name``."""
        unique = self.new_name(name)
        tensor = as_tensor(array, unique)
        value = onnx_ir.Value(
            name=unique,
            type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        self.model.graph.initializers.add(value)
        self._touch()
        return value

    def to_initializer(
        self, value: onnx_ir.Value, array: np.ndarray[Any, Any] | onnx_ir.TensorProtocol
    ) -> onnx_ir.Value:
        """Put an initializer in place of a computed value, under its name, and erase the node behind it where nobody
        reads its other outputs.

        The initializer belongs to the main graph; that of a nested graph's output to the nested graph, because ONNX
        lets no graph return an outer value. Only a name that other graphs have too is made unique.
        """
        node = value.producer()
        if node is None or value.name is None:
            raise PassError(f"value {value.name!r} is not computed by a node")
        graph = _graph_of(node)
        home = graph if value.is_graph_output() else self.model.graph
        name, users = value.name, [use.node for use in value.uses()]
        if self._names[name] > 1 and not (value.is_graph_output() and graph is self.model.graph):
            name = self.new_name(name)
        value.name = self.new_name(f"{name}_folded") if len(node.outputs) > 1 else None
        tensor = as_tensor(array, name)
        tensor.name = name
        shape = _frozen_shape(dims_of(tensor))
        new = onnx_ir.Value(name=name, type=_tensor_type(tensor.dtype), shape=shape, const_value=tensor)
        home.initializers.add(new)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = new
        for user, index in list(value.uses()):
            user.replace_input_with(index, new)
        self._touch(node, *users)
        self.erase_dead(node)
        return new

    def insert_before(
        self,
        anchor: onnx_ir.Node,
        operator: str,
        inputs: Sequence[onnx_ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        name: str | None = None,
        outputs: Sequence[str] | None = None,
        like: onnx_ir.Value | None = None,
    ) -> onnx_ir.Node:
        """Insert a node before ``anchor``; names default to ones derived from the anchor's first output.

        ``like`` gives the first output its dtype and shape. Returns the node.
        """
        node = self._build(anchor, operator, inputs, attributes, domain, name, outputs, like)
        graph = _graph_of(anchor)
        graph.insert_before(anchor, node)
        return self._inserted(node)

    def insert_after(
        self,
        anchor: onnx_ir.Node,
        operator: str,
        inputs: Sequence[onnx_ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        name: str | None = None,
        outputs: Sequence[str] | None = None,
        like: onnx_ir.Value | None = None,
    ) -> onnx_ir.Node:
        """Insert a node after ``anchor``; as :meth:`insert_before` otherwise."""
        node = self._build(anchor, operator, inputs, attributes, domain, name, outputs, like)
        graph = _graph_of(anchor)
        graph.insert_after(anchor, node)
        return self._inserted(node)

    def _build(
        self,
        anchor: onnx_ir.Node,
        operator: str,
        inputs: Sequence[onnx_ir.Value | None],
        attributes: Mapping[str, Attribute] | None,
        domain: str,
        name: str | None,
        outputs: Sequence[str] | None,
        like: onnx_ir.Value | None,
    ) -> onnx_ir.Node:
        base = name or f"{anchor.name or anchor.outputs[0].name or anchor.op_type}/{operator}"
        names = [self.new_name(text) for text in (outputs or [f"{base}_output"])]
        values = [onnx_ir.Value(name=text) for text in names]
        if like is not None:
            values[0].type, values[0].shape = like.type, like.shape
        attrs = [as_attr(key, value) for key, value in (attributes or {}).items()]
        return onnx_ir.Node(domain, operator, inputs, attrs, name=self.new_name(base), outputs=values)

    def _inserted(self, node: onnx_ir.Node) -> onnx_ir.Node:
        self._register(node)
        self._touch(node)
        return node

    # -- changing ---------------------------------------------------------------------------------------------------

    def set_input(self, node: onnx_ir.Node, index: int, value: onnx_ir.Value | None) -> None:
        """Make ``value`` input ``index`` of ``node``; the list of inputs grows as needed, trailing gaps are cut."""
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        node.replace_input_with(index, value)
        size = len(node.inputs)
        while size and node.inputs[size - 1] is None:
            size -= 1
        if size != len(node.inputs):
            node.resize_inputs(size)
        self._touch(node)

    def set_attr(self, node: onnx_ir.Node, name: str, value: Attribute | None) -> None:
        """Set an attribute, or remove it with ``None``."""
        if value is None:
            node.attributes.pop(name, None)
        else:
            node.attributes[name] = as_attr(name, value)
        self._touch(node)

    def set_operator(self, node: onnx_ir.Node, operator: str, domain: str = "") -> None:
        """Change what ``node`` computes; its inputs and outputs stay."""
        self._index[operator_key(node)].pop(node, None)
        node.op_type, node.domain = operator, domain
        self._index.setdefault(operator_key(node), {})[node] = None
        self._touch(node)

    def rewrite(
        self,
        node: onnx_ir.Node,
        operator: str,
        inputs: Sequence[onnx_ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
    ) -> None:
        """Make ``node`` compute something else: operator, inputs and attributes change, its outputs stay.

        Producers and initializers that nobody reads any more are erased.
        """
        before = [value for value in node.inputs if value is not None]
        self.set_operator(node, operator)
        node.attributes.clear()
        for name, attribute in (attributes or {}).items():
            node.attributes[name] = as_attr(name, attribute)
        node.resize_inputs(len(inputs))
        for index, new in enumerate(inputs):
            node.replace_input_with(index, new)
        for value in before:
            self.drop_unread(value)

    def drop_unread(self, value: onnx_ir.Value) -> None:
        """Erase the initializer or the producers behind ``value`` if nobody reads it any more."""
        producer = value.producer()
        if producer is not None:
            self.erase_dead(producer)
        elif value.is_initializer():
            self.erase_constant(value)

    def set_weight(self, value: onnx_ir.Value, array: np.ndarray[Any, Any] | onnx_ir.TensorProtocol) -> None:
        """Replace an initializer's tensor; value, dtype and shape change together."""
        tensor = as_tensor(array, value.name)
        value.const_value = tensor
        value.type, value.shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(tensor.shape.numpy())
        self._touch(*(use.node for use in value.uses()))

    def annotate(self, value: onnx_ir.Value, dtype: onnx_ir.DataType | None, shape: Sequence[Dim] | None) -> None:
        """Record what is known of a value's dtype and shape. This is no change of the program."""
        value.type = None if dtype is None else _tensor_type(dtype)
        value.shape = None if shape is None else _frozen_shape(tuple(shape))

    def set_input_shape(self, value: onnx_ir.Value, shape: Sequence[Dim]) -> None:
        """Change the declared shape of a graph input or output."""
        value.shape = onnx_ir.Shape(shape)
        self._touch(*(use.node for use in value.uses()))

    def set_opset(self, version: int, domain: str = "") -> None:
        """Import ``version`` of ``domain``."""
        self.model.opset_imports[domain] = version
        for graph in graphs(self.model):
            graph.opset_imports[domain] = version
        self._touch()

    def replace_uses(self, old: onnx_ir.Value, new: onnx_ir.Value) -> bool:
        """Make every reader of ``old`` read ``new``, nested graphs and graph outputs included.

        The node that produces ``new`` goes on reading ``old``, so that a node can be put behind a value. A graph output
        keeps its name: ``new`` takes it over where it can, otherwise an Identity is inserted. Returns whether anything
        changed.
        """
        if old is new:
            return False
        reader = new.producer()
        users = [use.node for use in old.uses() if use.node is not reader]
        changed = bool(users)
        if old.is_graph_output():
            changed = self._hand_over_output(old, new) or changed
        for node, index in list(old.uses()):
            if node is not reader:
                node.replace_input_with(index, new)
        if changed:
            self._touch(old.producer(), new.producer(), *users)
        return changed

    def _hand_over_output(self, old: onnx_ir.Value, new: onnx_ir.Value) -> bool:
        graph = old.graph
        producer = old.producer()
        if graph is None:
            raise PassError(f"output {old.name!r} belongs to no graph")
        takes_name = new.producer() is not None and new.graph is graph and not new.is_graph_output()
        if takes_name:
            name, new.name, old.name = old.name, None, self.new_name(f"{old.name}_replaced")
            new.name = name
            new.type = new.type or old.type
            new.shape = new.shape if new.shape is not None else old.shape
            for index, output in enumerate(graph.outputs):
                if output is old:
                    graph.outputs[index] = new
            return True
        if producer is None or (producer.op_type == "Identity" and producer.inputs[0] is new):
            return False
        name, old.name = old.name, self.new_name(f"{old.name}_replaced")
        value = onnx_ir.Value(name=name, type=old.type, shape=old.shape)
        identity = onnx_ir.Node("", "Identity", [new], name=self.new_name(f"{name}/Identity"), outputs=[value])
        graph.insert_after(producer, identity)
        self._inserted(identity)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = value
        return True

    def replace(self, node: onnx_ir.Node, values: Sequence[onnx_ir.Value]) -> bool:
        """Make ``values`` stand for the outputs of ``node`` and erase it, with whatever only it needed.

        Returns False, and leaves the node, when a graph output still hangs on it.
        """
        changed = [self.replace_uses(old, new) for old, new in zip(node.outputs, values, strict=False)]
        return self.erase_dead(node) or any(changed)

    def erase(self, node: onnx_ir.Node) -> None:
        """Remove a node that nobody reads. Raises PassError when a use is left."""
        if any(is_read(value) for value in node.outputs):
            raise PassError("this node is still read", where=place(node), context=around(node))
        users = [value.producer() for value in node.inputs if value is not None]
        self._forget(node)
        _graph_of(node).remove(node, safe=True)
        self._touch(*users)

    def _forget(self, node: onnx_ir.Node) -> None:
        self._index[operator_key(node)].pop(node, None)
        self.touched.pop(node, None)
        self.written.nodes.pop(node, None)
        for graph in subgraphs(node):
            self._owner.pop(graph, None)
            graph.outputs.clear()
            for inner in list(graph):
                self._forget(inner)
                for index in range(len(inner.inputs)):
                    inner.replace_input_with(index, None)
                graph.remove(inner)

    def erase_dead(self, node: onnx_ir.Node) -> bool:
        """Erase ``node`` if nobody reads it, then whichever of its producers nobody reads any more."""
        stack, erased = [node], False
        while stack:
            dead = stack.pop()
            if dead.graph is None or any(is_read(value) for value in dead.outputs):
                continue
            inputs = reads(dead)
            stack.extend(p for value in inputs if (p := value.producer()) is not None)
            constants = [value for value in inputs if value.is_initializer()]
            self.erase(dead)
            for value in constants:
                self.erase_constant(value)
            erased = True
        return erased

    def erase_constant(self, value: onnx_ir.Value) -> bool:
        """Remove an initializer that nobody reads; returns whether it did."""
        graph = value.graph
        if is_read(value) or value.is_graph_input() or graph is None or value.name is None:
            return False
        if graph.initializers.pop(value.name, None) is None:
            return False
        self._touch()
        return True

    def remove_graph_input(self, value: onnx_ir.Value) -> None:
        """Take ``value`` off its graph's inputs (an initializer that was listed there too, or one nobody reads)."""
        graph = value.graph
        if graph is not None:
            graph.inputs.remove(value)
            self._touch(*(use.node for use in value.uses()))

    def set_ir_version(self, version: int) -> None:
        """Declare the version of the file format that the model needs."""
        self.model.ir_version = version
        self._touch()

    def splice(self, node: onnx_ir.Node, graph: onnx_ir.Graph) -> None:
        """Move the nodes and initializers of ``graph``, one of ``node``'s own, in front of ``node``.

        Names that are taken outside are made unique. The outputs of ``graph`` can then stand for those of ``node``.
        """
        target = _graph_of(node)
        outputs = list(graph.outputs)
        graph.outputs.clear()
        for value in list(graph.initializers.values()):
            graph.initializers.pop(value.name or "")
            self._make_unique(value)
            self.model.graph.initializers.add(value)
        for inner in list(graph):
            graph.remove(inner)
            for value in inner.outputs:
                self._make_unique(value)
            target.insert_before(node, inner)
            self._touch(inner)
        self._owner.pop(graph, None)
        self._touch(node)
        self.replace(node, outputs)

    def inline_call(self, call: onnx_ir.Node, function: onnx_ir.Function) -> list[onnx_ir.Node]:
        """Put a copy of the body of ``function`` in place of a call of it; returns the copied nodes."""
        graph = _graph_of(call)
        prefix = call.name or call.op_type
        nodes, values = instantiate(function, call, lambda name: self.new_name(f"{prefix}/{name}"))
        for node in nodes:
            graph.insert_before(call, node)
            self._register_all(node)
            self._touch(node)
        for old, new in zip(call.outputs, values, strict=False):
            if new is not None:
                self.replace_uses(old, new)
        self.erase_dead(call)
        return nodes

    def _register_all(self, node: onnx_ir.Node) -> None:
        self._register(node)
        for graph in subgraphs(node):
            for inner in graph:
                self._register_all(inner)

    def remove_function(self, identifier: tuple[str, str, str]) -> None:
        """Remove a model-local function that nothing calls."""
        del self.model.functions[identifier]
        self._touch()

    def _make_unique(self, value: onnx_ir.Value) -> None:
        """Rename ``value`` when another has its name (branches of one If may share names, one graph may not)."""
        if value.name and self._names[value.name] > 1:
            value.name = self.new_name(f"{value.name}_inlined")

    def replace_model(self, model: onnx_ir.Model) -> None:
        """Put another model's graph and functions in place of this one's; everything counts as touched."""
        self.model.graph = model.graph
        self.model.functions.clear()
        self.model.functions.update(model.functions)
        self.model.ir_version = model.ir_version
        self.touched.clear()
        self._rebuild()
        self._touch(*self.model.graph)


@lru_cache(maxsize=64)
def _tensor_type(dtype: onnx_ir.DataType) -> onnx_ir.TensorType:
    return onnx_ir.TensorType(dtype)


@lru_cache(maxsize=4096)
def _frozen_shape(dims: tuple[Dim, ...]) -> onnx_ir.Shape:
    """Return a shape that values may share, since nobody can change it; most values of a model have one of a few."""
    return onnx_ir.Shape(dims, frozen=True)


def _graph_of(node: onnx_ir.Node) -> onnx_ir.Graph:
    if node.graph is None:
        raise PassError("this node was erased", where=place(node))
    return node.graph
