"""Two operators of one kind in a row: one, or none.

Before::

    a = Clip(x, 0.0, 6.0)
    b = Relu(a)
    c = Cast<to = DOUBLE>(b)
    d = Cast<to = FLOAT>(c)
    y = Slice(d, [1], [2], [0])

After::

    a = Clip(x, 0.0, 6.0)
    y = Slice(a, [1], [2], [0])

Also: Neg of Neg, Relu of Relu and the like, Clip of Clip, Slice of Slice, Pad of Pad. Casts are merged where the first
loses nothing, the others where nothing else reads the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.casts import first_cast_is_needless
from graphopt.ir import DataType, Model, Node, Value, attr, opset
from graphopt.ir.facts import Range, can_stand_for, pad_value, pads_of, slice_ranges
from graphopt.ir.query import scalar, sole_use
from graphopt.pipeline import Changes, Pass, PassContext

Rule = Callable[[Node, Node, PassContext, int], bool]
"""Takes a node and the producer of its first input, and merges them where it can; returns whether it did."""

IDEMPOTENT = ("Abs", "Ceil", "Floor", "Relu", "Round", "Sign")
INVOLUTIONS = ("Neg", "Not")
WHOLE_NUMBERS = ("Ceil", "Floor", "Round", "Sign")
"""Operators of floats whose results are whole numbers, which Ceil, Floor and Round leave alone."""


@dataclass(frozen=True, kw_only=True)
class MergeChains(Pass):
    """Merge two nodes of one kind in a row: Cast, Clip, Relu, Concat, Slice, Pad, Neg, Not, Abs, Round and the like."""

    name: ClassVar[str] = "merge-chains"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Try each node with the one before it until nothing merges any more; every merge makes a chain shorter."""
        changes, version = Changes(), opset(model)
        queue = ctx.nodes(*_RULES)
        if queue:
            ctx.get(Shapes)
        while queue:
            node = queue.pop()
            if node.graph is not None and _merge(node, ctx, version):
                changes["nodes merged"] += 1
                queue.append(node)
        return changes


def _merge(node: Node, ctx: PassContext, version: int) -> bool:
    value = node.inputs[0] if node.inputs else None
    before = value.producer() if value is not None else None
    if before is None or before.domain != "" or before.graph is not node.graph:
        return False
    return _RULES[node.op_type](node, before, ctx, version)


def _stand_in(value: Value | None, node: Node, ctx: PassContext, why: str) -> bool:
    if value is None or not can_stand_for(value, node) or not ctx.may_rewrite(node, why):
        return False
    return ctx.edit.replace(node, [value])


def _idempotent(node: Node, before: Node, ctx: PassContext, version: int) -> bool:
    same = before.op_type == node.op_type
    whole = node.op_type in ("Ceil", "Floor", "Round") and before.op_type in WHOLE_NUMBERS
    return (same or whole) and _stand_in(node.inputs[0], node, ctx, f"{before.op_type} before it does it already")


def _involution(node: Node, before: Node, ctx: PassContext, version: int) -> bool:
    if before.op_type != node.op_type:
        return False
    return _stand_in(before.inputs[0], node, ctx, f"it undoes the {before.op_type} before it")


def _cast(node: Node, before: Node, ctx: PassContext, version: int) -> bool:
    source = before.inputs[0] if before.op_type == "Cast" else None
    if source is None or source.dtype is None:
        return False
    middle, last = attr(before, "to"), attr(node, "to")
    if not first_cast_is_needless(int(source.dtype), middle, last):
        return False
    if int(source.dtype) == last:
        return _stand_in(source, node, ctx, "it undoes the Cast before it, which loses nothing")
    if not ctx.may_rewrite(node, "skip the Cast before it, which loses nothing"):
        return False
    ctx.edit.set_input(node, 0, source)
    ctx.edit.erase_dead(before)
    return True


def _extremes(node: Node) -> tuple[float, float] | None:
    """Return the least and the largest finite number of a node's type: the bounds of a Clip that has none."""
    value = node.inputs[0]
    dtype = value.dtype if value is not None else None
    if dtype is not None and dtype in (DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16):
        limits = np.finfo(dtype.numpy())
        return float(limits.min), float(limits.max)
    if dtype is None or not dtype.is_integer():
        return None
    whole = np.iinfo(dtype.numpy())
    return int(whole.min), int(whole.max)


def _bounds(node: Node, version: int) -> tuple[float, float] | None:
    """Return the interval that a Clip or Relu keeps values in, or ``None`` when a bound is computed."""
    if node.op_type == "Relu":
        return 0, np.inf
    extremes = _extremes(node) if node.op_type == "Clip" else None
    if extremes is None:
        return None
    if version < 11:
        low, high = attr(node, "min", extremes[0]), attr(node, "max", extremes[1])
    else:
        given = [*node.inputs[1:], None, None][:2]
        low, high = (end if value is None else scalar(value) for value, end in zip(given, extremes, strict=True))
    return None if low is None or high is None or not low <= high else (low, high)


