"""Rules of operators that have weights, and of those that work on each channel for itself."""

from __future__ import annotations

from graphopt.analysis.channels.rules_elements import Rule, broadcast
from graphopt.analysis.channels.ties import Digit, Ties
from graphopt.ir import Node, Value
from graphopt.ir.query import attr


def _conv(node: Node, ties: Ties) -> str | None:
    source, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    group = attr(node, "group", 1)
    inputs, outputs = ties.size((source, 1)), ties.size((weight, 0))
    if group != 1 and (inputs is None or outputs is None):
        return "its size is not known"
    ties.tie(node, (output, 1), (weight, 0))
    _bias(node, ties, output)
    ties.writes(node, (weight, 0))
    if group == 1:
        ties.tie(node, (source, 1), (weight, 1))
        ties.reads(node, (weight, 1))
    elif inputs is not None and outputs is not None:
        _grouped(node, ties, (source, weight), (inputs, outputs), group)
    return f"{node.op_type} slides along it"


def _grouped(node: Node, ties: Ties, values: tuple[Value | None, Value | None], sizes: tuple[int, int], g: int) -> None:
    """Tie the inputs of a convolution in groups.

    Where a group has one input or one output, groups go: ``group`` shrinks. Elsewhere the same places of every group
    go, so that all groups stay of one size.
    """
    (source, weight), (inputs, outputs) = values, sizes
    if g == inputs:
        ties.tie(node, (weight, 0), (source, 1), Digit(outputs, outputs // g, inputs))
    elif g == outputs:
        ties.tie(node, (source, 1), (weight, 0), Digit(inputs, inputs // g, outputs))
    else:
        ties.tie(node, (source, 1), (weight, 1), Digit(inputs, 1, inputs // g))
        ties.reads(node, (weight, 1))
        ties.tie(node, (weight, 0), (weight, 0), Digit(outputs, 1, outputs // g))


def _bias(node: Node, ties: Ties, output: Value) -> None:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        ties.tie(node, (node.inputs[2], 0), (output, 1))


def _conv_transpose(node: Node, ties: Ties) -> str | None:
    """The weight is [inputs, outputs / group, ...]."""
    source, weight, output = node.inputs[0], node.inputs[1], node.outputs[0]
    group = attr(node, "group", 1)
    inputs, outputs = ties.size((weight, 0)), ties.size((output, 1))
    _bias(node, ties, output)
    ties.tie(node, (source, 1), (weight, 0))
    if group == 1:
        ties.tie(node, (output, 1), (weight, 1))
        ties.writes(node, (weight, 1))
        ties.reads(node, (weight, 0))
    elif inputs is None or outputs is None:
        return "its size is not known"
    elif group == inputs:
        ties.tie(node, (output, 1), (weight, 0), Digit(outputs, outputs // group, inputs))
        ties.writes(node, (weight, 0))
    elif group == outputs:
        ties.tie(node, (weight, 0), (output, 1), Digit(inputs, inputs // group, outputs))
        ties.writes(node, (weight, 0))
    else:
        ties.tie(node, (weight, 0), (weight, 0), Digit(inputs, 1, inputs // group))
        ties.tie(node, (output, 1), (weight, 1), Digit(outputs, 1, outputs // group))
        ties.writes(node, (weight, 1))
        ties.reads(node, (weight, 0))
    return f"{node.op_type} slides along it"


def _gemm(node: Node, ties: Ties) -> str | None:
    a, b, output = node.inputs[0], node.inputs[1], node.outputs[0]
    m, k = (1, 0) if attr(node, "transA", 0) else (0, 1)
    inner, n = (1, 0) if attr(node, "transB", 0) else (0, 1)
    ties.tie(node, (a, k), (b, inner))
    ties.tie(node, (a, m), (output, 0))
    ties.tie(node, (b, n), (output, 1))
    broadcast(node, ties, node.inputs[2:3], output)
    _product_roles(node, ties, (a, b), (m, k), (inner, n))
    return None


def _matmul(node: Node, ties: Ties) -> str | None:
    a, b, output = node.inputs[0], node.inputs[1], node.outputs[0]
    rank_a, rank_b = ties.rank(a), ties.rank(b)
    if not rank_a or not rank_b:
        return "MatMul of a scalar"
    inner = max(rank_b - 2, 0)
    ties.tie(node, (a, rank_a - 1), (b, inner))
    rest = ties.rank(output)
    if rank_b > 1:
        rest -= 1
        ties.tie(node, (b, rank_b - 1), (output, rest))
    if rank_a > 1:
        rest -= 1
        ties.tie(node, (a, rank_a - 2), (output, rest))
    for value, rank in ((a, rank_a), (b, rank_b)):
        for axis in range(rank - 2):
            if ties.size((value, axis)) != 1:
                ties.tie(node, (value, axis), (output, rest - (rank - 2) + axis))
    _product_roles(node, ties, (a, b), (rank_a - 2, rank_a - 1), (inner, rank_b - 1))
    if ties.is_computed(a) and ties.is_computed(b):
        for axis in range(rest):
            ties.mark(ties.heads, (output, axis))
    return None


def _product_roles(
    node: Node, ties: Ties, operands: tuple[Value | None, Value | None], left: tuple[int, int], right: tuple[int, int]
) -> None:
    """Note which operand is a weight, and over which axis it is summed; ``left`` and ``right`` are (row, column)."""
    a, b = operands
    if ties.is_computed(a) and ties.is_computed(b):
        ties.mark(ties.contracted, (a, left[1]))
    if not ties.is_computed(b):
        ties.reads(node, (b, right[0]))
        if ties.rank(b) > 1:
            ties.writes(node, (b, right[1]))
    if not ties.is_computed(a):
        ties.reads(node, (a, left[1]))
        if ties.rank(a) > 1:
            ties.writes(node, (a, left[0]))


def _channelwise(node: Node, ties: Ties) -> str | None:
    """Pooling: each channel for itself; a second output holds places within the whole input."""
    for axis in (0, 1):
        ties.tie(node, (node.inputs[0], axis), (node.outputs[0], axis))
    if len(node.outputs) > 1 and node.outputs[1].name:
        ties.pin(node, (node.outputs[0], 1), "the indices of MaxPool count through all channels")
    return f"{node.op_type} pools over it"


def _batchnorm(node: Node, ties: Ties) -> str | None:
    for axis in range(ties.rank(node.inputs[0])):
        ties.tie(node, (node.inputs[0], axis), (node.outputs[0], axis))
    for value in (*node.inputs[1:], *node.outputs[1:]):
        if ties.rank(value) == 1:
            ties.tie(node, (value, 0), (node.outputs[0], 1))
    return None


_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")

RULES: dict[str, Rule] = {
    **dict.fromkeys(_POOLS, _channelwise),
    "BatchNormalization": _batchnorm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
"""The rules by operator."""
