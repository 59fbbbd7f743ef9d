"""Resize to the nearest neighbour, in a form whose rounding no runtime gets wrong.

Before::

    y = Resize <mode = "nearest", nearest_mode = "floor"> (x, , scales)      # half_pixel, 4 -> 8 columns

After, as some runtimes round half_pixel their own way whatever ``nearest_mode`` says::

    y = Gather <axis = 3> (x, [0, 0, 0, 1, 1, 2, 2, 3])

Where the neighbours are those that ``asymmetric`` with ``floor`` takes, the Resize stays, with these attributes. What
is left alone: rounding to the nearest with half_pixel, pytorch_half_pixel and align_corners, which all agree on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, attr, opset
from graphopt.ir.query import static_shape
from graphopt.pipeline import Changes, Pass, PassContext

_AGREED = {
    ("asymmetric", "floor"),
    *((place, mode) for place in ("half_pixel", "pytorch_half_pixel", "align_corners")
      for mode in ("round_prefer_floor", "round_prefer_ceil")),
}  # fmt: skip
_PLACES = ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners")

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RewriteResize(Pass):
    """Write Resize to the nearest neighbour with attributes, or as Gather, that every runtime rounds alike."""

    name: ClassVar[str] = "rewrite-resize"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        ctx.get(Shapes)
        changes = Changes()
        for node in ctx.nodes("Resize"):
            place = _text(node, "coordinate_transformation_mode", "half_pixel")
            rounding = _text(node, "nearest_mode", "round_prefer_floor")
            if opset(model) < 11 or _text(node, "mode", "nearest") != "nearest" or (place, rounding) in _AGREED:
                continue
            wanted = _indices(node, place, rounding)
            if wanted is None:
                ctx.missed("RESIZE001", node, f"{place} with {rounding} stays: its sizes are not known")
                continue
            if wanted == _indices(node, "asymmetric", "floor"):
                changes["changed"] += _change_modes(node, ctx)
            else:
                changes["gathered"] += _gather(node, wanted, ctx)
        return changes


def _text(node: Node, name: str, default: str) -> str:
    value = attr(node, name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _indices(node: Node, place: str, rounding: str) -> dict[int, list[int]] | None:
    """Return for each axis that is resized which index each result is read at; None where that is not known."""
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    scales = node.inputs[2] if len(node.inputs) > 2 else None
    known = attr(node, "keep_aspect_ratio_policy", "stretch") in ("stretch", b"stretch")
    if before is None or after is None or place not in _PLACES or not known or node.attributes.get("axes") is not None:
        return None
    given = scales.const_value.numpy() if scales is not None and scales.const_value is not None else None
    if given is not None and given.size not in (0, len(before)):
        return None
    found = {}
    for axis, (size, result) in enumerate(zip(before, after, strict=True)):
        factor = given[axis] if given is not None and given.size else np.float32(result) / np.float32(size)
        if size != result or factor != 1:
            found[axis] = _along(size, result, np.float32(factor), place, rounding)
    return found


def _along(size: int, result: int, scale: np.float32, place: str, rounding: str) -> list[int]:
    at = np.arange(result, dtype=np.float32)
    if place == "asymmetric":
        at = at / scale
    elif place == "align_corners":
        at = at * np.float32(size - 1) / np.float32(result - 1) if result > 1 else at * 0
    elif place == "half_pixel" or result > 1:
        at = (at + np.float32(0.5)) / scale - np.float32(0.5)
    if rounding == "floor":
        rounded = np.floor(at)
    elif rounding == "ceil":
        rounded = np.ceil(at)
    elif rounding == "round_prefer_floor":
        rounded = np.ceil(at - np.float32(0.5))
    else:
        rounded = np.floor(at + np.float32(0.5))
    return [int(index) for index in np.clip(rounded, 0, size - 1)]


def _change_modes(node: Node, ctx: PassContext) -> int:
    if not ctx.may_rewrite(node, "resize with asymmetric and floor, which read the same"):
        return 0
    ctx.edit.set_attr(node, "coordinate_transformation_mode", "asymmetric")
    ctx.edit.set_attr(node, "nearest_mode", "floor")
    return 1


def _gather(node: Node, wanted: dict[int, list[int]], ctx: PassContext) -> int:
    if not ctx.may_rewrite(node, "gather the neighbours"):
        return 0
    value = node.inputs[0]
    for axis, indices in wanted.items():
        places = ctx.edit.constant(np.array(indices, np.int64), f"{node.name or 'resize'}_indices")
        made = ctx.edit.insert_before(node, "Gather", [value, places], {"axis": axis})
        last = axis == max(wanted)
        shape = static_shape(value)
        if shape is not None and value is not None and not last:
            ctx.edit.annotate(made.outputs[0], value.dtype, [*shape[:axis], len(indices), *shape[axis + 1 :]])
        value = made.outputs[0]
    assert value is not None
    ctx.edit.replace(node, [value])
    return 1
