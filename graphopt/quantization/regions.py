"""Values whose channels can be scaled together without changing the model.

Dividing channel i of a value by s_i > 0 can be undone where the value is read by layers that are linear in it, and
done for free where a layer or a normalisation with constant weights produces it. Between the two lie operators that
commute with the factor: Relu, pooling, data movement, sums whose operands are all scaled alike. :func:`region_of`
collects all of these around one value: its sources, its sinks, and why it may be no region at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.ir import Dim, Node, Value, attr, rank_of, shape_of
from graphopt.ir import linear as layers
from graphopt.ir.facts import axes_of, is_filled
from graphopt.ir.query import constant_size, ints, is_constant, is_read

_UNARY = ("Relu", "LeakyRelu", "PRelu", "Identity", "Abs", "Neg", "Pad", "Slice", "Resize")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
_REDUCTIONS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2")
_MOVERS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_JOINS = ("Add", "Sub", "Sum", "Max", "Min")
_FACTORS = ("Mul", "Div")
_CARRYING_INPUT = {"MatMul": 1}


@dataclass(frozen=True)
class Layout:
    """Where the channels of a value lie: along ``axes`` of ``sizes``, outermost first, each ``inner`` times in a row.

    A Flatten of [N, C, 2, 2] has the channels along axis 1 with inner = 4; splitting C into heads gives two axes.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    inner: int = 1

    def spread(self, vector: NDArray[Any], rank: int) -> NDArray[Any]:
        """Return a vector over channels so that it multiplies a value of this layout and ``rank``."""
        order = np.argsort(self.axes)
        block = np.repeat(vector, self.inner) if self.inner > 1 else vector
        sizes = (*self.sizes[:-1], self.sizes[-1] * self.inner)
        shape = [1] * rank
        for axis, size in zip(self.axes, sizes, strict=True):
            shape[axis] = size
        return block.reshape(sizes).transpose(order).reshape(shape)


@dataclass(frozen=True)
class End:
    """A node that takes the factor: a linear layer, or an operator with constant vectors at ``inputs``.

    ``layout`` is that of the value which the region has there.
    """

    node: Node
    layout: Layout
    inputs: tuple[int, ...] = ()

    @property
    def is_linear(self) -> bool:
        """Whether it is a layer with weights."""
        return not self.inputs


@dataclass
class Region:
    """Values that have to be scaled alike, and where the scale comes from and goes to.

    ``sources`` produce them and ``sinks`` read them; ``offsets`` are constants added on the way, scaled like the
    values. ``clips`` are the Clip nodes in the way. ``blocked`` says why the region cannot be scaled, with the node.
    """

    channels: int
    values: dict[Value, Layout] = field(default_factory=dict)
    sources: list[End] = field(default_factory=list)
    sinks: list[End] = field(default_factory=list)
    offsets: list[End] = field(default_factory=list)
    clips: list[Node] = field(default_factory=list)
    blocked: tuple[Node | Value, str] | None = None

    def block(self, where: Node | Value, why: str) -> None:
        """Note the first reason against scaling."""
        self.blocked = self.blocked or (where, why)


def region_of(start: Value, layout: Layout, *, through_clips: bool = False) -> Region:
    """Return the region around ``start``. ``through_clips`` goes on behind Clip(0, c) as if it were a Relu.

    Shapes have to be annotated. The region is collected whole even when something blocks it, so that each value of the
    model belongs to one region.
    """
    region = Region(prod(layout.sizes))
    nodes: dict[Node, None] = {}
    pending = [(start, layout)]
    while pending:
        value, place = pending.pop()
        known = region.values.get(value)
        if known is not None:
            if known != place:
                region.block(value, "its channels are arranged in two ways")
            continue
        region.values[value] = place
        if value.is_graph_output():
            region.block(value, "it is an output of the model")
        pending.extend(_produced(region, value, place, nodes, through_clips))
        for use in value.uses():
            pending.extend(_read(region, use.node, use.idx, value, nodes, through_clips))
    return region


