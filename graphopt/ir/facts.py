"""Small facts about values and nodes that several passes rest on. Nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir

from graphopt.ir.query import attr, constant, constant_size, ints, is_constant, rank_of, same_shape, static_shape

FILL_LIMIT = 1 << 16
"""Larger constants are not searched for being all zeros or ones: no-ops are written with small ones."""

WHOLE = (1 << 31) - 1
"""An end of Slice from here on means: to the end, whatever the size of the dimension."""


def static_dims(value: onnx_ir.Value | None) -> tuple[int | None, ...] | None:
    """Return the shape with ``None`` for each dimension that is not a known size; ``None`` for unknown rank."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape.dims)


def is_filled(value: onnx_ir.Value | None, element: Any) -> bool:
    """Tell whether ``value`` is a constant, not empty, whose elements all equal ``element``."""
    size = constant_size(value)
    if not size or size > FILL_LIMIT:
        return False
    array = constant(value)
    if array is None or array.dtype.kind in "OSU":
        return False
    return bool(array.reshape(-1)[0] == element and (array == element).all())


def keeps_shape(value: onnx_ir.Value | None, other: onnx_ir.Value | None) -> bool:
    """Tell whether broadcasting ``value`` with the constant ``other`` gives the shape of ``value``."""
    sizes, shape = static_shape(other), static_dims(value)
    if sizes is None or value is None:
        return False
    if not sizes:
        return True
    if shape is None or len(sizes) > len(shape):
        return False
    return all(a in (1, b) for a, b in zip(reversed(sizes), reversed(shape), strict=False))


def same_dims(value: onnx_ir.Value | None, output: onnx_ir.Value) -> bool:
    """Tell whether a node's ``output`` provably has the shape of ``value``. The declared shape of a graph output, which
    may be wrong, proves nothing."""
    return not output.is_graph_output() and same_shape(value, output)


def can_stand_for(value: onnx_ir.Value | None, node: onnx_ir.Node) -> bool:
    """Tell whether putting ``value`` in place of the first output of ``node`` gets anywhere.

    It does not for an Identity between an input, an initializer, an outer value or another output and a graph output.
    """
    output = node.outputs[0]
    if value is None:
        return False
    if node.op_type != "Identity" or not output.is_graph_output():
        return True
    return value.producer() is not None and value.graph is output.graph and not value.is_graph_output()


def axes_of(node: onnx_ir.Node, index: int = 1) -> list[int] | None:
    """Return the axes of a node that takes them as an attribute or as input ``index``; ``None`` when not constant.

    Left out, the axes are the empty list.
    """
    given = attr(node, "axes")
    if given is not None:
        return [int(axis) for axis in given]
    value = node.inputs[index] if index < len(node.inputs) else None
    return [] if value is None else ints(value)


@dataclass(frozen=True)
class Range:
    """What Slice takes of one axis."""

    axis: int
    start: int
    end: int
    step: int

    def is_whole(self, size: int | None) -> bool:
        """Tell whether this takes all of a dimension of ``size`` (``None``: unknown)."""
        if self.step != 1:
            return False
        from_begin = self.start == 0 or self.start <= -WHOLE or (size is not None and self.start <= -size)
        return from_begin and (self.end >= WHOLE or (size is not None and self.end >= size))


def slice_ranges(node: onnx_ir.Node, version: int) -> list[Range] | None:
    """Return what a Slice takes of each axis it names, axes not negative; ``None`` when that is not constant."""
    rank = rank_of(node.inputs[0])
    if version < 10:
        starts, ends, axes, steps = attr(node, "starts"), attr(node, "ends"), attr(node, "axes"), None
    else:
        given = [*node.inputs[1:], None, None, None, None][:4]
        if any(value is not None and not is_constant(value) for value in given):
            return None
        starts, ends, axes, steps = (ints(value) for value in given)
    if starts is None or ends is None:
        return None
    axes = axes if axes is not None else list(range(len(starts)))
    if any(axis < 0 for axis in axes):
        if rank is None:
            return None
        axes = [axis % rank for axis in axes]
    steps = steps if steps is not None else [1] * len(starts)
    return [Range(*item) for item in zip(axes, starts, ends, steps, strict=True)]


def whole_slice(node: onnx_ir.Node, version: int) -> bool:
    """Tell whether a Slice takes everything."""
    ranges, dims = slice_ranges(node, version), static_dims(node.inputs[0])
    if ranges is None:
        return False
    return all(item.is_whole(dims[item.axis] if dims is not None else None) for item in ranges)


def pads_of(node: onnx_ir.Node, version: int) -> tuple[list[int], list[int]] | None:
    """Return how much a Pad adds before and after each axis of its input, or ``None`` when that is not constant."""
    pads = attr(node, "pads" if version >= 2 else "paddings") if version < 11 else ints(node.inputs[1])
    if pads is None:
        return None
    half = len(pads) // 2
    begins, ends = list(pads[:half]), list(pads[half:])
    axes_value = node.inputs[3] if version >= 18 and len(node.inputs) > 3 else None
    if axes_value is None:
        return begins, ends
    axes, rank = ints(axes_value), rank_of(node.inputs[0])
    if axes is None or rank is None:
        return None
    return _scatter(axes, begins, rank), _scatter(axes, ends, rank)


def _scatter(axes: Sequence[int], amounts: Sequence[int], rank: int) -> list[int]:
    full = [0] * rank
    for axis, amount in zip(axes, amounts, strict=True):
        full[axis % rank] = amount
    return full


def pad_value(node: onnx_ir.Node, version: int) -> float | int | None:
    """Return what a constant Pad fills in, or ``None`` when it is no constant Pad or its value is computed."""
    if attr(node, "mode", "constant") != "constant":
        return None
    if version < 11:
        return float(attr(node, "value", 0.0))
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return 0
    array = constant(value)
    return None if array is None or array.size != 1 else np.asarray(array).reshape(-1)[0].item()
