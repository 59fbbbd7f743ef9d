"""Averages over whole images in two steps, as depthwise convolutions, for targets that are slow in one.

Before, over 7 rows and 7 columns::

    y = GlobalAveragePool(x)

After, each weight being 1/7::

    r = Conv <group = C, kernel_shape = [1, 7]> (x, columns)
    y = Conv <group = C, kernel_shape = [7, 1]> (r, rows)

Over 8 rows and columns it is blocks of 2 x 4 and then 4 x 2 of their means: of all ways to take two steps, the one with
the least products, where less than eight results count as eight. Without ``largest`` nothing is done unless the
target's facts (``split_pools``) say up to which size that pays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node
from graphopt.ir.query import static_shape
from graphopt.pipeline import Changes, Pass, PassContext, option

_TOGETHER = 8
"""How many results are computed at a time."""

Sides = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SplitPool(Pass):
    """Average small images in two steps, by depthwise convolutions, where the target's facts say that it pays."""

    name: ClassVar[str] = "split-pool"
    preserves: ClassVar = (Shapes,)

    largest: int = option(0, "rows and columns of the largest images, 0 for what the target's facts say", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        changes = Changes()
        largest = self.largest or ctx.host_or_target.split_pools
        if not largest:
            return changes
        ctx.get(Shapes)
        for node in ctx.nodes("GlobalAveragePool"):
            shape = static_shape(node.inputs[0])
            if shape is None or len(shape) != 4:
                ctx.missed("POOL001", node, "stays in one step: its sizes are not known", hint="run fix-shapes first")
                continue
            first = _first_step((shape[2], shape[3]), largest)
            if first is not None and ctx.may_rewrite(node, "average in two steps"):
                _rewrite(node, shape, first, ctx)
                changes["pools"] += 1
        return changes


def _first_step(size: Sides, largest: int) -> Sides | None:
    """Return the sides of what the first step averages, None where one step is as good or ``size`` too large."""
    if max(size) > largest:
        return None
    ways = [(_products(size, sides), sides) for sides in _ways(size)]
    best = min(ways, default=None)
    return best[1] if best is not None and best[0] < size[0] * size[1] * _TOGETHER else None


def _ways(size: Sides) -> Iterator[Sides]:
    """Yield sides that divide those of the image; a kernel has fewer than eight rows and columns."""
    height, width = size
    for rows in range(1, height + 1):
        for columns in range(1, width + 1):
            fits = height % rows == 0 and width % columns == 0
            if fits and max(rows, columns, height // rows, width // columns) < _TOGETHER:
                yield rows, columns


def _products(size: Sides, sides: Sides) -> int:
    left = size[0] // sides[0], size[1] // sides[1]
    return sides[0] * sides[1] * max(left[0] * left[1], _TOGETHER) + left[0] * left[1] * _TOGETHER


def _rewrite(node: Node, shape: tuple[int, ...], first: Sides, ctx: PassContext) -> None:
    value = node.inputs[0]
    assert value is not None and value.dtype is not None
    batch, channels, height, width = shape
    left = height // first[0], width // first[1]
    base = node.name or node.outputs[0].name or "average"
    for sides, name in ((first, "first"), (left, "second")):
        weights = np.full((channels, 1, *sides), 1.0 / (sides[0] * sides[1]), value.dtype.numpy())
        operands = [value, ctx.edit.constant(weights, f"{base}_{name}")]
        attributes: dict[str, int | list[int]] = {"group": channels, "kernel_shape": [*sides], "strides": [*sides]}
        made = ctx.edit.insert_before(node, "Conv", operands, attributes, name=f"{base}/{name}")
        size = left if name == "first" else (1, 1)
        ctx.edit.annotate(made.outputs[0], value.dtype, [batch, channels, *size])
        value = made.outputs[0]
    ctx.edit.replace(node, [value])
