"""Optimal-brain-surgeon elimination: in what order a group's units go, and what that costs the layers that read them.

For a reader of weights W and inputs of covariance A, removing the columns C and refitting the rest adds the squared
error tr(W_C (A⁻¹_CC)⁻¹ W_Cᵀ) to its outputs. The rest becomes W - W_C (A⁻¹_CC)⁻¹ A⁻¹_C·, and A⁻¹ loses
A⁻¹_·C (A⁻¹_CC)⁻¹ A⁻¹_C·. So units go one after the other (some at a time where there are many), each time the cheapest
by the sum over readers, and nothing is ever solved anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.pruning.inverse import inverse

Array = NDArray[np.float64]
IntArray = NDArray[np.int64]

DAMPING = 1e-3
"""Ridge on a covariance at least; where there are few samples for its size, more guards against fitting to those."""

_SHARE = 32
"""One unit in so many of those left goes at a time."""

_DENSE = 8
"""Columns are taken out when more than one in so many is gone."""

_ROWS = 512
"""Rows of an inverse that are changed at a time."""

_WIDE, _CONDITION = 1024, 1e5
"""From how many columns on float32 is worth while, if the ridge keeps the covariance's condition below this bound."""


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
    units = len(readers[0].columns)
    order: list[int] = []
    errors = [0.0]
    weights: dict[int, list[Array]] = {}
    while (left := units - len(order)) > least:
        ahead = [cut - len(order) for cut in cuts if cut > len(order)]
        count = min(max(1, left // _SHARE), left - least, *ahead)
        scores = np.sum([state.scores() for state in states], axis=0)
        chosen = np.argsort(scores, kind="stable")[:count]
        spent = sum(state.remove(np.sort(chosen)) for state in states)
        order.extend(int(unit) for unit in chosen)
        errors.extend(errors[-1] + spent * np.arange(1, count + 1) / count)
        if len(order) in cuts:
            weights[len(order)] = [state.whole() for state in states]
    return Elimination(np.array(order, np.int64), np.array(errors)), weights


class _State:
    """A reader less the units removed so far.

    The columns of a unit stand side by side, those of no unit behind them. Columns of removed units are uncoupled from
    the rest, and taken out once they are many.
    """

    def __init__(self, reader: Reader) -> None:
        width = reader.gram.shape[-1]
        units, self._each = reader.columns.shape
        owned = reader.columns.reshape(-1)
        self._order = np.concatenate([owned, np.setdiff1d(np.arange(width), owned)])
        self._units = np.arange(units)
        self._width = width
        self._gone = np.zeros(units, bool)
        self._weight = reader.weight
        self._inverse = _inverse_of(reader, self._order)
        # [G, K, O]: what a column is multiplied by lies together.
        turned = reader.weights.swapaxes(1, 2)[:, self._order]
        self._weights = np.ascontiguousarray(turned, self._inverse.dtype)

    def whole(self) -> Array:
        """Return the weights [G, O, K], zero for what was removed."""
        groups, _, outputs = self._weights.shape
        found = np.zeros((groups, outputs, self._width))
        found[:, :, self._order] = self._weights.swapaxes(1, 2)
        return found

    def scores(self) -> Array:
        """Return what removing each unit alone costs, [units]; infinity for those that are gone."""
        groups, _, outputs = self._weights.shape
        units, each = len(self._units), self._each
        size = units * each
        square = self._inverse[:, :size, :size].reshape(groups, units, each, units, each)
        blocks = np.einsum("guaub->guab", square).astype(np.float64)
        part = self._weights[:, :size].reshape(groups, units, each, outputs)
        solved = np.linalg.solve(blocks, (part @ part.swapaxes(2, 3)).astype(np.float64))
        costs = self._weight * np.trace(solved, axis1=2, axis2=3).sum(axis=0)
        found = np.full(len(self._gone), np.inf)
        left = ~self._gone[self._units]
        found[self._units[left]] = costs[left]
        return found

    def remove(self, chosen: IntArray) -> float:
        """Remove units and return what that costs."""
        places = np.searchsorted(self._units, chosen)
        gone = (places[:, None] * self._each + np.arange(self._each)).reshape(-1)
        part, across = self._weights[:, gone], self._inverse[:, gone]
        block = across[:, :, gone]
        shares = np.linalg.solve(block, across)
        cost = float((np.linalg.solve(block, part) * part).sum(dtype=np.float64))
        turned = shares.swapaxes(1, 2)
        self._weights -= turned @ part
        for start in range(0, self._inverse.shape[1], _ROWS):
            rows = slice(start, start + _ROWS)
            self._inverse[:, rows] -= turned[:, rows] @ across
        self._weights[:, gone] = 0.0
        self._inverse[:, gone] = 0.0
        self._inverse[:, :, gone] = 0.0
        self._inverse[:, gone, gone] = 1.0
        self._gone[chosen] = True
        if np.count_nonzero(self._gone[self._units]) * _DENSE > len(self._units):
            self._compact()
        return self._weight * cost

    def _compact(self) -> None:
        left = ~self._gone[self._units]
        behind = np.ones(len(self._order) - len(left) * self._each, bool)
        stays = np.flatnonzero(np.concatenate([np.repeat(left, self._each), behind]))
        self._inverse = np.take(np.take(self._inverse, stays, axis=1), stays, axis=2)
        self._weights = self._weights[:, stays]
        self._order = self._order[stays]
        self._units = self._units[left]


def _inverse_of(reader: Reader, order: IntArray) -> NDArray[Any]:
    """Return the inverse of the damped covariance, its columns in ``order``."""
    diagonal = np.diagonal(reader.gram, axis1=1, axis2=2)
    mean = diagonal.sum(axis=1) / np.maximum((diagonal > 0).sum(axis=1), 1)
    damping = max(reader.damping, 1e-9)
    ridge = np.where(mean > 0, mean * damping, 1.0)[:, None]
    single = len(order) >= _WIDE and len(order) <= _CONDITION * damping
    number = np.arange(len(order))
    gram = reader.gram if np.array_equal(order, number) else reader.gram[:, order[:, None], order]
    before = gram[:, number, number]
    gram[:, number, number] = before + ridge
    found = inverse(gram, np.float32 if single else np.float64)
    gram[:, number, number] = before
    return found
