"""Cheaper operators for the same numbers.

Before::

    y = Pow(x, 2.0)

After::

    y = Mul(x, x)

onnxruntime's CPU provider runs the Mul in 0.57 to 0.66 of the time of the Pow, at 50,000 to 100,000 elements. A Pow
whose result goes into a ReduceMean stays: that is how onnxruntime recognises a decomposed LayerNormalization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.ir import DataType, Model, Node, constant_size, rank_of
from graphopt.ir.query import scalar
from graphopt.pipeline import Changes, Pass, PassContext

_FLOATS = (DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16)


@dataclass(frozen=True, kw_only=True)
class ReduceStrength(Pass):
    """Replace a square written as Pow by a product."""

    name: ClassVar[str] = "reduce-strength"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Visit each Pow."""
        changes = Changes()
        candidates = ctx.nodes("Pow")
        if candidates:
            ctx.get(Shapes)
        for node in candidates:
            if _is_square(node) and ctx.may_rewrite(node, "multiply instead of raising to the power of 2"):
                base = node.inputs[0]
                square = ctx.edit.insert_before(node, "Mul", [base, base], like=node.outputs[0])
                ctx.edit.replace(node, square.outputs)
                changes["squares"] += 1
        return changes


def _is_square(node: Node) -> bool:
    base, exponent = node.inputs
    if node.graph is None or base is None or base.dtype not in _FLOATS or constant_size(exponent) != 1:
        return False
    if scalar(exponent) != 2 or (rank_of(exponent) or 0) > (rank_of(base) or 0):
        return False
    return all(use.node.op_type not in ("ReduceMean", "Cast") for use in node.outputs[0].uses())
