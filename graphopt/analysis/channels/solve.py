"""From ties to groups: axes that are the same become one, reshaped axes get their digit, slots become units.

A slot is one position of one axis. Nothing here loops over slots in Python.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels.ties import Digit, Split, Ties
from graphopt.analysis.channels.types import BoolArray, Group, IntArray, Member, Use
from graphopt.ir import is_constant
from graphopt.ir.query import constant_size

Edge = tuple[int, int, IntArray, IntArray]
"""Two classes, and the positions of each that go together."""


@dataclass(frozen=True, eq=False)
class Classes:
    """Axes that are the same position by position, as one: ``of[axis]`` is the class, ``members`` go the other way."""

    of: IntArray
    members: tuple[tuple[int, ...], ...]
    lengths: IntArray

    @classmethod
    def find(cls, ties: Ties) -> Classes:
        """Put axes together that are the same."""
        graph: nx.Graph[int] = nx.Graph()
        graph.add_nodes_from(range(len(ties.axes)))
        graph.add_edges_from(ties.same)
        members = tuple(tuple(sorted(component)) for component in nx.connected_components(graph))
        of = np.zeros(len(ties.axes), dtype=np.int64)
        for index, axes in enumerate(members):
            of[list(axes)] = index
        lengths = np.array([ties.lengths[axes[0]] for axes in members], dtype=np.int64)
        return cls(of, members, lengths)


class Chooser:
    """Decides which digit of each reshaped axis may shrink, and pins the others.

    A digit that is pinned for other reasons leaves the choice to the rest. Of several, heads go before what a product
    of two computed operands sums over (``inner_of_heads`` turns that round), then the larger, then the outer one.
    """

    def __init__(self, ties: Ties, classes: Classes, edges: list[Edge], *, inner_of_heads: bool):
        self.pinned: list[BoolArray] = [np.zeros(length, dtype=np.bool_) for length in classes.lengths]
        self.blocked: list[tuple[int, Split]] = []
        self.edges = list(edges)
        self._ties, self._classes, self._inner = ties, classes, inner_of_heads
        self._next: defaultdict[int, list[tuple[int, IntArray, IntArray]]] = defaultdict(list)
        self._queue: deque[int] = deque()
        self._open = dict.fromkeys(ties.splits)
        self._splits: defaultdict[int, list[Split]] = defaultdict(list)
        self._heads = {int(classes.of[axis]) for axis in ties.heads}
        self._contracted = {int(classes.of[axis]) for axis in ties.contracted}
        for split in ties.splits:
            for axis in (split.whole, *split.parts):
                self._splits[int(classes.of[axis])].append(split)
        for edge in edges:
            self._link(edge)

    def run(self) -> None:
        """Spread the pins and decide every split, those first that pins decide."""
        for pin in self._ties.pins:
            self._pin(int(self._classes.of[pin.axis]), slice(None) if pin.positions is None else pin.positions)
        self._spread()
        for split in self._ties.splits:
            if split in self._open:
                self._decide(split, self._preferred(split))
                self._spread()

    def _link(self, edge: Edge) -> None:
        first, second, one, two = edge
        self._next[first].append((second, one, two))
        self._next[second].append((first, two, one))

    def _pin(self, index: int, positions: IntArray | slice) -> None:
        pinned = self.pinned[index]
        if not pinned[positions].all():
            pinned[positions] = True
            self._queue.append(index)

    def _spread(self) -> None:
        while self._queue:
            index = self._queue.popleft()
            pinned = self.pinned[index]
            for other, here, there in self._next[index]:
                self._pin(other, there[pinned[here]])
            for split in self._splits[index]:
                if split in self._open:
                    self._decide_if_forced(split)

    def _decide_if_forced(self, split: Split) -> None:
        free = [part for part in split.parts if not self._is_pinned(part)]
        if self._is_pinned(split.whole) or len(free) < 2:
            self._decide(split, free[0] if free else split.parts[0])

    def _is_pinned(self, axis: int) -> bool:
        return bool(self.pinned[self._classes.of[axis]].all())

    def _preferred(self, split: Split) -> int:
        free = [part for part in split.parts if not self._is_pinned(part)]
        return max(free, key=lambda part: (self._attends(part), self._ties.lengths[part], -split.parts.index(part)))

    def _attends(self, part: int) -> int:
        index = int(self._classes.of[part])
        rank = (index in self._heads) - (index in self._contracted)
        return -rank if self._inner else rank

    def _decide(self, split: Split, chosen: int) -> None:
        del self._open[split]
        lengths, of = self._ties.lengths, self._classes.of
        stride = 1
        for part in split.parts[: split.parts.index(chosen) : -1]:
            stride *= lengths[part]
        pairs = Digit(lengths[split.whole], stride, lengths[chosen]).pairs()
        edge = (int(of[split.whole]), int(of[chosen]), *pairs)
        self.edges.append(edge)
        self._link(edge)
        self._spread_heads(edge[0], edge[1])
        self._queue.extend(edge[:2])
        for part in split.parts:
            if part != chosen:
                self.blocked.append((part, split))
                self._pin(int(of[part]), slice(None))

    def _spread_heads(self, whole: int, part: int) -> None:
        """A whole that is repeated over has its heads in the digit that may shrink, and the other way round."""
        if whole in self._heads or part in self._heads:
            self._heads.update((whole, part))


def components(count: int, first: IntArray, second: IntArray) -> IntArray:
    """Return for each of ``count`` slots the smallest that pairs of ``first`` and ``second`` join it to."""
    label = np.arange(count, dtype=np.int64)
    while True:
        one, two = label[first], label[second]
        apart = one != two
        if not apart.any():
            return label
        first, second, one, two = first[apart], second[apart], one[apart], two[apart]
        np.minimum.at(label, np.maximum(one, two), np.minimum(one, two))
        while not np.array_equal(label, shorter := label[label]):
            label = shorter


def find_groups(ties: Ties, classes: Classes, chooser: Chooser) -> tuple[Group, ...]:
    """Return the groups of units that nothing pins and that a weight shrinks by."""
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(classes.lengths)])
    count = int(offsets[-1])
    first = [one + offsets[a] for a, _, one, _ in chooser.edges]
    second = [two + offsets[b] for _, b, _, two in chooser.edges]
    nothing = np.zeros(0, dtype=np.int64)
    label = components(count, np.concatenate([nothing, *first]), np.concatenate([nothing, *second]))
    pinned = np.zeros(count, dtype=np.bool_)
    pinned[label[np.concatenate([np.zeros(0, dtype=np.bool_), *chooser.pinned])]] = True
    home = np.repeat(np.arange(len(classes.members), dtype=np.int64), classes.lengths)
    free = np.flatnonzero(~pinned[label])
    group, unit = _grouped(label[free], home[free])
    return _build(ties, classes, _lain(home[free], free - offsets[home[free]], group, unit))


def _grouped(root: IntArray, home: IntArray) -> tuple[IntArray, IntArray]:
    """Return for each slot the number of its group and that of its unit: roots that touch the same classes."""
    roots, place = np.unique(root, return_inverse=True)
    signature = np.zeros(len(roots), dtype=np.uint64)
    np.add.at(signature, place, _scrambled(home))
    _, first, inverse = np.unique(signature, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    group = rank[inverse.reshape(-1)]
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(first)))
    unit = np.empty(len(roots), dtype=np.int64)
    unit[order] = np.arange(len(roots)) - starts[group[order]]
    return group[place], unit[place]


def _scrambled(numbers: IntArray) -> NDArray[np.uint64]:
    """Return a 64-bit number for each, the same for the same, whose sums tell sets of them apart (splitmix64)."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


