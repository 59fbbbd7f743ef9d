"""Moving the difficulty of quantization between activations and the weights that read them.

A layer's input x gets one grid, its weights one for each output channel. Dividing channel j of x by s_j and multiplying
row j of the weights by it leaves the product, but not the error of rounding both, which for grids of even steps is

    Dx² sum_j s_j² A_j + sum_o Do² sum_j B_j / s_j²        (times 1/12)

with A_j the sum of squares of row j, B_j the mean of x_j², Dx and Do the steps that the scaled ranges ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Request, Statistics
from graphopt.ir import Node, attr
from graphopt.quantization.regions import End, Region
from graphopt.quantization.scaling import input_weights, magnitudes

Vector = NDArray[np.float64]
_STEPS_X, _STEPS_W = 255.0, 127.0
_WORTH = 0.95
"""The expected error has to fall below this share of what it was."""

_TRIED = np.concatenate([[0.0], np.geomspace(1e-2, 1e2, 33), [np.inf]])


@dataclass(frozen=True)
class Load:
    """What one layer reads: the range [inputs] and mean square [inputs] of its input, and its weights.

    ``largest`` are the absolute weights by [groups, outputs, inputs], ``energy`` the sums of squares by input,
    ``taps`` how many weights an input and an output share, ``inner`` how many inputs in a row are one channel.
    """

    low: Vector
    high: Vector
    second: Vector
    largest: NDArray[np.float64]
    energy: Vector
    taps: int
    inner: int = 1

    def by_channel(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return numbers for each input as [channels, inner]."""
        return inputs.reshape(-1, self.inner)

    def error(self, channel_scale: Vector) -> float:
        """Return the expected squared error of the layer's outputs, up to a constant factor."""
        scale = np.repeat(channel_scale, self.inner)
        groups, _, inputs = self.largest.shape
        step = (max(0.0, float((self.high / scale).max())) - min(0.0, float((self.low / scale).min()))) / _STEPS_X
        steps = (self.largest * scale.reshape(groups, 1, inputs)).max(axis=2) / _STEPS_W
        loads = (self.second / scale**2).reshape(groups, inputs).sum(axis=1)
        return step**2 * float(scale**2 @ self.energy) + self.taps * float(np.square(steps).sum(axis=1) @ loads)


def requests_of(region: Region) -> list[Request]:
    """Return what :func:`loads_of` has to know of the inputs of the region's sinks."""
    asked: dict[Request, None] = {}
    for end in region.sinks:
        name, axis = _input_name(end.node), end.layout.axes[0]
        asked |= {Request(name, "channel_range", axis=axis): None, Request(name, "channel_power", axis=axis): None}
    return list(asked)


def loads_of(region: Region, statistics: Statistics) -> list[Load]:
    """Return what each sink of the region reads."""
    return [_load(end, statistics) for end in region.sinks]


def _load(end: End, statistics: Statistics) -> Load:
    name, axis = _input_name(end.node), end.layout.axes[0]
    seen = statistics[Request(name, "channel_range", axis=axis)]
    second = statistics[Request(name, "channel_power", axis=axis)].mean
    weights = input_weights(end.node)
    groups = int(attr(end.node, "group", 1))
    squares = np.square(weights).reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)
    energy = squares.sum(axis=(1, 3)).reshape(-1)
    low, high = seen.low.astype(np.float64), seen.high.astype(np.float64)
    return Load(low, high, second, magnitudes(end.node), energy, squares.shape[3], end.layout.inner)


def best_scale(loads: Sequence[Load]) -> Vector | None:
    """Return the scale with the least expected error, ``None`` when none is clearly better than ones.

    Tried are s_j = max((B_j / A_j)**(1/4), t |x_j|): what balances both errors where no single channel sets a step,
    and, for larger t, more and more of the outliers brought down to one size. Scaling by the result and asking again
    gives ``None``, because a scale of this form after another is of this form too.
    """
    size = _largest(loads)
    squares: Vector = np.add.reduce([load.by_channel(load.second).sum(axis=1) for load in loads])
    energy: Vector = np.add.reduce([load.by_channel(load.energy).sum(axis=1) for load in loads])
    alive = (size > 0) & (squares > 0) & (energy > 0)
    if not alive.any():
        return None
    even = np.ones(size.size)
    even[alive] = (squares[alive] / energy[alive]) ** 0.25
    unit = float(np.median(even[alive] / size[alive]))
    best, least = None, _WORTH * error_of(loads, np.ones(size.size))
    for bound in _TRIED:
        scale = np.where(alive, size if np.isinf(bound) else np.maximum(even, bound * unit * size), 1.0)
        error = error_of(loads, scale)
        if error < least:
            best, least = scale, error
    return best


def error_of(loads: Sequence[Load], scale: Vector) -> float:
    """Return the expected squared error of all the layers, up to a constant factor, with a scale [channels]."""
    return sum(load.error(scale) for load in loads)


def _largest(loads: Sequence[Load]) -> Vector:
    """Return the largest absolute input of each channel."""
    largest: Vector = np.maximum.reduce(
        [load.by_channel(np.maximum(-load.low, load.high)).max(axis=1) for load in loads]
    )
    return largest


def smooth_scale(loads: Sequence[Load], alpha: float) -> Vector:
    """Return s_j = max|x_j|**alpha / max|W_j|**(1 - alpha) (Xiao et al. 2022, equation 4); one for dead channels."""
    size = _largest(loads)
    weight: Vector = np.maximum.reduce([load.by_channel(load.largest.max(axis=1)).max(axis=1) for load in loads])
    alive = (size > 0) & (weight > 0)
    scale = np.ones(size.size)
    scale[alive] = size[alive] ** alpha / weight[alive] ** (1 - alpha)
    return scale


def _input_name(node: Node) -> str:
    value = node.inputs[0]
    if value is None or value.name is None:
        raise ValueError(f"{node.name!r} reads a value without a name")
    return value.name
