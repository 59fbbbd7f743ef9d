"""Pad by what stands at the edge, mirrored or from the other side, as Gather.

Before::

    y = Pad <mode = "edge"> (x, [0, 1, 0, 2])        # 4 columns

After::

    y = Gather <axis = 1> (x, [0, 0, 1, 2, 3, 3, 3])

Some runtimes take zeros only, or compute the other modes wrongly in some types. ``modes`` says which modes go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis import Shapes
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, attr, opset
from graphopt.ir.facts import pads_of
from graphopt.ir.query import static_shape
from graphopt.pipeline import Changes, Pass, PassContext, option

_MODES = ("edge", "reflect", "wrap")


@dataclass(frozen=True, kw_only=True)
class RewritePad(Pass):
    """Write Pad of other modes than constant as Gather, which every runtime computes alike."""

    name: ClassVar[str] = "rewrite-pad"
    preserves: ClassVar = (Shapes,)
    modes: str = option("", "which ones, separated by + (of edge, reflect, wrap); all of these when empty")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text. Raises UsageError for a mode that there is not."""
        wanted = [name for name in self.modes.split("+") if name] or list(_MODES)
        for name in wanted:
            if name not in _MODES:
                raise UsageError(f"there is no mode {name!r} to write out", where=str(self), hint="+".join(_MODES))
        ctx.get(Shapes)
        changes = Changes()
        for node in ctx.nodes("Pad"):
            mode = _mode(node)
            if node.graph is None or mode not in wanted:
                continue
            places = _places(node, mode, opset(model))
            if isinstance(places, str):
                ctx.missed("PAD003", node, f"padding by {mode} stays: {places}")
            elif ctx.may_rewrite(node, f"gather what {mode} pads with"):
                changes["gathered"] += _gather(node, places, ctx)
        return changes


def _mode(node: Node) -> str:
    given = attr(node, "mode", "constant")
    return given.decode() if isinstance(given, bytes) else str(given)


def _places(node: Node, mode: str, version: int) -> dict[int, NDArray[np.int64]] | str:
    """Return for each axis that is padded which index each result is read at, or why that cannot be said."""
    amounts, shape = pads_of(node, version), static_shape(node.inputs[0])
    if amounts is None or shape is None:
        return "its sizes are not known"
    found = {}
    for axis, (size, before, after) in enumerate(zip(shape, *amounts, strict=True)):
        if min(before, after) < 0:
            return "it cuts off as well"
        if not size or (max(before, after) > size - (mode == "reflect") and mode != "edge"):
            return f"it pads {max(before, after)} to {size}, on which runtimes differ"
        if before or after:
            numbers = np.arange(size, dtype=np.int64)
            found[axis] = np.pad(numbers, (before, after), mode=mode)  # type: ignore[call-overload]  # one of _MODES
    return found


def _gather(node: Node, places: dict[int, NDArray[np.int64]], ctx: PassContext) -> int:
    value, shape = node.inputs[0], list(static_shape(node.inputs[0]) or ())
    assert value is not None
    for axis, indices in places.items():
        numbers = ctx.edit.constant(indices, f"{node.name or 'pad'}_indices")
        made = ctx.edit.insert_before(node, "Gather", [value, numbers], {"axis": axis}).outputs[0]
        shape[axis] = len(indices)
        ctx.edit.annotate(made, value.dtype, shape)
        value = made
    return int(ctx.edit.replace(node, [value]))