def _produced(
    region: Region, value: Value, layout: Layout, nodes: dict[Node, None], through_clips: bool
) -> list[tuple[Value, Layout]]:
    node = value.producer()
    if node is None:
        region.block(value, "it is an input of the model" if value.is_graph_input() else "a nested graph gets it")
        return []
    end = _source(node, value, layout)
    if end is not None:
        region.sources.append(end)
        return []
    return _passed(region, node, value, layout, nodes, through_clips)


def _read(
    region: Region, node: Node, index: int, value: Value, nodes: dict[Node, None], through_clips: bool
) -> list[tuple[Value, Layout]]:
    layout = region.values[value]
    if value.graph is not None and node.graph is not value.graph:
        region.block(node, "a nested graph reads it")
        return []
    layer = layers.linear_of(node)
    if layer is not None and index == 0:
        rank = rank_of(value)
        axis = 1 if node.op_type != "MatMul" else (rank or 0) - 1
        fits = layout.axes == (axis,) and layers.input_channels(layer) == region.channels * layout.inner
        if fits and not attr(node, "transA", 0):
            region.sinks.append(End(node, layout))
        else:
            region.block(node, f"{node.op_type} does not read these channels one weight row each")
        return []
    if node.outputs and _source(node, node.outputs[0], layout) is not None:
        return _absorbed(region, node, value, layout)
    if index != _CARRYING_INPUT.get(node.op_type, index if node.op_type in (*_JOINS, *_FACTORS) else 0):
        region.block(node, f"{node.op_type} reads it otherwise than as a factor")
        return []
    return _passed(region, node, value, layout, nodes, through_clips)


def _absorbed(region: Region, node: Node, value: Value, layout: Layout) -> list[tuple[Value, Layout]]:
    """Handle a Mul or Div by a vector, which undoes the factor: for what comes in front of it, it is a sink."""
    if node.op_type not in _FACTORS:
        region.block(node, f"{node.op_type} depends on the scale")
        return []
    region.sinks.append(End(node, layout, (1 if node.inputs[0] is value else 0,)))
    return []


def _source(node: Node, value: Value, layout: Layout) -> End | None:
    """Return ``node`` as the place where channels of its result can be scaled by changing constants."""
    if node.domain != "" or node.outputs[0] is not value:
        return None
    layer = layers.linear_of(node)
    rank = rank_of(value)
    if layer is not None:
        axis = 1 if layer.axis == 1 else (rank or 0) - 1
        whole = layout.inner == 1 and layout.axes == (axis,) and layer.channels == prod(layout.sizes)
        return End(node, layout) if whole else None
    if rank is None or layout.axes != (rank - 1,) or layout.inner != 1:
        return None
    if node.op_type == "LayerNormalization":
        vectors = [index for index in (1, 2) if index < len(node.inputs) and node.inputs[index] is not None]
        axis = attr(node, "axis", -1)
        fits = axis in (-1, rank - 1) and all(is_constant(node.inputs[index]) for index in vectors)
        return End(node, layout, tuple(vectors)) if fits else None
    if node.op_type not in _FACTORS:
        return None
    for index in (1, 0) if node.op_type == "Mul" else (1,):
        operand = node.inputs[index]
        shape = shape_of(operand)
        if is_constant(operand) and shape and shape[-1] == prod(layout.sizes) == constant_size(operand):
            return End(node, layout, (index,)) if prod(layout.sizes) > 1 else None
    return None


def _passed(
    region: Region, node: Node, value: Value, layout: Layout, nodes: dict[Node, None], through_clips: bool
) -> list[tuple[Value, Layout]]:
    """Return the other values of ``node`` that have to be scaled when ``value`` is; block where there is no way."""
    first = node not in nodes
    nodes[node] = None
    if not first and node.op_type in _MOVERS and value is node.outputs[0]:
        return []  # it was crossed from its input, and what that gave cannot always be turned round
    if node.op_type == "Clip" and node.domain == "" and first:
        region.clips.append(node)
        if not through_clips:
            region.block(node, "the bound of its Clip would have to differ from channel to channel")
    found = _carriers(node, value, layout)
    if found is None or value not in (carrier for carrier, _ in found):
        region.block(node, f"{node.op_type} does not commute with a factor for each channel")
        return []
    if node.op_type in _JOINS and first:
        _add_offsets(region, node, layout)
    return [(carrier, place) for carrier, place in found if carrier is not value]


