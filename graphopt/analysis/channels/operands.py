"""Shapes, sizes and bounds that a model computes from the shapes of its values, and where they are used.

Pruning changes shapes, and what the model computes from them would change in its own way. So every such operand is
replaced by a constant when a model is pruned, or the shape it is computed from is pinned.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.analysis.channels.ties import OPERANDS, Ties
from graphopt.ir import Model, Node, Value, graphs, is_constant
from graphopt.ir.edit import operator_key
from graphopt.ir.query import attr


@dataclass(frozen=True, eq=False)
class Operands:
    """``arithmetic`` are the nodes that only compute with sizes; ``known`` tells what to put in place of the operands.

    ``known`` maps a node and the index of an input to the integers it always is in the unpruned model; those of a
    Reshape may hold 0 and -1, as its shapes do.
    """

    arithmetic: frozenset[Node]
    known: dict[tuple[Node, int], tuple[int, ...]]


def find(model: Model, ties: Ties) -> Operands:
    """Find the arithmetic on sizes in the main graph, and pin the axes whose sizes reach anything else."""
    graph = model.graph
    found = Operands(frozenset(node for node in graph if _computes_sizes(node, ties)), {})
    leaking = {value for inner in graphs(model) for value in inner.outputs}
    captured = (node for inner in graphs(model) if inner is not graph for node in inner)
    leaking.update(value for node in captured for value in node.inputs if value is not None)
    for node in reversed(list(graph)):
        if node not in found.arithmetic:
            _follow_operands(node, found, leaking, ties)
        elif not any(value in leaking for value in node.outputs):
            continue
        elif node.op_type in ("Shape", "Size"):
            _pin(node, found, leaking, ties)
        else:
            leaking.update(value for value in node.inputs if value is not None)
    return found


def _follow_operands(node: Node, found: Operands, leaking: set[Value], ties: Ties) -> None:
    for index, value in enumerate(node.inputs):
        producer = value.producer() if value is not None else None
        if value is None or producer not in found.arithmetic:
            continue
        operand = _replaceable(node, index, value, ties)
        if operand is None:
            leaking.add(value)
        else:
            found.known[node, index] = operand


def _computes_sizes(node: Node, ties: Ties) -> bool:
    """Shape, and integers that follow from it, known or not: data of the model is never among them."""
    if operator_key(node) in ("Shape", "Size"):
        return True
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name]
    return bool(node.inputs) and all(is_constant(value) or ties.sizes.elements(value) is not None for value in values)


def _replaceable(node: Node, index: int, value: Value, ties: Ties) -> tuple[int, ...] | None:
    """Return the constant that an operand can be replaced by."""
    if node.domain or index not in OPERANDS.get(node.op_type, ()):
        return None
    known = ties.integers(value)
    if known is not None:
        return tuple(known)
    return _reshape_operand(node, ties) if node.op_type == "Reshape" else None


def _reshape_operand(node: Node, ties: Ties) -> tuple[int, ...] | None:
    """Return sizes for a Reshape some of which are not numbers: 0 for one that it keeps in place, -1 for another."""
    before, after = ties.sizes.sizes(node.inputs[0]), ties.sizes.sizes(node.outputs[0])
    if before is None or after is None or attr(node, "allowzero", 0) or any(size.value == 0 for size in after):
        return None
    entries = []
    for axis, size in enumerate(after):
        kept = axis < len(before) and before[axis] == size
        entries.append(size.value if size.value is not None else 0 if kept else -1)
    return tuple(entries) if entries.count(-1) < 2 else None


def _pin(node: Node, found: Operands, leaking: set[Value], ties: Ties) -> None:
    """Pin the axes of the value whose sizes get out: those that its readers pick, where they pick constants."""
    rank = ties.rank(node.inputs[0])
    if not rank:
        return
    axes = range(rank)[attr(node, "start", 0) : attr(node, "end", rank)]
    output = node.outputs[0]
    picked: set[int] = set()
    for use in output.uses():
        if use.node not in found.arithmetic:
            picked.update(() if (use.node, use.idx) in found.known else axes)
        elif any(value in leaking for value in use.node.outputs):
            picked.update(_picked(use.node, axes, ties) if use.idx == 0 else axes)
    if output.is_graph_output() or node.op_type == "Size":
        picked.update(axes)
    for axis in sorted(picked):
        ties.pin(node, (node.inputs[0], axis), "the model computes with its size")


def _picked(node: Node, axes: range, ties: Ties) -> list[int]:
    if node.op_type == "Gather" and attr(node, "axis", 0) == 0:
        indices = ties.array(node.inputs[1])
        return list(axes) if indices is None else [axes[int(index)] for index in indices.reshape(-1)]
    if node.op_type == "Slice" and ties.version >= 10:
        given = [ties.integers(value) for value in [*node.inputs[1:], None, None][:4]]
        starts, ends = given[0], given[1]
        if starts is not None and ends is not None and len(starts) == 1 and given[3] in (None, [1]):
            return list(axes[starts[0] : ends[0]])
    return list(axes)
