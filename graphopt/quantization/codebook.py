"""Codebooks for weights: a few numbers, and for each weight which of them it becomes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Codebook = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
Array = npt.NDArray[np.float64]


def kmeans(
    w: npt.NDArray[np.floating[Any]], entries: int, *, importance: npt.ArrayLike | None = None, rounds: int = 50
) -> Codebook:
    """Return a codebook (float32, rising) and the indices (uint8, shaped as ``w``) that make the squared error small.

    At most ``entries`` (1 to 256) numbers, fewer where the weights have fewer different values; ``importance``
    (broadcast to ``w``) weights each error. Lloyd's method, begun at evenly spaced quantiles: the result is the same
    for the same weights, and a local optimum.
    """
    _check(entries)
    flat = np.asarray(w, np.float64).reshape(-1)
    weights = np.ones_like(flat) if importance is None else np.broadcast_to(importance, w.shape).reshape(-1) + 0.0
    values, place = np.unique(flat, return_inverse=True)
    mass: Array = np.bincount(place, weights if weights.any() else np.ones_like(flat), len(values)).astype(np.float64)
    book = values if len(values) <= entries else _lloyd(values, mass, entries, rounds)
    stored = np.unique(book.astype(np.float32))
    return stored, nearest(w, stored)


def logarithmic(w: npt.NDArray[np.floating[Any]], bits: int) -> Codebook:
    """Return the codebook (float32, rising) of zero and ±2**k, and indices (uint8, shaped as ``w``) of the nearest.

    ``bits`` (2 to 8) gives 2**bits - 1 numbers: as many successive exponents as fit, the largest being the one nearest
    to the largest weight.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"a logarithmic codebook takes 2 to 8 bits, not {bits}")
    size = np.abs(np.asarray(w, np.float64))
    largest = float(size.max(initial=0.0))
    # Between 2**k and 2**(k+1) the middle, where the nearest changes, is at 1.5 * 2**k.
    top = int(np.floor(np.log2(largest / 0.75))) if largest > 0 else 0
    count = 2 ** (bits - 1) - 1
    powers = np.exp2(np.arange(max(top - count + 1, -126), top + 1, dtype=np.float64))
    book = np.concatenate([-powers[::-1], [0.0], powers]).astype(np.float32)
    return book, nearest(w, book)


def nearest(w: npt.NDArray[np.floating[Any]], book: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return the index (uint8, shaped as ``w``) of the number of the rising ``book`` nearest to each weight."""
    middles = (book[1:].astype(np.float64) + book[:-1]) / 2
    return np.searchsorted(middles, np.asarray(w, np.float64)).astype(np.uint8)


def _lloyd(values: Array, mass: Array, entries: int, rounds: int) -> Array:
    """Return the centres for rising ``values`` of ``mass``, each moved to the mean of what is nearest to it in turn."""
    total = np.concatenate([[0.0], np.cumsum(mass)])
    moment = np.concatenate([[0.0], np.cumsum(mass * values)])
    share = (np.arange(entries) + 0.5) / entries * total[-1]
    book = np.unique(values[np.minimum(np.searchsorted(total[1:], share), len(values) - 1)])
    for _ in range(rounds):
        borders = np.concatenate([[0], np.searchsorted(values, (book[1:] + book[:-1]) / 2), [len(values)]])
        inside = total[borders[1:]] - total[borders[:-1]]
        means = (moment[borders[1:]] - moment[borders[:-1]]) / np.where(inside > 0, inside, 1.0)
        moved = np.where(inside > 0, means, book)
        if np.array_equal(moved, book):
            break
        book = moved
    return np.asarray(np.sort(book), np.float64)


def _check(entries: int) -> None:
    if not 1 <= entries <= 256:
        raise ValueError(f"a codebook has 1 to 256 entries, not {entries}")
