"""Reshapes that a neighbour can do without: reductions, Gather and Slice beside them, and pairs around one node.

Before::

    a = Gather<axis = 1>(x, 2)                # a scalar index drops the dimension
    b = Unsqueeze(a, [1])                     # and this puts it back
    c = ReduceMean<keepdims = 1>(b, [2])
    d = Squeeze(c, [2])
    e = Unsqueeze(d, [0])
    f = Relu(e)
    y = Squeeze(f, [0])

After::

    b = Gather<axis = 1>(x, [2])
    d = ReduceMean<keepdims = 0>(b, [2])
    y = Relu(d)

Also: Slice of one element and Squeeze become Gather; a Pad between reshapes that only add and drop dimensions of size 1
pads in the shape before them. All of that only where nothing else reads the nodes in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.layout import REDUCING, UNARY
from graphopt.analysis.views import VIEWS, is_view, moves_only_ones, reshape_target, same_view, view_shape
from graphopt.ir import Dim, Model, Node, attr, constant, opset, rank_of, shape_of
from graphopt.ir.facts import WHOLE, axes_of, pads_of, slice_ranges
from graphopt.ir.query import scalar, sole_use
from graphopt.pipeline import Changes, Pass, PassContext

SCALED = ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub")
"""Operators that keep the shape of their first input when the second has one element and no dimensions."""


@dataclass(frozen=True, kw_only=True)
class AbsorbReshapes(Pass):
    """Fold reshapes into the Gather, Slice or reduction before them, and drop pairs of them around one node."""

    name: ClassVar[str] = "absorb-reshapes"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Look at what stands in front of each reshape."""
        changes, views = Changes(), ctx.nodes(*VIEWS)
        if views:
            ctx.get(Shapes)
        for view in views:
            value = view.inputs[0] if view.graph is not None else None
            before = value.producer() if value is not None else None
            if value is None or before is None or before.domain != "" or sole_use(value) is None:
                continue
            rule = _RULES.get(before.op_type)
            if rule is not None and before.graph is view.graph and rule(before, view, ctx, opset(model)):
                changes["reshapes absorbed"] += 1
        return changes


def _dropped(view: Node) -> list[int] | None:
    """Return the input dimensions that a view drops when it does nothing else."""
    origin, rank = moves_only_ones(view), rank_of(view.inputs[0])
    if origin is None or rank is None or None in origin:
        return None
    gone = [axis for axis in range(rank) if axis not in origin]
    return gone if gone and origin == [axis for axis in range(rank) if axis not in gone] else None


def _added(view: Node) -> list[int] | None:
    """Return the output dimensions that a view adds when it does nothing else."""
    origin, rank = moves_only_ones(view), rank_of(view.inputs[0])
    if origin is None or rank is None or [axis for axis in origin if axis is not None] != list(range(rank)):
        return None
    return [index for index, axis in enumerate(origin) if axis is None] or None


def _gather(node: Node, view: Node, ctx: PassContext, version: int) -> bool:
    """Gather by a scalar and Unsqueeze: Gather by a list of one."""
    index, rank = constant(node.inputs[1]), rank_of(node.inputs[0])
    if index is None or index.ndim != 0 or rank is None or _added(view) != [attr(node, "axis", 0) % rank]:
        return False
    if not ctx.may_rewrite(view, "gather by a list of one index, which keeps the dimension"):
        return False
    listed = ctx.edit.constant(index.reshape(1), f"{view.outputs[0].name}_indices")
    ctx.edit.rewrite(view, "Gather", [node.inputs[0], listed], {"axis": attr(node, "axis", 0)})
    return True


def _slice(node: Node, view: Node, ctx: PassContext, version: int) -> bool:
    """Slice of one element and Squeeze: Gather by a scalar."""
    ranges = slice_ranges(node, version)
    if ranges is None or len(ranges) != 1 or ranges[0].step != 1 or _dropped(view) != [ranges[0].axis]:
        return False
    start, end = ranges[0].start, ranges[0].end
    last = start == -1 and end >= WHOLE
    if not (last or (end == start + 1 and start != -1)):
        return False
    if not ctx.may_rewrite(view, "gather the one element that the Slice takes"):
        return False
    index = ctx.edit.constant(np.array(start, np.int64), f"{view.outputs[0].name}_index")
    ctx.edit.rewrite(view, "Gather", [node.inputs[0], index], {"axis": ranges[0].axis})
    return True


