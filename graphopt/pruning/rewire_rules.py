"""What operators state about sizes besides their weights, and how it reads once positions of axes are gone.

A rule looks at a node as it is before the cut and returns what is to be written to it: attributes and operands.
Operators without a rule (Relu, Transpose, Concat, ...) state no size that a cut could change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Axis
from graphopt.errors import PassError
from graphopt.ir import DataType, Model, Node, Value, attr, opset, rank_of, shape_of, static_shape
from graphopt.ir.edit import operator_key
from graphopt.ir.query import ints, place

Mask = NDArray[np.bool_]
Operands = Mapping[tuple[Node, int], tuple[int, ...]]


@dataclass(frozen=True)
class SetAttribute:
    """An attribute of a node that changes; ``None`` takes it away."""

    node: Node
    name: str
    value: int | list[int] | None


@dataclass(frozen=True)
class SetOperand:
    """An operand of a node that changes: this node reads ``array`` from now on, others what they read before."""

    node: Node
    index: int
    array: NDArray[Any]


Change = SetAttribute | SetOperand


class Cut:
    """Which positions of which axes stay, looked up by value and axis. Axes that are not in it stay as they are.

    ``operands`` holds the integers that inputs of nodes are worth although they are computed, from sizes.
    """

    def __init__(self, model: Model, kept: Mapping[Axis, Mask], operands: Operands):
        self.opset = opset(model)
        self.operands = operands
        self._kept: dict[Value, dict[int, Mask]] = {}
        for (value, axis), mask in kept.items():
            if not mask.all():
                self._kept.setdefault(value, {})[axis] = mask

    def values(self) -> Mapping[Value, Mapping[int, Mask]]:
        """Return the touched values, each with its touched axes."""
        return self._kept

    def of(self, value: Value | None) -> Mapping[int, Mask]:
        """Return the touched axes of a value and what stays of them; empty when it stays whole."""
        return {} if value is None else self._kept.get(value, {})

    def on(self, value: Value | None, axis: int) -> Mask:
        """Return what stays of one axis as bool[size]."""
        mask = self.of(value).get(axis)
        return np.ones(_static_size(value, axis), np.bool_) if mask is None else mask

    def size(self, value: Value | None, axis: int) -> int:
        """Return the new size of an axis."""
        mask = self.of(value).get(axis)
        return _static_size(value, axis) if mask is None else int(np.count_nonzero(mask))

    def integers(self, node: Node, index: int) -> list[int] | None:
        """Return what an input of a node is worth in integers, flattened; ``None`` when it is not known."""
        computed = self.operands.get((node, index))
        return ints(node.inputs[index]) if computed is None else list(computed)

    def touches(self, node: Node) -> bool:
        """Tell whether an input or output of ``node`` loses something."""
        return any(value in self._kept for value in (*node.inputs, *node.outputs) if value is not None)


def _static_size(value: Value | None, axis: int) -> int:
    shape = shape_of(value)
    size = None if shape is None else shape[axis]
    if not isinstance(size, int):
        raise PassError(f"the size of axis {axis} of {None if value is None else value.name!r} is not known")
    return size


def constants(cut: Cut) -> list[Change]:
    """Return what makes constants of the operands that are computed from sizes, which a cut would change."""
    return [
        SetOperand(node, index, np.asarray(numbers, _int_type(node.inputs[index])).reshape(_shape(node, index)))
        for (node, index), numbers in cut.operands.items()
    ]


def _shape(node: Node, index: int) -> tuple[int, ...]:
    shape = static_shape(node.inputs[index])
    return (-1,) if shape is None else shape


def _int_type(value: Value | None) -> type[np.int32] | type[np.int64]:
    return np.int32 if value is not None and value.dtype == DataType.INT32 else np.int64


def changes(node: Node, cut: Cut) -> list[Change]:
    """Return what has to be written to ``node`` so that it states the sizes after the cut."""
    rule = _RULES.get(operator_key(node))
    return [] if rule is None or not cut.touches(node) else list(rule(node, cut))


def _axis_of(node: Node, default: int, value: Value | None) -> int:
    """Return the attribute ``axis``, counted from the front."""
    axis, rank = int(attr(node, "axis", default)), rank_of(value)
    if rank is None:
        raise PassError("its rank is not known", where=place(node))
    return axis + rank if axis < 0 else axis


def _input(node: Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _numbers(node: Node, cut: Cut, index: int, name: str) -> list[int] | None:
    """Return a list of ints that older operator sets have as the attribute ``name`` and newer ones as an operand."""
    operand = _input(node, index)
    if operand is None:
        found = attr(node, name)
        return None if found is None else [int(item) for item in found]
    numbers = cut.integers(node, index)
    if numbers is None:
        raise PassError(f"its operand {operand.name!r} is not known", where=place(node))
    return numbers


def _stated(node: Node, index: int, name: str, numbers: Sequence[int]) -> Change:
    """Return the change that states ``numbers`` where the node has them: as an operand or as an attribute."""
    operand = _input(node, index)
    if operand is None:
        return SetAttribute(node, name, list(numbers))
    return SetOperand(node, index, np.asarray(numbers, _int_type(operand)))


# -- the rules -------------------------------------------------------------------------------------------------------


def _convolution(node: Node, cut: Cut) -> Iterable[Change]:
    """Conv: weight [C_out, C_in / group, ...]."""
    return _groups(node, cut, node.inputs[0])


def _transposed(node: Node, cut: Cut) -> Iterable[Change]:
    """ConvTranspose: weight [C_in, C_out / group, ...]."""
    return _groups(node, cut, node.outputs[0])


def _groups(node: Node, cut: Cut, data: Value | None) -> Iterable[Change]:
    """State the groups: the channels of ``data`` over those of one group, the weight's second axis."""
    old = int(attr(node, "group", 1))
    if old == 1:
        return
    new, rest = divmod(cut.size(data, 1), cut.size(node.inputs[1], 1))
    if rest:
        raise PassError("its groups would differ in size", where=place(node))
    if new != old:
        yield SetAttribute(node, "group", new)


