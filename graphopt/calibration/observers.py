"""Observers: each sums up one statistic of one value, array by array, in memory that does not grow."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import (
    ChannelMean,
    ChannelPower,
    ChannelRange,
    Gram,
    Histogram,
    Moving,
    Range,
    Request,
    Statistic,
    bin_exponent,
    bin_index,
    scaling_type,
)
from graphopt.calibration.grams import GramSum
from graphopt.errors import UsageError

_CHUNK = 1 << 16
"""Numbers binned at a time, so that what is between the steps stays in the processor's cache."""


class Observer(Protocol):
    """Sums up one statistic."""

    def add(self, array: NDArray[Any], low: float, high: float) -> None:
        """Add an array of finite floats, not empty; ``low`` and ``high`` are its smallest and largest number."""
        ...

    def end_batch(self) -> None:
        """Take note that a batch of the data set ends here."""
        ...

    def result(self) -> Statistic | None:
        """Return the statistic so far, None when nothing was added."""
        ...

    def restore(self, statistic: Any) -> None:
        """Go on from what :meth:`result` gave earlier."""
        ...


class _Simple:
    """An observer whose state is its statistic."""

    def __init__(self) -> None:
        self._state: Any = None

    def _merge(self, part: Statistic) -> None:
        self._state = part if self._state is None else self._state.merge(part)

    def end_batch(self) -> None:
        pass

    def result(self) -> Statistic | None:
        state: Statistic | None = self._state
        return state

    def restore(self, statistic: Any) -> None:
        self._state = statistic


class _RangeObserver(_Simple):
    def add(self, array: NDArray[Any], low: float, high: float) -> None:
        self._merge(Range(low, high))


class _MovingObserver(_Simple):
    def __init__(self) -> None:
        super().__init__()
        self._batch: Range | None = None

    def add(self, array: NDArray[Any], low: float, high: float) -> None:
        part = Range(low, high)
        self._batch = part if self._batch is None else self._batch.merge(part)

    def end_batch(self) -> None:
        if self._batch is not None:
            self._merge(Moving(self._batch.low, self._batch.high, 1))
        self._batch = None


class _HistogramObserver:
    """Counts in place; the grid follows the range that was met so far, as :class:`Histogram` demands."""

    def __init__(self) -> None:
        self._grid: Histogram | None = None

    def add(self, array: NDArray[Any], low: float, high: float) -> None:
        self._cover(low, high)
        assert self._grid is not None
        grid, flat = self._grid, array.reshape(-1)
        kind = scaling_type(flat.dtype, grid.exponent)
        scale, first, bins = kind(2.0**-grid.exponent), kind(grid.first), len(grid.counts)
        scaled, index = np.empty(min(_CHUNK, flat.size), kind), np.empty(min(_CHUNK, flat.size), np.intp)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            one, two = scaled[: part.size], index[: part.size]
            np.multiply(part, scale, out=one, dtype=kind)
            np.floor(one, out=one)
            # Bins are never finer than the type's steps, so that this difference is exact.
            np.subtract(one, first, out=one)
            np.copyto(two, one, casting="unsafe")
            grid.counts[:] += np.bincount(two, minlength=bins)

    def _cover(self, low: float, high: float) -> None:
        grid = self._grid
        if grid is not None and grid.low <= low and high <= grid.high:
            return
        if grid is not None:
            low, high = min(low, grid.low), max(high, grid.high)
        exponent = bin_exponent(low, high)
        first = bin_index(low, exponent)
        counts = np.zeros(bin_index(high, exponent) - first + 1, np.int64)
        if grid is not None:
            old = grid.coarsened(exponent)
            counts[old.first - first : old.first - first + len(old.counts)] = old.counts
        self._grid = Histogram(exponent, first, counts, low, high)

    def end_batch(self) -> None:
        pass

    def result(self) -> Histogram | None:
        return self._grid

    def restore(self, statistic: Histogram) -> None:
        self._grid = statistic


class _ChannelRangeObserver(_Simple):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self._axis = axis

    def add(self, array: NDArray[Any], low: float, high: float) -> None:
        blocks = _by_channel(array, self._axis)
        lows, highs = blocks.min(axis=(0, 2)), blocks.max(axis=(0, 2))
        self._merge(ChannelRange(lows.astype(np.float32), highs.astype(np.float32)))


class _ChannelMeanObserver(_Simple):
    def __init__(self, axis: int) -> None:
        super().__init__()
        self._axis = axis

    def add(self, array: NDArray[Any], low: float, high: float) -> None:
        blocks = _by_channel(array, self._axis)
        self._merge(ChannelMean(blocks.sum(axis=(0, 2), dtype=np.float64), blocks.shape[0] * blocks.shape[2]))


class _ChannelPowerObserver(_ChannelMeanObserver):
    def add(self, array: NDArray[Any], low: float, high: float) -> None:
        blocks = _by_channel(array, self._axis)
        total = np.einsum("bci,bci->c", blocks, blocks, dtype=np.float64)
        self._merge(ChannelPower(total, blocks.shape[0] * blocks.shape[2]))


def _by_channel(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Return a view [before, C, behind]."""
    if not -array.ndim <= axis < array.ndim:
        raise UsageError(f"it has rank {array.ndim}, so there is no axis {axis}")
    axis %= array.ndim
    before = int(np.prod(array.shape[:axis], dtype=np.int64))
    return array.reshape(before, array.shape[axis], -1)


class _GramObserver:
    def __init__(self, request: Request) -> None:
        self._sum = GramSum(request.axis, request.unfold)

    def add(self, array: NDArray[Any], low: float, high: float) -> None:
        self._sum.add(array)

    def end_batch(self) -> None:
        pass

    def result(self) -> Gram | None:
        return self._sum.result()

    def restore(self, statistic: Gram) -> None:
        self._sum.restore(statistic)


def observer(request: Request) -> Observer:
    """Return a new observer for what was asked."""
    match request.kind:
        case "range":
            return _RangeObserver()
        case "moving":
            return _MovingObserver()
        case "histogram":
            return _HistogramObserver()
        case "channel_range":
            return _ChannelRangeObserver(request.axis)
        case "channel_mean":
            return _ChannelMeanObserver(request.axis)
        case "channel_power":
            return _ChannelPowerObserver(request.axis)
        case "gram":
            return _GramObserver(request)
