"""Neighbouring 8-bit weights whose products a kernel adds in 16 bits, which saturate where the two are too large.

With activations of 0 to 255 the sum of two products fits when the two weights, where their signs are equal, sum up to
128 at most. Weights are integers about zero here (symmetric grids).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def pair_columns(
    shape: tuple[int, ...], axis: int | None = 0, reduction: tuple[int, ...] | None = None, *, by_pixel: bool = False
) -> IntArray:
    """Return the neighbours [P, 2] along the reduction of weights of ``shape``, as columns of ``w`` seen as [O, K].

    That is ``w`` with ``axis`` first, flattened behind it; all of it is one row with ``axis`` None. ``reduction`` names
    the axes that the kernel sums over, the slowest first; by default those of a convolution with ``axis`` the output
    channels (spatial axes, then input channels), or the axis that is not ``axis`` of a matrix (the first, if None).
    With ``by_pixel`` the kernel sums over the last of them at a time: of an odd number, the last has no neighbour.
    """
    order = reduction if reduction is not None else _usual_reduction(len(shape), axis)
    kept = [i for i in range(len(shape)) if axis is None or i != axis % len(shape)]
    columns = np.arange(math.prod(shape[i] for i in kept)).reshape([shape[i] for i in kept])
    summed = [kept.index(i % len(shape)) for i in order]
    outer = [i for i in range(len(kept)) if i not in summed]
    length = columns.shape[summed[-1]] if by_pixel else math.prod(columns.shape[i] for i in summed)
    rows = columns.transpose(outer + summed).reshape(-1, length)[:, : length // 2 * 2]
    return rows.reshape(-1, 2)


def largest_pair_sum(w: npt.NDArray[Any], pairs: IntArray) -> npt.NDArray[Any]:
    """Return for each row of ``w`` [R, N] the largest size of the sum of two paired weights with equal signs, or 0."""
    first, second = w[:, pairs[:, 0]], w[:, pairs[:, 1]]
    return np.asarray(np.where(first * second > 0, np.abs(first + second), 0).max(axis=1, initial=0))


def clamp_pairs(q: IntArray, wanted: Array, pairs: IntArray, limit: int, importance: Array | None = None) -> IntArray:
    """Return ``q`` [R, N] with every pair of equal signs moved towards zero until its sum's size is within ``limit``.

    The steps are shared between the two so that the squared distance to ``wanted`` [R, N] (the exact weights in units
    of the scale), weighted by ``importance`` (broadcast to [R, N]), grows least.
    """
    first, second = q[:, pairs[:, 0]], q[:, pairs[:, 1]]
    row, pair = np.nonzero((first * second > 0) & (np.abs(first + second) > limit))
    if not row.size:
        return q
    result = q.copy()
    i, j = pairs[pair, 0], pairs[pair, 1]
    sign = np.sign(q[row, i])
    a, b = np.abs(q[row, i]), np.abs(q[row, j])
    excess = a + b - limit
    cost = np.ones_like(wanted) if importance is None else np.broadcast_to(importance, wanted.shape) + 0.0
    cost_a, cost_b = cost[row, i], cost[row, j]
    cost_a, cost_b = np.where(cost_a + cost_b > 0, cost_a, 1.0), np.where(cost_a + cost_b > 0, cost_b, 1.0)
    # What is already rounded away from zero gains by a step; the cheapest split is where the two slopes are equal.
    gain = cost_a * (a - sign * wanted[row, i]) - cost_b * (b - sign * wanted[row, j])
    steps = np.rint((gain + cost_b * excess) / (cost_a + cost_b)).astype(np.int64)
    steps = np.clip(steps, np.maximum(excess - b, 0), np.minimum(excess, a))
    result[row, i] -= sign * steps
    result[row, j] -= sign * (excess - steps)
    return result


def partners(pairs: IntArray, width: int) -> IntArray:
    """Return for each of ``width`` columns the other one of its pair, -1 for a column without."""
    other = np.full(width, -1, np.int64)
    other[pairs[:, 0]] = pairs[:, 1]
    other[pairs[:, 1]] = pairs[:, 0]
    return other


def _usual_reduction(rank: int, axis: int | None) -> tuple[int, ...]:
    if rank > 2:
        return (*range(2, rank), 1)
    return (0,) if axis is None else tuple(i for i in range(rank) if i != axis % rank)