def _reduce(node: Node, view: Node, ctx: PassContext, version: int) -> bool:
    """A reduction that keeps its dimensions and Squeeze, or one that does not and Unsqueeze: the other kind."""
    rank, keeps = rank_of(node.inputs[0]), bool(attr(node, "keepdims", 1))
    axes = [attr(node, "axis", 0)] if node.op_type in ("ArgMax", "ArgMin") else axes_of(node)
    if rank is None or axes is None or (not axes and attr(node, "noop_with_empty_axes", 0)):
        return False
    reduced = sorted({axis % rank for axis in axes}) or list(range(rank))
    if reduced != (_dropped(view) if keeps else _added(view)):
        return False
    if not ctx.may_rewrite(view, f"let {node.op_type} {'drop' if keeps else 'keep'} the dimensions itself"):
        return False
    attributes = {name: item for name, item in node.attributes.items() if name != "keepdims"}
    ctx.edit.rewrite(view, node.op_type, list(node.inputs), {**attributes, "keepdims": int(not keeps)})
    return True


def _between(node: Node, view: Node, ctx: PassContext, version: int) -> bool:
    """A node between two views: in the shape before the first one, with one view or none behind it."""
    value = node.inputs[0]
    first = value.producer() if value is not None else None
    if value is None or first is None or not is_view(first) or sole_use(value) is None or first.graph is not node.graph:
        return False
    if node.op_type in SCALED and not _is_scaled(node):
        return False
    source, wanted = first.inputs[0], view_shape(view)
    shape = shape_of(source)
    pads = _pads_before(node, first, version) if node.op_type == "Pad" else None
    if source is None or shape is None or (node.op_type == "Pad" and pads is None):
        return False
    inner = _padded(shape, pads) if pads is not None else shape
    target = reshape_target(inner, wanted)
    if version < 5 or (target is None and not same_view(inner, wanted)):
        return False
    if not ctx.may_rewrite(node, "do it in the shape before the reshape in front of it"):
        return False
    if pads is not None:
        numbers = ctx.edit.constant(np.array(pads, np.int64), f"{node.outputs[0].name}_pads")
        ctx.edit.set_input(node, 1, numbers)
    ctx.edit.set_input(node, 0, source)
    ctx.edit.annotate(node.outputs[0], node.outputs[0].dtype, inner)
    ctx.edit.drop_unread(value)
    if same_view(inner, wanted):
        ctx.edit.replace(view, [node.outputs[0]])
    elif target is not None:
        shape_value = ctx.edit.constant(np.array(target, np.int64), f"{view.outputs[0].name}_shape")
        ctx.edit.rewrite(view, "Reshape", [node.outputs[0], shape_value])
    return True


def _is_scaled(node: Node) -> bool:
    return len(node.inputs) == 2 and rank_of(node.inputs[1]) == 0 and scalar(node.inputs[1]) is not None


def _pads_before(node: Node, first: Node, version: int) -> list[int] | None:
    """Return the amounts of a Pad in the shape before ``first``, or ``None`` when that has no place for them."""
    pads, origin, rank = pads_of(node, version), moves_only_ones(first), rank_of(first.inputs[0])
    if pads is None or origin is None or rank is None or version < 11 or len(node.inputs) > 3:
        return None
    moved = [0] * (2 * rank)
    for half, amounts in enumerate(pads):
        for axis, amount in zip(origin, amounts, strict=True):
            if amount and axis is None:
                return None
            if axis is not None:
                moved[half * rank + axis] = amount
    return moved


def _padded(shape: tuple[Dim, ...], pads: list[int]) -> tuple[Dim, ...]:
    added = [pads[axis] + pads[axis + len(shape)] for axis in range(len(shape))]
    return tuple(
        dim + more if isinstance(dim, int) else None if more else dim for dim, more in zip(shape, added, strict=True)
    )


_RULES = {
    **dict.fromkeys((*UNARY, *SCALED, "Clip", "Pad"), _between),
    **dict.fromkeys((*REDUCING, "ArgMax", "ArgMin"), _reduce),
    "Gather": _gather,
    "Slice": _slice,
}
