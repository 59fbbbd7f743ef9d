"""Taking channels out of a model, and the reference for it: the same model with those channels made zero.

:func:`remove` makes every tensor smaller along every axis that a removed unit lies on and states the new sizes
wherever an operator states sizes. :func:`mask` leaves all sizes alone and puts zeros where the removed units are. Both
compute the same outputs; what a network loses by losing those channels can so be told apart from a mistake in rewiring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Channels
from graphopt.errors import PassError
from graphopt.ir import Editor, Model, Node, Value, attr, constant, is_constant, nodes, rank_of, shape_of
from graphopt.ir.edit import operator_key
from graphopt.ir.query import place
from graphopt.pruning.rewire_rules import Change, Cut, Mask, SetAttribute, changes, constants

Removed = Mapping[int, Mask]
"""For each group, by its index, which of its units go: bool[units]."""

_CONSTANT_ATTRIBUTES = ("value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings")
_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")


@dataclass(frozen=True)
class Shrunk:
    """What :func:`remove` did: positions that stay of each touched value's axes, and how many parameters are gone."""

    kept: Mapping[Value, Mapping[int, Mask]]
    parameters: int


def remove(model: Model, edit: Editor, channels: Channels, removed: Removed) -> Shrunk:
    """Take the ``removed`` units out of every tensor that they lie in; groups that are not named stay whole.

    Nothing is written unless everything can be.
    Raises PassError when nothing would be left of an axis or an operator cannot state the new sizes.
    """
    cut = _cut(model, channels, removed)
    planned = constants(cut) + [change for node in nodes(model) for change in changes(node, cut)]
    parameters = 0
    for value, axes in cut.values().items():
        if is_constant(value):
            parameters += _shrink_constant(edit, value, axes)
        else:
            _shrink_shape(edit, value, axes)
    for change in planned:
        _apply(edit, change)
    return Shrunk(cut.values(), parameters)


def mask(model: Model, edit: Editor, channels: Channels, removed: Removed) -> None:
    """Make the ``removed`` units zero wherever they are computed and wherever a weight holds them.

    LayerNormalization and RMSNormalization over an axis with removed units become sums over those that stay.
    """
    cut = _cut(model, channels, removed)
    _note_types(model, edit)
    normalizations = {node: kept for node in nodes(model) if (kept := _kept_statistics(node, cut))}
    computed = []
    for value, axes in cut.values().items():
        if is_constant(value):
            array = constant(value)
            assert array is not None
            _write_constant(edit, value, np.where(_joint(axes, array.ndim), array, np.zeros((), array.dtype)))
        else:
            computed.append((value, axes))
    for value, axes in computed:
        _zero_behind(edit, value, axes)
    for node, kept in normalizations.items():
        _normalize_over_kept(edit, node, kept)


def _cut(model: Model, channels: Channels, removed: Removed) -> Cut:
    kept = channels.kept(removed)
    empty = next((axis for axis, stays in kept.items() if stays.size and not stays.any()), None)
    if empty is not None:
        raise PassError(f"nothing would be left of axis {empty.axis} of {empty.value.name!r}")
    return Cut(model, kept, channels.operands)


def _shrink_constant(edit: Editor, value: Value, axes: Mapping[int, Mask]) -> int:
    """Take the positions out of a weight; returns how many parameters that saves."""
    array = constant(value)
    assert array is not None
    left = array
    for axis, stays in axes.items():
        left = np.compress(stays, left, axis=axis)
    _write_constant(edit, value, left)
    return int(array.size - left.size)


def _write_constant(edit: Editor, value: Value, array: NDArray[Any]) -> None:
    node = value.producer()
    if node is None:
        edit.set_weight(value, array)
        return
    for name in _CONSTANT_ATTRIBUTES:
        if attr(node, name) is not None:
            edit.set_attr(node, name, None)
    edit.set_attr(node, "value", array)
    edit.annotate(value, value.dtype, array.shape)


def _shrink_shape(edit: Editor, value: Value, axes: Mapping[int, Mask]) -> None:
    shape = shape_of(value)
    if shape is not None:
        sizes = [int(np.count_nonzero(axes[axis])) if axis in axes else size for axis, size in enumerate(shape)]
        edit.annotate(value, value.dtype, sizes)


