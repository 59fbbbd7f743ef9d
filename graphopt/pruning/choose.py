"""Which units go: by a ranking of each group's units and one budget, for the network as a whole or group by group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Group
from graphopt.pruning.budget import levels, thinned
from graphopt.pruning.costs import CostModel
from graphopt.pruning.effects import Ranking
from graphopt.pruning.jobs import is_depthwise
from graphopt.pruning.saliency import Elimination
from graphopt.pruning.selection import Curve, OutOfReachError, select

Removed = dict[int, NDArray[np.bool_]]
_HALVINGS = 40
_LEAST = 1e-9
"""Share of a group's scores below which nothing is left of it."""


@dataclass(frozen=True)
class Limits:
    """What may go at all: counts that stay are multiples of ``align`` (see budget.alignment), ``least`` or more.

    ``floors`` holds the fraction that single groups, by index, keep at least.
    """

    align: int
    least: int
    floors: Mapping[int, float] = field(default_factory=dict)

    def levels(self, group: Group) -> NDArray[np.int64]:
        """Return how many units of a group may go."""
        floor = math.ceil(self.floors.get(group.index, 0.0) * group.units - 1e-9)
        return levels(group, self.align, max(self.least, floor))


def by_scores(group: Group, scores: NDArray[np.float64]) -> Ranking:
    """Rank units by what they are worth: the lowest go first, of equal ones the later.

    The loss of a cut is the share of the scores that goes over the share that stays, once for each layer that writes or
    reads the group: no group is emptied before the others, and one that many layers hang on is dear. Depthwise layers,
    in which channels do not meet, do not count; they take few multiply-accumulates and much time.
    """
    order = np.lexsort((-np.arange(group.units), scores))[: group.units - 1]
    gone = np.concatenate([[0.0], np.cumsum(scores[order])]) / (scores.sum() or 1.0)
    layers = len({use.node for use in (*group.writers, *group.readers) if not is_depthwise(use.node)})
    losses = gone / np.maximum(1.0 - gone, _LEAST) * max(layers, 1)
    return Ranking(group, Elimination(order, losses), Curve(group.index, np.arange(len(losses)), losses))


def choose(rankings: Sequence[Ranking], costs: CostModel, share: float, limits: Limits, *, together: bool) -> Removed:
    """Return the units that go (group index -> bool[units]) so that ``share`` of the cost stays at most.

    ``together``: where it costs the outputs least; otherwise the same share of each group. Raises OutOfReachError.
    """
    curves = [thinned(ranking.curve, limits.levels(ranking.group)) for ranking in rankings]
    budget = share * costs.whole
    groups = 1 + max((ranking.group.index for ranking in rankings), default=0)
    counts = select(curves, costs, budget, groups) if together else _evenly(curves, rankings, costs, budget, groups)
    return _masks(rankings, counts)


def keep_fraction(rankings: Sequence[Ranking], share: float, limits: Limits) -> Removed:
    """Return the units that go when every group keeps ``share`` of its own, or the nearest that its limits allow."""
    counts = {}
    for ranking in rankings:
        allowed = limits.levels(ranking.group)
        wanted = ranking.group.units - round(ranking.group.units * share)
        counts[ranking.group.index] = allowed[np.argmin(np.abs(allowed - wanted))]
    return _masks(rankings, counts)


def _evenly(
    curves: Sequence[Curve], rankings: Sequence[Ranking], costs: CostModel, budget: float, groups: int
) -> NDArray[np.int64]:
    """Bisect the share that every group loses."""
    units = {ranking.group.index: ranking.group.units for ranking in rankings}

    def counts(lost: float) -> NDArray[np.int64]:
        found = np.zeros(groups, np.int64)
        for curve in curves:
            place = np.searchsorted(curve.removed, lost * units[curve.group] - 1e-9)
            found[curve.group] = curve.removed[min(int(place), len(curve.removed) - 1)]
        return found

    return _bisected(counts, lambda lost: costs.total(counts(lost)), budget)


def _bisected(
    counts: Callable[[float], NDArray[np.int64]], cost: Callable[[float], float], budget: float
) -> NDArray[np.int64]:
    if cost(1.0) > budget:
        raise OutOfReachError(cost(1.0))
    low, high = 0.0, 1.0
    if cost(low) <= budget:
        return counts(low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= budget else (middle, high)
    return counts(high)


def _masks(rankings: Sequence[Ranking], counts: Mapping[int, int] | NDArray[np.int64]) -> Removed:
    removed = {}
    for ranking in rankings:
        gone = np.zeros(ranking.group.units, np.bool_)
        gone[ranking.elimination.order[: int(counts[ranking.group.index])]] = True
        if gone.any():
            removed[ranking.group.index] = gone
    return removed