def _clip(node: Node, before: Node, ctx: PassContext, version: int) -> bool:
    """Merge intervals that overlap."""
    if node.op_type == before.op_type == "Relu":
        return _idempotent(node, before, ctx, version)
    outer, inner = _bounds(node, version), _bounds(before, version)
    if outer is None or inner is None:
        return False
    low, high = max(outer[0], inner[0]), min(outer[1], inner[1])
    if (low, high) == inner and before.op_type == "Clip":
        return _stand_in(node.inputs[0], node, ctx, "the Clip before it is as narrow")
    extremes = _extremes(before)
    if low > high or extremes is None or sole_use(before.outputs[0]) is None:
        return False
    if not ctx.may_rewrite(node, f"merge with the {before.op_type} before it"):
        return False
    wanted = {
        name: bound for name, bound, end in zip(("min", "max"), (low, high), extremes, strict=True) if bound != end
    }
    _make_clip(node, before, wanted, ctx, version)
    return True


def _make_clip(node: Node, before: Node, bounds: dict[str, float], ctx: PassContext, version: int) -> None:
    source = before.inputs[0]
    if version < 11:
        ctx.edit.rewrite(node, "Clip", [source], {name: float(bound) for name, bound in bounds.items()})
        return
    dtype = source.dtype if source is not None else None
    inputs: list[Value | None] = [source, None, None]
    for index, name in enumerate(("min", "max"), 1):
        if name not in bounds or dtype is None:
            continue
        known = [item.inputs[index] for item in (node, before) if item.op_type == "Clip" and len(item.inputs) > index]
        array = np.array(bounds[name], dtype.numpy())
        same = next((value for value in known if value is not None and scalar(value) == bounds[name]), None)
        inputs[index] = same if same is not None else ctx.edit.constant(array, f"{node.outputs[0].name}_{name}")
    while inputs[-1] is None:
        inputs.pop()
    ctx.edit.rewrite(node, "Clip", inputs)


def _slice(node: Node, before: Node, ctx: PassContext, version: int) -> bool:
    """Merge Slices of different axes, where all the readers of the inner one are such Slices."""
    if before.op_type != "Slice" or before.outputs[0].is_graph_output():
        return False
    inner, outer = slice_ranges(before, version), slice_ranges(node, version)
    if inner is None or outer is None:
        return False
    if not all(_slices_other_axes(use.node, before, inner, version) for use in before.outputs[0].uses()):
        return False
    if not ctx.may_rewrite(node, "merge with the Slice before it"):
        return False
    items = sorted([*inner, *outer], key=lambda item: item.axis)
    columns = {name: [getattr(item, name[:-1]) for item in items] for name in ("starts", "ends")}
    columns["axes"] = [item.axis for item in items]
    if version < 10:
        ctx.edit.rewrite(node, "Slice", [before.inputs[0]], columns)
        return True
    if any(item.step != 1 for item in items):
        columns["steps"] = [item.step for item in items]
    name = node.outputs[0].name
    given = [ctx.edit.constant(np.array(column, np.int64), f"{name}_{key}") for key, column in columns.items()]
    ctx.edit.rewrite(node, "Slice", [before.inputs[0], *given])
    return True


def _slices_other_axes(node: Node, before: Node, inner: list[Range], version: int) -> bool:
    if node.op_type != "Slice" or node.graph is not before.graph or node.inputs[0] is not before.outputs[0]:
        return False
    outer = slice_ranges(node, version)
    return outer is not None and not {item.axis for item in inner} & {item.axis for item in outer}


def _pad(node: Node, before: Node, ctx: PassContext, version: int) -> bool:
    """Merge Pads that fill in the same value, with nothing cut off."""
    if before.op_type != "Pad" or sole_use(before.outputs[0]) is None or version < 2:
        return False
    fill, inner, outer = pad_value(node, version), pads_of(before, version), pads_of(node, version)
    if fill is None or fill != pad_value(before, version) or inner is None or outer is None:
        return False
    both = [*inner[0], *inner[1], *outer[0], *outer[1]]
    if len(inner[0]) != len(outer[0]) or min(both) < 0 or not ctx.may_rewrite(node, "merge with the Pad before it"):
        return False
    total = [a + b for half in (0, 1) for a, b in zip(inner[half], outer[half], strict=True)]
    if version < 11:
        ctx.edit.rewrite(node, "Pad", [before.inputs[0]], {"pads": total, "value": float(fill)})
        return True
    amounts = ctx.edit.constant(np.array(total, np.int64), f"{node.outputs[0].name}_pads")
    ctx.edit.rewrite(node, "Pad", [before.inputs[0], amounts, *node.inputs[2:3]])
    return True


_RULES: dict[str, Rule] = {
    **dict.fromkeys(IDEMPOTENT, _idempotent),
    **dict.fromkeys(INVOLUTIONS, _involution),
    "Relu": _clip,
    "Clip": _clip,
    "Cast": _cast,
    "Slice": _slice,
    "Pad": _pad,
}
