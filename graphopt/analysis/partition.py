"""Dividing items between two sides so that their costs and those of crossing from one side to the other are least."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

_UNIT = 1e-12
"""Costs are counted in whole units of this size: flows of whole numbers end exactly."""


@dataclass(frozen=True)
class Crossing(Generic[T]):
    """What flows from ``producer`` to ``readers``; ``None`` stands for whatever is always outside.

    ``leave`` is paid once when the producer is inside and any reader outside, ``enter`` once when the producer is
    outside and any reader inside.
    """

    producer: T | None
    readers: tuple[T | None, ...]
    leave: float
    enter: float


def cheapest_inside(inside: Mapping[T, float], outside: Mapping[T, float], crossings: Iterable[Crossing[T]]) -> set[T]:
    """Return the items to put inside so that the sum of all costs is least, and all that are no dearer there.

    ``inside`` and ``outside`` hold the cost of each item on either side, at least 0.
    """
    import networkx as nx  # heavy, and needed by few runs

    inner, outer = ("inner",), ("outer",)
    graph: nx.DiGraph[tuple[object, ...]] = nx.DiGraph()
    graph.add_nodes_from((inner, outer))
    for item, cost in inside.items():
        graph.add_edge(inner, ("item", item), capacity=round(outside[item] / _UNIT))
        graph.add_edge(("item", item), outer, capacity=round(cost / _UNIT))
    for index, crossing in enumerate(crossings):
        producer = outer if crossing.producer is None else ("item", crossing.producer)
        readers = {outer if reader is None else ("item", reader) for reader in crossing.readers}
        # A node between the producer and its readers makes all readers on the other side pay once. An edge without
        # a capacity is never cut.
        leaving, entering = ("leave", index), ("enter", index)
        if producer != outer:
            graph.add_edge(producer, leaving, capacity=round(crossing.leave / _UNIT))
        graph.add_edge(entering, producer, capacity=round(crossing.enter / _UNIT))
        for reader in readers:
            graph.add_edge(leaving, reader)
            if reader != outer:
                graph.add_edge(reader, entering)
    _, (kept, _) = nx.minimum_cut(graph, inner, outer)
    return {item for item in inside if ("item", item) in kept}
