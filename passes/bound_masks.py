"""Huge numbers that switch off places of a Softmax become numbers that do the same and fit a grid of integers.

Before, with -3.4e38 where a place is padding::

    m = Where(mask, 0, -3.4e38)
    y = Softmax(Add(scores, m))

After::

    m = Where(mask, 0, -50)
    y = Softmax(Add(scores, m))

A grid of 8 or 16 bits that covers -3.4e38 has no two steps left for the scores. What is 50 below the largest score gets
2e-22 of its weight. Only constants that nothing but Softmax sees, through sums, products with constants and data
movement, change; where they are multiplied by less than 1 on the way, what is left of them is larger by as much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import DataType, Model, Node, Value, constant
from graphopt.pipeline import Changes, Pass, PassContext, option

HUGE = 1e4
"""From here on a number is no score any more."""
_SOURCES = ("Where", "Mul", "Add", "Sub")
_THROUGH = ("Add", "Sub", "Mul", "Where", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Slice", "Gather",
            "Concat", "Cast", "Identity", "Flatten", "Tile", "Max", "Min")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BoundMasks(Pass):
    """Bound the huge numbers of attention masks, so that scores have steps left on a grid of integers."""

    name: ClassVar[str] = "bound-masks"
    lossless: ClassVar[bool] = False
    preserves: ClassVar = (Shapes,)
    bound: float = option(50.0, "the largest magnitude that is left", gt=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        changes = Changes()
        for node in ctx.nodes(*_SOURCES):
            for index, value in enumerate(node.inputs):
                array = constant(value) if value is not None and value.dtype == DataType.FLOAT else None
                if array is None or not array.size or float(np.abs(array).max()) < HUGE:
                    continue
                factor = _until_softmax(node)
                if not factor:
                    ctx.missed("MASK001", node, "has numbers above 1e4, and others than Softmax see them")
                    continue
                bound = self.bound / min(factor, 1.0)
                if bound < HUGE and ctx.may_rewrite(node, f"bound {value.name if value else ''} to {bound:g}"):
                    changes["bounded"] += _bound(node, index, bound, ctx)
        return changes


def _bound(node: Node, index: int, bound: float, ctx: PassContext) -> int:
    value = node.inputs[index]
    array = constant(value)
    assert value is not None and array is not None
    bounded = np.where(np.abs(array) >= HUGE, np.sign(array) * bound, array).astype(array.dtype)
    ctx.edit.set_input(node, index, ctx.edit.constant(bounded, f"{value.name}_bounded"))
    ctx.edit.drop_unread(value)
    return 1


def _until_softmax(node: Node) -> float:
    """Return the least factor by which what ``node`` makes is multiplied until a Softmax reads it.

    0 where anything else sees it than Softmax, through sums, products with constants and movement, or nothing does.
    """
    least = dict.fromkeys(node.outputs, 1.0)
    pending = list(least)
    found: list[float] = []
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return 0.0
        for use in value.uses():
            reader = use.node
            if reader.op_type == "Softmax" and reader.domain == "":
                found.append(least[value])
                continue
            if reader.domain != "" or reader.op_type not in _THROUGH:
                return 0.0
            behind = least[value] * _factor(reader, value)
            fresh = [output for output in reader.outputs if behind < least.get(output, np.inf)]
            least.update(dict.fromkeys(fresh, behind))
            pending += fresh
    return min(found, default=0.0)


def _factor(reader: Node, value: Value) -> float:
    """Return what ``reader`` multiplies ``value`` by at least, 0 where that is not known."""
    if reader.op_type != "Mul":
        return 1.0
    other = reader.inputs[1] if reader.inputs[0] is value else reader.inputs[0]
    array = constant(other)
    return 0.0 if array is None or not array.size else float(np.abs(array).min())
