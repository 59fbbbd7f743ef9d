"""Small expression patterns over operators: what passes that recognise decomposed operators are written in.

A pattern is built from :class:`Wild` (any value, bound to a name), :class:`Const` (a one-element constant, of a given
number or bound to a name), :class:`Op` (an operator with patterns as inputs) and :class:`OneOf`.
``match(pattern, node)`` tries it with ``node`` as the root. The inputs of Add, Mul, Max and Min match in either order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir

from graphopt.ir.query import rank_of, tensor_of, use_count

_COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min"})
_EPSILON = {
    onnx_ir.DataType.FLOAT: float(np.finfo(np.float32).eps),
    onnx_ir.DataType.DOUBLE: float(np.finfo(np.float64).eps),
    onnx_ir.DataType.FLOAT16: float(np.finfo(np.float16).eps),
    onnx_ir.DataType.BFLOAT16: 2.0**-7,
}


@dataclass(frozen=True)
class Wild:
    """Any value; the same name has to be the same value everywhere in the pattern."""

    name: str


@dataclass(frozen=True)
class Const:
    """A one-element constant: equal to ``number`` up to the rounding of its own dtype, or any, bound to ``name``."""

    number: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Op:
    """An ONNX operator. Only the inputs given are compared, except that Add, Mul, Max and Min need exactly two.

    ``name`` binds the first output.
    """

    operator: str
    inputs: tuple[Pattern, ...]
    name: str = ""


@dataclass(frozen=True)
class OneOf:
    """The first of several patterns that leads to a match."""

    patterns: tuple[Pattern, ...]


Pattern = Wild | Const | Op | OneOf


@dataclass(frozen=True)
class Match:
    """What a pattern matched: values and numbers by name, the nodes, and the highest rank among the constants."""

    values: dict[str, onnx_ir.Value] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    nodes: tuple[onnx_ir.Node, ...] = ()
    rank: int = 0

    def node(self, name: str) -> onnx_ir.Node:
        """Return the node whose output is bound to ``name``."""
        producer = self.values[name].producer()
        if producer is None:
            raise KeyError(name)
        return producer

    def keeps_shape_of(self, name: str) -> bool:
        """Tell whether the constants cannot raise the rank of the value bound to ``name`` by broadcasting."""
        return self.rank == 0 or self.rank <= (rank_of(self.values[name]) or 0)


def op(operator: str, *inputs: Pattern, name: str = "") -> Op:
    """Return the pattern of an operator."""
    return Op(operator, inputs, name)


def roots_of(pattern: Pattern) -> frozenset[str]:
    """Return the operators that a node may have to be the root of ``pattern``."""
    if isinstance(pattern, Op):
        return frozenset({pattern.operator})
    if isinstance(pattern, OneOf):
        return frozenset().union(*(roots_of(choice) for choice in pattern.patterns))
    return frozenset()


def match(pattern: Pattern, root: onnx_ir.Node) -> Match | None:
    """Match ``pattern`` with its root at ``root``; ``None`` when it does not fit, or when others read what is inside.

    Every node matched but the root is then free to go: nothing outside the match reads it, and it is in the same graph.
    """
    if not root.outputs:
        return None
    for found in _match(pattern, root.outputs[0], Match()):
        if _is_private(found.nodes, root):
            return found
    return None


def ahead(node: onnx_ir.Node, steps: int) -> Iterator[onnx_ir.Node]:
    """Yield ``node`` and the nodes that read its results within so many steps, nearest first: candidates for a root."""
    seen, front = {node: None}, [node]
    for _ in range(steps):
        front = [use.node for item in front for value in item.outputs if use_count(value) <= 4 for use in value.uses()]
        seen.update(dict.fromkeys(front))
    yield from seen


def _match(pattern: Pattern, value: onnx_ir.Value | None, found: Match) -> Iterator[Match]:
    if isinstance(pattern, OneOf):
        for choice in pattern.patterns:
            yield from _match(choice, value, found)
    elif value is None:
        return
    elif isinstance(pattern, Wild):
        bound = found.values.get(pattern.name)
        if bound is None:
            yield Match({**found.values, pattern.name: value}, found.numbers, found.nodes, found.rank)
        elif bound is value:
            yield found
    elif isinstance(pattern, Const):
        yield from _match_constant(pattern, value, found)
    else:
        yield from _match_operator(pattern, value, found)


def _match_constant(pattern: Const, value: onnx_ir.Value, found: Match) -> Iterator[Match]:
    tensor = tensor_of(value)
    if tensor is None or tensor.size != 1:
        return
    number = float(tensor.numpy().reshape(-1)[0])
    if pattern.number is not None:
        slack = 2 * _EPSILON.get(tensor.dtype, 0.0) * abs(pattern.number)
        if not abs(number - pattern.number) <= slack:
            return
    numbers = {**found.numbers, pattern.name: number} if pattern.name else found.numbers
    yield Match(found.values, numbers, found.nodes, max(found.rank, len(tensor.shape)))


def _match_operator(pattern: Op, value: onnx_ir.Value, found: Match) -> Iterator[Match]:
    node = value.producer()
    if node is None or node.op_type != pattern.operator or node.domain != "" or node.outputs[0] is not value:
        return
    inputs = node.inputs
    if len(inputs) < len(pattern.inputs):
        return
    values = {**found.values, pattern.name: value} if pattern.name else found.values
    if pattern.name and found.values.get(pattern.name, value) is not value:
        return
    nodes = found.nodes if node in found.nodes else (*found.nodes, node)
    state = Match(values, found.numbers, nodes, found.rank)
    if pattern.operator not in _COMMUTATIVE:
        yield from _match_inputs(pattern.inputs, tuple(inputs[: len(pattern.inputs)]), state)
    elif len(inputs) == 2:
        yield from _match_inputs(pattern.inputs, tuple(inputs), state)
        yield from _match_inputs(pattern.inputs, (inputs[1], inputs[0]), state)


def _match_inputs(
    patterns: tuple[Pattern, ...], values: tuple[onnx_ir.Value | None, ...], found: Match
) -> Iterator[Match]:
    if not patterns:
        yield found
        return
    for state in _match(patterns[0], values[0], found):
        yield from _match_inputs(patterns[1:], values[1:], state)


def _is_private(nodes: tuple[onnx_ir.Node, ...], root: onnx_ir.Node) -> bool:
    inside = set(nodes)
    for node in nodes:
        if node is root:
            continue
        if node.graph is not root.graph:
            return False
        for value in node.outputs:
            if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
                return False
    return True
