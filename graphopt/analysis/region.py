"""Regions of nodes that could work in another layout, and how many Transposes that would take or save."""

from __future__ import annotations

from collections import deque
from math import prod
from typing import TypeGuard

from graphopt.analysis.layout import Carried, Perm, carry, compose, is_unmoved, perm_of
from graphopt.ir import Node, Value, rank_of
from graphopt.ir.facts import static_dims
from graphopt.ir.query import sole_use

LARGEST, PATIENCE = 256, 64
"""How many nodes a region may have, and how many it may grow by without getting better than it was."""

Cost = tuple[int, int]
"""Transposes, and the elements that they move (a dimension of unknown size counts as 1)."""


class Region:
    """Nodes behind a Transpose that are to read what the Transpose reads.

    ``layout`` holds the values inside that come in another layout, ``sources`` those among them that are outputs of
    Transposes with what these read, ``entering`` the values from outside that need a Transpose to get in. ``cost`` is
    what carrying the region over adds: Transposes and moved elements, negative where it saves.
    """

    def __init__(self, top: Node, version: int):
        self.top, self.version = top, version
        self.layout: dict[Value, Perm] = {}
        self.sources: dict[Value, Value] = {}
        self.nodes: dict[Node, Carried] = {}
        self.perms: dict[Node, Perm] = {}
        self.entering: dict[tuple[Value, Perm], None] = {}
        self._parts: dict[object, Cost] = {}
        self.cost: Cost = (0, 0)
        self._add_top(top)

    def _add_top(self, node: Node) -> None:
        perm, source = perm_of(node), node.inputs[0]
        if perm is not None and source is not None:
            self.layout[node.outputs[0]] = perm
            self.sources[node.outputs[0]] = source

    def add(self, node: Node) -> bool:
        """Take ``node``, a reader of a value inside, into the region; returns whether it can be carried over."""
        perm = next((self.layout[value] for value in node.inputs if value in self.layout), None)
        if perm is None or node.graph is not self.top.graph:
            return False
        carried = carry(node, perm, self.version)
        if carried is None or not self._fits(node, perm, carried):
            return False
        self.nodes[node], self.perms[node] = carried, perm
        for index in carried.operands:
            self._read(node.inputs[index], perm)
        for value, moved in zip(node.outputs, carried.outputs, strict=False):
            if not is_unmoved(moved):
                self.layout[value] = moved
                self.entering.pop((value, moved), None)
                self._price((value, moved), (0, 0))
                self._price_inside(value)
        return True

    def _fits(self, node: Node, perm: Perm, carried: Carried) -> bool:
        for index in carried.operands:
            value = node.inputs[index]
            if value is None or rank_of(value) != len(perm) or self.layout.get(value, perm) != perm:
                return False
        if not carried.operands:
            return False
        if any(value in self.layout for index, value in enumerate(node.inputs) if index not in carried.operands):
            return False
        outputs = dict(zip(node.outputs, carried.outputs, strict=False))
        return not any(value in outputs and outputs[value] != wanted for value, wanted in self.entering)

    def _read(self, value: Value | None, perm: Perm) -> None:
        if value is None:
            return
        if value not in self.layout:
            producer = value.producer()
            if not is_transpose(producer) or producer.graph is not self.top.graph or perm_of(producer) != perm:
                self.entering[value, perm] = None
                free = is_transpose(producer) and sole_use(value) is not None
                self._price((value, perm), (0, 0) if free else (1, _size(value)))
                return
            self._add_top(producer)
        self._price_inside(value)

    def is_read_outside(self, value: Value) -> bool:
        """Tell whether anything but the region's nodes, and Transposes behind them, reads ``value``."""
        return value.is_graph_output() or any(
            not self.is_inside(use.node, use.idx) and (value in self.sources or not self._is_bottom(use.node))
            for use in value.uses()
        )

    def is_inside(self, node: Node, index: int) -> bool:
        """Tell whether input ``index`` of ``node`` comes in the region's layout."""
        return node in self.nodes and index in self.nodes[node].operands

    def bottoms(self, value: Value) -> list[tuple[Node, Perm]]:
        """Return the Transposes that read ``value``, each with what the region leaves of it."""
        if value in self.sources:
            return []
        found = [(use.node, perm_of(use.node)) for use in value.uses() if self._is_bottom(use.node)]
        return [(node, compose(self.layout[value], perm)) for node, perm in found if perm is not None]

    def _is_bottom(self, node: Node) -> bool:
        return is_transpose(node) and node.graph is self.top.graph and perm_of(node) is not None

    def _price_inside(self, value: Value) -> None:
        outside, size = self.is_read_outside(value), _size(value)
        if value in self.sources:
            self._price(value, (0, 0) if outside else (-1, -size))
            return
        gone = sum(is_unmoved(left) for _, left in self.bottoms(value))
        count = int(outside) - gone
        self._price(value, (count, count * size))

    def _price(self, part: object, cost: Cost) -> None:
        old = self._parts.get(part, (0, 0))
        self._parts[part] = cost
        self.cost = (self.cost[0] + cost[0] - old[0], self.cost[1] + cost[1] - old[1])


def best_region(top: Node, version: int) -> Region | None:
    """Grow a region from the Transpose ``top`` towards the outputs and return the best one on the way.

    ``None`` when no region leaves fewer Transposes, or as many that move fewer elements. Ranks must have been inferred.
    """
    grown = Region(top, version)
    order: list[Node] = []
    best, length = (0, 0), 0
    queue = deque(_readers(top.outputs[0]))
    while queue and len(order) < min(LARGEST, length + PATIENCE):
        node = queue.popleft()
        if node in grown.nodes or not grown.add(node):
            continue
        order.append(node)
        if grown.cost < best:
            best, length = grown.cost, len(order)
        inside = [value for value in (*node.outputs, *node.inputs) if value is not None and value in grown.layout]
        queue.extend(reader for value in inside for reader in _readers(value) if reader not in grown.nodes)
    if length == 0:
        return None
    region = Region(top, version)
    for node in order[:length]:
        region.add(node)
    return region


def _readers(value: Value) -> list[Node]:
    return [use.node for use in value.uses() if not is_transpose(use.node)]


def is_transpose(node: Node | None) -> TypeGuard[Node]:
    """Tell whether a node is a Transpose."""
    return node is not None and node.op_type == "Transpose" and node.domain == ""


def _size(value: Value) -> int:
    return prod(1 if dim is None else dim for dim in static_dims(value) or ())
