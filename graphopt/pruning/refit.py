"""Weights fitted to what a layer is to give: ridge regression towards the weights it has, from sums over the data.

A layer of weights W [O, K] reads x̂ where the original network had something else, and is to give t. With means taken
off (the bias makes up for them), W = (E[t x̂ᵀ] + λ W₀) (E[x̂ x̂ᵀ] + λ)⁻¹ makes E‖t - W x̂‖² + λ‖W - W₀‖² least. λ is the
one that does best on samples held out, in each layer anew; then all samples are fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.float32]

DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Candidates for λ, as shares of the mean diagonal of E[x̂ x̂ᵀ]."""

_ROWS = 256
"""Rows of a matrix that are changed at a time."""

_FIRST = 2
"""Where the search for the best of them begins."""


@dataclass
class Moments:
    """Sums over ``count`` positions of x̂ x̂ᵀ [G, K, K], of t x̂ᵀ [G, O / G, K], of x̂ [G, K], t and t² [G, O / G]."""

    inputs: NDArray[Any]
    cross: NDArray[Any]
    input_sum: Array
    target_sum: Array
    target_square: Array
    count: int

    @classmethod
    def zeros(cls, groups: int, outputs: int, width: int) -> Moments:
        """Return sums over nothing."""
        square, cross = np.zeros((groups, width, width)), np.zeros((groups, outputs, width))
        first, wanted, power = (np.zeros((groups, size)) for size in (width, outputs, outputs))
        return cls(square, cross, first, wanted, power, 0)

    def include(self, other: Moments) -> None:
        """Add sums over other positions, in place."""
        if other.count:
            self.inputs += other.inputs
            self.input_sum += other.input_sum
        self.count += other.count
        self.cross += other.cross
        self.target_sum += other.target_sum
        self.target_square += other.target_square

    def forget_targets(self) -> None:
        """Take back what was added of targets."""
        for array in (self.cross, self.target_sum, self.target_square):
            array.fill(0.0)

    def __add__(self, other: Moments) -> Moments:
        """Return the sums over both."""
        return Moments(
            self.inputs + other.inputs,
            self.cross + other.cross,
            self.input_sum + other.input_sum,
            self.target_sum + other.target_sum,
            self.target_square + other.target_square,
            self.count + other.count,
        )

    def means(self, centred: bool) -> Means:
        """Return the means, those of x̂ and t taken off the products where a bias can make up for them."""
        count = max(self.count, 1)
        first, wanted = self.input_sum / count, self.target_sum / count
        gram, cross, square = self.inputs / count, self.cross / count, self.target_square / count
        if centred:
            subtract_products(gram, first, first)
            cross -= wanted[:, :, None] * first[:, None, :]
            square -= wanted**2
        return Means(gram, cross, square, first, wanted, centred)


def products(rows: Rows, targets: NDArray[Any], *, again: bool = False) -> Moments:
    """Return the sums over positions: ``rows`` [G, K, P] and ``targets`` [O, P].

    ``again``: other targets of rows that are added up already. Sums of the rows are left out then.
    """
    groups, _, count = rows.shape
    wanted = np.asarray(targets, np.float32).reshape(groups, -1, count)
    sums = (wanted.sum(axis=2, dtype=np.float64), np.square(wanted, dtype=np.float64).sum(axis=2))
    cross = wanted @ rows.swapaxes(1, 2)
    if again:
        return Moments(np.empty((groups, 0, 0)), cross, np.empty((groups, 0)), *sums, 0)
    # Of two matrices, a product with the own transpose takes half the work.
    return Moments(rows @ rows.swapaxes(1, 2), cross, rows.sum(axis=2, dtype=np.float64), *sums, count)


def subtract_products(matrix: Array, left: Array, right: Array) -> None:
    """Take ``left`` [G, n] times ``right`` [G, m] off a matrix [G, n, m] in place, without another of its size."""
    for start in range(0, matrix.shape[1], _ROWS):
        rows = slice(start, start + _ROWS)
        matrix[:, rows] -= left[:, rows, None] * right[:, None, :]