def _reshape(node: Node, cut: Cut) -> Iterable[Change]:
    """The shape operand: sizes of touched axes; -1 still fits, 0 where the copied size is still the right one."""
    old = _numbers(node, cut, 1, "shape") or []
    new = list(old)
    for axis in cut.of(node.outputs[0]):
        size = cut.size(node.outputs[0], axis)
        copied = old[axis] == 0 and not attr(node, "allowzero", 0)
        if old[axis] > 0 or (copied and cut.size(node.inputs[0], axis) != size):
            new[axis] = size
    # A 0 may copy a size that shrank although the output's axis, made of other positions, did not.
    for axis in cut.of(node.inputs[0]):
        if axis < len(old) and old[axis] == 0 and axis not in cut.of(node.outputs[0]):
            new[axis] = cut.size(node.outputs[0], axis)
    if new != old:
        yield _stated(node, 1, "shape", new)


def _expand(node: Node, cut: Cut) -> Iterable[Change]:
    """The shape operand, aligned at the end; a 1 stands for the data's own size."""
    old = _numbers(node, cut, 1, "shape") or []
    new = list(old)
    missing = (rank_of(node.outputs[0]) or 0) - len(old)
    for axis in cut.of(node.outputs[0]):
        if axis >= missing and old[axis - missing] != 1:
            new[axis - missing] = cut.size(node.outputs[0], axis)
    if new != old:
        yield _stated(node, 1, "shape", new)


def _split(node: Node, cut: Cut) -> Iterable[Change]:
    """The sizes of the parts, stated where they were or where the parts are no longer equal."""
    axis = _axis_of(node, 0, node.inputs[0])
    sizes = [cut.size(value, axis) for value in node.outputs]
    old = _numbers(node, cut, 1, "split")
    if sizes == old or (old is None and len(set(sizes)) == 1):
        return
    if cut.opset < 13:
        yield SetAttribute(node, "split", sizes)
        return
    if attr(node, "num_outputs") is not None:
        yield SetAttribute(node, "num_outputs", None)
    yield SetOperand(node, 1, np.asarray(sizes, np.int64))


def _slice(node: Node, cut: Cut) -> Iterable[Change]:
    """Starts and ends on touched axes, counted in what stays."""
    data, result = node.inputs[0], node.outputs[0]
    rank = rank_of(data) or 0
    given = _numbers(node, cut, 3, "axes")
    axes = list(range(rank)) if given is None else [axis + rank if axis < 0 else axis for axis in given]
    if not any(axis in cut.of(data) for axis in axes):
        return
    starts, ends = _numbers(node, cut, 1, "starts") or [], _numbers(node, cut, 2, "ends") or []
    new_starts, new_ends = list(starts), list(ends)
    for place_, axis in enumerate(axes[: len(starts)]):
        if axis not in cut.of(data):
            continue
        old = _static_size(data, axis)
        first = min(max(starts[place_] + old if starts[place_] < 0 else starts[place_], 0), old)
        new_starts[place_] = int(np.count_nonzero(cut.on(data, axis)[:first]))
        new_ends[place_] = new_starts[place_] + cut.size(result, axis)
    if new_starts != starts:
        yield _stated(node, 1, "starts", new_starts)
    if new_ends != ends:
        yield _stated(node, 2, "ends", new_ends)


