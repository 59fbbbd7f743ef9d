"""Common subexpressions are computed once.

Before::

    a = Relu(x)
    b = Relu(x)
    y = Add(a, b)

After::

    a = Relu(x)
    y = Add(a, a)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.analysis.constants import is_deterministic
from graphopt.ir import DataType, Graph, Model, Node, Value, subgraphs
from graphopt.ir.fingerprint import operation_key
from graphopt.ir.query import tensor_of, use_count
from graphopt.ir.tensors import SparseInitializer, UnresolvedTensor
from graphopt.pipeline import Changes, Pass, PassContext

COMMUTATIVE = {"Add", "Mul", "And", "Or", "Xor", "Equal", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}

SMALL = 64
"""Elements of a constant up to which equal content is looked for; larger equal ones are for merge-initializers."""

_NO_DATA = (SparseInitializer, UnresolvedTensor)

Key = tuple[object, ...]
Scope = list[dict[Key, list[Node]]]


@dataclass(frozen=True, kw_only=True)
class MergeCommon(Pass):
    """Merge nodes that do the same with the same inputs.

    A node of a nested graph merges with one of its own graph or of an enclosing one, before it. Random operators,
    operators that ONNX does not define and nodes with nested graphs stay.
    """

    name: ClassVar[str] = "merge-common"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Walk each graph in order, looking nodes up in it and in those around it."""
        changes = Changes()
        _merge(model.graph, [], model, ctx, changes)
        return changes


def _merge(graph: Graph, outer: Scope, model: Model, ctx: PassContext, changes: Changes) -> None:
    seen: dict[Key, list[Node]] = {}
    scope = [*outer, seen]
    for node in list(graph):
        for inner in subgraphs(node):
            _merge(inner, scope, model, ctx, changes)
        if not _may_merge(node, model):
            continue
        key = _key(node)
        twin = _twin(node, key, scope)
        # A graph output keeps its name, which an Identity would have to give it.
        if twin is None or any(value.is_graph_output() for value in node.outputs):
            seen.setdefault(key, []).append(node)
        elif ctx.may_rewrite(node, f"use the equal node {twin.name}") and _replace(node, twin, ctx):
            changes["nodes merged"] += 1


def _may_merge(node: Node, model: Model) -> bool:
    known = node.domain == "" and node.op_identifier() not in model.functions and bool(node.inputs)
    return known and is_deterministic(node)


def _key(node: Node) -> Key:
    """Return operator and inputs, those of commutative operators in one order. Attributes are compared afterwards."""
    inputs = [_identity(value) for value in node.inputs]
    return (node.op_type, *(sorted(inputs) if node.op_type in COMMUTATIVE else inputs))


def _identity(value: Value | None) -> tuple[object, ...]:
    """Return what two values that are surely equal have in common: small constants count by their content."""
    tensor = tensor_of(value)
    if tensor is None or tensor.size > SMALL or tensor.dtype == DataType.STRING or isinstance(tensor, _NO_DATA):
        return (0, 0 if value is None else id(value))
    return (1, tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())


def _twin(node: Node, key: Key, scope: Scope) -> Node | None:
    found = [other for seen in scope for other in seen.get(key, ())]
    if not found:
        return None
    operation = operation_key(node)
    for other in found:
        if operation is not None and operation == operation_key(other) and _gives(other, node):
            return other
    return None


def _gives(other: Node, node: Node) -> bool:
    """Tell whether ``other`` has every output of ``node`` that is read."""
    for index, value in enumerate(node.outputs):
        if use_count(value) and (index >= len(other.outputs) or not other.outputs[index].name):
            return False
    return True


def _replace(node: Node, twin: Node, ctx: PassContext) -> bool:
    values: list[Value] = [*twin.outputs, *node.outputs[len(twin.outputs) :]]
    return ctx.edit.replace(node, values[: len(node.outputs)])