@dataclass(frozen=True, eq=False)
class Means:
    """Second moments [G, ..] of a layer's inputs and targets, about their means if ``centred``."""

    gram: Array
    cross: Array
    square: Array
    input_mean: Array
    target_mean: Array
    centred: bool

    def fitted(self, weights: Array, damping: float) -> Array:
        """Return the best weights [G, O / G, K] near ``weights``; see the module."""
        diagonal = np.diagonal(self.gram, axis1=1, axis2=2).copy()
        mean = diagonal.sum(axis=1) / np.maximum((diagonal > 0).sum(axis=1), 1)
        ridge = np.where(mean > 0, mean * damping, 1.0)[:, None, None]
        wanted = self.cross + ridge * weights
        number = np.arange(self.gram.shape[-1])
        # A copy of the matrix would take as long as much of the solving.
        self.gram[:, number, number] = diagonal + ridge[:, :, 0]
        found = np.linalg.solve(self.gram, wanted.swapaxes(1, 2)).swapaxes(1, 2)
        self.gram[:, number, number] = diagonal
        return np.asarray(found, np.float64)

    def bias(self, weights: Array) -> Array:
        """Return the bias [O] that gives the right means with ``weights``; zeros where there is to be none."""
        if not self.centred:
            return np.zeros(self.target_mean.size)
        return np.asarray((self.target_mean - (weights @ self.input_mean[:, :, None])[:, :, 0]).reshape(-1))

    def errors(self, weights: Array, bias: Array | None = None) -> Array:
        """Return the mean squared error [O] of each output with ``weights`` and ``bias`` (None: the best)."""
        moved = weights @ self.gram
        error = self.square - 2 * (weights * self.cross).sum(axis=2) + (weights * moved).sum(axis=2)
        if bias is not None and self.centred:
            error = error + (bias.reshape(error.shape) - self.bias(weights).reshape(error.shape)) ** 2
        return np.asarray(np.maximum(error.reshape(-1), 0.0))


@dataclass(frozen=True, eq=False)
class Fit:
    """New weights [O, K] and bias [O] of a layer.

    ``before`` and ``after`` are its error on the samples held out, as shares of the power of what it is to give.
    """

    weights: Array
    bias: Array
    damping: float
    before: float
    after: float


def fit(
    fitting: Moments,
    held: Moments,
    weights: Array,
    bias: Array,
    *,
    centred: bool = True,
    damping: float | None = None,
) -> Fit:
    """Fit a layer that has ``weights`` [O, K] and ``bias`` [O] now; it stays as it is when nothing does better.

    ``fitting`` and ``held`` are sums over different samples; ``held`` may be empty, which takes the middle damping.
    Only ``damping`` is tried if it is given.
    """
    damping, before, after = _tried(fitting, held, weights, bias, centred, damping)
    if after >= before:
        return Fit(weights, bias, 0.0, before, before)
    every = (fitting + held).means(centred)
    found = every.fitted(weights.reshape(len(every.gram), -1, weights.shape[1]), damping)
    return Fit(found.reshape(weights.shape), every.bias(found), damping, before, after)


def _tried(
    fitting: Moments, held: Moments, weights: Array, bias: Array, centred: bool, damping: float | None
) -> tuple[float, float, float]:
    """Return the damping that does best on ``held``, the error there before, and the error with it."""
    trial = fitting.means(centred)
    test = held.means(centred) if held.count else trial
    old = weights.reshape(len(trial.gram), -1, weights.shape[1])
    power = float(test.square.sum()) or 1.0
    before = float(test.errors(old, bias).sum()) / power

    def score(damping: float) -> float:
        found = trial.fitted(old, damping)
        return float(test.errors(found, trial.bias(found)).sum()) / power

    if damping is None and held.count:
        damping, after = _lowest(score)
        return damping, before, after
    damping = DAMPINGS[len(DAMPINGS) // 2] if damping is None else damping
    return damping, before, score(damping)


def _lowest(score: Callable[[float], float]) -> tuple[float, float]:
    """Return the damping of the lowest score, which rises on either side of it, and that score."""
    known = {_FIRST: score(DAMPINGS[_FIRST])}
    for step in (-1, 1):
        place = _FIRST
        while 0 <= place + step < len(DAMPINGS):
            known[place + step] = score(DAMPINGS[place + step])
            if known[place + step] >= known[place]:
                break
            place += step
        if place != _FIRST:
            break
    best = min(known, key=known.__getitem__)
    return DAMPINGS[best], known[best]
