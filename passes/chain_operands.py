"""Sum, Mean, Max and Min of more than two operands, two at a time.

Before::

    y = Sum(a, b, c)
    z = Mean(a, b)

After::

    y = Add(Add(a, b), c)
    z = Mul(Add(a, b), 0.5)

Integer kernels take two operands: between those of a longer list some compilers compute in floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import DataType, Model, Node, Value, opset, shape_of
from graphopt.ir.facts import can_stand_for
from graphopt.pipeline import Changes, Pass, PassContext

_PAIRED = {"Sum": "Add", "Mean": "Add", "Max": "Max", "Min": "Min"}
_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.DOUBLE)
_BROADCASTS = 8
"""From this opset on the operands may differ in shape, also those of Add."""


@dataclass(frozen=True, kw_only=True)
class ChainOperands(Pass):
    """Write Sum, Mean, Max and Min of many operands as chains of Add, Max and Min of two."""

    name: ClassVar[str] = "chain-operands"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        ctx.get(Shapes)
        changes = Changes()
        for node in ctx.nodes(*_PAIRED):
            operands = [value for value in node.inputs if value is not None]
            if node.graph is None or not _is_worth_it(node, operands) or opset(model) < _BROADCASTS:
                continue
            if len(operands) == 1 and not can_stand_for(operands[0], node):
                continue
            if ctx.may_rewrite(node, f"write {node.op_type} of {len(operands)} out"):
                changes["chains"] += ctx.edit.replace(node, [_chain(node, operands, ctx)])
        return changes


def _is_worth_it(node: Node, operands: list[Value]) -> bool:
    if node.op_type == "Mean":
        return operands[0].dtype in _FLOATS
    return len(operands) != 2 or node.op_type == "Sum"


def _chain(node: Node, operands: list[Value], ctx: PassContext) -> Value:
    done, *others = operands
    for value in others:
        first, second = shape_of(done), shape_of(value)
        shape = first if first == second else None
        done = ctx.edit.insert_before(node, _PAIRED[node.op_type], [done, value]).outputs[0]
        ctx.edit.annotate(done, operands[0].dtype, shape)
    if node.op_type != "Mean" or not others:
        return done
    assert done.dtype is not None
    part = ctx.edit.constant(np.array(1 / len(operands), done.dtype.numpy()), f"{node.name or 'mean'}_part")
    mean = ctx.edit.insert_before(node, "Mul", [done, part]).outputs[0]
    ctx.edit.annotate(mean, done.dtype, shape_of(done))
    return mean