Lain = dict[int, list[tuple[int, IntArray, IntArray]]]
"""By group: the classes that it lies on, with the positions there and their units."""


def _lain(home: IntArray, position: IntArray, group: IntArray, unit: IntArray) -> Lain:
    found: Lain = defaultdict(list)
    order = np.lexsort((position, home, group))
    cuts = np.flatnonzero(np.diff(group[order]) | np.diff(home[order])) + 1
    for run in np.split(order, cuts) if len(order) else ():
        found[int(group[run[0]])].append((int(home[run[0]]), position[run], unit[run]))
    return found


def _build(ties: Ties, classes: Classes, lain: Lain) -> tuple[Group, ...]:
    normalized = {int(classes.of[axis]) for axis in ties.normalized}
    roles: defaultdict[int, list[tuple[int, bool]]] = defaultdict(list)
    for index, role in enumerate(ties.roles):
        roles[role.axis].append((index, role.writes))
    groups: list[Group] = []
    for runs in lain.values():
        units = 1 + max(int(unit.max()) for _, _, unit in runs)
        members = _members(ties, classes, runs)
        parameters = sum(_saved(member, ties.lengths[number]) for number, member in members) // units
        if units < 2 or not parameters:
            continue
        uses = sorted((i, writes, Use(ties.roles[i].node, m)) for n, m in members for i, writes in roles.get(n, ()))
        groups.append(
            Group(
                index=len(groups),
                units=units,
                members=tuple(member for _, member in members),
                writers=tuple(use for _, writes, use in uses if writes),
                readers=tuple(use for _, writes, use in uses if not writes),
                parameters=parameters,
                normalized=any(home in normalized for home, _, _ in runs),
            )
        )
    return tuple(groups)


def _members(ties: Ties, classes: Classes, runs: list[tuple[int, IntArray, IntArray]]) -> list[tuple[int, Member]]:
    found: list[tuple[int, Member]] = []
    for home, position, unit in runs:
        for number in classes.members[home]:
            axis = ties.axes[number]
            if axis is not None:
                found.append((number, Member(axis, position, unit)))
    return sorted(found, key=lambda item: item[0])


def _saved(member: Member, length: int) -> int:
    """Return how many elements of a constant all the group's positions on an axis of it hold."""
    value = member.axis.value
    return (constant_size(value) or 0) // length * len(member.positions) if is_constant(value) else 0
