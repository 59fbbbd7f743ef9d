"""Rules of operators that work on each element for itself, that sum, or that take statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from graphopt.analysis.channels.ties import Ties
from graphopt.analysis.layout import BROADCASTING, UNARY
from graphopt.ir import Node, Value
from graphopt.ir.facts import axes_of
from graphopt.ir.query import attr

Rule = Callable[[Node, Ties], str | None]
"""Ties the axes of a node's values; returns why those that it says nothing of are pinned, ``None`` for the usual."""


def broadcast(
    node: Node, ties: Ties, values: Iterable[Value | None], target: Value, *, skip: int | None = None
) -> None:
    """Tie the axes of values that broadcast to ``target`` to its own, but for axis ``skip`` of it."""
    rank = ties.rank(target)
    for value in values:
        for axis in range(-ties.rank(value), 0):
            # A size of 1 is repeated, so it has no say; an unknown one may be any.
            if value is not None and axis + rank != skip and ties.size((value, axis)) != 1:
                ties.tie(node, (value, axis), (target, axis))


def _elementwise(node: Node, ties: Ties) -> str | None:
    for output in node.outputs:
        broadcast(node, ties, node.inputs, output)
    return None


def _broadcasting(node: Node, ties: Ties) -> str | None:
    if ties.version < 7 and len({ties.rank(value) for value in node.inputs}) > 1:
        return f"before opset 7 {node.op_type} broadcasts in a way that is not followed"
    return _elementwise(node, ties)


def _first_only(node: Node, ties: Ties) -> str | None:
    """The outputs are like the first input, and the others are numbers."""
    for output in node.outputs:
        broadcast(node, ties, node.inputs[:1], output)
    return None


def _expand(node: Node, ties: Ties) -> str | None:
    if ties.integers(node.inputs[1]) is None:
        return "the shape to expand to is computed"
    broadcast(node, ties, node.inputs[:1], node.outputs[0])
    return "Expand makes it by repetition"


def _along_axis(default: int) -> Rule:
    """One axis has to stay whole, and the outputs have the same axes."""

    def rule(node: Node, ties: Ties) -> str | None:
        rank = ties.rank(node.inputs[0])
        axis = attr(node, "axis", default) % max(rank, 1)
        for output in node.outputs:
            if ties.rank(output) == rank:
                broadcast(node, ties, node.inputs[:1], output, skip=axis)
        return f"{node.op_type} works along it"

    return rule


def _softmax(node: Node, ties: Ties) -> str | None:
    rank = ties.rank(node.inputs[0])
    axis = attr(node, "axis", -1 if ties.version >= 13 else 1) % max(rank, 1)
    # Before opset 13 everything from the axis on is one vector.
    for each in range(rank if ties.version >= 13 else axis):
        if each != axis:
            ties.tie(node, (node.inputs[0], each), (node.outputs[0], each))
    return f"{node.op_type} works along it"


def _cumsum(node: Node, ties: Ties) -> str | None:
    axis = ties.integers(node.inputs[1])
    if axis is None:
        return "the axis of CumSum is computed"
    broadcast(node, ties, node.inputs[:1], node.outputs[0], skip=axis[0] % ties.rank(node.outputs[0]))
    return "CumSum works along it"


_SUMS = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"}


def _reduce(node: Node, ties: Ties) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    rank = ties.rank(source)
    given = axes_of(node) if len(node.inputs) < 2 else ties.integers(node.inputs[1])
    if node.inputs[1:2] == (None,):
        given = []
    if given is None:
        return "the axes to reduce are computed"
    if not given and attr(node, "noop_with_empty_axes", 0):
        broadcast(node, ties, [source], output)
        return None
    reduced = {axis % rank for axis in given} if given else set(range(rank))
    place = 0
    for axis in range(rank):
        if axis not in reduced:
            ties.tie(node, (source, axis), (output, place))
        elif node.op_type in _SUMS:
            ties.free((source, axis))
        place += axis not in reduced or bool(attr(node, "keepdims", 1))
    return f"{node.op_type} over it hangs on how many there are"


def _arg(node: Node, ties: Ties) -> str | None:
    source, output = node.inputs[0], node.outputs[0]
    rank = ties.rank(source)
    chosen = attr(node, "axis", 0) % max(rank, 1)
    keep = bool(attr(node, "keepdims", 1))
    for axis in range(rank):
        if axis != chosen:
            ties.tie(node, (source, axis), (output, axis - (axis > chosen and not keep)))
    return f"{node.op_type} tells positions along it"


def _quantize(node: Node, ties: Ties) -> str | None:
    """QuantizeLinear and DequantizeLinear: a scale of one axis lies along ``axis``; blocks of it are not followed."""
    broadcast(node, ties, node.inputs[:1], node.outputs[0])
    axis = attr(node, "axis", 1)
    if attr(node, "block_size", 0):
        ties.pin(node, (node.inputs[0], axis), "its scales are for blocks of it")
        return None
    for value in node.inputs[1:3]:
        if ties.rank(value) == 1 and ties.size((value, 0)) != 1:
            ties.tie(node, (value, 0), (node.outputs[0], axis))
    return None


RULES: dict[str, Rule] = {
    **dict.fromkeys(UNARY, _elementwise),
    **dict.fromkeys(BROADCASTING, _broadcasting),
    **dict.fromkeys(("Clip", "Dropout", "CastLike", "Bernoulli", "RandomNormalLike", "RandomUniformLike"), _first_only),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"), _reduce),
    **dict.fromkeys(_SUMS, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **{name: _along_axis(default) for name, default in {"TopK": -1, "LpNormalization": -1}.items()},
    "CumSum": _cumsum,
    "DequantizeLinear": _quantize,
    "Expand": _expand,
    "QuantizeLinear": _quantize,
    "com.microsoft::Gelu": _elementwise,
}
"""The rules by operator."""