def _add_offsets(region: Region, node: Node, layout: Layout) -> None:
    constants = tuple(index for index, operand in enumerate(node.inputs) if is_constant(operand))
    region.offsets.extend([End(node, layout, constants)] if constants else [])


def _carriers(node: Node, value: Value, layout: Layout) -> list[tuple[Value, Layout]] | None:
    """Return the values of ``node``, ``value`` among them, that carry the same factor; ``None`` when there is none."""
    source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
    if node.domain != "" or source is None or any(is_read(other) for other in node.outputs[1:]):
        return None
    kind = node.op_type
    if kind in _MOVERS:
        return _moved(node, source, output, value, layout)
    if kind in _JOINS:
        return _joined(node, output, layout)
    if kind == "MatMul":
        return _averaged(node, output, layout)
    if kind in _FACTORS:
        return _multiplied(node, output, layout)
    if kind in _UNARY and _keeps_channels(node, layout):
        return [(source, layout), (output, layout)]
    if kind in _POOLS and layout.axes == (1,):
        return [(source, layout), (output, layout)]
    if kind in _REDUCTIONS and attr(node, "keepdims", 1):
        axes = axes_of(node)
        rank = rank_of(source)
        if axes and rank and not {axis % rank for axis in axes} & set(layout.axes):
            return [(source, layout), (output, layout)]
    is_relu6 = kind == "Clip" and is_filled(node.inputs[1] if len(node.inputs) > 1 else None, 0.0)
    return [(source, layout), (output, layout)] if is_relu6 else None


def _keeps_channels(node: Node, layout: Layout) -> bool:
    """Tell whether a node with one input leaves the channels where they are and adds nothing but zeros."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    resized = node.op_type in ("Pad", "Slice", "Resize")
    if resized and (before is None or after is None or any(before[axis] != after[axis] for axis in layout.axes)):
        return False
    if node.op_type == "Slice":
        steps = ints(node.inputs[4]) if len(node.inputs) > 4 else [1]
        return steps is not None and all(step > 0 for step in steps)
    if node.op_type == "Pad":
        filled = node.inputs[2] if len(node.inputs) > 2 else None
        pads = ints(node.inputs[1]) if len(node.inputs) > 1 else None
        untouched = pads is not None and len(pads) == 2 * len(before or ()) and all(
            pads[axis] == 0 == pads[axis + len(pads) // 2] for axis in layout.axes
        )  # fmt: skip
        return untouched and (filled is None or is_filled(filled, 0.0))
    if node.op_type == "Resize":
        return bool(attr(node, "coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize")
    return node.op_type != "PRelu" or is_constant(node.inputs[1])


def _joined(node: Node, output: Value, layout: Layout) -> list[tuple[Value, Layout]] | None:
    """Sums and maxima: every computed operand is scaled, provided it has the output's rank and all its channels."""
    computed = [value for value in node.inputs if value is not None and not is_constant(value)]
    for value in computed:
        if not _has_channels(value, output, layout):
            return None
    return [*((value, layout) for value in computed), (output, layout)]


def _has_channels(value: Value, output: Value, layout: Layout) -> bool:
    shape, rank = shape_of(value), rank_of(output)
    if shape is None or len(shape) != rank or layout.inner != 1:
        return False
    return all(shape[axis] == size for axis, size in zip(layout.axes, layout.sizes, strict=True))


