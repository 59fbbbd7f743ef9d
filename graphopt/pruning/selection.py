"""How many units each group loses under one budget for the whole network.

Each group has a curve: what the network's outputs lose when its cheapest units go. Losses of different groups are taken
to add up. Starting from the whole network, the cut with the least loss for each unit of cost saved is made, of any
length along a curve, costs being those of the network as cut so far. At the end, what the budget leaves room for is
given back, and cuts are exchanged while that helps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.pruning.costs import CostModel, State

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

_PARTNERS = 6
"""Groups with which steps of a group are exchanged."""

_SWEEPS = 20
"""Times that every group's steps are exchanged, at most."""


@dataclass(frozen=True, eq=False)
class Curve:
    """What a group may lose: ``removed`` [n] units, rising from 0, and the ``losses`` [n] of the outputs then."""

    group: int
    removed: IntArray
    losses: Array


class OutOfReachError(ValueError):
    """No allowed cut meets the budget; ``best`` is the least cost that can be had."""

    def __init__(self, best: float) -> None:
        super().__init__(f"the least that can be reached is {best:g}")
        self.best = best


def select(curves: Sequence[Curve], costs: CostModel, budget: float, groups: int) -> IntArray:
    """Return how many units each of ``groups`` groups loses so that the cost is at most ``budget``.

    Raises OutOfReachError.
    """
    search = _Search(curves, costs, groups)
    utmost = search.counts(np.array([len(curve.removed) - 1 for curve in curves], np.int64))
    if costs.total(utmost) > budget:
        raise OutOfReachError(costs.total(utmost))
    levels = np.zeros(len(curves), np.int64)
    while costs.total(search.counts(levels)) > budget:
        levels = search.cut(levels, budget)
    levels = search.give_back(levels, budget)
    return search.counts(search.exchanged(levels, budget))


class _Search:
    def __init__(self, curves: Sequence[Curve], costs: CostModel, groups: int) -> None:
        self.curves = curves
        self.costs = costs
        self.groups = groups

    def counts(self, levels: IntArray) -> IntArray:
        removed = np.zeros(self.groups, np.int64)
        for curve, level in zip(self.curves, levels, strict=True):
            removed[curve.group] = curve.removed[level]
        return removed

    def loss(self, levels: IntArray) -> float:
        return float(sum(curve.losses[level] for curve, level in zip(self.curves, levels, strict=True)))

    def state(self, levels: IntArray) -> State:
        return self.costs.state(self.counts(levels))

    def along(self, state: State, index: int, levels: slice) -> Array:
        """Return what the network costs with one curve at ``levels`` and the others where they are."""
        curve = self.curves[index]
        return self.costs.alone(state, curve.group, curve.removed[levels])

    def cut(self, levels: IntArray, budget: float) -> IntArray:
        """Return ``levels`` after the cut with the least loss for what it saves, no more than is needed counted."""
        state = self.state(levels)
        best, found = np.inf, levels
        for index, (curve, level) in enumerate(zip(self.curves, levels, strict=True)):
            saved = state.total - np.maximum(self.along(state, index, slice(level + 1, None)), budget)
            rise = np.maximum(curve.losses[level + 1 :] - curve.losses[level], 0.0)
            price = np.divide(rise, saved, out=np.full(len(rise), np.inf), where=saved > 0)
            if len(price) and price.min() < best:
                best, found = float(price.min()), _moved(levels, index, level + 1 + int(price.argmin()))
        return found

    def give_back(self, levels: IntArray, budget: float) -> IntArray:
        """Undo cuts, those of most loss first, that the budget does not need."""
        while True:
            state, best, found = self.state(levels), 0.0, levels
            for index in np.flatnonzero(levels).tolist():
                curve, level = self.curves[index], levels[index]
                enough = np.flatnonzero(self.along(state, index, slice(0, level)) <= budget)
                if len(enough) and curve.losses[level] - curve.losses[enough[0]] > best:
                    best, found = curve.losses[level] - curve.losses[enough[0]], _moved(levels, index, enough[0])
            if found is levels:
                return levels
            levels = found

    def exchanged(self, levels: IntArray, budget: float) -> IntArray:
        """Trade a step of one group for steps of others as long as that lowers the loss."""
        for _ in range(_SWEEPS):
            before = self.loss(levels)
            for index in range(len(levels)):
                if levels[index]:
                    trades = self._trades(levels, index, budget)
                    levels = min([levels, *trades], key=self.loss)
            if self.loss(levels) >= before * (1 - 1e-9):
                return levels
        return levels

    def _trades(self, levels: IntArray, index: int, budget: float) -> list[IntArray]:
        """Return what meets the budget with one step less of one group and some more of another."""
        start = _moved(levels, index, levels[index] - 1)
        state, found = self.state(start), []
        for other in self._cheapest(state, start, index):
            enough = np.flatnonzero(self.along(state, other, slice(start[other], None)) <= budget)
            if len(enough):
                found.append(self.give_back(_moved(start, other, start[other] + enough[0]), budget))
        return found

    def _cheapest(self, state: State, levels: IntArray, apart: int) -> list[int]:
        """Return a few groups whose next step loses least for what it saves."""
        prices = []
        for index, (curve, level) in enumerate(zip(self.curves, levels, strict=True)):
            if index == apart or level + 1 >= len(curve.removed):
                continue
            saved = state.total - float(self.along(state, index, slice(level + 1, level + 2))[0])
            if saved > 0:
                prices.append(((curve.losses[level + 1] - curve.losses[level]) / saved, index))
        return [index for _, index in sorted(prices)[:_PARTNERS]]


def _moved(levels: IntArray, index: int, level: int | np.int64) -> IntArray:
    moved = levels.copy()
    moved[index] = level
    return moved
