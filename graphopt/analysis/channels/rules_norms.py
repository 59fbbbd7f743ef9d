"""Rules of normalizations, recurrent layers, Einsum, and attention as one operator."""

from __future__ import annotations

from graphopt.analysis.channels.rules_elements import Rule, broadcast
from graphopt.analysis.channels.ties import Digit, First, Place, Ties
from graphopt.ir import Node, Value
from graphopt.ir.query import attr


def _like(node: Node, ties: Ties, axes: range) -> None:
    for axis in axes:
        ties.tie(node, (node.inputs[0], axis), (node.outputs[0], axis))


def _instance(node: Node, ties: Ties) -> str | None:
    _like(node, ties, range(2))
    for value in node.inputs[1:]:
        ties.tie(node, (value, 0), (node.outputs[0], 1))
    return "InstanceNormalization takes statistics over it"


def _group(node: Node, ties: Ties) -> str | None:
    """Groups of channels that share statistics go as a whole; before opset 21 a scale and a bias were a group's."""
    _like(node, ties, range(2))
    channels, groups = ties.size((node.outputs[0], 1)), attr(node, "num_groups", 1)
    if channels is None or groups == 1:
        ties.pin(node, (node.outputs[0], 1), "all channels are one group of this GroupNormalization")
        return "GroupNormalization takes statistics over it"
    size = channels // groups
    for value in node.inputs[1:]:
        by = None if ties.size((value, 0)) == channels else Digit(channels, size, groups)
        ties.tie(node, (node.outputs[0], 1), (value, 0), by)
    if size > 1:
        ties.tie(node, (node.outputs[0], 1), (node.outputs[0], 1), First(channels, size))
    return "GroupNormalization takes statistics over it"


def _layer(node: Node, ties: Ties) -> str | None:
    """LayerNormalization and RMSNormalization: from ``axis`` on, statistics are over the channels that stay."""
    source, output = node.inputs[0], node.outputs[0]
    rank = ties.rank(source)
    first = attr(node, "axis", -1) % max(rank, 1)
    _like(node, ties, range(rank))
    for axis in range(first, rank):
        ties.mark(ties.normalized, (output, axis))
    broadcast(node, ties, node.inputs[1:], output)
    for statistic in node.outputs[1:]:
        for axis in range(min(first, ties.rank(statistic))):
            ties.tie(node, (statistic, axis), (output, axis))
    return None


def _lrn(node: Node, ties: Ties) -> str | None:
    _like(node, ties, range(1))
    _like(node, ties, range(2, ties.rank(node.inputs[0])))
    return "LRN looks at neighbouring channels"


def _mean_variance(node: Node, ties: Ties) -> str | None:
    rank = ties.rank(node.inputs[0])
    over = {axis % rank for axis in attr(node, "axes", [0, 2, 3])}
    for axis in set(range(rank)) - over:
        _like(node, ties, range(axis, axis + 1))
    return "MeanVarianceNormalization takes statistics over it"


def _recurrent(node: Node, ties: Ties) -> str | None:
    """Hidden units: the last axis of the states; each owns a row in every gate of the weights, in both directions."""
    source, weight, recurrence, bias, _, state, cell, peepholes = [*node.inputs, *[None] * 8][:8]
    hidden: Place = (recurrence, 2)
    size = ties.size(hidden)
    rows = ties.size((weight, 1))
    if size is None or rows is None:
        return "the number of hidden units is not known"
    ties.tie(node, (source, 2), (weight, 2))
    for value in (weight, recurrence):
        ties.tie(node, (value, 1), hidden, Digit(rows, 1, size))
        ties.writes(node, (value, 1))
        ties.reads(node, (value, 2))
    for value, total in ((bias, 2 * rows), (peepholes, 3 * size)):
        if value is not None:
            ties.tie(node, (value, 1), hidden, Digit(total, 1, size))
    for value in (state, cell, *node.outputs):
        if value is not None and ties.rank(value):
            ties.tie(node, (value, -1), hidden)
    return f"{node.op_type} runs along it"


def _einsum(node: Node, ties: Ties) -> str | None:
    terms = _terms(node)
    if terms is None:
        return "the equation of this Einsum is not followed"
    inputs, output = terms
    places: dict[str, list[Place]] = {}
    for letters, value in zip((*inputs, output), (*node.inputs, node.outputs[0]), strict=True):
        for axis, letter in enumerate(letters):
            if ties.size((value, axis)) != 1:
                places.setdefault(letter, []).append((value, axis))
    for found in places.values():
        for place in found[1:]:
            ties.tie(node, found[0], place)
        ties.free(found[0])
    for index, (letters, value) in enumerate(zip(inputs, node.inputs, strict=True)):
        others = inputs[:index] + inputs[index + 1 :]
        _einsum_roles(node, ties, (letters, value), others, output)
    return None


def _terms(node: Node) -> tuple[list[str], str] | None:
    equation = str(attr(node, "equation", "")).replace(" ", "")
    left, arrow, output = equation.partition("->")
    inputs = left.split(",")
    if not arrow or "." in equation or len(inputs) != len(node.inputs):
        return None
    return inputs, output


def _einsum_roles(node: Node, ties: Ties, operand: tuple[str, Value | None], others: list[str], output: str) -> None:
    letters, value = operand
    elsewhere = set("".join(others))
    for axis, letter in enumerate(letters):
        place = (value, axis)
        if ties.is_computed(value) and all(ties.is_computed(each) for each in node.inputs):
            if letter in elsewhere:
                ties.mark(ties.heads if letter in output else ties.contracted, place)
        elif not ties.is_computed(value) and letter in output and letter not in elsewhere:
            ties.writes(node, place)
        elif not ties.is_computed(value) and letter not in output:
            ties.reads(node, place)


def _attention(node: Node, ties: Ties) -> str | None:
    """onnxruntime's MultiHeadAttention of three values [batch, sequence, heads * size]: heads go as a whole."""
    query, key, value, bias, _, mask = [*node.inputs, *[None] * 6][:6]
    output, heads = node.outputs[0], attr(node, "num_heads", 1)
    sizes = [ties.size((each, -1)) for each in (query, key, value, output)]
    total = sizes[0]
    if bias is not None or total is None or any(ties.rank(each) != 3 for each in (query, key, value)):
        return "this form of MultiHeadAttention is not followed"
    if sizes != [total] * 4 or heads < 2:
        return "MultiHeadAttention has one head, or heads of several sizes"
    for each in (key, value, output):
        ties.tie(node, (each, -1), (query, -1))
    ties.tie(node, (query, -1), (query, -1), First(total, total // heads))
    if ties.rank(mask) == 4 and ties.size((mask, 1)) != 1:
        ties.tie(node, (query, -1), (mask, 1), Digit(total, total // heads, heads))
    return "MultiHeadAttention weighs positions along it"


def _positions(node: Node, ties: Ties) -> str | None:
    """Samplers that take the same places of every channel."""
    ties.tie(node, (node.inputs[0], 1), (node.outputs[0], 1))
    return f"{node.op_type} samples along it"


RULES: dict[str, Rule] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _layer),
    **dict.fromkeys(("GridSample", "RoiAlign", "MaxRoiPool"), _positions),
    "Einsum": _einsum,
    "GroupNormalization": _group,
    "InstanceNormalization": _instance,
    "LRN": _lrn,
    "MeanVarianceNormalization": _mean_variance,
    "com.microsoft::MultiHeadAttention": _attention,
}
"""The rules by operator."""
