"""Where two networks that run side by side rest, so that little is run twice and little is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.cost import Cost
from graphopt.ir import Model, Node, TensorType, Value, is_constant
from graphopt.ir.query import reads, shape_of

_BYTE = 30.0
"""Multiply-accumulates that take the time of writing and reading a byte."""


_Cut = tuple[tuple[str, ...], float]

Stop = tuple[tuple[str, ...], ...]
"""For each model the names of the values to rest on."""


def resting_places(models: Sequence[Model], targets: Sequence[Node]) -> list[Stop | None]:
    """Return, for each of ``targets``, nodes of the last model in the order of its graph, where to rest before it.

    That is, for each model, the names of all values that this node (the one whose first output has the same name) and
    those after it read of those before; or None to go on from the last place. The sum of what is run and stored is the
    least.
    """
    names = [node.outputs[0].name for node in targets]
    # What it costs to run all of the models up to each target, and past it.
    before, past = np.sum([_running_costs_at(model, names) for model in models], axis=0)
    found = [_cuts(model, names) for model in models]
    cuts = [_joint(of_all) for of_all in zip(*found, strict=True)]
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


def _joint(cuts: Sequence[_Cut | None]) -> tuple[Stop, float] | None:
    known = [cut for cut in cuts if cut is not None]
    if len(known) < len(cuts):
        return None
    return tuple(cut[0] for cut in known), sum(cut[1] for cut in known)


def _chosen(count: int, follows: Sequence[int], cuts: Sequence[tuple[Stop, float] | None]) -> list[Stop | None]:
    places: list[Stop | None] = [None] * count
    index = follows[0] if count else count
    while index < count:
        cut = cuts[index]
        places[index] = None if cut is None else cut[0]
        index = follows[index]
    return places


def _running_costs_at(model: Model, names: Sequence[str | None]) -> NDArray[np.float64]:
    """Return [2, targets]: what is run before the node of each output, and with it, as far as there is such a node."""
    nodes = list(model.graph)
    place = {node.outputs[0].name: index for index, node in enumerate(nodes) if node.outputs}
    run = _running_costs(model, nodes)
    found, last = np.zeros((2, len(names))), 0.0
    for target, name in enumerate(names):
        at = place.get(name)
        found[:, target] = (last, last) if at is None else (run[at], run[at + 1])
        last = found[1, target]
    return found


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
