"""Averages over whole images in small steps, as depthwise convolutions, for targets that are slow in large ones.

Before, over 7 rows and 7 columns::

    y = GlobalAveragePool(x)

After, each weight being 1/7::

    r = Conv <group = C, kernel_shape = [1, 7]> (x, columns)
    y = Conv <group = C, kernel_shape = [7, 1]> (r, rows)

Of all ways to come to one mean, by kernels of fewer than eight rows and columns, it is the one that takes least: a step
takes as long as its products, where less than eight results count as eight, or as moving what it reads and writes.
Nothing is done where the compiler's own way, kernels of seven rows and columns, takes no more. Without ``largest``
nothing is done unless the target's facts (``split_pools``) say up to which size that pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node
from graphopt.ir.query import static_shape
from graphopt.pipeline import Changes, Pass, PassContext, option

_TOGETHER = 8
"""How many results are computed at a time."""
_MOVED, _STARTED = 4 / 3, 10.0
"""What moving a number takes, and a step besides, in products; fitted to rknn-toolkit2's cycles for rk3588."""

Sides = tuple[int, int]
Way = tuple[float, tuple[Sides, ...]]
"""What steps take together, in products, and the sides of what each averages."""


@dataclass(frozen=True, kw_only=True)
class SplitPool(Pass):
    """Average images in small steps, by depthwise convolutions, where the target's facts say that it pays."""

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
                ctx.missed("POOL001", node, "stays as it is: its sizes are not known", hint="run fix-shapes first")
                continue
            steps = _steps((shape[2], shape[3])) if max(shape[2:]) <= largest else ()
            if steps and ctx.may_rewrite(node, f"average in {len(steps)} steps"):
                _rewrite(node, shape, steps, ctx)
                changes["pools"] += 1
        return changes


def _steps(size: Sides) -> tuple[Sides, ...]:
    """Return the sides of what each step averages, none where the compiler's own way takes no more."""
    best = _best(size)
    return best[1] if best is not None and best[0] < _usual(size) else ()


@cache
def _best(size: Sides) -> Way | None:
    if size == (1, 1):
        return 0.0, ()
    ways = []
    for sides in product(_divisors(size[0]), _divisors(size[1])):
        left = size[0] // sides[0], size[1] // sides[1]
        rest = _best(left) if sides != (1, 1) else None
        if rest is not None:
            ways.append((_time(size, sides, left) + rest[0], (sides, *rest[1])))
    return min(ways, default=None, key=lambda way: (way[0], len(way[1]), way[1]))


def _usual(size: Sides) -> float:
    """Return what the compiler's own way takes: kernels of seven rows and columns, again and again."""
    if size == (1, 1):
        return 0.0
    sides = min(size[0], _TOGETHER - 1), min(size[1], _TOGETHER - 1)
    left = -(-size[0] // sides[0]), -(-size[1] // sides[1])
    return _time(size, sides, left) + _usual(left)


def _divisors(side: int) -> list[int]:
    return [number for number in range(1, _TOGETHER) if side % number == 0]


def _time(size: Sides, sides: Sides, left: Sides) -> float:
    kernel, results = sides[0] * sides[1], left[0] * left[1]
    return max(kernel * max(results, _TOGETHER), _STARTED + _MOVED * (size[0] * size[1] + results + kernel))


def _rewrite(node: Node, shape: tuple[int, ...], steps: tuple[Sides, ...], ctx: PassContext) -> None:
    value = node.inputs[0]
    assert value is not None and value.dtype is not None
    batch, channels, height, width = shape
    base = node.name or node.outputs[0].name or "average"
    for number, sides in enumerate(steps, start=1):
        height, width = height // sides[0], width // sides[1]
        weights = np.full((channels, 1, *sides), 1.0 / (sides[0] * sides[1]), value.dtype.numpy())
        operands = [value, ctx.edit.constant(weights, f"{base}_step{number}")]
        attributes: dict[str, int | list[int]] = {"group": channels, "kernel_shape": [*sides], "strides": [*sides]}
        made = ctx.edit.insert_before(node, "Conv", operands, attributes, name=f"{base}/step{number}")
        ctx.edit.annotate(made.outputs[0], value.dtype, [batch, channels, height, width])
        value = made.outputs[0]
    ctx.edit.replace(node, [value])
