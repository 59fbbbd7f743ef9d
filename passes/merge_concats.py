"""Concats of Concats, of empty tensors, and of the pieces of a Split.

Before::

    a = Concat<axis = 1>(x, none)        # none: float[2,0]
    b = Concat<axis = -1>(a, z)
    c, d = Split<axis = 1>(w)
    e = Concat<axis = 1>(c, d)
    y = Concat<axis = 1>(b, e)

After::

    y = Concat<axis = 1>(x, z, w)

An inner Concat that others read too stays, and so does one of several empty tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, Value, attr, opset, rank_of
from graphopt.ir.facts import static_dims
from graphopt.ir.query import sole_use
from graphopt.pipeline import Changes, Pass, PassContext


@dataclass(frozen=True, kw_only=True)
class MergeConcats(Pass):
    """Merge nested Concats, drop their empty inputs, and undo a Split by the Concat of its pieces."""

    name: ClassVar[str] = "merge-concats"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Take the Concats in order, so that an inner one has been merged before the outer one takes it in."""
        changes, nodes = Changes(), ctx.nodes("Concat")
        if not nodes or opset(model) < 4:
            return changes
        ctx.get(Shapes)
        for node in nodes:
            while node.graph is not None and _merge(node, ctx):
                changes["concats merged"] += 1
        return changes


def _merge(node: Node, ctx: PassContext) -> bool:
    axis, rank = attr(node, "axis", 1), rank_of(node.outputs[0])
    if _undo_split(node, axis, ctx):
        return True
    inputs: list[Value | None] = []
    for value in node.inputs:
        inner = value.producer() if value is not None else None
        taken = inner is not None and _is_inner(inner, node, axis, rank) and sole_use(inner.outputs[0]) is node
        inputs.extend(inner.inputs if taken and inner is not None else [value])
    full = [value for value in inputs if not _is_empty(value, axis, rank)] or inputs[:1]
    if list(node.inputs) == full or not ctx.may_rewrite(node, "merge with the Concats before it, without empty inputs"):
        return False
    ctx.edit.rewrite(node, "Concat", full, {"axis": axis})
    return True


def _is_inner(inner: Node, node: Node, axis: int, rank: int | None) -> bool:
    return inner.op_type == "Concat" and inner.domain == "" and inner.graph is node.graph and _same(inner, axis, rank)


def _same(node: Node, axis: int, rank: int | None) -> bool:
    own = attr(node, "axis", 1 if node.op_type == "Concat" else 0)
    return bool(own == axis or (rank is not None and own % rank == axis % rank))


def _is_empty(value: Value | None, axis: int, rank: int | None) -> bool:
    dims = static_dims(value)
    return dims is not None and rank == len(dims) and dims[axis] == 0


def _undo_split(node: Node, axis: int, ctx: PassContext) -> bool:
    first = node.inputs[0]
    split = first.producer() if first is not None else None
    if split is None or split.op_type != "Split" or split.domain != "" or list(split.outputs) != list(node.inputs):
        return False
    source = split.inputs[0]
    if source is None or not _same(split, axis, rank_of(node.outputs[0])):
        return False
    return ctx.may_rewrite(node, "it undoes the Split before it") and ctx.edit.replace(node, [source])
