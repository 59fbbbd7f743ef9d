"""Patches of a convolution's input, and where in its output they belong. Leading axes are kept as they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Unfold


def windows(values: NDArray[Any], unfold: Unfold) -> NDArray[Any]:
    """Return [..., *kernel, *positions] of ``values`` [..., *spatial]: the patches, thinned.

    Axes are unfolded one by one, the last first, with a copy between two: what is copied next then lies in longer
    runs. The first of them is left a view.
    """
    rank = len(unfold.kernel)
    values = _padded(values, unfold)
    lead = values.ndim - rank
    spans = [(k - 1) * d + 1 for k, d in zip(unfold.kernel, unfold.dilations, strict=True)]
    counts = [(n - span) // s + 1 for n, span, s in zip(values.shape[lead:], spans, unfold.strides, strict=True)]
    if min(counts) < 1:
        return np.empty((*values.shape[:lead], *unfold.kernel, *(0,) * rank), values.dtype)
    steps = _steps(counts, unfold.most)
    for axis in reversed(range(rank)):
        at = lead + rank - 1  # the kernel's axes that are there already stand before it
        stride, step = unfold.strides[axis], steps[axis]
        view = np.lib.stride_tricks.sliding_window_view(values, spans[axis], axis=at)
        positions = slice(step // 2 * stride, None, step * stride)
        view = view[(slice(None),) * at + (positions,)][..., :: unfold.dilations[axis]]
        view = np.moveaxis(view, -1, lead)
        values = np.ascontiguousarray(view) if axis else view
    return values


def thinned(values: NDArray[Any], unfold: Unfold) -> NDArray[Any]:
    """Return every n-th position along the last axes, so that about ``unfold.most`` positions are left."""
    counts = values.shape[-len(unfold.kernel) :]
    steps = _steps(counts, unfold.most)
    lead = (slice(None),) * (values.ndim - len(steps))
    return values[(*lead, *(slice(step // 2, None, step) for step in steps))]


def _steps(counts: Sequence[int], most: int) -> list[int]:
    """Return a step for each axis, with which at most ``most`` of the positions are left."""
    steps = [1] * len(counts)
    left = list(counts)
    while most and math.prod(left) > most:
        axis = left.index(max(left))
        # An odd step meets every phase of what was upsampled by two or four.
        steps[axis] += 2
        left[axis] = len(range(steps[axis] // 2, counts[axis], steps[axis]))
    return steps


def unfolded(values: NDArray[Any], unfold: Unfold) -> NDArray[np.float32]:
    """Return the patches of ``values`` [N, C, *spatial] as float32[groups, C / groups * kernel, N * positions].

    Raises ValueError for another rank or a number of channels that the groups do not divide.
    """
    rank = len(unfold.kernel)
    if values.ndim != rank + 2 or values.shape[1] % unfold.groups:
        raise ValueError(f"shape {list(values.shape)} is not [N, C, {rank} axes] with C in {unfold.groups} groups")
    size = values.shape[1] // unfold.groups * math.prod(unfold.kernel)
    found = np.moveaxis(windows(values, unfold), 0, 1 + rank)
    return np.ascontiguousarray(found, np.float32).reshape(unfold.groups, size, -1)


def positions(spatial: Sequence[int], unfold: Unfold) -> tuple[int, ...]:
    """Return how many patches there are along each of the axes ``spatial``, none left out."""
    rank = len(spatial)
    spans = [(k - 1) * d + 1 for k, d in zip(unfold.kernel, unfold.dilations, strict=True)]
    padded = [size + unfold.pads[axis] + unfold.pads[axis + rank] for axis, size in enumerate(spatial)]
    return tuple((size - span) // step + 1 for size, span, step in zip(padded, spans, unfold.strides, strict=True))


def folded(rows: NDArray[np.float32], shape: Sequence[int], unfold: Unfold) -> NDArray[np.float32]:
    """Add patches as :func:`unfolded` returns them up where they came from, in an array of ``shape``.

    It is the transpose of :func:`unfolded`. ``unfold`` leaves no patch out, and has no negative pads.
    """
    batch, channels, *spatial = shape
    rank = len(spatial)
    places = positions(spatial, unfold)
    parts = rows.reshape(channels, -1, batch, *places)
    sizes = [size + unfold.pads[axis] + unfold.pads[axis + rank] for axis, size in enumerate(spatial)]
    found = np.zeros((channels, batch, *sizes), np.float32)
    for index, at in enumerate(itertools.product(*(range(size) for size in unfold.kernel))):
        firsts = [place * step for place, step in zip(at, unfold.dilations, strict=True)]
        ends = [first + n * step for first, n, step in zip(firsts, places, unfold.strides, strict=True)]
        where = tuple(slice(*limits) for limits in zip(firsts, ends, unfold.strides, strict=True))
        total = found[:, :, *where]
        total += parts[:, index]
    inner = tuple(slice(unfold.pads[axis], unfold.pads[axis] + size) for axis, size in enumerate(spatial))
    return np.ascontiguousarray(found[:, :, *inner].swapaxes(0, 1))


def placed(values: NDArray[Any], unfold: Unfold) -> NDArray[np.float32]:
    """Return what a convolution's output ``values`` [N, C, *positions] holds where :func:`unfolded` has its patches.

    It is float32[C, N * positions].
    """
    found = thinned(values, unfold).swapaxes(0, 1)
    return np.ascontiguousarray(found, np.float32).reshape(values.shape[1], -1)


def _padded(values: NDArray[Any], unfold: Unfold) -> NDArray[Any]:
    rank = len(unfold.kernel)
    lead = values.ndim - rank
    pads = list(zip(unfold.pads[:rank], unfold.pads[rank:], strict=True))
    # Negative pads cut off.
    cut = (slice(max(-b, 0), s - max(-a, 0)) for (b, a), s in zip(pads, values.shape[lead:], strict=True))
    values = values[(slice(None),) * lead + (*cut,)]
    added = [(0, 0)] * lead + [(max(b, 0), max(a, 0)) for b, a in pads]
    return np.pad(values, added) if any(map(any, added)) else values
