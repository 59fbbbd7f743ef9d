"""Estimators of the range that a value's grid should cover, from the histogram of what it held on calibration data.

A number is taken to be at the middle of its bin; a grid finer than the bins makes s²/12 in a number that it covers, s
being its scale. Ranges are (low, high); :func:`grid.grid_for_range` widens them to contain zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.analysis.statistics import Histogram, Moving, bin_exponent
from graphopt.quantization.grid import LIMITS, FloatArray, Grid, grid_for_range

Array = npt.NDArray[np.float64]

METHODS = ("minmax", "moving", "percentile", "entropy", "mse", "auto")

PERCENTILES = (99.9, 99.99, 99.999)
"""Those that ``auto`` tries."""

TOLERANCE = 1.05
"""``auto`` takes a wider range when it costs at most this many times the least error: unseen data may reach further."""

ENTROPY_CANDIDATES = 64
"""About how many ranges ``entropy`` compares."""

SMOOTHING = 1e-4
"""Share of an even distribution mixed into those that ``entropy`` compares, so that none is zero anywhere."""


def estimate(
    method: str,
    histogram: Histogram,
    dtype: str,
    symmetric: bool = False,
    *,
    power_of_two: bool = False,
    percent: float = 99.99,
    moving: Moving | None = None,
) -> tuple[float, float]:
    """Return the range for a grid of ``dtype`` by one of METHODS.

    ``percent`` is for ``percentile``. ``moving``, the average over batches of the smallest and largest number, is
    needed by the method of that name and one more range to choose from for ``auto``.
    """
    if method == "minmax":
        return minmax(histogram)
    if method == "percentile":
        return percentile(histogram, percent, symmetric)
    if method == "entropy":
        return entropy(histogram, dtype, symmetric)
    if method == "mse":
        return mse(histogram, dtype, symmetric, power_of_two=power_of_two)
    if method == "auto":
        return auto(histogram, dtype, symmetric, power_of_two=power_of_two, moving=moving)
    if method == "moving" and moving is not None:
        return float(moving.low), float(moving.high)
    raise ValueError(f"no range by {method!r} from these statistics; methods: {', '.join(METHODS)}")


def minmax(histogram: Histogram) -> tuple[float, float]:
    """Return the smallest and the largest number that occurred."""
    return float(histogram.low), float(histogram.high)


def percentile(histogram: Histogram, percent: float = 99.99, symmetric: bool = False) -> tuple[float, float]:
    """Return the range that ``percent`` of the numbers are in, as many left out below as above.

    A symmetric range holds the ``percent`` nearest to zero. Numbers are taken to be spread evenly in a bin.
    """
    if symmetric:
        counts, width, largest = _folded(histogram)
        edges = np.arange(len(counts) + 1, dtype=np.float64) * width
        bound = min(_quantile(counts, edges, percent / 100), largest)
        return -bound, bound
    tail = (1 - percent / 100) / 2
    low = -_quantile(histogram.counts[::-1], -histogram.edges[::-1], 1 - tail)
    high = _quantile(histogram.counts, histogram.edges, 1 - tail)
    ends = np.clip([low, high], histogram.low, histogram.high)
    return float(ends[0]), float(ends[1])


def entropy(histogram: Histogram, dtype: str, symmetric: bool = False) -> tuple[float, float]:
    """Return the range up to a threshold on |x| by TensorRT's calibration (Migacz, 8-bit inference, GTC 2017).

    Of thresholds at the bins' edges it takes the one where the distribution below it, with all numbers beyond counted
    into the last bin, differs least (Kullback-Leibler) from itself without those and merged into as many levels as the
    grid has on a side. Both are mixed with a SMOOTHING share of an even distribution. The bin at zero counts as its
    neighbour does: zeros, of which a ReLU makes many, lie on every grid.
    """
    low, high = minmax(histogram)
    counts, width, largest = _folded(histogram)
    counts[0] = counts[1] if len(counts) > 1 else counts[0]
    levels = LIMITS[dtype][1] - LIMITS[dtype][0] + 1
    if symmetric or (low < 0 < high):
        levels //= 2
    sizes = np.arange(levels, len(counts), max((len(counts) - levels) // ENTROPY_CANDIDATES, 1))
    if not sizes.size:
        return (-largest, largest) if symmetric else (low, high)
    sizes = np.append(sizes, len(counts))
    divergences = [_divergence(counts, int(size), levels) for size in sizes]
    # Of equals the widest, as unseen data may reach further.
    best = sizes[len(sizes) - 1 - int(np.argmin(divergences[::-1]))]
    bound = min(float(best) * width, largest)
    return (-bound, bound) if symmetric else (max(low, -bound), min(high, bound))


def mse(
    histogram: Histogram, dtype: str, symmetric: bool = False, *, power_of_two: bool = False
) -> tuple[float, float]:
    """Return the range with the least expected squared error, rounding and clipping together.

    The two ends are searched in turn, first in 64 even steps from the whole range, then finely about the best.
    """
    low, high = min(float(histogram.low), 0.0), max(float(histogram.high), 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    search = _Search(histogram, dtype, symmetric, power_of_two)
    found = np.array([low, high])
    for factors in (np.linspace(1.0, 1 / 64, 64), np.geomspace(1.25, 0.8, 24), np.geomspace(1.05, 0.95, 24)):
        for end in (slice(None),) if symmetric else (1, 0):
            tried = np.tile(found, (len(factors), 1))
            tried[:, end] *= factors[:, None] if symmetric else factors
            tried = np.clip(tried, low, high)
            found = tried[np.argmin(search.errors(tried[:, 0], tried[:, 1]))]
    return float(found[0]), float(found[1])


def auto(
    histogram: Histogram,
    dtype: str,
    symmetric: bool = False,
    *,
    power_of_two: bool = False,
    moving: Moving | None = None,
) -> tuple[float, float]:
    """Return the widest of the other estimators' ranges whose expected squared error is near the least of them.

    ``percentile`` takes part with each of PERCENTILES, near is within TOLERANCE.
    """
    ranges = [minmax(histogram), entropy(histogram, dtype, symmetric)]
    ranges += [percentile(histogram, percent, symmetric) for percent in PERCENTILES]
    ranges.append(mse(histogram, dtype, symmetric, power_of_two=power_of_two))
    if moving is not None:
        ranges.append((float(moving.low), float(moving.high)))
    tried = np.array(ranges)
    errors = _Search(histogram, dtype, symmetric, power_of_two).errors(tried[:, 0], tried[:, 1])
    near = [found for found, cost in zip(ranges, errors, strict=True) if cost <= errors.min() * TOLERANCE]
    return max(near, key=lambda found: found[1] - found[0])


def error(histogram: Histogram, grid: Grid) -> float:
    """Return the expected squared error of moving a number onto ``grid``, clipping included; the grid has one scale."""
    points, counts = _points(histogram)
    return float(_squares(points, histogram.width, grid) @ counts) / max(histogram.total, 1)


class _Search:
    """Expected squared errors of many ranges at once."""

    def __init__(self, histogram: Histogram, dtype: str, symmetric: bool, power_of_two: bool):
        self.points, counts = _points(histogram)
        self.weights = counts / max(histogram.total, 1)
        self.width = histogram.width
        self.dtype = dtype
        self.symmetric = symmetric
        self.power_of_two = power_of_two

    def errors(self, low: Array, high: Array) -> Array:
        """Return the error of each range."""
        grid = grid_for_range(
            low[:, None], high[:, None], self.dtype, symmetric=self.symmetric, power_of_two=self.power_of_two
        )
        return np.asarray(_squares(self.points, self.width, grid) @ self.weights, np.float64)


def _points(histogram: Histogram) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return where the numbers of each bin that has any are taken to be, and how many they are."""
    filled = histogram.counts > 0
    # The outermost bins reach beyond the numbers.
    points = np.clip(histogram.centers[filled], histogram.low, histogram.high)
    return points.astype(np.float32), histogram.counts[filled]


