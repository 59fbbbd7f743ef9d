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

from graphopt.pruning.costs import CostModel

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

_PARTNERS = 6
"""Groups with which steps of a group are exchanged."""


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

    def cost(self, levels: IntArray) -> float:
        return self.costs.total(self.counts(levels))

    def cut(self, levels: IntArray, budget: float) -> IntArray:
        """Return ``levels`` after the cut with the least loss for what it saves, no more than is needed counted."""
        now = self.cost(levels)
        best, found = np.inf, levels
        for index, curve in enumerate(self.curves):
            for level in range(levels[index] + 1, len(curve.removed)):
                trial = levels.copy()
                trial[index] = level
                saved = now - max(self.cost(trial), budget)
                if saved <= 0:
                    continue
                price = max(curve.losses[level] - curve.losses[levels[index]], 0.0) / saved
                if price < best:
                    best, found = price, trial
                if now - saved <= budget:
                    break
        return found

    def give_back(self, levels: IntArray, budget: float) -> IntArray:
        """Undo cuts, those of most loss first, that the budget does not need."""
        while True:
            gains = []
            for index, curve in enumerate(self.curves):
                for level in range(levels[index]):
                    trial = levels.copy()
                    trial[index] = level
                    if self.cost(trial) <= budget:
                        gains.append((curve.losses[levels[index]] - curve.losses[level], -index, level))
                        break
            if not gains or max(gains)[0] <= 0:
                return levels
            _, index, level = max(gains)
            levels = levels.copy()
            levels[-index] = level

    def exchanged(self, levels: IntArray, budget: float) -> IntArray:
        """Trade a step of one group for steps of others as long as that lowers the loss."""
        for _ in range(4 * len(self.curves)):
            better = min(
                (trial for trial in self._trades(levels, budget)), key=lambda trial: self.loss(trial), default=levels
            )
            if self.loss(better) >= self.loss(levels) * (1 - 1e-9):
                return levels
            levels = better
        return levels

    def _trades(self, levels: IntArray, budget: float) -> list[IntArray]:
        """Return what meets the budget with one step less of one group and some more of another."""
        found = []
        for index in np.flatnonzero(levels):
            start = levels.copy()
            start[index] -= 1
            for other in self._cheapest(start, int(index)):
                trial = start.copy()
                while self.cost(trial) > budget and trial[other] + 1 < len(self.curves[other].removed):
                    trial[other] += 1
                if self.cost(trial) <= budget:
                    found.append(self.give_back(trial, budget))
        return found

    def _cheapest(self, levels: IntArray, apart: int) -> list[int]:
        """Return a few groups whose next step loses least for what it saves."""
        now, prices = self.cost(levels), []
        for index, curve in enumerate(self.curves):
            level = levels[index]
            if index == apart or level + 1 >= len(curve.removed):
                continue
            trial = levels.copy()
            trial[index] += 1
            saved = now - self.cost(trial)
            if saved > 0:
                prices.append(((curve.losses[level + 1] - curve.losses[level]) / saved, index))
        return [index for _, index in sorted(prices)[:_PARTNERS]]
