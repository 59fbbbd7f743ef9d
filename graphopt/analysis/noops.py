"""Which nodes pass one of their inputs on unchanged, by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt.ir import Node, Value, attr, constant, is_constant, rank_of, static_shape
from graphopt.ir.facts import axes_of, is_filled, keeps_shape, same_dims, static_dims, whole_slice
from graphopt.ir.query import ints, is_read, scalar

Rule = Callable[[Node, int], Value | None]
"""Takes a node and the opset; returns the input that the node's first output equals, or ``None``."""

PLAIN_SAMPLING = ("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners")
"""The coordinate transformations of Resize that map each position to itself when nothing is scaled."""


def passed_on(node: Node, version: int) -> Value | None:
    """Return the input that the first output of ``node`` equals for all data, or ``None``.

    ``version`` is the opset. Shapes and dtypes must have been inferred. Further outputs are unused where this says so.
    Infinities, NaN and integers are kept exactly; x + 0.0 counts as x although it turns -0.0 into 0.0.
    """
    rule = _RULES.get(node.op_type)
    return rule(node, version) if rule is not None and node.domain == "" else None


def _identity(node: Node, version: int) -> Value | None:
    return node.inputs[0]


def _of_one(node: Node, version: int) -> Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _dropout(node: Node, version: int) -> Value | None:
    if len(node.outputs) > 1 and (is_read(node.outputs[1])):
        return None
    if version < 7 and not attr(node, "is_test", 0):
        return None
    training = node.inputs[2] if len(node.inputs) > 2 else None
    return node.inputs[0] if training is None or scalar(training) in (False, 0) else None


def _cast(node: Node, version: int) -> Value | None:
    value = node.inputs[0]
    return value if value is not None and value.dtype is not None and value.dtype == attr(node, "to") else None


def _cast_like(node: Node, version: int) -> Value | None:
    value, like = node.inputs[0], node.inputs[1]
    same = value is not None and like is not None and value.dtype is not None and value.dtype == like.dtype
    return value if same else None


def _transpose(node: Node, version: int) -> Value | None:
    perm, rank = attr(node, "perm"), rank_of(node.inputs[0])
    unmoved = perm == sorted(perm) if perm is not None else rank is not None and rank <= 1
    return node.inputs[0] if unmoved else None


def _slice(node: Node, version: int) -> Value | None:
    return node.inputs[0] if whole_slice(node, version) else None


def _pad(node: Node, version: int) -> Value | None:
    pads = attr(node, "pads" if version >= 2 else "paddings") if version < 11 else ints(node.inputs[1])
    return node.inputs[0] if pads is not None and not any(pads) else None


def _split(node: Node, version: int) -> Value | None:
    return node.inputs[0] if len(node.outputs) == 1 else None


def _expand(node: Node, version: int) -> Value | None:
    value = node.inputs[0]
    shape, target = static_shape(value), ints(node.inputs[1])
    rank = rank_of(value)
    if target is not None and rank is not None and len(target) <= rank:
        if all(size == 1 for size in target):
            return value
        if shape is not None and all(a in (1, b) for a, b in zip(reversed(target), reversed(shape), strict=False)):
            return value
    return value if same_dims(value, node.outputs[0]) else None


def _tile(node: Node, version: int) -> Value | None:
    repeats = ints(node.inputs[1]) if version >= 6 else None
    return node.inputs[0] if repeats is not None and all(count == 1 for count in repeats) else None


def _neutral(element: Any, *, left: bool) -> Rule:
    """Return the rule of a binary operator with a neutral element on the right, and on the left where allowed."""

    def rule(node: Node, version: int) -> Value | None:
        if "axis" in node.attributes:  # before opset 7: broadcasting from an axis
            return None
        for value, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0]))[: 2 if left else 1]:
            if is_constant(other) and keeps_shape(value, other) and is_filled(other, element):
                return value
        return None

    return rule


def _sub(node: Node, version: int) -> Value | None:
    value, zero = node.inputs
    if "axis" in node.attributes or not is_constant(zero) or not keeps_shape(value, zero) or not is_filled(zero, 0):
        return None
    array = constant(zero)
    return None if array is None or (array.dtype.kind not in "iub" and np.signbit(array).any()) else value


def adds_positive_zero(node: Node) -> bool:
    """Tell whether ``node`` adds a constant that is not -0.0, so that it turns -0.0 into 0.0 if that constant is 0."""
    if node.op_type != "Add":
        return False
    arrays = [constant(value) for value in node.inputs if is_constant(value)]
    return any(array.dtype.kind not in "iub" and not np.signbit(array).all() for array in arrays if array is not None)


