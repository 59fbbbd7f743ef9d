"""Gram matrices of what a layer multiplies its weights with: rows along an axis, or the patches of a convolution.

Products are float32's, of at most ``_BUFFER`` numbers at a time, summed up in float64.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.patches import windows
from graphopt.analysis.statistics import Gram, Unfold
from graphopt.errors import UsageError

_BUFFER = 1 << 21
"""Numbers that are unfolded at a time: large enough for fast products, small beside the model's activations."""

_WIDE = 512
"""Weights of an output from which on adding up takes long beside multiplying."""

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
        self._pending: list[NDArray[np.float32]] = []

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
            if size < _WIDE or count >= size:
                self._sum(block)
                continue
            self._pending.append(block.copy())
            if sum(part.size for part in self._pending) >= max(_BUFFER, groups * size * size // 2):
                self._settle()

    def _sum(self, block: NDArray[np.float32]) -> None:
        assert self._matrix is not None and self._total is not None
        product = _workspace(self._matrix.size, "product").reshape(self._matrix.shape)
        self._matrix += np.matmul(block, block.swapaxes(1, 2), out=product)
        self._total += np.matmul(block, np.ones(block.shape[2], np.float32))
        self._count += block.shape[2]

    def _settle(self) -> None:
        """Add the rows that wait: to large sums, many are added in the time of few."""
        if self._pending:
            self._sum(np.concatenate(self._pending, axis=2))
            self._pending = []

    def result(self) -> Gram | None:
        """Return the sums so far, which share memory with this object; None before the first row."""
        self._settle()
        if self._matrix is None or self._total is None:
            return None
        return Gram(self._matrix, self._total, self._count)

    def restore(self, gram: Gram) -> None:
        """Go on from ``gram``, whose arrays are changed from now on."""
        self._matrix, self._total, self._count = gram.matrix, gram.total, gram.count


_local = threading.local()


def _workspace(size: int, use: str) -> NDArray[np.float32]:
    """Return ``size`` numbers of memory that this thread has for a ``use``: new pages cost more than what is done."""
    buffer: NDArray[np.float32] | None = getattr(_local, use, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(max(size, _BUFFER), np.float32)
        setattr(_local, use, buffer)
    return buffer[:size]


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
    channels = values.shape[1]
    width = channels * math.prod(unfold.kernel)
    # Many small products, or sums much larger than what is added, take little longer for several samples than for one.
    fits = _BUFFER // max(1, values[0].size * math.prod(unfold.kernel[1:]))
    together = max(1, fits) if unfold.groups > 1 or width >= _WIDE else 1
    for begin in range(0, len(values), together):
        found = np.moveaxis(windows(values[begin : begin + together], unfold), 0, 1 + rank)
        lead, first, rest = 2 + rank, found.shape[2 + rank], math.prod(found.shape[3 + rank :])
        step = max(1, _BUFFER // (width * rest * found.shape[1 + rank])) if rest else 1
        for start in range(0, first, step):
            part = found[(slice(None),) * lead + (slice(start, start + step),)]
            block = _workspace(part.size, "patches").reshape(part.shape)
            np.copyto(block, part)
            yield block.reshape(unfold.groups, width // unfold.groups, -1)