def _squares(points: FloatArray, width: float, grid: Grid) -> npt.NDArray[Any]:
    moved = points / grid.scale
    np.rint(moved, out=moved)
    zero_point = grid.zero_point.astype(np.float32)
    np.clip(moved, grid.qmin - zero_point, grid.qmax - zero_point, out=moved)
    moved *= grid.scale
    moved -= points
    if (grid.scale < width).any():
        # Within a bin the numbers fall on many steps, not on the one or the border that its middle happens to be at.
        covered = np.abs(moved) <= grid.scale / 2
        moved = np.where((grid.scale < width) & covered, grid.scale / np.sqrt(np.float32(12.0)), moved)
    return np.asarray(moved * moved)


def _folded(histogram: Histogram) -> tuple[npt.NDArray[np.int64], float, float]:
    """Return the counts of |x| in bins from zero, the width of these, and the largest |x|."""
    largest = abs(max(-float(histogram.low), float(histogram.high)))
    # Bins far from zero may be so fine that there would be millions down to it.
    histogram = histogram.coarsened(max(histogram.exponent, bin_exponent(0.0, largest)))
    index = histogram.first + np.arange(len(histogram.counts))
    distance = np.where(index < 0, -1 - index, index)
    counts = np.zeros(int(distance.max()) + 1, np.int64)
    np.add.at(counts, distance, histogram.counts)
    return counts, histogram.width, largest


def _quantile(counts: npt.NDArray[np.int64], edges: Array, share: float) -> float:
    """Return the number with ``share`` of the counts below it."""
    below = np.cumsum(counts)
    wanted = share * below[-1]
    index = min(int(np.searchsorted(below, wanted)), len(counts) - 1)
    inside = (wanted - (below[index] - counts[index])) / max(counts[index], 1)
    return float(edges[index] + inside * (edges[index + 1] - edges[index]))


def _divergence(counts: npt.NDArray[np.int64], size: int, levels: int) -> float:
    kept = counts[:size]
    clipped = kept.astype(np.float64)
    clipped[-1] += counts[size:].sum()
    starts = -(-np.arange(levels) * size // levels)
    filled = clipped > 0
    share = np.add.reduceat(kept, starts) / np.maximum(np.add.reduceat(filled.astype(np.int64), starts), 1)
    lengths = np.diff(np.append(starts, size))
    merged = np.where(filled, np.repeat(share, lengths), 0.0)
    p, q = _smoothed(clipped), _smoothed(merged)
    return float((p * np.log(p / q)).sum())


def _smoothed(counts: Array) -> Array:
    even = np.full(len(counts), 1.0 / len(counts))
    total = counts.sum()
    return np.asarray((1 - SMOOTHING) * (counts / total if total > 0 else even) + SMOOTHING * even, np.float64)