def _multiplied(node: Node, output: Value, layout: Layout) -> list[tuple[Value, Layout]] | None:
    """Products: the operand that has the output's shape carries the factor, when the other one is broadcast to it."""
    left, right = node.inputs
    if left is None or right is None:
        return None
    shapes = shape_of(left), shape_of(right), shape_of(output)
    if is_constant(right) or (is_constant(left) and node.op_type == "Mul"):
        carrier = left if is_constant(right) else right
        return [(carrier, layout), (output, layout)] if _has_channels(carrier, output, layout) else None
    if shapes[0] == shapes[1] or None in shapes:
        return None
    for carrier, shape in ((left, shapes[0]), (right, shapes[1])):
        if shape == shapes[2] and not (node.op_type == "Div" and carrier is right):
            return [(carrier, layout), (output, layout)]
    return None


def _averaged(node: Node, output: Value, layout: Layout) -> list[tuple[Value, Layout]] | None:
    """A product of two activations, such as the attention's weights and its values: columns of the right operand."""
    right = node.inputs[1]
    rank = rank_of(output)
    if right is None or is_constant(right) or rank is None or rank < 2 or rank - 1 not in layout.axes:
        return None
    if rank - 2 in layout.axes or not _has_channels(right, output, layout):
        return None
    return [(right, layout), (output, layout)]


def _moved(node: Node, source: Value, output: Value, value: Value, layout: Layout) -> list[tuple[Value, Layout]] | None:
    """Transposes and reshapes: the layout on the other side."""
    forward = value is source
    if node.op_type == "Transpose":
        rank = rank_of(source)
        order = attr(node, "perm", list(reversed(range(rank or 0))))
        axes = tuple(order.index(axis) if forward else order[axis] for axis in layout.axes)
        if layout.inner > 1 and len(axes) > 1:
            return None
        other = Layout(axes, layout.sizes, layout.inner)
    else:
        before, after = shape_of(source), shape_of(output)
        found = through_reshape(*((before, after) if forward else (after, before)), layout)
        if found is None or (not forward and found.inner > 1):
            return None
        other = found
    return [(source, layout), (output, other)] if forward else [(source, other), (output, layout)]


def through_reshape(before: tuple[Dim, ...] | None, after: tuple[Dim, ...] | None, layout: Layout) -> Layout | None:
    """Return where a reshape from ``before`` to ``after`` puts the channels; ``None`` when they are torn apart."""
    if before is None or after is None or layout.inner > 1:
        return None
    axes: list[int] = []
    sizes: list[int] = []
    inner = 1
    groups = list(_groups(before, after))
    pending = list(layout.axes)
    while pending:
        group = next((group for group in groups if pending[0] in group[0]), None)
        if group is None or inner > 1:
            return None
        wide = [axis for axis in group[0] if before[axis] != 1 or axis == pending[0]]
        channels = [axis for axis in wide if axis in pending]
        if channels != pending[: len(channels)] or channels != wide[: len(channels)]:
            return None
        pending = pending[len(channels) :]
        target = [axis for axis in group[1] if after[axis] != 1] or group[1][-1:]
        if wide != channels:
            # Others share the group: they lie within each channel, which one axis of the result can say.
            if len(target) != 1 or pending or axes:
                return None
            inner = prod(_size(before[axis]) for axis in wide if axis not in channels)
        axes += target
        sizes += [_size(after[axis]) // inner for axis in target]
    return Layout(tuple(axes), tuple(sizes), inner) if prod(sizes) == prod(layout.sizes) else None


def _groups(before: tuple[Dim, ...], after: tuple[Dim, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield, from the right, the smallest runs of axes that hold the same elements; stop where sizes are unknown."""
    i, j = len(before), len(after)
    while i and j:
        left, right = [i := i - 1], [j := j - 1]
        if before[i] is not None and before[i] == after[j]:
            yield left, right
            continue
        while (a := prod(_size(before[axis]) for axis in left)) != (b := prod(_size(after[axis]) for axis in right)):
            if a <= 0 or b <= 0 or (a < b and i == 0) or (b < a and j == 0):
                return
            if a < b:
                left.insert(0, i := i - 1)
            else:
                right.insert(0, j := j - 1)
        if min(_size(before[axis]) for axis in left) <= 0:
            return
        yield left, right


def _size(dim: Dim) -> int:
    return dim if isinstance(dim, int) else -1
