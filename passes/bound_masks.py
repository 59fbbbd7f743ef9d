"""Huge numbers that switch off places of a Softmax become numbers that do the same and fit a grid of integers.

Before, with -3.4e38 where a place is padding::

    m = Where(mask, 0, -3.4e38)
    y = Softmax(Add(scores, m))

After::

    m = Where(mask, 0, -50)
    y = Softmax(Add(scores, m))

A grid of 8 or 16 bits that covers -3.4e38 has no two steps left for the scores. What is 50 below the largest score gets
2e-22 of its weight. Only constants that nothing but Softmax sees, through sums, products and data movement, change.
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
                if not _only_softmax(node):
                    ctx.missed("MASK001", node, "has numbers above 1e4, and others than Softmax see them")
                elif ctx.may_rewrite(node, f"bound {value.name if value is not None else ''} to {self.bound:g}"):
                    changes["bounded"] += self._bound(node, index, ctx)
        return changes

    def _bound(self, node: Node, index: int, ctx: PassContext) -> int:
        value = node.inputs[index]
        array = constant(value)
        assert value is not None and array is not None
        bounded = np.where(np.abs(array) >= HUGE, np.sign(array) * self.bound, array).astype(array.dtype)
        ctx.edit.set_input(node, index, ctx.edit.constant(bounded, f"{value.name}_bounded"))
        ctx.edit.drop_unread(value)
        return 1


def _only_softmax(node: Node) -> bool:
    """Tell whether all that reads what ``node`` makes, directly or through sums and movement, is Softmax."""
    pending: list[Value] = list(node.outputs)
    seen = set[Value]()
    found = False
    for value in pending:  # grows while it is walked
        if value.is_graph_output():
            return False
        for use in value.uses():
            if use.node.op_type == "Softmax" and use.node.domain == "":
                found = True
            elif use.node.domain != "" or use.node.op_type not in _THROUGH:
                return False
            else:
                fresh = [output for output in use.node.outputs if output not in seen]
                seen.update(fresh)
                pending.extend(fresh)
    return found