def _gather(node: Node, cut: Cut) -> Iterable[Change]:
    """Indices: those of what stays of the output, as numbers of what stays of the data."""
    data, indices, result = node.inputs[0], node.inputs[1], node.outputs[0]
    axis = _axis_of(node, 0, data)
    touched = [place_ for place_ in cut.of(result) if axis <= place_ < axis + (rank_of(indices) or 0)]
    if axis not in cut.of(data) and not touched:
        return
    numbers, shape = cut.integers(node, 1), static_shape(indices)
    if numbers is None or shape is None:
        raise PassError("its indices are not known", where=place(node))
    left = np.asarray(numbers, np.int64).reshape(shape)
    for place_ in touched:
        left = np.compress(cut.on(result, place_), left, axis=place_ - axis)
    stays = cut.on(data, axis)
    left = np.where(left < 0, left + len(stays), left)
    if not stays[left].all():
        raise PassError("it reads channels that are to go", where=place(node))
    yield SetOperand(node, 1, (np.cumsum(stays) - 1)[left])


def _pad(node: Node, cut: Cut) -> Iterable[Change]:
    """Amounts on touched axes: of what is added (or, negative, taken off) what stays counts."""
    data, result = node.inputs[0], node.outputs[0]
    old = _numbers(node, cut, 1, "pads") or []
    rank = rank_of(data) or 0
    axes = [axis + rank if axis < 0 else axis for axis in _numbers(node, cut, 3, "axes") or range(rank)]
    new = list(old)
    for place_, axis in enumerate(axes):
        for where, amount, back in ((place_, old[place_], False), (place_ + len(axes), old[place_ + len(axes)], True)):
            source = result if amount > 0 else data
            if amount and axis in cut.of(source):
                mask = cut.on(source, axis)[::-1] if back else cut.on(source, axis)
                new[where] = int(np.sign(amount)) * int(np.count_nonzero(mask[: abs(amount)]))
    if new != old:
        yield _stated(node, 1, "pads", new)


def _resize(node: Node, cut: Cut) -> Iterable[Change]:
    """The operand ``sizes``, where it is given; an axis of channels has the scale 1 otherwise."""
    sizes, result = _input(node, 3), node.outputs[0]
    if sizes is None or not cut.of(result):
        return
    old = _numbers(node, cut, 3, "sizes") or []
    rank = rank_of(result) or 0
    axes = [axis + rank if axis < 0 else axis for axis in attr(node, "axes") or range(rank)]
    new = [cut.size(result, axis) if axis in cut.of(result) else size for axis, size in zip(axes, old, strict=True)]
    if new != old:
        yield SetOperand(node, 3, np.asarray(new, np.int64))


def _group_normalization(node: Node, cut: Cut) -> Iterable[Change]:
    """Whole groups of normalization go."""
    old = int(attr(node, "num_groups", 1))
    size = _static_size(node.inputs[0], 1) // old
    new, rest = divmod(cut.size(node.inputs[0], 1), size)
    if rest:
        raise PassError("only whole groups of normalization can go", where=place(node))
    if new != old:
        yield SetAttribute(node, "num_groups", new)


def _attention(node: Node, cut: Cut) -> Iterable[Change]:
    """MultiHeadAttention of onnxruntime's domain: whole heads go."""
    old = int(attr(node, "num_heads", 1))
    new = cut.size(node.inputs[0], 2) * old // _static_size(node.inputs[0], 2)
    if new != old:
        yield SetAttribute(node, "num_heads", new)


def _recurrent(node: Node, cut: Cut) -> Iterable[Change]:
    """LSTM, GRU and RNN: the recurrence weight is [directions, gates * hidden, hidden]."""
    hidden = cut.size(node.inputs[2], 2)
    if attr(node, "hidden_size") is not None and hidden != _static_size(node.inputs[2], 2):
        yield SetAttribute(node, "hidden_size", hidden)


def _constant_of_shape(node: Node, cut: Cut) -> Iterable[Change]:
    """The shape operand."""
    shape = static_shape(node.outputs[0])
    if shape is not None and cut.of(node.outputs[0]):
        yield SetOperand(node, 0, np.asarray([cut.size(node.outputs[0], axis) for axis in range(len(shape))], np.int64))


_RULES: Mapping[str, Callable[[Node, Cut], Iterable[Change]]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "Reshape": _reshape,
    "Expand": _expand,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "GroupNormalization": _group_normalization,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "ConstantOfShape": _constant_of_shape,
    "com.microsoft::MultiHeadAttention": _attention,
}
