"""Slices with steps over spatial axes as pools with strides, for targets that cut out in steps nowhere else.

Before::

    y = Slice(x, starts = [0, 0], ends = [32, 32], axes = [2, 3], steps = [2, 2])     # x[N, C, 32, 32]

After::

    y = AveragePool <kernel_shape = [1, 1], strides = [2, 2]> (x)

The mean of one element is that element. Where less than all of an axis is gone through, a Slice without steps comes
first. Sizes have to be known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, opset
from graphopt.ir.facts import slice_ranges
from graphopt.ir.query import static_shape
from graphopt.pipeline import Changes, Pass, PassContext

_FIRST_SPATIAL = 2
_FLOATS = ("FLOAT", "FLOAT16", "DOUBLE")


@dataclass(frozen=True)
class _Cut:
    """What is taken of one axis: indices from ``start`` up to, and without, ``end``, a ``step`` apart."""

    axis: int
    start: int
    end: int
    step: int


@dataclass(frozen=True, kw_only=True)
class SliceToPool(Pass):
    """Write Slices with steps over spatial axes as average pools of one element with strides."""

    name: ClassVar[str] = "slice-to-pool"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        changes = Changes()
        for node in ctx.nodes("Slice"):
            ctx.get(Shapes)
            cuts = _cuts(node, opset(model))
            if cuts is None or all(cut.step == 1 for cut in cuts):
                continue
            why = _obstacle(node, cuts)
            if why:
                ctx.missed("S2P001", node, f"stays: {why}")
                continue
            if ctx.may_rewrite(node, "write it as a pool with strides"):
                _rewrite(node, cuts, ctx)
                changes["pools"] += 1
        return changes


def _cuts(node: Node, version: int) -> list[_Cut] | None:
    """Return what is taken of each axis in indices that are not negative, None where it is not known."""
    shape, ranges = static_shape(node.inputs[0]), slice_ranges(node, version)
    if shape is None or ranges is None or any(item.step < 1 for item in ranges):
        return None
    found = []
    for item in ranges:
        start, end, step = slice(item.start, item.end, item.step).indices(shape[item.axis])
        found.append(_Cut(item.axis, start, end, step))
    return found


def _obstacle(node: Node, cuts: list[_Cut]) -> str:
    value = node.inputs[0]
    if value is None or value.dtype is None or value.dtype.name not in _FLOATS:
        return "pools take floats only"
    if any(cut.step > 1 and cut.axis < _FIRST_SPATIAL for cut in cuts):
        return "it takes steps along an axis that no pool strides over"
    return "it takes nothing" if any(cut.end <= cut.start for cut in cuts) else ""


def _rewrite(node: Node, cuts: list[_Cut], ctx: PassContext) -> None:
    value = node.inputs[0]
    assert value is not None
    shape = list(static_shape(value) or ())
    begun = [cut for cut in cuts if cut.start or (cut.step == 1 and cut.end < shape[cut.axis]) or _stops(cut, shape)]
    if begun:
        base = node.name or node.outputs[0].name or "slice"
        columns = [[cut.start for cut in begun], [cut.end for cut in begun], [cut.axis for cut in begun]]
        given = [
            ctx.edit.constant(np.array(column, np.int64), f"{base}_{name}")
            for column, name in zip(columns, ("starts", "ends", "axes"), strict=True)
        ]
        plain = ctx.edit.insert_before(node, "Slice", [value, *given])
        for cut in begun:
            shape[cut.axis] = cut.end - cut.start
        ctx.edit.annotate(plain.outputs[0], value.dtype, shape)
        value = plain.outputs[0]
    strides = [1] * (len(shape) - _FIRST_SPATIAL)
    for cut in cuts:
        if cut.step > 1:
            strides[cut.axis - _FIRST_SPATIAL] = cut.step
    ctx.edit.rewrite(node, "AveragePool", [value], {"kernel_shape": [1] * len(strides), "strides": strides})


def _stops(cut: _Cut, shape: list[int]) -> bool:
    """Tell whether a stride over the whole axis would take more than the Slice does."""
    return len(range(cut.start, shape[cut.axis], cut.step)) != len(range(cut.start, cut.end, cut.step))
