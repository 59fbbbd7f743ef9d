"""Nodes whose output is one of their inputs, unchanged: readers read that input instead.

Before::

    a = Identity(x)
    b = Cast<to = 1>(a)          # x is float already
    c = Mul(b, one)              # one = 1.0, and does not broadcast b
    y = Relu(c)

After::

    y = Relu(x)

An output of the graph that is also an input of it, or an initializer, keeps an Identity in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.analysis.noops import OPERATORS, adds_positive_zero, passed_on
from graphopt.ir import Model, opset
from graphopt.ir.facts import can_stand_for
from graphopt.pipeline import Changes, Pass, PassContext, option


@dataclass(frozen=True, kw_only=True)
class RemoveIdentities(Pass):
    """Remove nodes that pass a value on unchanged: no-op Casts, Slices and Pads, x + 0, x * 1, Concat of one."""

    name: ClassVar[str] = "remove-identities"
    preserves: ClassVar = (Shapes,)
    signed_zeros: bool = option(
        False, "keep x + 0.0, which turns -0.0 into 0.0 (onnxruntime's own optimizer drops it as well)"
    )

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Ask of each node that may be one whether it passes an input on."""
        ctx.get(Shapes, fresh=True)
        version, changes = opset(model), Changes()
        for node in ctx.nodes(*OPERATORS):
            if node.graph is None or (self.signed_zeros and adds_positive_zero(node)):
                continue
            value = passed_on(node, version)
            if value is None or not can_stand_for(value, node):
                continue
            if ctx.may_rewrite(node, f"its output is its input {value.name!r}"):
                ctx.edit.replace(node, [value])
                changes["nodes removed"] += 1
        return changes
