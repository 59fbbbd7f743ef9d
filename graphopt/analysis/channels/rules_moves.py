"""Rules of operators that move, cut, join, repeat and reshape."""

from __future__ import annotations

import numpy as np

from graphopt.analysis.channels.reshape import blocks, tie_block
from graphopt.analysis.channels.rules_elements import Rule
from graphopt.analysis.channels.ties import Digit, Pick, Ties, Window
from graphopt.ir import Node, Value
from graphopt.ir.facts import Range, axes_of, pads_of
from graphopt.ir.query import attr, constant, is_constant


def same_axes(node: Node, ties: Ties, source: Value | None, target: Value, *, skip: tuple[int, ...] = ()) -> None:
    """Tie the axes of two values of one rank, but for those in ``skip``."""
    for axis in range(ties.rank(target)):
        if axis not in skip:
            ties.tie(node, (source, axis), (target, axis))


def _concat(node: Node, ties: Ties) -> str | None:
    output = node.outputs[0]
    axis = attr(node, "axis", 1) % max(ties.rank(output), 1)
    sizes = [ties.size((value, axis)) for value in node.inputs]
    offset = 0
    for value, size in zip(node.inputs, sizes, strict=True):
        same_axes(node, ties, value, output, skip=(axis,))
        if size is not None and None not in sizes:
            ties.tie(node, (value, axis), (output, axis), Window(0, offset, size))
            offset += size
    return "a part of this Concat is of unknown size"


def _split(node: Node, ties: Ties) -> str | None:
    source = node.inputs[0]
    axis = attr(node, "axis", 0) % max(ties.rank(source), 1)
    if len(node.inputs) > 1 and node.inputs[1] is not None and ties.integers(node.inputs[1]) is None:
        return "the sizes of this Split are computed"
    sizes = [ties.size((value, axis)) for value in node.outputs]
    offset = 0
    for value, size in zip(node.outputs, sizes, strict=True):
        same_axes(node, ties, source, value, skip=(axis,))
        if size is not None and None not in sizes:
            ties.tie(node, (source, axis), (value, axis), Window(offset, 0, size))
            offset += size
    return "a part of this Split is of unknown size"


def _slice(node: Node, ties: Ties) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    ranges = _ranges(node, ties)
    if ranges is None:
        return "what this Slice takes is computed"
    same_axes(node, ties, source, output, skip=tuple(item.axis for item in ranges))
    for item in ranges:
        size, taken = ties.size((source, item.axis)), ties.size((output, item.axis))
        if item.is_whole(size):
            ties.tie(node, (source, item.axis), (output, item.axis))
        elif item.step == 1 and size is not None and taken is not None:
            first = range(size)[item.start : item.end].start
            ties.tie(node, (source, item.axis), (output, item.axis), Window(first, 0, taken))
    return "this Slice takes it in steps"


def _ranges(node: Node, ties: Ties) -> list[Range] | None:
    rank = ties.rank(node.inputs[0])
    if ties.version < 10:
        starts, ends, axes = (attr(node, name) for name in ("starts", "ends", "axes"))
        steps = None
    else:
        given = [*node.inputs[1:], None, None, None, None][:4]
        starts, ends, axes, steps = (ties.integers(value) for value in given)
        if any(value is not None and ties.integers(value) is None for value in given):
            return None
    if starts is None or ends is None:
        return None
    axes = range(len(starts)) if axes is None else [axis % rank for axis in axes]
    return [Range(*item) for item in zip(axes, starts, ends, steps or [1] * len(starts), strict=True)]


def _gather(node: Node, ties: Ties) -> str | None:
    data, indices = node.inputs
    output = node.outputs[0]
    rank, inner = ties.rank(data), ties.rank(indices)
    axis = attr(node, "axis", 0) % max(rank, 1)
    for each in range(rank):
        if each != axis:
            ties.tie(node, (data, each), (output, each if each < axis else each + inner - 1))
    size, picked = ties.size((data, axis)), ties.array(indices)
    for each in range(inner):
        # Indices that are known are stated anew, however many places state them alike.
        if picked is None:
            ties.tie(node, (indices, each), (output, axis + each))
        ties.free((output, axis + each))
    if ties.is_computed(indices) and not ties.is_computed(data):
        for each in range(rank):
            if each != axis:
                ties.writes(node, (data, each))
    if picked is None or size is None:
        return "the indices of this Gather are computed"
    positions = np.where(picked < 0, picked + size, picked).astype(np.int64)
    if inner == 1:
        ties.tie(node, (data, axis), (output, axis), Pick(positions))
    else:
        ties.pin(node, (data, axis), "this Gather picks it", positions.reshape(-1).tolist())
    return None


