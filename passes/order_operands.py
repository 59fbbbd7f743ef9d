"""Constants as second operands, for targets that recognize a scale or an offset only there.

Before::

    y = Mul(c, x)
    z = Add(d, y)

After::

    y = Mul(x, c)
    z = Add(y, d)

Sums and products of two numbers are the same in either order, bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.ir import Model, is_constant
from graphopt.pipeline import Changes, Pass, PassContext


@dataclass(frozen=True, kw_only=True)
class OrderOperands(Pass):
    """Put the constants of sums and products second."""

    name: ClassVar[str] = "order-operands"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        changes = Changes()
        for node in ctx.nodes("Add", "Mul"):
            first, second = node.inputs
            if not is_constant(first) or is_constant(second):
                continue
            if ctx.may_rewrite(node, "put its constant second"):
                ctx.edit.rewrite(node, node.op_type, [second, first])
                changes["nodes"] += 1
        return changes
