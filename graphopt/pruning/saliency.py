"""Optimal-brain-surgeon elimination: in what order a group's units go, and what that costs the layers that read them.

For a reader of weights W and inputs of covariance A, removing the columns C and refitting the rest adds the squared
error tr(W_C (A⁻¹_CC)⁻¹ W_Cᵀ) to its outputs. The rest becomes W - W_C (A⁻¹_CC)⁻¹ A⁻¹_C·, and A⁻¹ loses
A⁻¹_·C (A⁻¹_CC)⁻¹ A⁻¹_C·. So units go one after the other (some at a time where there are many), each time the cheapest
by the sum over readers, and nothing is ever solved anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

DAMPING = 1e-3
"""Ridge on a covariance at least; where there are few samples for its size, more guards against fitting to those."""

_SHARE = 32
"""One unit in so many of those left goes at a time."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that sums over the units: ``weights`` [G, O, K], covariance ``gram`` [G, K, K] and ``mean`` [G, K] of its
    inputs (zeros where no bias can make up for a mean), ``columns`` [units, c].
    ``damping`` is the ridge on the covariance, as a share of its mean diagonal.

    Column numbers are those of every one of the G groups. ``weight`` is what a unit of squared error counts.
    """

    weights: Array
    gram: Array
    mean: Array
    columns: IntArray
    damping: float = 0.0
    weight: float = 1.0

    @property
    def power(self) -> float:
        """The variance of the layer's outputs, all added up."""
        return float(((self.weights @ self.gram) * self.weights).sum())


@dataclass(frozen=True, eq=False)
class Elimination:
    """``order`` [n] holds units in the order they go; ``errors`` [n + 1] what the removal of the first i costs."""

    order: IntArray
    errors: Array


def eliminate(
    readers: Sequence[Reader], least: int = 1, cuts: Sequence[int] = ()
) -> tuple[Elimination, dict[int, list[Array]]]:
    """Order the units until ``least`` are left. ``readers`` agree in the number of units.

    Return with it, for each number of units in ``cuts``, the readers' weights [G, O, K] once so many are gone: zero for
    those, the rest making up for them.
    """
    states = [_State(reader) for reader in readers]
    alive = np.arange(len(readers[0].columns))
    order: list[int] = []
    errors = [0.0]
    weights: dict[int, list[Array]] = {}
    while len(alive) > least:
        ahead = [cut - len(order) for cut in cuts if cut > len(order)]
        count = min(max(1, len(alive) // _SHARE), len(alive) - least, *ahead)
        scores = np.sum([state.scores() for state in states], axis=0)
        chosen = np.sort(np.argsort(scores, kind="stable")[:count])
        spent = sum(state.remove(chosen) for state in states)
        sequence = chosen[np.argsort(scores[chosen], kind="stable")]
        order.extend(int(unit) for unit in alive[sequence])
        errors.extend(errors[-1] + spent * np.arange(1, count + 1) / count)
        alive = np.delete(alive, chosen)
        if len(order) in cuts:
            weights[len(order)] = [state.whole() for state in states]
    return Elimination(np.array(order, np.int64), np.array(errors)), weights


class _State:
    """A reader less the units removed so far."""

    def __init__(self, reader: Reader) -> None:
        gram = reader.gram
        diagonal = np.diagonal(gram, axis1=1, axis2=2)
        mean = diagonal.sum(axis=1) / np.maximum((diagonal > 0).sum(axis=1), 1)
        ridge = np.where(mean > 0, mean * max(reader.damping, 1e-9), 1.0)[:, None, None]
        self.inverse = np.linalg.inv(gram + ridge * np.eye(gram.shape[-1]))
        self.weights = reader.weights.copy()
        self.weight = reader.weight
        self.columns = reader.columns.copy()
        self.original = np.arange(gram.shape[-1])
        self.width = gram.shape[-1]

    def whole(self) -> Array:
        """Return the weights [G, O, K], zero for what was removed."""
        found = np.zeros((*self.weights.shape[:2], self.width))
        found[:, :, self.original] = self.weights
        return found

    def scores(self) -> Array:
        """Return what removing each unit alone costs, [units left]."""
        columns = self.columns
        blocks = self.inverse[:, columns[:, :, None], columns[:, None, :]]
        part = self.weights[:, :, columns].transpose(0, 2, 3, 1)
        squares = part @ part.swapaxes(2, 3)
        solved = np.linalg.solve(blocks, squares)
        return self.weight * np.asarray(np.trace(solved, axis1=2, axis2=3).sum(axis=0))

    def remove(self, chosen: IntArray) -> float:
        """Remove units, by their place among those left, and return what that costs."""
        gone = self.columns[chosen].reshape(-1)
        rest = np.setdiff1d(np.arange(len(self.original)), gone, assume_unique=True)
        part = self.weights[:, :, gone]
        block = self.inverse[:, gone[:, None], gone]
        across = self.inverse[:, gone[:, None], rest]
        shares = np.linalg.solve(block, across)
        cost = float((np.linalg.solve(block, part.swapaxes(1, 2)) * part.swapaxes(1, 2)).sum())
        self.weights = self.weights[:, :, rest] - part @ shares
        self.inverse = self.inverse[:, rest[:, None], rest] - across.swapaxes(1, 2) @ shares
        place = np.full(len(self.original), -1)
        place[rest] = np.arange(len(rest))
        self.original = self.original[rest]
        self.columns = place[np.delete(self.columns, chosen, axis=0)]
        return self.weight * cost