def _pad(node: Node, ties: Ties) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    pads = pads_of(node, ties.version)
    if pads is None:
        return "the padding is computed"
    for axis, (before, after) in enumerate(zip(*pads, strict=True)):
        size = ties.size((source, axis))
        if not before and not after:
            ties.tie(node, (source, axis), (output, axis))
        elif size is not None and min(before, after) >= 0 and attr(node, "mode", "constant") == "constant":
            ties.tie(node, (source, axis), (output, axis), Window(0, before, size))
    return "this Pad copies or cuts along it"


def _tile(node: Node, ties: Ties) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    repeats = ties.integers(node.inputs[1])
    if repeats is None:
        return "the repeats of this Tile are computed"
    for axis, repeat in enumerate(repeats):
        size = ties.size((source, axis))
        if repeat == 1:
            ties.tie(node, (source, axis), (output, axis))
        elif size is not None:
            ties.tie(node, (output, axis), (source, axis), Digit(size * repeat, 1, size))
    return "the size is not known"


def _transpose(node: Node, ties: Ties) -> str | None:
    rank = ties.rank(node.inputs[0])
    for place, axis in enumerate(attr(node, "perm") or range(rank)[::-1]):
        ties.tie(node, (node.inputs[0], axis), (node.outputs[0], place))
    return None


def _squeeze(node: Node, ties: Ties) -> str | None:
    rank = ties.rank(node.inputs[0])
    axes = _axes(node, ties)
    if axes is None:
        return "the axes of this Squeeze are computed"
    dims = ties.dims(node.inputs[0]) or ()
    gone = {axis % rank for axis in axes} if axes else {axis for axis, size in enumerate(dims) if size == 1}
    for place, axis in enumerate(axis for axis in range(rank) if axis not in gone):
        ties.tie(node, (node.inputs[0], axis), (node.outputs[0], place))
    return None


def _unsqueeze(node: Node, ties: Ties) -> str | None:
    rank = ties.rank(node.outputs[0])
    axes = _axes(node, ties)
    if axes is None:
        return "the axes of this Unsqueeze are computed"
    new = {axis % rank for axis in axes}
    for axis, place in enumerate(place for place in range(rank) if place not in new):
        ties.tie(node, (node.inputs[0], axis), (node.outputs[0], place))
    return None


def _axes(node: Node, ties: Ties) -> list[int] | None:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    return axes_of(node) if value is None else ties.integers(value)


def _reshape(node: Node, ties: Ties) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    before, after = ties.sizes.sizes(source), ties.sizes.sizes(output)
    stated = node.op_type == "Flatten" or len(node.inputs) < 2 or is_constant(node.inputs[1])
    if source is None or before is None or after is None or not (stated or (node, 1) in ties.operands):
        return "the shape is computed"
    for block in blocks(before, after):
        tie_block(ties, node, source, output, block)
    return f"{node.op_type} mixes it with others"


def _depth_to_space(node: Node, ties: Ties) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    ties.tie(node, (source, 0), (output, 0))
    total, size = ties.size((source, 1)), ties.size((output, 1))
    if total is None or size is None:
        return None
    stride = attr(node, "blocksize") ** 2 if attr(node, "mode", "DCR") == "CRD" else 1
    ties.tie(node, (source, 1), (output, 1), Digit(total, stride, size))
    return None


def _space_to_depth(node: Node, ties: Ties) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    ties.tie(node, (source, 0), (output, 0))
    size, total = ties.size((source, 1)), ties.size((output, 1))
    if total is not None and size is not None:
        ties.tie(node, (output, 1), (source, 1), Digit(total, 1, size))
    return None


def _resize(node: Node, ties: Ties) -> str | None:
    """Axes that keep their size keep their channels, provided that what is stated of their size can be restated."""
    source, output = node.inputs[0], node.outputs[0]
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is not None and ties.integers(sizes) is None:
        return "the sizes of this Resize are computed"
    rank = ties.rank(source)
    stated = [axis % rank for axis in attr(node, "axes") or range(rank)]
    scales = _scales(node)
    crops = attr(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    for axis in range(rank):
        if axis not in stated:
            ties.tie(node, (source, axis), (output, axis))
            continue
        # A scale near 1 keeps the size and yet mixes neighbours.
        unscaled = sizes is not None or (scales is not None and scales[stated.index(axis)] == 1)
        if unscaled and not crops and ties.size((source, axis)) == ties.size((output, axis)):
            ties.tie(node, (source, axis), (output, axis))
    return f"{node.op_type} interpolates along it"


def _scales(node: Node) -> list[float] | None:
    place = 1 if len(node.inputs) == 2 else 2
    given = constant(node.inputs[place]) if len(node.inputs) > place else None
    stated = attr(node, "scales") if given is None else given.tolist()
    return [float(scale) for scale in stated] if stated else None


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "DepthToSpace": _depth_to_space,
    "Flatten": _reshape,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
"""The rules by operator."""
