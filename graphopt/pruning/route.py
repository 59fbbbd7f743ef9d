"""Where two networks that run side by side rest, so that little is run twice and little is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graphopt.analysis.cost import Cost
from graphopt.ir import DataType, Model, Node, Value, is_constant
from graphopt.ir.query import shape_of

_BYTE = 30.0
"""Multiply-accumulates that take the time of writing and reading a byte."""


def resting_places(model: Model, targets: Sequence[Node], known: frozenset[str]) -> list[tuple[str, ...] | None]:
    """Return, for each of ``targets``, nodes in the order of the graph, where to rest before it.

    That is the names of all values that the node and those after it read of those before, or None to go on from the
    last place. Only values named in ``known`` are rested on. The sum of what is run and stored is the least.
    """
    nodes = list(model.graph)
    place = {node: index for index, node in enumerate(nodes)}
    stops = [place[node] for node in targets]
    run = _running_costs(model, nodes)
    cuts = [_cut(model, nodes, stop, known) for stop in stops]
    count = len(stops)
    # best[i]: the least cost of all targets from the i-th on, when a rest is made right before it.
    best, follows = [0.0] * (count + 1), [count] * (count + 1)
    for first in reversed(range(count)):
        best[first], spent = math.inf, 0.0
        for last in range(first, count):
            spent += run[min(stops[last] + 1, len(nodes))] - run[stops[first]]
            following = last + 1
            cut = cuts[following] if following < count else ((), 0.0)
            if cut is None:
                continue
            reads = 2.0 if following < count else 0.0
            total = spent + _BYTE * reads * cut[1] + best[following]
            if following < count:
                total += run[stops[following]] - run[stops[first]]
            if total < best[first]:
                best[first], follows[first] = total, following
    return _chosen(count, follows, cuts)


def _chosen(
    count: int, follows: Sequence[int], cuts: Sequence[tuple[tuple[str, ...], float] | None]
) -> list[tuple[str, ...] | None]:
    places: list[tuple[str, ...] | None] = [None] * count
    index = follows[0] if count else count
    while index < count:
        cut = cuts[index]
        places[index] = None if cut is None else cut[0]
        index = follows[index]
    return places


def _running_costs(model: Model, nodes: Sequence[Node]) -> list[float]:
    """Return the multiply-accumulates of the nodes before each; a value written counts too."""
    cost = Cost.measure(model)
    sums = [0.0]
    for node in nodes:
        written = sum(_bytes(value) for value in node.outputs)
        sums.append(sums[-1] + cost.macs.get(node, 0) + written)
    return sums


def _cut(model: Model, nodes: Sequence[Node], stop: int, known: frozenset[str]) -> tuple[tuple[str, ...], float] | None:
    """Return the values that are read from ``stop`` on and come from before it, and their bytes for one sample."""
    before = {value for node in nodes[:stop] for value in node.outputs} | set(model.graph.inputs)
    found: dict[Value, None] = {}
    for node in nodes[stop:]:
        for value in node.inputs:
            if value is not None and value in before and not is_constant(value):
                found[value] = None
    for value in model.graph.outputs:
        if value in before:
            found[value] = None
    computed = [value for value in found if not value.is_graph_input()]
    if any(value.dtype != DataType.FLOAT or value.name not in known for value in computed):
        return None
    return tuple(value.name or "" for value in found), float(sum(_bytes(value) for value in found))


def _bytes(value: Value) -> int:
    return 4 * math.prod(size if isinstance(size, int) else 1 for size in shape_of(value) or ())
