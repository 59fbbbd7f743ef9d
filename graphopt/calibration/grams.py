"""Gram matrices of what a layer multiplies its weights with: rows along an axis, or the patches of a convolution.

Products are float32's, of at most ``_BUFFER`` numbers at a time, summed up in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Gram, Unfold
from graphopt.errors import UsageError

_BUFFER = 1 << 21
"""Numbers that are unfolded at a time: large enough for fast products, small beside the model's activations."""

_SHORT = 16
"""Runs of fewer numbers behind the channel axis are gathered into rows, longer ones multiplied where they are."""


class GramSum:
    """Sums up Gram matrices of one value: ``unfold`` None for rows along ``axis``."""

    def __init__(self, axis: int, unfold: Unfold | None) -> None:
        self._axis = axis
        self._unfold = unfold
        self._matrix: NDArray[np.float64] | None = None
        self._total: NDArray[np.float64] | None = None
        self._count = 0

    def add(self, array: NDArray[Any]) -> None:
        """Add the rows of ``array``, any shape that ``axis`` or ``unfold`` fits. Raises UsageError for another."""
        values = np.asarray(array, np.float32)
        blocks = _rows(values, self._axis) if self._unfold is None else _patches(values, self._unfold)
        for block in blocks:
            groups, size, count = block.shape
            if self._matrix is None or self._total is None:
                self._matrix = np.zeros((groups, size, size))
                self._total = np.zeros((groups, size))
            if self._matrix.shape != (groups, size, size):
                raise UsageError(f"the number of channels changes from {self._matrix.shape[1]} to {size}")
            self._matrix += np.matmul(block, block.swapaxes(1, 2))
            self._total += np.matmul(block, np.ones(count, np.float32))
            self._count += count

    def result(self) -> Gram | None:
        """Return the sums so far, which share memory with this object; None before the first row."""
        if self._matrix is None or self._total is None:
            return None
        return Gram(self._matrix, self._total, self._count)

    def restore(self, gram: Gram) -> None:
        """Go on from ``gram``, whose arrays are changed from now on."""
        self._matrix, self._total, self._count = gram.matrix, gram.total, gram.count


def _rows(values: NDArray[np.float32], axis: int) -> Iterator[NDArray[np.float32]]:
    """Yield the rows along ``axis`` as blocks [1, K, rows]."""
    if not -values.ndim <= axis < values.ndim:
        raise UsageError(f"it has rank {values.ndim}, so there is no axis {axis}")
    axis %= values.ndim
    size = values.shape[axis]
    inner = math.prod(values.shape[axis + 1 :])
    step = max(1, _BUFFER // size) if size else 1
    if inner >= _SHORT:
        for outer in values.reshape(-1, size, inner):
            for start in range(0, inner, step):
                yield outer[None, :, start : start + step]
        return
    rows = np.moveaxis(values, axis, -1).reshape(-1, size)
    for start in range(0, len(rows), step):
        yield rows[start : start + step].T[None]


def _patches(values: NDArray[np.float32], unfold: Unfold) -> Iterator[NDArray[np.float32]]:
    """Yield the patches of ``values`` [N, C, *spatial] as blocks [groups, C / groups * kernel, patches]."""
    rank = len(unfold.kernel)
    if values.ndim != rank + 2 or values.shape[1] % unfold.groups:
        wanted = f"[N, C, {rank} spatial axes] with C in {unfold.groups} groups"
        raise UsageError(f"it has shape {list(values.shape)}, which is not {wanted}")
    pads = [(before, after) for before, after in zip(unfold.pads[:rank], unfold.pads[rank:], strict=True)]
    channels = values.shape[1]
    width = channels * math.prod(unfold.kernel)
    for sample in values:
        windows = _thinned(_windows(_padded(sample, pads), unfold), unfold)
        first, rest = windows.shape[1 + rank], math.prod(windows.shape[2 + rank :])
        step = max(1, _BUFFER // (width * rest)) if rest else 1
        for start in range(0, first, step):
            part = windows[(slice(None),) * (1 + rank) + (slice(start, start + step),)]
            yield part.reshape(unfold.groups, width // unfold.groups, -1)


def _thinned(windows: NDArray[np.float32], unfold: Unfold) -> NDArray[np.float32]:
    """Return every n-th position along each axis, so that about ``unfold.most`` patches are left."""
    rank = len(unfold.kernel)
    positions = math.prod(windows.shape[1 + rank :])
    if not unfold.most or positions <= unfold.most:
        return windows
    # An odd step meets every phase of what was upsampled by two or four.
    step = math.ceil((positions / unfold.most) ** (1 / rank)) | 1
    start = step // 2
    return windows[(slice(None),) * (1 + rank) + (slice(start, None, step),) * rank]


def _padded(sample: NDArray[np.float32], pads: list[tuple[int, int]]) -> NDArray[np.float32]:
    # Negative pads cut off.
    cut = tuple(slice(max(-b, 0), s - max(-a, 0)) for (b, a), s in zip(pads, sample.shape[1:], strict=True))
    sample = sample[(slice(None), *cut)]
    added = [(0, 0), *((max(b, 0), max(a, 0)) for b, a in pads)]
    return np.pad(sample, added) if any(map(any, added)) else sample


def _windows(sample: NDArray[np.float32], unfold: Unfold) -> NDArray[np.float32]:
    """Return a view [C, *kernel, *positions]."""
    rank = len(unfold.kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(unfold.kernel, unfold.dilations, strict=True)]
    if any(size < span for size, span in zip(sample.shape[1:], spans, strict=True)):
        return np.empty((len(sample), *unfold.kernel, *(0,) * rank), np.float32)
    view = np.lib.stride_tricks.sliding_window_view(sample, spans, axis=tuple(range(1, rank + 1)))
    view = view[
        (
            slice(None),
            *(slice(None, None, s) for s in unfold.strides),
            *(slice(None, None, d) for d in unfold.dilations),
        )
    ]
    return view.transpose(0, *range(rank + 1, 2 * rank + 1), *range(1, rank + 1))
