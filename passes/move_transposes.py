"""Transposes: merged, cancelled, and moved through operators that do not care for layout, where fewer are left.

Before::

    a = Transpose<perm = [0, 3, 1, 2]>(x)
    b = Relu(a)
    c = Add(b, bias)                       # bias: float[8,1,1]
    y = Transpose<perm = [0, 2, 3, 1]>(c)

After::

    b = Relu(x)
    y = Add(b, bias_kept)                  # bias_kept: float[1,1,1,8]

From each Transpose a region of nodes that can be carried over to the other layout is grown towards the outputs. It is
carried over if that leaves fewer Transposes, or as many that move fewer elements, so the pass comes to an end. A
Transpose that only moves dimensions of size 1 becomes a Reshape, and one of a matrix goes into Gemm or MatMul.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.layout import Perm, compose, inverse, is_unmoved, perm_of, shape_kept
from graphopt.analysis.region import Region, best_region, is_transpose
from graphopt.analysis.views import is_view, moves_only_ones, reshape_target
from graphopt.ir import DataType, Model, Node, Value, attr, opset, rank_of, shape_of
from graphopt.ir.query import sole_use
from graphopt.pipeline import Changes, Pass, PassContext

SWAPPED: Perm = (1, 0)


@dataclass(frozen=True, kw_only=True)
class MoveTransposes(Pass):
    """Merge and cancel Transposes, moving them through other nodes where that leaves fewer."""

    name: ClassVar[str] = "move-transposes"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Merge first, then move; what still only moves dimensions of size 1 becomes a Reshape at the end."""
        if not ctx.nodes("Transpose"):
            return Changes()
        ctx.get(Shapes)
        changes, version = Changes(), opset(model)
        queue = deque(ctx.nodes("Transpose"))
        while queue:
            node = queue.popleft()
            if node.graph is None or not is_transpose(node):
                continue
            if _merge(node, ctx) or _absorb_view(node, ctx) or _into_matmul(node, ctx, version):
                changes["transposes merged"] += 1
                queue.append(node)
                continue
            region = best_region(node, version)
            if region is not None and ctx.may_rewrite(node, _what(region)):
                queue.extend(_apply(region, ctx))
                changes["transposes moved"] += 1
        for node in ctx.nodes("Transpose"):
            changes["transposes to reshapes"] += _to_reshape(node, ctx, version)
        return changes


def _what(region: Region) -> str:
    fewer, elements = -region.cost[0], -region.cost[1]
    saved = f"{fewer} fewer" if fewer else f"{elements} elements fewer to move"
    return (
        f"carry {len(region.nodes)} nodes over to the layout of {region.sources[region.top.outputs[0]].name!r}: {saved}"
    )


def _merge(node: Node, ctx: PassContext) -> bool:
    """Take the Transpose in front of this one into it, or drop it when nothing is moved any more."""
    value, perm = node.inputs[0], perm_of(node)
    before = value.producer() if value is not None else None
    if perm is None or value is None:
        return False
    if is_unmoved(perm):
        if not ctx.may_rewrite(node, "it moves nothing"):
            return False
        ctx.edit.replace(node, [value])
        return True
    if not is_transpose(before):
        return False
    first, source = perm_of(before), before.inputs[0]
    if first is None or source is None or not ctx.may_rewrite(node, "merge with the Transpose before it"):
        return False
    _reread(node, source, compose(first, perm), ctx)
    return True


def _reread(node: Node, source: Value, perm: Perm, ctx: PassContext) -> None:
    """Make a Transpose, or a view, the Transpose of ``source`` by ``perm``, or nothing when that moves nothing."""
    if is_unmoved(perm):
        ctx.edit.replace(node, [source])
    else:
        ctx.edit.rewrite(node, "Transpose", [source], {"perm": list(perm)})


def _absorb_view(node: Node, ctx: PassContext) -> bool:
    """Make one Transpose of this one and a view beside it that only moves dimensions of size 1."""
    value, perm = node.inputs[0], perm_of(node)
    if value is None or perm is None:
        return False
    before, after = value.producer(), sole_use(node.outputs[0])
    if before is not None and is_view(before) and sole_use(value) is not None:
        full = _as_perm(moves_only_ones(before), rank_of(before.inputs[0]))
        source = before.inputs[0]
        if full is not None and source is not None and ctx.may_rewrite(node, "take in the reshape before it"):
            _reread(node, source, compose(full, perm), ctx)
            return True
    if after is not None and is_view(after) and after.inputs[0] is node.outputs[0]:
        full = _as_perm(moves_only_ones(after), len(perm))
        if full is not None and ctx.may_rewrite(after, "take it into the Transpose before it"):
            _reread(after, value, compose(perm, full), ctx)
            return True
    return False


def _as_perm(origin: list[int | None] | None, rank: int | None) -> Perm | None:
    """Return the permutation that a view between shapes of the same rank is; dimensions of size 1 match in order."""
    if origin is None or rank is None or rank != len(origin):
        return None
    free = iter([axis for axis in range(rank) if axis not in origin])
    return tuple(next(free) if axis is None else axis for axis in origin)


