"""Chains of Reshape, Flatten, Squeeze and Unsqueeze: one node, or none.

Before::

    a = Unsqueeze(x, [0])                # x: float[N,6]
    b = Reshape(a, [1, -1, 2, 3])
    c = Squeeze(b, [0])                  # float[N,2,3]
    d = Reshape(c, [-1, 2, 3])

After::

    d = Reshape(x, [-1, 2, 3])

Shapes with symbolic dimensions count as equal where all but one dimension are proven equal: the number of elements
fixes that one. A chain whose shape no constant target can express stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.views import VIEWS, is_view, origin_of_dims, reshape_target, same_view, view_shape
from graphopt.ir import Dim, Model, Node, Value, opset, rank_of, shape_of
from graphopt.pipeline import Changes, Pass, PassContext

LONGEST = 8
"""How many views in a row are looked at from one of them."""


@dataclass(frozen=True, kw_only=True)
class RemoveReshapes(Pass):
    """Remove Reshape, Flatten, Squeeze and Unsqueeze that change nothing, and merge those in a row into one."""

    name: ClassVar[str] = "remove-reshapes"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Take each view in turn; what it reads has been merged before it."""
        ctx.get(Shapes)
        changes = Changes()
        for node in ctx.nodes(*VIEWS):
            if node.graph is not None:
                changes.update(_simplify(node, ctx, opset(model)))
        return changes


def _simplify(node: Node, ctx: PassContext, version: int) -> dict[str, int]:
    sources = _sources(node)
    wanted = view_shape(node)
    _annotate(node, wanted, ctx)
    for source in reversed(sources):
        if _equals(source, node, wanted) and ctx.may_rewrite(node, f"the shape is that of {source.name!r} again"):
            ctx.edit.replace(node, [source])
            return {"nodes removed": 1}
    if len(sources) < 2:
        return {}
    for source in reversed(sources[1:]):
        if _read_from(source, node, wanted, ctx, version):
            return {"nodes merged": 1}
    return {}


def _annotate(node: Node, shape: tuple[Dim, ...] | None, ctx: PassContext) -> None:
    """Write down a shape that says more than ONNX's own inference did: symbols that go through a view."""
    output = node.outputs[0]
    known = shape_of(output)
    if shape is None or output.is_graph_output() or shape == known:
        return
    if known is None or sum(dim is None for dim in known) > sum(dim is None for dim in shape):
        ctx.edit.annotate(output, output.dtype, shape)


def _sources(node: Node) -> list[Value]:
    """Return what ``node`` reads, then what the view behind that reads, and so on to the start of the chain.

    Chains are short once their beginnings were merged; the limit is for those that no constant target can express.
    """
    found: list[Value] = []
    reader: Node | None = node
    while reader is not None and is_view(reader) and len(found) < LONGEST:
        value = reader.inputs[0]
        if value is None:
            break
        found.append(value)
        reader = value.producer()
    return found


def _equals(source: Value, node: Node, wanted: tuple[Dim, ...] | None) -> bool:
    origin = _origin(source, node)
    rank = rank_of(source)
    if origin is not None and rank is not None and origin == list(range(rank)):
        return True
    return same_view(shape_of(source), wanted)


def _origin(source: Value, node: Node) -> list[int | None] | None:
    """Return which dimension of ``source`` each output dimension is, when only Squeeze and Unsqueeze lie between."""
    inner = node.inputs[0]
    own = origin_of_dims(node)
    if own is None or inner is None or inner is source:
        return own
    producer = inner.producer()
    before = _origin(source, producer) if producer is not None else None
    return None if before is None else [None if dim is None else before[dim] for dim in own]


def _read_from(source: Value, node: Node, wanted: tuple[Dim, ...] | None, ctx: PassContext, version: int) -> bool:
    origin, rank = _origin(source, node), rank_of(source)
    if origin is not None and rank is not None:
        kept = [dim for dim in origin if dim is not None]
        gone = [dim for dim in range(rank) if dim not in kept]
        new = [index for index, dim in enumerate(origin) if dim is None]
        if not gone:
            return _become(node, "Unsqueeze", source, new, ctx, version)
        if not new:
            return _become(node, "Squeeze", source, gone, ctx, version)
    target = reshape_target(shape_of(source), wanted)
    return target is not None and version >= 5 and _become(node, "Reshape", source, target, ctx, version)


def _become(node: Node, operator: str, source: Value, numbers: list[int], ctx: PassContext, version: int) -> bool:
    """Make ``node`` read ``source``; its numbers are the axes, or the target of a Reshape."""
    if not ctx.may_rewrite(node, f"merge with the reshapes before it, from {source.name!r} on"):
        return False
    as_input = operator == "Reshape" or version >= 13
    if as_input:
        inputs = [source, ctx.edit.constant(np.array(numbers, np.int64), f"{node.outputs[0].name}_shape")]
        ctx.edit.rewrite(node, operator, inputs)
    else:
        ctx.edit.rewrite(node, operator, [source], {"axes": numbers})
    return True
