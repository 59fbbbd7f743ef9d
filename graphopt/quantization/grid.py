"""Grids of integers that numbers are rounded to, with the semantics of ONNX's QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from graphopt.errors import ModelError
from graphopt.quantization.pairs import clamp_pairs, largest_pair_sum, pair_columns

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Array = npt.NDArray[np.float64]
Real = npt.NDArray[np.floating[Any]]

LIMITS = {
    "uint4": (0, 15),
    "int4": (-8, 7),
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
}
"""Smallest and largest integer of each type that a grid may have."""

SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""A smaller scale would be a denormal number, which some processors take for zero."""

FACTORS = np.geomspace(1.0, 0.2, 48)
"""Shares of the range that the search tries."""

FEW_FACTORS = np.geomspace(1.0, 0.4, 8)
"""Those tried with 8 bits and more, where clipping gains little and the share itself matters less."""

CHUNK = 1 << 16
"""About how many weights the search looks at together, so that they stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The numbers ``(q - zero_point) * scale`` for every integer q of ``dtype``.

    ``scale`` (float32, above zero) and ``zero_point`` (int64) are of equal shape: () for one grid for the tensor; [C]
    with ``axis`` for one per index along it; with ``axis`` and ``block`` the tensor's shape, but along ``axis`` one for
    ``block`` indices, the last block being shorter where the length is no multiple.
    """

    scale: FloatArray
    zero_point: IntArray
    dtype: str
    axis: int | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in LIMITS:
            raise ValueError(f"no grid has the type {self.dtype!r}; those there are: {', '.join(LIMITS)}")
        object.__setattr__(self, "scale", np.asarray(self.scale, np.float32))
        object.__setattr__(self, "zero_point", np.asarray(self.zero_point, np.int64))

    @property
    def qmin(self) -> int:
        """The smallest integer."""
        return LIMITS[self.dtype][0]

    @property
    def qmax(self) -> int:
        """The largest integer."""
        return LIMITS[self.dtype][1]

    def parameters(self, shape: tuple[int, ...]) -> tuple[FloatArray, IntArray]:
        """Return scale and zero point in shapes that broadcast against a tensor of ``shape``."""
        return self._spread(self.scale, shape), self._spread(self.zero_point, shape)

    def quantize(self, x: Real) -> IntArray:
        """Return the nearest integers (halves to even, saturating) to float ``x``, computed in float32 as ONNX does."""
        scale, zero_point = self.parameters(np.shape(x))
        # Saturating before the sum is the same and keeps what does not fit an integer out of the conversion.
        steps = np.rint(np.asarray(x, np.float32) / scale)
        inside = np.clip(steps, self.qmin - zero_point, self.qmax - zero_point)
        return np.asarray(inside.astype(np.int64) + zero_point)

    def dequantize(self, q: npt.NDArray[np.integer[Any]]) -> FloatArray:
        """Return the float32 numbers that the integers ``q`` stand for."""
        scale, zero_point = self.parameters(np.shape(q))
        return (np.asarray(q, np.int64) - zero_point).astype(np.float32) * scale

    def fake(self, x: Real) -> FloatArray:
        """Return ``x`` moved onto the grid."""
        return self.dequantize(self.quantize(x))

    def off_middle(self) -> Grid:
        """Return the grid with every zero point that is at the middle of the type moved one down, the scale kept."""
        middle = (self.qmin + self.qmax + 1) // 2
        return replace(self, zero_point=np.where(self.zero_point == middle, middle - 1, self.zero_point))

    def _spread(self, values: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        if self.axis is None:
            return values
        axis = self.axis % len(shape)
        if self.block is None:
            return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return np.repeat(values, self.block, axis)[(slice(None),) * axis + (slice(shape[axis]),)]


def grid_for_range(
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    dtype: str,
    *,
    symmetric: bool = False,
    power_of_two: bool = False,
    axis: int | None = None,
    block: int | None = None,
) -> Grid:
    """Return the grid that covers ``low`` to ``high`` (numbers, or arrays of them), widened to contain zero.

    Zero lies on the grid exactly. ``symmetric`` puts the zero point at the middle of ``dtype`` and gives both sides the
    same number of steps. A range that is empty or holds zero alone gets the scale 1. ``power_of_two`` rounds scales up.
    Raises ModelError where a bound is not finite.
    """
    bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
    empty = bottom > top
    if not (np.isfinite(bottom) | empty).all() or not (np.isfinite(top) | empty).all():
        raise ModelError(f"the range {low!r} to {high!r} is not finite")
    bottom, top = np.where(empty, 0.0, np.minimum(bottom, 0.0)), np.where(empty, 0.0, np.maximum(top, 0.0))
    qmin, qmax = LIMITS[dtype]
    middle = (qmin + qmax + 1) // 2
    ideal = np.maximum(-bottom, top) / (qmax - middle) if symmetric else (top - bottom) / (qmax - qmin)
    scale = stored(ideal, power_of_two=power_of_two)
    zero_point = np.full(scale.shape, middle, np.int64)
    if not symmetric:
        zero_point = np.clip(np.rint(qmin - bottom / scale), qmin, qmax).astype(np.int64)
    return Grid(scale, zero_point, dtype, axis, block)


def stored(scale: npt.NDArray[np.float64], *, power_of_two: bool) -> FloatArray:
    """Return scales as models hold them: float32, 1 in place of 0, rounded up to powers of two on request."""
    scale = np.where(scale > 0.0, np.maximum(scale, SMALLEST_SCALE), 1.0)
    if power_of_two:
        scale = np.exp2(np.ceil(np.log2(scale)))
    return np.minimum(scale, np.finfo(np.float32).max).astype(np.float32)


def weight_grid(
    w: Real,
    dtype: str,
    *,
    axis: int | None = None,
    block: int | None = None,
    symmetric: bool = True,
    power_of_two: bool = False,
    pair_limit: int = 0,
    reduction: tuple[int, ...] | None = None,
    by_pixel: bool = False,
    method: Literal["maxabs", "mse"] = "maxabs",
    importance: npt.ArrayLike | None = None,
    clamp: bool = False,
) -> Grid:
    """Return the grid for constant weights ``w``: one for the tensor, for each index along ``axis``, or by ``block``.

    ``maxabs`` covers all weights; ``mse`` clips those that make the squared error least, each weighted by
    ``importance`` (of a shape that broadcasts to that of ``w``; E[x²] of the input it multiplies is a good one).
    ``pair_limit`` above zero bounds the sum of neighbours along ``reduction``, ``by_pixel`` or not (see
    :func:`pairs.pair_columns`), after rounding to nearest. With ``clamp`` a finer grid may be chosen whose nearest
    integers need :func:`pairs.clamp_pairs`. Raises ModelError for weights that are not finite.
    """
    if pair_limit and (block is not None or not symmetric):
        raise ValueError("pairs are bounded on symmetric grids without blocks only")
    values = np.asarray(w, np.float32)
    if not np.isfinite(values).all():
        raise ModelError("weights are not finite")
    weights = None if importance is None else _rows(np.broadcast_to(importance, values.shape), axis, block)
    search = _Search(
        _rows(values, axis, block),
        None if weights is None else weights.astype(np.float32),
        dtype,
        symmetric,
        power_of_two,
        pair_columns(values.shape, axis, reduction, by_pixel=by_pixel) if pair_limit else None,
        pair_limit,
        clamp,
    )
    low, high = search.least(method == "mse")
    flat = search.safe(search.grid(low, high))
    shape = _scale_shape(values.shape, axis, block)
    return Grid(_unrow(flat.scale, shape, axis, block), _unrow(flat.zero_point, shape, axis, block), dtype, axis, block)


@dataclass(frozen=True)
class _Search:
    """Weights as rows [R, N], each with a grid of its own, and what is asked of the grids."""

    rows: npt.NDArray[np.float32]
    importance: npt.NDArray[np.float32] | None
    dtype: str
    symmetric: bool
    power_of_two: bool
    pairs: IntArray | None
    pair_limit: int
    clamp: bool

    def grid(self, low: Array, high: Array) -> Grid:
        """Return the grid of each row."""
        return grid_for_range(low, high, self.dtype, symmetric=self.symmetric, power_of_two=self.power_of_two, axis=0)

    def least(self, search: bool) -> tuple[Array, Array]:
        """Return the range [R] of each row, the one with the least error or all of it."""
        low, high = self.rows.min(axis=1, initial=0).astype(np.float64), self.rows.max(axis=1, initial=0).astype(float)
        if self.pairs is not None:
            steps = self.grid(low, high).qmax
            sums = largest_pair_sum(self.rows, self.pairs).astype(np.float64)
            high = np.maximum(np.maximum(-low, high), sums * steps / self.pair_limit)
            low = -high
        if not search:
            return low, high
        chunk = max(CHUNK // max(self.rows.shape[1], 1), 1)
        for start in range(0, len(self.rows), chunk):
            part = slice(start, start + chunk)
            weights = None if self.importance is None else self.importance[part]
            low[part], high[part] = replace(self, rows=self.rows[part], importance=weights)._search(
                low[part], high[part]
            )
        return low, high

    def safe(self, grid: Grid) -> Grid:
        """Return ``grid`` with scales so much larger that nearest integers keep the bound on pairs."""
        if self.pairs is None or self.clamp:
            return grid
        scale = grid.scale.copy()
        while (over := largest_pair_sum(grid.quantize(self.rows), self.pairs) > self.pair_limit).any():
            scale[over] *= np.float32(2.0 if self.power_of_two else 1.0 + 1e-4)
            grid = replace(grid, scale=scale)
        return grid

    def _search(self, low: Array, high: Array) -> tuple[Array, Array]:
        best, least = (low, high), self._cost(low, high)
        for share_low, share_high in self._candidates():
            if share_low is None or share_high is None:
                # One side alone, the other as found so far.
                candidate = (
                    best[0] if share_low is None else low * share_low,
                    best[1] if share_high is None else high * share_high,
                )
            else:
                candidate = (low * share_low, high * share_high)
            cost = self._cost(*candidate)
            better = cost < least
            least = np.where(better, cost, least)
            best = (np.where(better, candidate[0], best[0]), np.where(better, candidate[1], best[1]))
        return best

    def _candidates(self) -> Iterator[tuple[float | None, float | None]]:
        if self.power_of_two:
            yield from ((share, share) for share in (0.5, 0.25, 0.125))
            return
        factors = FACTORS if self.dtype.endswith("int4") else FEW_FACTORS
        yield from ((float(share), float(share)) for share in factors[1:])
        if not self.symmetric:
            yield from ((float(share), None) for share in factors)
            yield from ((None, float(share)) for share in factors)

    def _cost(self, low: Array, high: Array) -> Array:
        grid = self.grid(low, high)
        scale, zero_point = grid.scale[:, None], grid.zero_point[:, None].astype(np.float32)
        steps = self.rows / scale
        np.rint(steps, out=steps)
        np.clip(steps, grid.qmin - zero_point, grid.qmax - zero_point, out=steps)
        forbidden = np.zeros(len(steps), bool)
        if self.pairs is not None and self.clamp:
            wanted = self.rows / scale.astype(np.float64)
            steps = clamp_pairs(steps.astype(np.int64), wanted, self.pairs, self.pair_limit).astype(np.float32)
        elif self.pairs is not None:
            forbidden = largest_pair_sum(steps, self.pairs) > self.pair_limit
        steps *= scale
        steps -= self.rows
        steps *= steps
        if self.importance is not None:
            steps *= self.importance
        return np.where(forbidden, np.inf, steps.sum(axis=1, dtype=np.float64))


def _rows(w: npt.NDArray[np.generic], axis: int | None, block: int | None) -> npt.NDArray[np.float32]:
    if axis is None:
        return np.asarray(w.reshape(1, -1), np.float32)
    if block is None:
        return np.asarray(np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1), np.float32)
    last = np.moveaxis(w, axis, -1)
    padding = [(0, 0)] * (last.ndim - 1) + [(0, -last.shape[-1] % block)]
    return np.asarray(np.pad(last, padding).reshape(-1, block), np.float32)


def _scale_shape(shape: tuple[int, ...], axis: int | None, block: int | None) -> tuple[int, ...]:
    if axis is None:
        return ()
    if block is None:
        return (shape[axis],)
    return tuple(-(-size // block) if i == axis % len(shape) else size for i, size in enumerate(shape))


def _unrow(values: npt.NDArray[Any], shape: tuple[int, ...], axis: int | None, block: int | None) -> npt.NDArray[Any]:
    if axis is None or block is None:
        return values.reshape(shape)
    moved = [size for i, size in enumerate(shape) if i != axis % len(shape)] + [shape[axis]]
    return np.moveaxis(values.reshape(moved), -1, axis)
