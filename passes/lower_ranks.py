"""Transposes of many axes as ones of few, for targets whose tensors have few.

Before, the windows of an image::

    a = Reshape(x, [2, 4, 7, 4, 7, 32])
    b = Transpose <perm = [0, 1, 3, 2, 4, 5]> (a)
    y = Reshape(b, [32, 49, 32])

After ``lower-ranks{rank=5},remove-reshapes``, as axes that stay together are one, and those of size 1 none::

    a = Reshape(x, [8, 7, 4, 224])
    b = Transpose <perm = [0, 2, 1, 3]> (a)
    y = Reshape(b, [32, 49, 32])
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, Value, attr, rank_of
from graphopt.ir.query import static_shape
from graphopt.pipeline import Changes, Pass, PassContext, option


@dataclass(frozen=True, kw_only=True)
class LowerRanks(Pass):
    """Write Transposes of many axes as Reshape, a Transpose of fewer, and Reshape."""

    name: ClassVar[str] = "lower-ranks"
    preserves: ClassVar = (Shapes,)
    rank: int = option(5, "how many axes may stay", ge=2)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        ctx.get(Shapes)
        changes = Changes()
        for node in ctx.nodes("Transpose"):
            rank = rank_of(node.inputs[0])
            if node.graph is None or rank is None or rank <= self.rank:
                continue
            shape = static_shape(node.inputs[0])
            if shape is None or 0 in shape:
                ctx.missed("RANK001", node, f"its {rank} axes stay: their sizes are open or 0", "run fix-shapes first")
                continue
            perm = [int(axis) for axis in attr(node, "perm", range(rank)[::-1])]
            groups = _groups(shape, perm)
            if len(groups) > self.rank:
                ctx.missed("RANK001", node, f"{len(groups)} of its {rank} axes move on their own")
            elif ctx.may_rewrite(node, f"transpose {len(groups)} axes instead of {rank}"):
                changes["transposes"] += _lower(node, shape, perm, groups, ctx)
        return changes


def _groups(shape: tuple[int, ...], perm: list[int]) -> list[list[int]]:
    """Return the axes in the order of the result, those together that were together before; without those of 1."""
    groups: list[list[int]] = []
    moving = [axis for axis in perm if shape[axis] != 1]
    remaining = sorted(moving)
    for axis in moving:
        place = remaining.index(axis)
        if groups and place and remaining[place - 1] == groups[-1][-1]:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def _lower(node: Node, shape: tuple[int, ...], perm: list[int], groups: list[list[int]], ctx: PassContext) -> int:
    value = node.inputs[0]
    assert value is not None
    before = sorted(groups)

    def reshaped(value: Value, sizes: list[int]) -> Value:
        target = ctx.edit.constant(np.array(sizes, np.int64), f"{node.name or 'transpose'}_shape")
        made = ctx.edit.insert_before(node, "Reshape", [value, target]).outputs[0]
        ctx.edit.annotate(made, value.dtype, sizes)
        return made

    def size(group: list[int]) -> int:
        return prod(shape[axis] for axis in group)

    lowered = reshaped(value, [size(group) for group in before])
    order = [before.index(group) for group in groups]
    if order != sorted(order):
        made = ctx.edit.insert_before(node, "Transpose", [lowered], {"perm": order}).outputs[0]
        ctx.edit.annotate(made, value.dtype, [size(group) for group in groups])
        lowered = made
    return int(ctx.edit.replace(node, [reshaped(lowered, [shape[axis] for axis in perm])]))
