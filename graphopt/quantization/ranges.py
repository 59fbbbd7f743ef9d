"""Estimators of the range that a value's grid should cover, from the histogram of what it held on calibration data.

Errors are computed with each bin's numbers at its centre.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphopt.analysis.statistics import Histogram
from graphopt.quantization.grid import Grid, grid_for_range

Array = npt.NDArray[np.float64]


def estimate(method: str, histogram: Histogram, dtype: str, symmetric: bool = False) -> tuple[float, float]:
    """Return the range (low, high) by ``method``."""
    if method == "minmax":
        return minmax(histogram)
    return mse(histogram, dtype, symmetric)


def minmax(histogram: Histogram) -> tuple[float, float]:
    """Return the smallest and the largest number that occurred."""
    return float(histogram.low), float(histogram.high)


def mse(histogram: Histogram, dtype: str, symmetric: bool = False, candidates: int = 64) -> tuple[float, float]:
    """Return the range with the least expected squared error."""
    low, high = min(float(histogram.low), 0.0), max(float(histogram.high), 0.0)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    shrink = np.linspace(1.0, 1.0 / candidates, candidates)
    if symmetric:
        best = shrink[np.argmin(_errors(histogram, low * shrink, high * shrink, dtype, symmetric=True))]
        return low * float(best), high * float(best)
    for _ in range(2):
        high *= float(shrink[np.argmin(_errors(histogram, np.full(candidates, low), high * shrink, dtype))])
        low *= float(shrink[np.argmin(_errors(histogram, low * shrink, np.full(candidates, high), dtype))])
    return low, high


def error(histogram: Histogram, grid: Grid) -> float:
    """Return the expected squared error of moving a number onto ``grid``, clipping included."""
    filled = histogram.counts > 0
    centers, weights = histogram.centers[filled], histogram.counts[filled]
    return float((weights * (grid.fake(centers) - centers) ** 2).sum() / max(histogram.total, 1))


def _errors(histogram: Histogram, low: Array, high: Array, dtype: str, *, symmetric: bool = False) -> Array:
    filled = histogram.counts > 0
    centers, weights = histogram.centers[filled].astype(np.float32), histogram.counts[filled].astype(np.float32)
    grid = grid_for_range(low[:, None], high[:, None], dtype, symmetric=symmetric)
    moved = grid.fake(centers)
    moved -= centers
    return np.asarray((moved * moved) @ weights, np.float64)
