"""Arithmetic on shapes, followed symbolically: known sizes become constants, equal ones are computed once.

Before (``x`` has the shape [batch, seq, 384])::

    s = Shape(x)
    b = Gather(s, {0})
    n = Gather(s, {1})
    shape = Concat(Unsqueeze(b, {0}), Unsqueeze(n, {0}), {-1}, {32})
    y = Reshape(x, shape)

After::

    y = Reshape(x, {0, 0, -1, 32})
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.size_facts import Elements
from graphopt.analysis.size_rules import reaches_end, slice_parts
from graphopt.analysis.symbolic import ONE, Expr
from graphopt.ir import Graph, Model, Node, Value, graphs, is_constant
from graphopt.ir.query import attr, use_count
from graphopt.pipeline import Changes, Pass, PassContext

LAST = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class FoldShapes(Pass):
    """Replace arithmetic on shapes by constants where sizes are known or can be copied from the input.

    Named dimensions are taken at their word: equal names are equal sizes. A size that only Reshape can work out becomes
    -1, for which runtimes want the other dimensions not to be 0.
    """

    name: ClassVar[str] = "fold-shapes"
    refines: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Follow sizes once, then rewrite what reads them, then what computes them."""
        changes = Changes()
        if not ctx.nodes("Shape", "Size"):
            return changes
        known = ctx.get(ShapeValues)
        for node in ctx.nodes("Reshape"):
            _fold_reshape(node, known, ctx, changes)
        for node in ctx.nodes("Expand"):
            _fold_expand(node, known, ctx, changes)
        for node in ctx.nodes("Slice"):
            _fold_slice(node, known, ctx, changes)
        for graph in graphs(model):
            _fold_elements(graph, known, ctx, changes)
        return changes


def _fold_reshape(node: Node, known: ShapeValues, ctx: PassContext, changes: Changes) -> None:
    if node.graph is None or len(node.inputs) < 2 or is_constant(node.inputs[1]):
        return
    elements, sizes = known.elements(node.inputs[1]), known.sizes(node.inputs[0])
    if elements is None or elements.rank != 1:
        return
    shape = _constant_shape(elements, sizes or (), bool(attr(node, "allowzero", 0)))
    if shape is None or not ctx.may_rewrite(node, f"reshape to the constant {shape}"):
        return
    _set_constant(ctx, node, 1, shape)
    changes["reshapes"] += 1


def _constant_shape(elements: Elements, sizes: tuple[Expr, ...], keeps_zero: bool) -> list[int] | None:
    """Return a shape of numbers that Reshape takes to mean the same; ``None`` where two sizes cannot be told to it."""
    shape: list[int | None] = [None if item is None else item.value for item in elements.items]
    if shape.count(None) + shape.count(-1) > 1 and not keeps_zero:
        for axis, item in enumerate(elements.items[: len(sizes)]):
            if shape[axis] is None and item == sizes[axis]:
                shape[axis] = 0
    elif shape.count(None) == 1 and not keeps_zero:
        # Both 0 and -1 would do: 0 also takes an empty input.
        axis = shape.index(None)
        if axis < len(sizes) and elements.items[axis] == sizes[axis]:
            shape[axis] = 0
    if shape.count(None) + shape.count(-1) > 1 or (keeps_zero and 0 in shape and None in shape):
        return None
    return [-1 if size is None else size for size in shape]


def _fold_expand(node: Node, known: ShapeValues, ctx: PassContext, changes: Changes) -> None:
    if node.graph is None or is_constant(node.inputs[1]):
        return
    source, elements = node.inputs[0], known.elements(node.inputs[1])
    sizes = known.sizes(source)
    if source is None or elements is None or sizes is None:
        return
    offset = len(sizes) - len(elements.items)
    kept = [
        item == ONE or (item is not None and offset + axis >= 0 and item == sizes[offset + axis])
        for axis, item in enumerate(elements.items)
    ]
    if offset >= 0 and all(kept):
        if ctx.may_rewrite(node, "remove an Expand to the shape that is there") and ctx.edit.replace(node, [source]):
            changes["expands removed"] += 1
        return
    sizes_wanted = (None if item is None else item.value for item in elements.items)
    shape = [1 if keep else size for keep, size in zip(kept, sizes_wanted, strict=True)]
    numbers = [size for size in shape if size is not None]
    if len(numbers) == len(shape) and ctx.may_rewrite(node, f"expand to the constant {numbers}"):
        _set_constant(ctx, node, 1, numbers)
        changes["expands"] += 1


def _fold_slice(node: Node, known: ShapeValues, ctx: PassContext, changes: Changes) -> None:
    if node.graph is None or len(node.inputs) < 3 or is_constant(node.inputs[2]):
        return
    sizes = known.sizes(node.inputs[0])
    parts = slice_parts(node, known.facts, None if sizes is None else len(sizes))
    if sizes is None or parts is None:
        return
    ends: list[int] = []
    for axis, _, end, step in parts:
        if end is None or step is None:
            return
        if end.value is not None:
            ends.append(end.value)
        elif step > 0 and reaches_end(end, sizes[axis]):
            ends.append(LAST)
        else:
            return
    starts = known.elements(node.inputs[1])
    if starts is None or starts.known is None or not ctx.may_rewrite(node, "slice to the end of the axis"):
        return
    _set_constant(ctx, node, 1, starts.known)
    _set_constant(ctx, node, 2, ends)
    changes["slices"] += 1


def _set_constant(ctx: PassContext, node: Node, index: int, numbers: list[int]) -> None:
    old = node.inputs[index]
    dtype = np.int32 if old is not None and old.dtype is not None and old.dtype.name == "INT32" else np.int64
    array = np.array([min(number, np.iinfo(dtype).max) for number in numbers], dtype)
    ctx.edit.set_input(node, index, ctx.edit.constant(array, f"{node.outputs[0].name}/shape"))
    producer = None if old is None else old.producer()
    if producer is not None:
        ctx.edit.erase_dead(producer)


def _fold_elements(graph: Graph, known: ShapeValues, ctx: PassContext, changes: Changes) -> None:
    """Turn values whose elements are all numbers into constants; let one value stand for those with equal elements."""
    first: dict[tuple[object, ...], Value] = {}
    for node in list(graph):
        if node.graph is None or node.op_type == "Constant":
            continue
        for value in list(node.outputs):
            elements = known.elements(value)
            if elements is None or use_count(value) == 0 or value.dtype is None:
                continue
            numbers = elements.known
            if numbers is not None:
                if _is_frontier(value, known) and ctx.may_rewrite(node, f"replace sizes by the constant {numbers}"):
                    array = np.array(numbers, value.dtype.numpy())
                    ctx.edit.to_initializer(value, array.reshape(()) if elements.rank == 0 else array)
                    changes["constants"] += 1
            elif None not in elements.items:
                key = (value.dtype, elements.rank, *elements.items)
                same = first.setdefault(key, value)
                if _is_gone(same):
                    same = first[key] = value
                if same is not value and not value.is_graph_output() and ctx.may_rewrite(node, "reuse equal sizes"):
                    ctx.edit.replace(node, [same])
                    changes["sizes merged"] += 1


def _is_gone(value: Value) -> bool:
    producer = value.producer()
    return producer is None or producer.graph is None


def _is_frontier(value: Value, known: ShapeValues) -> bool:
    """Tell whether something reads ``value`` that does not become a constant itself."""
    if value.is_graph_output():
        return True
    for use in value.uses():
        found = [known.elements(output) for output in use.node.outputs]
        if any(elements is None or elements.known is None for elements in found):
            return True
    return False
