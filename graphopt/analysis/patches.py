"""Patches of a convolution's input, and where in its output they belong. Leading axes are kept as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Unfold


def windows(values: NDArray[Any], unfold: Unfold) -> NDArray[Any]:
    """Return a view [..., *kernel, *positions] of ``values`` [..., *spatial]: the patches, thinned."""
    rank = len(unfold.kernel)
    values = _padded(values, unfold)
    lead = values.ndim - rank
    spans = [(k - 1) * d + 1 for k, d in zip(unfold.kernel, unfold.dilations, strict=True)]
    if any(size < span for size, span in zip(values.shape[lead:], spans, strict=True)):
        return np.empty((*values.shape[:lead], *unfold.kernel, *(0,) * rank), values.dtype)
    view = np.lib.stride_tricks.sliding_window_view(values, spans, axis=tuple(range(lead, lead + rank)))
    strided = (slice(None, None, s) for s in unfold.strides)
    dilated = (slice(None, None, d) for d in unfold.dilations)
    view = view[(slice(None),) * lead + (*strided, *dilated)]
    order = (*range(lead), *range(lead + rank, lead + 2 * rank), *range(lead, lead + rank))
    return thinned(view.transpose(order), unfold)


def thinned(values: NDArray[Any], unfold: Unfold) -> NDArray[Any]:
    """Return every n-th position along the last axes, so that about ``unfold.most`` positions are left."""
    rank = len(unfold.kernel)
    positions = math.prod(values.shape[-rank:])
    if not unfold.most or positions <= unfold.most:
        return values
    # An odd step meets every phase of what was upsampled by two or four.
    step = math.ceil((positions / unfold.most) ** (1 / rank)) | 1
    return values[(..., *(slice(step // 2, None, step),) * rank)]


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
