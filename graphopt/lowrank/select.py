"""How each layer is split under one budget for the whole network: the choice of least loss that meets it.

Each layer has ways to go on: as it is, or split in one form at one rank. Losses of different layers are taken to add
up, and so do costs. What is asked for is a saving; it is divided into small steps, and for each number of steps the
least loss of the layers so far is worked out, layer by layer, so that the choice is the best there is but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.pruning.selection import OutOfReachError

_STEPS = 4096
"""Into how many steps the saving is divided. What a way saves is rounded to whole ones, in several ways."""

Rounding = Callable[[float], float]


@dataclass(frozen=True)
class Option:
    """One way for a layer to go on: what it costs then, and what the network's outputs lose."""

    cost: float
    loss: float


def choose(layers: Sequence[Sequence[Option]], budget: float) -> list[int]:
    """Return the index of the way that each layer goes so that their costs sum up to ``budget`` at most.

    The first way of each layer is the layer as it is. Raises OutOfReachError.
    """
    needed = sum(ways[0].cost for ways in layers) - budget
    if needed <= 0:
        return [0] * len(layers)
    cheapest = [min(range(len(ways)), key=lambda index: (ways[index].cost, index)) for ways in layers]
    if _cost(layers, cheapest) > budget:
        raise OutOfReachError(_cost(layers, cheapest))
    plans = [cheapest, *(_planned(layers, needed, rounding) for rounding in (np.floor, np.round, np.ceil))]
    allowed = [found for found in plans if found is not None and _cost(layers, found) <= budget]
    return min(allowed, key=lambda found: _loss(layers, found))


def _cost(layers: Sequence[Sequence[Option]], indices: Sequence[int]) -> float:
    return sum(ways[index].cost for ways, index in zip(layers, indices, strict=True))


def _loss(layers: Sequence[Sequence[Option]], indices: Sequence[int]) -> float:
    return sum(ways[index].loss for ways, index in zip(layers, indices, strict=True))


def _planned(layers: Sequence[Sequence[Option]], needed: float, rounding: Rounding) -> list[int] | None:
    """Return the ways of least loss that save ``needed`` after rounding to steps, None where none do."""
    losses = np.full(_STEPS + 1, np.inf)
    losses[0] = 0.0
    taken: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for ways in layers:
        way, source = np.zeros(_STEPS + 1, np.int64), np.arange(_STEPS + 1)
        best = losses.copy()
        for index, steps in _steps(ways, needed, rounding):
            shifted, origin = _shifted(losses, steps)
            shifted += max(ways[index].loss, 0.0)
            better = shifted < best
            best = np.where(better, shifted, best)
            way, source = np.where(better, index, way), np.where(better, origin, source)
        taken.append((way, source))
        losses = best
    if not np.isfinite(losses[-1]):
        return None
    state, chosen = _STEPS, []
    for way, source in reversed(taken):
        chosen.append(int(way[state]))
        state = int(source[state])
    return chosen[::-1]


def _steps(ways: Sequence[Option], needed: float, rounding: Rounding) -> list[tuple[int, int]]:
    """Return the ways that save at least one step, with how many."""
    saved = [int(rounding((ways[0].cost - way.cost) / needed * _STEPS)) for way in ways]
    return [(index, min(steps, _STEPS)) for index, steps in enumerate(saved) if steps >= 1]


def _shifted(losses: NDArray[np.float64], steps: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the losses ``steps`` further on, and where each comes from; what goes beyond the end counts there."""
    shifted, origin = np.full(_STEPS + 1, np.inf), np.zeros(_STEPS + 1, np.int64)
    left = _STEPS + 1 - steps
    shifted[steps:], origin[steps:] = losses[:left], np.arange(left)
    last = left - 1 + int(np.argmin(losses[left - 1 :]))
    shifted[-1], origin[-1] = losses[last], last
    return shifted, origin