def _both_same(node: Node, version: int) -> Value | None:
    first = node.inputs[0]
    return first if all(value is first for value in node.inputs) else None


def _and(node: Node, version: int) -> Value | None:
    return _both_same(node, version) or _neutral(True, left=True)(node, version)


def _or(node: Node, version: int) -> Value | None:
    return _both_same(node, version) or _neutral(False, left=True)(node, version)


def _where(node: Node, version: int) -> Value | None:
    condition, yes, no = node.inputs
    chosen = yes if yes is no or is_filled(condition, True) else no if is_filled(condition, False) else None
    return chosen if chosen is not None and same_dims(chosen, node.outputs[0]) else None


def _resize(node: Node, version: int) -> Value | None:
    if attr(node, "coordinate_transformation_mode", "half_pixel") not in PLAIN_SAMPLING:
        return None
    value = node.inputs[0]
    given = [item for item in node.inputs[1:] if item is not None]
    shape = static_shape(value)
    if shape is not None and len(given) > 0 and shape == static_shape(node.outputs[0]) and attr(node, "axes") is None:
        sizes = node.inputs[3] if len(node.inputs) > 3 else None
        if sizes is not None:
            return value if ints(sizes) == list(shape) else None
    scales = node.inputs[1 if version < 11 else 2] if len(node.inputs) > (1 if version < 11 else 2) else None
    return value if is_filled(scales, 1.0) else None


def _upsample(node: Node, version: int) -> Value | None:
    if version >= 9:
        return node.inputs[0] if is_filled(node.inputs[1], 1.0) else None
    scales = attr(node, "scales")
    return node.inputs[0] if scales is not None and all(scale == 1.0 for scale in scales) else None


def _pool(node: Node, version: int) -> Value | None:
    unit = all(size == 1 for name in ("kernel_shape", "strides") for size in attr(node, name, [1]))
    return node.inputs[0] if unit and not any(attr(node, "pads", [])) and len(node.outputs) == 1 else None


def _global_pool(node: Node, version: int) -> Value | None:
    shape = static_dims(node.inputs[0])
    return node.inputs[0] if shape is not None and len(shape) > 2 and all(dim == 1 for dim in shape[2:]) else None


def _clip(node: Node, version: int) -> Value | None:
    """Only infinite bounds: an absent bound is the largest finite float, which does change infinities."""
    if version < 11 or len(node.inputs) < 3:
        return None
    return node.inputs[0] if scalar(node.inputs[1]) == -np.inf and scalar(node.inputs[2]) == np.inf else None


def _reduce(node: Node, version: int) -> Value | None:
    """Reductions of nothing, and of dimensions of size one that are kept."""
    axes = axes_of(node)
    if axes is None:
        return None
    if not axes and attr(node, "noop_with_empty_axes", 0):
        return node.inputs[0]
    shape = static_dims(node.inputs[0])
    if shape is None or not attr(node, "keepdims", 1):
        return None
    return node.inputs[0] if all(shape[axis] == 1 for axis in axes or range(len(shape))) else None


def _blocks_of_one(node: Node, version: int) -> Value | None:
    return node.inputs[0] if attr(node, "blocksize") == 1 else None


def _gather(node: Node, version: int) -> Value | None:
    value, indices = node.inputs
    shape = static_dims(value)
    if shape is None or rank_of(indices) != 1 or not is_constant(indices):
        return None
    size = shape[attr(node, "axis", 0)]
    if size is None or static_shape(indices) != (size,):
        return None
    array = constant(indices)
    return value if array is not None and np.array_equal(array % max(size, 1), np.arange(size)) else None


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("Max", "Min", "Sum", "Mean", "Concat"), _of_one),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"), _reduce),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _blocks_of_one),
    **dict.fromkeys(("AveragePool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _pad,
    "Split": _split,
    "Expand": _expand,
    "Tile": _tile,
    "Add": _neutral(0, left=True),
    "Sub": _sub,
    "Mul": _neutral(1, left=True),
    "Div": _neutral(1, left=False),
    "Pow": _neutral(1, left=False),
    "And": _and,
    "Or": _or,
    "Xor": _neutral(False, left=True),
    "Where": _where,
    "Resize": _resize,
    "Upsample": _upsample,
    "Clip": _clip,
    "Gather": _gather,
}

OPERATORS = tuple(_RULES)
"""The operators that can be no-ops."""
