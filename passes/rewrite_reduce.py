"""Norms and other reductions as ReduceSum of what they sum.

Before::

    y = ReduceL2 <keepdims = 1> (x, axes)

After::

    y = Sqrt(ReduceSum <keepdims = 1> (Mul(x, x), axes))

ReduceL1 sums Abs(x), ReduceSumSquare x * x, and ReduceLogSum takes the Log of the sum. Few targets have these operators
in integers, and all have ReduceSum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import DataType, Model, Node, Value, attr, opset, shape_of
from graphopt.pipeline import Changes, Pass, PassContext

_BEHIND = {"ReduceL1": "", "ReduceL2": "Sqrt", "ReduceSumSquare": "", "ReduceLogSum": "Log"}
_FLOATS = (DataType.FLOAT, DataType.DOUBLE)
"""Not float16: onnxruntime and the targets may sum it in wider numbers in one kernel and not in the other."""


@dataclass(frozen=True, kw_only=True)
class RewriteReduce(Pass):
    """Write ReduceL1, ReduceL2, ReduceSumSquare and ReduceLogSum with ReduceSum."""

    name: ClassVar[str] = "rewrite-reduce"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        ctx.get(Shapes)
        changes = Changes()
        for node in ctx.nodes(*_BEHIND):
            if node.graph is None:
                continue
            if why := _obstacle(node, opset(model)):
                ctx.missed("REDUCE001", node, f"{node.op_type} stays: {why}")
            elif ctx.may_rewrite(node, f"write {node.op_type} with ReduceSum"):
                changes[node.op_type] += ctx.edit.replace(node, [_written(node, ctx)])
        return changes


def _obstacle(node: Node, version: int) -> str:
    if version < 13:
        return "before opset 13 ReduceSum has another form"
    if node.inputs[0] is None or node.inputs[0].dtype not in _FLOATS:
        return "it is not of float32 or float64"
    return "without axes it is no reduction" if attr(node, "noop_with_empty_axes", 0) else ""


def _written(node: Node, ctx: PassContext) -> Value:
    x = node.inputs[0]
    assert x is not None

    def add(operator: str, inputs: list[Value], like: Value, **attributes: int) -> Value:
        made = ctx.edit.insert_before(node, operator, inputs, attributes).outputs[0]
        ctx.edit.annotate(made, x.dtype, shape_of(like))
        return made

    summed = x
    if node.op_type == "ReduceL1":
        summed = add("Abs", [x], x)
    elif node.op_type != "ReduceLogSum":
        summed = add("Mul", [x, x], x)
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if attr(node, "axes") is not None:
        axes = ctx.edit.constant(np.array(attr(node, "axes"), np.int64), f"{node.name or 'reduce'}_axes")
    inputs = [summed] if axes is None else [summed, axes]
    total = add("ReduceSum", inputs, node.outputs[0], keepdims=int(attr(node, "keepdims", 1)))
    return add(_BEHIND[node.op_type], [total], total) if _BEHIND[node.op_type] else total