def _into_matmul(node: Node, ctx: PassContext, version: int) -> bool:
    """Let the Gemm, or the MatMul of two matrices, that alone reads this Transpose read the matrix as it is."""
    user, source = sole_use(node.outputs[0]), node.inputs[0]
    if user is None or user.domain != "" or source is None or perm_of(node) != SWAPPED:
        return False
    index = next(index for index, value in enumerate(user.inputs) if value is node.outputs[0])
    flag = ("transA", "transB", "")[min(index, 2)]
    if user.op_type == "Gemm" and flag:
        if not ctx.may_rewrite(user, f"take in the Transpose of its input {index}"):
            return False
        ctx.edit.set_attr(user, flag, 1 - attr(user, flag, 0))
        ctx.edit.set_input(user, index, source)
    elif user.op_type == "MatMul" and version >= 11 and _is_matrix_product(user):  # before, Gemm had to add something
        if not ctx.may_rewrite(user, f"make it a Gemm that takes in the Transpose of its input {index}"):
            return False
        inputs = [source if value is node.outputs[0] else value for value in user.inputs]
        ctx.edit.rewrite(user, "Gemm", inputs, {flag: 1})
    else:
        return False
    ctx.edit.erase_dead(node)
    return True


def _is_matrix_product(node: Node) -> bool:
    return all(
        value is not None and rank_of(value) == 2 and value.dtype in (DataType.FLOAT, DataType.DOUBLE)
        for value in node.inputs
    )


def _to_reshape(node: Node, ctx: PassContext, version: int) -> int:
    perm, source = perm_of(node), node.inputs[0]
    shape = shape_of(source)
    if perm is None or source is None or shape is None or version < 5:
        return 0
    moved = [axis for axis in perm if shape[axis] != 1]
    if moved != sorted(moved):
        return 0
    target = reshape_target(shape, [shape[axis] for axis in perm])
    if target is None or not ctx.may_rewrite(node, "it only moves dimensions of size 1: a Reshape does"):
        return 0
    numbers = ctx.edit.constant(np.array(target, np.int64), f"{node.outputs[0].name}_shape")
    ctx.edit.rewrite(node, "Reshape", [source, numbers])
    return 1


def _apply(region: Region, ctx: PassContext) -> list[Node]:
    """Carry the region over; returns the Transposes that were put in or changed."""
    edit = ctx.edit
    reads = {(node, index): node.inputs[index] for node, item in region.nodes.items() for index in item.operands}
    bottoms = {value: region.bottoms(value) for value in region.layout}
    put_in = {key: _lead_in(*key, region, ctx) for key in region.entering}
    made = list(put_in.values())
    for value, perm in region.layout.items():
        producer = value.producer()
        if value in region.sources or producer is None or not region.is_read_outside(value):
            continue
        behind = edit.insert_after(producer, "Transpose", [value], {"perm": list(perm)}, like=value)
        edit.replace_uses(value, behind.outputs[0])
        made.append(behind)
        for node, _ in bottoms[value]:
            edit.set_input(node, 0, value)
    for (node, index), read in reads.items():
        if read is not None:
            entered = put_in.get((read, region.perms[node]))
            edit.set_input(node, index, region.sources.get(read, read) if entered is None else entered.outputs[0])
    for node in region.nodes:
        _carry_over(node, region, ctx)
    for value, behind_it in bottoms.items():
        for node, left in behind_it:
            made.append(node)
            _reread(node, value, left, ctx)
    for value in region.sources:
        edit.drop_unread(value)
    return made


def _lead_in(value: Value, perm: Perm, region: Region, ctx: PassContext) -> Node:
    """Put in the Transpose that brings a value from outside into the region's layout."""
    producer, graph = value.producer(), region.top.graph
    attributes = {"perm": list(inverse(perm))}
    name = f"{value.name}/Transpose"
    if producer is not None and producer.graph is graph:
        node = ctx.edit.insert_after(producer, "Transpose", [value], attributes, name=name)
    else:
        first = graph[0] if graph is not None else region.top
        node = ctx.edit.insert_before(first, "Transpose", [value], attributes, name=name)
    shape = shape_of(value)
    ctx.edit.annotate(node.outputs[0], value.dtype, None if shape is None else shape_kept(shape, perm))
    return node


def _carry_over(node: Node, region: Region, ctx: PassContext) -> None:
    carried = region.nodes[node]
    for name, attribute in carried.attributes.items():
        ctx.edit.set_attr(node, name, attribute)
    for index, array in carried.constants.items():
        old = node.inputs[index] if index < len(node.inputs) else None
        base = node.outputs[0].name if old is None else old.name
        ctx.edit.set_input(node, index, ctx.edit.constant(array, f"{base}_kept"))
        if old is not None:
            ctx.edit.drop_unread(old)
    for value, perm in zip(node.outputs, carried.outputs, strict=False):
        shape = shape_of(value)
        if shape is not None and not is_unmoved(perm):
            ctx.edit.annotate(value, value.dtype, shape_kept(shape, perm))
