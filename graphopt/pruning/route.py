"""Where a network that is run again and again rests, so that little is run twice and little is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphopt.analysis.cost import Cost
from graphopt.ir import Model, Node, TensorType, Value, is_constant
from graphopt.ir.query import reads, shape_of

_BYTE = 30.0
"""Multiply-accumulates that take the time of writing and reading a byte."""

Stop = tuple[str, ...]
"""The names of the values to rest on."""

_Cut = tuple[Stop, float]


def resting_places(model: Model, targets: Sequence[Node]) -> list[Stop | None]:
    """Return, for each of ``targets``, nodes in the order of the model's graph, where to rest before it.

    That is, the names of all values that this node (the one whose first output has the same name: it may be another
    model's) and those after it read of those before; or None to go on from the last place. The sum of what is run and
    stored is the least.
    """
    names = [node.outputs[0].name for node in targets]
    # What it costs to run the model up to each target, and past it.
    before, past = _running_costs_at(model, names)
    cuts = _cuts(model, names)
    count = len(targets)
    # best[i]: the least cost of all targets from the i-th on, when a rest is made right before it.
    best, follows = [0.0] * (count + 1), [count] * (count + 1)
    for first in reversed(range(count)):
        best[first], spent = math.inf, 0.0
        for following in range(first + 1, count + 1):
            spent += past[following - 1] - before[first]
            total = spent
            if following < count:
                cut = cuts[following]
                if cut is None:
                    continue
                total += 2 * _BYTE * cut[1] + best[following] + before[following] - before[first]
            if total < best[first]:
                best[first], follows[first] = total, following
    return _chosen(count, follows, cuts)


def _chosen(count: int, follows: Sequence[int], cuts: Sequence[_Cut | None]) -> list[Stop | None]:
    places: list[Stop | None] = [None] * count
    index = follows[0] if count else count
    while index < count:
        cut = cuts[index]
        places[index] = None if cut is None else cut[0]
        index = follows[index]
    return places


def _running_costs_at(model: Model, names: Sequence[str | None]) -> tuple[list[float], list[float]]:
    """Return what is run before the node of each output, and with it, as far as there is such a node."""
    nodes = list(model.graph)
    place = {node.outputs[0].name: index for index, node in enumerate(nodes) if node.outputs}
    run = _running_costs(model, nodes)
    before, past = list[float](), list[float]()
    for name in names:
        at = place.get(name)
        last = past[-1] if past else 0.0
        before.append(last if at is None else run[at])
        past.append(last if at is None else run[at + 1])
    return before, past


def _running_costs(model: Model, nodes: Sequence[Node]) -> list[float]:
    """Return the multiply-accumulates of the nodes before each; a value written counts too."""
    cost = Cost.measure(model)
    sums = [0.0]
    for node in nodes:
        written = sum(_bytes(value) for value in node.outputs)
        sums.append(sums[-1] + cost.macs.get(node, 0) + written)
    return sums


def _cuts(model: Model, names: Sequence[str | None]) -> list[_Cut | None]:
    """Return, for the node of each output, the values that it and later ones read of those before, and their bytes."""
    nodes = list(model.graph)
    place = {node.outputs[0].name: index for index, node in enumerate(nodes) if node.outputs}
    made = dict.fromkeys(model.graph.inputs, -1)
    made |= {value: index for index, node in enumerate(nodes) for value in node.outputs}
    last = {value: len(nodes) for value in model.graph.outputs}
    for index, node in enumerate(nodes):
        for value in reads(node):
            last[value] = max(last.get(value, -1), index)
    crossing = [value for value in made if value in last and not is_constant(value)]
    found: list[_Cut | None] = []
    for name in names:
        at = place.get(name, -1)
        values = [value for value in crossing if made[value] < at <= last[value]]
        known = at >= 0 and all(_is_storable(value) for value in values)
        found.append((tuple(str(v.name) for v in values), float(sum(map(_bytes, values)))) if known else None)
    return found


def _is_storable(value: Value) -> bool:
    """Tell whether a run can go on from the value: a tensor of numbers that files can hold."""
    if not isinstance(value.type, TensorType) or value.dtype is None or not value.name:
        return False
    kind = value.dtype.numpy()
    return kind.isbuiltin == 1 and kind.kind != "O"


def _bytes(value: Value) -> int:
    return 4 * math.prod(size if isinstance(size, int) else 1 for size in shape_of(value) or ())