def _apply(edit: Editor, change: Change) -> None:
    node = change.node
    if isinstance(change, SetAttribute):
        edit.set_attr(node, change.name, change.value)
        return
    old = node.inputs[change.index] if change.index < len(node.inputs) else None
    base = old.name if old is not None and old.name else f"{node.name or node.op_type}/sizes"
    edit.set_input(node, change.index, edit.constant(change.array, base))
    if old is not None:
        edit.drop_unread(old)


def _joint(axes: Mapping[int, Mask], rank: int) -> NDArray[np.bool_]:
    """Return what stays of a value as a bool array that broadcasts to its shape."""
    joint = np.ones((1,) * rank, np.bool_)
    for axis, stays in axes.items():
        joint = joint & stays.reshape([-1 if place_ == axis else 1 for place_ in range(rank)])
    return joint


def _zero_behind(edit: Editor, value: Value, axes: Mapping[int, Mask]) -> None:
    """Let all readers of a computed value see zeros at the removed positions, whatever stands there (NaN included)."""
    producer, rank, dtype = value.producer(), rank_of(value), value.dtype
    if producer is None or rank is None or dtype is None:
        raise PassError(f"{value.name!r} has removed channels and its type is not known")
    stays = edit.constant(_joint(axes, rank), f"{value.name}/stays")
    zero = edit.constant(np.zeros((), dtype.numpy()), f"{value.name}/zero")
    masked = edit.insert_after(producer, "Where", [stays, value, zero], like=value)
    edit.replace_uses(value, masked.outputs[0])


def _note_types(model: Model, edit: Editor) -> None:
    """Note the type of a first floating-point input on outputs that inference knows no type of (GroupNormalization)."""
    for node in nodes(model):
        types = [value.dtype for value in node.inputs if value is not None and value.dtype is not None]
        float_type = next((dtype for dtype in types if dtype.is_floating_point()), None)
        for value in node.outputs:
            if value.dtype is None and float_type is not None:
                edit.annotate(value, float_type, shape_of(value))


def _kept_statistics(node: Node, cut: Cut) -> dict[int, Mask]:
    """Return the axes that a LayerNormalization or RMSNormalization takes its statistics over, with what stays of them;
    empty where all of it stays.
    """
    rank = rank_of(node.inputs[0]) if operator_key(node) in _NORMALIZATIONS else None
    if rank is None:
        return {}
    axes = range(int(attr(node, "axis", -1)) % rank, rank)
    if not any(axis in cut.of(node.inputs[0]) for axis in axes):
        return {}
    return {axis: cut.on(node.inputs[0], axis) for axis in axes}


def _normalize_over_kept(edit: Editor, node: Node, kept: Mapping[int, Mask]) -> None:
    """Write a normalization out as sums over the kept positions, which the zeros at the others do not change.

    ``y = (x - mean) / sqrt(var + epsilon) * scale + bias``; RMSNormalization has no mean and no bias. One that
    returns its statistics too is not written out.
    """
    data = node.inputs[0]
    if data is None or data.dtype is None or any(value.uses() for value in node.outputs[1:]):
        raise PassError("its statistics are outputs", where=place(node))
    dtype, rank = data.dtype.numpy(), rank_of(data) or 0
    count = np.prod([np.count_nonzero(stays) for stays in kept.values()])
    over = edit.constant(np.asarray(list(kept), np.int64), f"{node.name}/axes")
    divisor = edit.constant(np.asarray(count, dtype), f"{node.name}/count")
    epsilon = edit.constant(np.asarray(attr(node, "epsilon", 1e-5), dtype), f"{node.name}/epsilon")
    stays = edit.constant(_joint(kept, rank).astype(dtype), f"{node.name}/kept")

    def add(operator: str, *inputs: Value | None) -> Value:
        return edit.insert_before(node, operator, inputs).outputs[0]

    centred = data
    if node.op_type == "LayerNormalization":
        mean = add("Div", add("ReduceSum", data, over), divisor)
        centred = add("Mul", add("Sub", data, mean), stays)
    variance = add("Div", add("ReduceSum", add("Mul", centred, centred), over), divisor)
    result = add("Mul", add("Div", centred, add("Sqrt", add("Add", variance, epsilon))), node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    result = result if bias is None else add("Add", result, bias)
    edit.annotate(result, data.dtype, shape_of(node.outputs[0]))
    edit.replace(node, [result])
