"""How operators commute with Transpose: what a node has to be to work on its inputs in another layout.

A layout is a permutation ``perm`` as Transpose has it: the value that the model has is ``Transpose(value kept, perm)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.ir import Dim, Node, Value, attr, constant, constant_size, is_constant, rank_of
from graphopt.ir.facts import axes_of, pads_of, slice_ranges, static_dims
from graphopt.ir.query import ints, scalar, use_count

Perm = tuple[int, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


UNARY = _words(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
BROADCASTING = _words(
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
    "Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
REDUCING = _words(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)

COPY_LIMIT = 1 << 14
"""A constant that others read too is copied in another layout up to this many elements."""


@dataclass(frozen=True)
class Carried:
    """A node in another layout: inputs ``operands`` come in it, ``constants`` and ``attributes`` replace the others.

    Each output of the model's node is ``Transpose`` of the carried node's output by the permutation in ``outputs``.
    """

    operands: tuple[int, ...]
    outputs: tuple[Perm, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)


Carry = Callable[[Node, Perm, int], Carried | None]


def carry(node: Node, perm: Perm, version: int) -> Carried | None:
    """Return ``node`` for inputs in the layout ``perm``, or ``None`` when it cannot be carried over.

    Ranks must have been inferred; ``version`` is the opset.
    """
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain != "":
        return None
    return rule(node, perm, version)


def compose(first: Sequence[int], second: Sequence[int]) -> Perm:
    """Return the permutation of a Transpose by ``first`` and then one by ``second``."""
    return tuple(first[axis] for axis in second)


def inverse(perm: Sequence[int]) -> Perm:
    """Return the permutation that undoes ``perm``."""
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def is_unmoved(perm: Sequence[int]) -> bool:
    """Tell whether ``perm`` changes nothing."""
    return all(index == axis for index, axis in enumerate(perm))


def perm_of(node: Node) -> Perm | None:
    """Return the permutation of a Transpose, the default one written out, or ``None`` when the rank is unknown."""
    perm, rank = attr(node, "perm"), rank_of(node.inputs[0])
    if perm is not None:
        return tuple(perm)
    return None if rank is None else tuple(reversed(range(rank)))


def shape_kept(shape: Sequence[Dim], perm: Perm) -> tuple[Dim, ...]:
    """Return the shape of the value kept, given the shape that the model has."""
    return tuple(shape[index] for index in inverse(perm))


def induced(perm: Perm, dropped: Sequence[int]) -> Perm:
    """Return what is left of ``perm`` when the axes ``dropped`` (in the model's layout) are gone."""
    left = [axis for index, axis in enumerate(perm) if index not in dropped]
    place = {axis: index for index, axis in enumerate(sorted(left))}
    return tuple(place[axis] for axis in left)


def _unary(node: Node, perm: Perm, version: int) -> Carried | None:
    return Carried((0,), (perm,))


def _dropout(node: Node, perm: Perm, version: int) -> Carried | None:
    return Carried((0,), (perm,) * len(node.outputs))


def _broadcasting(node: Node, perm: Perm, version: int) -> Carried | None:
    if version < 7:
        return None
    operands, constants = [], {}
    for index, value in enumerate(node.inputs):
        if value is None or (constant_size(value) == 1 and (rank_of(value) or 0) <= len(perm)) or rank_of(value) == 0:
            continue
        if _is_unchanged(value, perm):
            continue
        if is_constant(value):
            array = _constant_kept(value, perm)
            if array is None:
                return None
            constants[index] = array
        elif rank_of(value) == len(perm):
            operands.append(index)
        else:
            return None
    return Carried(tuple(operands), (perm,), {}, constants)


def _is_unchanged(value: Value, perm: Perm) -> bool:
    """Tell whether ``value`` is the same in both layouts, because all the dimensions that move have size 1."""
    dims = static_dims(value)
    return (
        dims is not None
        and len(dims) == len(perm)
        and all(axis == index or dims[index] == 1 for index, axis in enumerate(perm))
    )


def _constant_kept(value: Value, perm: Perm) -> np.ndarray[Any, Any] | None:
    """Return a constant in the layout ``perm``, or ``None`` when that would copy a large one that others read too."""
    size, rank = constant_size(value) or 0, rank_of(value)
    if rank is None or rank > len(perm) or (size > COPY_LIMIT and use_count(value) > 1):
        return None
    array = constant(value)
    if array is None or array.dtype.kind in "OSU":
        return None
    return array.reshape((1,) * (len(perm) - rank) + array.shape).transpose(inverse(perm))


def _concat(node: Node, perm: Perm, version: int) -> Carried | None:
    operands, constants = [], {}
    for index, value in enumerate(node.inputs):
        if value is None or rank_of(value) != len(perm):
            return None
        if not is_constant(value):
            operands.append(index)
            continue
        array = _constant_kept(value, perm)
        if array is None:
            return None
        constants[index] = array
    return Carried(tuple(operands), (perm,), {"axis": perm[attr(node, "axis", 1)]}, constants)


def _split(node: Node, perm: Perm, version: int) -> Carried | None:
    return Carried((0,), (perm,) * len(node.outputs), {"axis": perm[attr(node, "axis", 0)]})


def _softmax(node: Node, perm: Perm, version: int) -> Carried | None:
    return Carried((0,), (perm,), {"axis": perm[attr(node, "axis", -1)]}) if version >= 13 else None


def _slice(node: Node, perm: Perm, version: int) -> Carried | None:
    ranges = slice_ranges(node, version)
    if ranges is None:
        return None
    axes = [perm[item.axis] for item in ranges]
    if version < 10:
        return Carried((0,), (perm,), {"axes": axes})
    starts = constant(node.inputs[1])
    return None if starts is None else Carried((0,), (perm,), {}, {3: np.array(axes, starts.dtype)})


def _pad(node: Node, perm: Perm, version: int) -> Carried | None:
    pads = pads_of(node, version)
    if pads is None or version < 2:
        return None
    numbers = [amounts[index] for amounts in pads for index in inverse(perm)]
    if version < 11:
        return Carried((0,), (perm,), {"pads": numbers})
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        axes, array = ints(node.inputs[3]), constant(node.inputs[3])
        return None if axes is None or array is None else Carried(
            (0,), (perm,), {}, {3: np.array([perm[axis] for axis in axes], array.dtype)}
        )  # fmt: skip
    return Carried((0,), (perm,), {}, {1: np.array(numbers, np.int64)})


def _reduce(node: Node, perm: Perm, version: int) -> Carried | None:
    axes = axes_of(node)
    if axes is None:
        return None
    if not axes:
        kept = attr(node, "keepdims", 1) or attr(node, "noop_with_empty_axes", 0)
        return Carried((0,), (perm if kept else (),))
    axes = [axis % len(perm) for axis in axes]
    outputs = (perm if attr(node, "keepdims", 1) else induced(perm, axes),)
    moved = sorted(perm[axis] for axis in axes)
    if attr(node, "axes") is not None:
        return Carried((0,), outputs, {"axes": moved})
    return Carried((0,), outputs, {}, {1: np.array(moved, np.int64)})


def _arg(node: Node, perm: Perm, version: int) -> Carried | None:
    axis = attr(node, "axis", 0) % len(perm)
    return Carried((0,), (perm if attr(node, "keepdims", 1) else induced(perm, [axis]),), {"axis": perm[axis]})


def _squeeze(node: Node, perm: Perm, version: int) -> Carried | None:
    axes = axes_of(node)
    if not axes:
        return None
    axes = [axis % len(perm) for axis in axes]
    moved = sorted(perm[axis] for axis in axes)
    if attr(node, "axes") is not None:
        return Carried((0,), (induced(perm, axes),), {"axes": moved})
    return Carried((0,), (induced(perm, axes),), {}, {1: np.array(moved, np.int64)})


def _unsqueeze(node: Node, perm: Perm, version: int) -> Carried | None:
    """The new dimensions stay where they are; the old ones are permuted among their places."""
    axes = axes_of(node)
    if axes is None:
        return None
    rank = len(perm) + len(axes)
    new = {axis % rank for axis in axes}
    places = [index for index in range(rank) if index not in new]
    moved = iter(perm)
    return Carried((0,), (tuple(index if index in new else places[next(moved)] for index in range(rank)),))


def _quantize(node: Node, perm: Perm, version: int) -> Carried | None:
    if attr(node, "block_size", 0):
        return None
    rank, size = rank_of(node.inputs[1]), constant_size(node.inputs[1])
    if rank == 0 or size == 1:
        return Carried((0,), (perm,))
    return Carried((0,), (perm,), {"axis": perm[attr(node, "axis", 1)]}) if rank == 1 else None


def _gather(node: Node, perm: Perm, version: int) -> Carried | None:
    rank, axis = rank_of(node.inputs[1]), attr(node, "axis", 0) % len(perm)
    if rank not in (0, 1):
        return None
    return Carried((0,), (perm if rank == 1 else induced(perm, [axis]),), {"axis": perm[axis]})


def _tile(node: Node, perm: Perm, version: int) -> Carried | None:
    repeats = ints(node.inputs[1]) if version >= 6 else None
    if repeats is None or len(repeats) != len(perm):
        return None
    return Carried((0,), (perm,), {}, {1: np.array([repeats[index] for index in inverse(perm)], np.int64)})


def _cumsum(node: Node, perm: Perm, version: int) -> Carried | None:
    axis, array = scalar(node.inputs[1]), constant(node.inputs[1])
    if axis is None or array is None:
        return None
    return Carried((0,), (perm,), {}, {1: np.full(array.shape, perm[axis], array.dtype)})


_RULES: dict[str, Carry] = {
    **dict.fromkeys((*UNARY, "Clip"), _unary),
    **dict.fromkeys(BROADCASTING, _broadcasting),
    **dict.fromkeys(REDUCING, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    **dict.fromkeys(("Expand", "Tile"), _tile),
    "Dropout": _dropout,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "CumSum": _cumsum,
}
