"""Grids of integers that numbers are rounded to, with the semantics of ONNX's QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import UsageError

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
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
            raise UsageError(f"no grid has the type {self.dtype!r}", hint=f"one of {', '.join(LIMITS)}")
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
        return np.clip(steps, self.qmin - zero_point, self.qmax - zero_point).astype(np.int64) + zero_point

    def dequantize(self, q: npt.NDArray[np.integer[Any]]) -> FloatArray:
        """Return the float32 numbers that the integers ``q`` stand for."""
        scale, zero_point = self.parameters(np.shape(q))
        return (np.asarray(q, np.int64) - zero_point).astype(np.float32) * scale

    def fake(self, x: Real) -> FloatArray:
        """Return ``x`` moved onto the grid."""
        return self.dequantize(self.quantize(x))

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
    Raises UsageError where a bound is not finite.
    """
    bottom, top = np.asarray(low, np.float64), np.asarray(high, np.float64)
    empty = bottom > top
    if not (np.isfinite(bottom) | empty).all() or not (np.isfinite(top) | empty).all():
        raise UsageError(f"the range {low} to {high} is not finite")
    bottom, top = np.where(empty, 0.0, np.minimum(bottom, 0.0)), np.where(empty, 0.0, np.maximum(top, 0.0))
    qmin, qmax = LIMITS[dtype]
    middle = (qmin + qmax + 1) // 2
    scale = np.maximum(-bottom, top) / (qmax - middle) if symmetric else (top - bottom) / (qmax - qmin)
    scale = _stored(scale, power_of_two=power_of_two)
    zero_point = np.full(scale.shape, middle, np.int64)
    if not symmetric:
        zero_point = np.clip(np.rint(qmin - bottom / scale), qmin, qmax).astype(np.int64)
    return Grid(scale, zero_point, dtype, axis, block)


def _stored(scale: npt.NDArray[np.float64], *, power_of_two: bool) -> FloatArray:
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
    method: str = "maxabs",
) -> Grid:
    """Return the grid for constant weights ``w``."""
    rows = (
        np.moveaxis(np.asarray(w, np.float64), axis, 0).reshape(w.shape[axis], -1)
        if axis is not None
        else w.reshape(1, -1)
    )
    low, high = rows.min(axis=1), rows.max(axis=1)
    if axis is None:
        low, high = low[0], high[0]
    return grid_for_range(low, high, dtype, symmetric=symmetric, power_of_two=power_of_two, axis=axis)
