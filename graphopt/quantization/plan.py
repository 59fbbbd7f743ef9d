"""From statistics to grids: one for each quantized value, and integers for each layer's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Gram, Histogram, Moving, Request, Statistics
from graphopt.ir import Value, constant
from graphopt.quantization.grid import Grid, grid_for_range, stored, weight_grid
from graphopt.quantization.insert import Layer, is_symmetric
from graphopt.quantization.layers import LayerMatrix
from graphopt.quantization.pairs import pair_columns
from graphopt.quantization.placement import Placement
from graphopt.quantization.ranges import error, estimate
from graphopt.quantization.rounding import corrected_bias, output_error, round_to_grid
from graphopt.targets import Quantization

Kind = Literal["histogram", "moving"]
_WIDEST = 4608
"""Layers with more inputs are rounded to nearest: a Gram matrix has the square of that many float64 numbers."""
_SWEEPS, _FEW_LEVELS = 2, 64
"""Sweeps take most of the rounding's time. With 8 bits they gain nothing: what is left is far below other errors."""
_LARGEST_BIAS = 2.0**30
"""A bias is kept below this many steps of its int32 grid; a channel of tiny weights gets a coarser grid for that."""
_BLANK_BIAS = 2.0**23
"""As many steps has the bias of a channel whose weights are all zero, so that they might be on any grid."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How to quantize: estimator of the values' ranges, types, and what is done about the weights' rounding."""

    calibrate: str = "auto"
    activations: str = "uint8"
    symmetric: bool = False
    weights: str = "int8"
    weight_ranges: Literal["maxabs", "mse"] = "mse"
    rounding: str = "gram"
    bias_correction: bool = True
    pair_limit: int = 0
    pairs_by_pixel: bool = False
    power_of_two: bool = False
    per_channel: bool = True
    off_middle: bool = False

    def grid(self, low: float, high: float) -> Grid:
        """Return the grid of activations for a range."""
        grid = grid_for_range(low, high, self.activations, symmetric=self.symmetric, power_of_two=self.power_of_two)
        return grid.off_middle() if self.off_middle else grid

    def of_type(self, facts: Quantization, kind: str) -> Choices:
        """Return the same choices for activations of another type."""
        return replace(self, activations=kind, symmetric=is_symmetric(facts, kind))


@dataclass(frozen=True)
class ValueRange:
    """The range chosen for a value, its grid, and the expected squared error and power of the value's numbers."""

    low: float
    high: float
    grid: Grid
    error: float
    power: float


def value_requests(placement: Placement, choices: Choices) -> dict[Value, list[Request]]:
    """Return what must be known of each value that has a grid of its own."""
    kinds: tuple[Kind, ...] = ("histogram", "moving") if choices.calibrate in ("moving", "auto") else ("histogram",)
    return {
        value: [Request(str(value.name), kind) for kind in kinds]
        for value, root in placement.values.items()
        if value is root
    }


def value_ranges(placement: Placement, statistics: Statistics, choices: Choices) -> dict[Value, ValueRange]:
    """Choose the range and the grid of each value that has one of its own."""
    found = {}
    for value, requests in value_requests(placement, choices).items():
        histogram: Histogram = statistics[requests[0]]
        moving: Moving | None = statistics[requests[1]] if len(requests) > 1 else None
        low, high = estimate(
            choices.calibrate,
            histogram,
            choices.activations,
            choices.symmetric,
            power_of_two=choices.power_of_two,
            moving=moving,
        )
        grid = choices.grid(low, high)
        table = _table_of(value)
        if table is not None:  # rows that calibration did not ask for count too
            low, high = min(low, float(table.min())), max(high, float(table.max()))
            grid = choices.grid(low, high)
        power = float((histogram.centers**2 * histogram.counts).sum() / max(histogram.total, 1))
        found[value] = ValueRange(low, high, grid, error(histogram, grid), power)
    return found


def _table_of(value: Value) -> NDArray[Any] | None:
    """Return the constant that ``value`` is taken from by an operator that moves data, None for other values."""
    node = value.producer()
    return constant(node.inputs[0]) if node is not None and node.op_type.startswith("Gather") else None


def layer_requests(layers: Sequence[LayerMatrix], choices: Choices) -> dict[LayerMatrix, Request]:
    """Return the Gram matrices that rounding the layers' weights needs, none for nearest rounding or huge layers."""
    wanted = choices.rounding == "gram" or choices.bias_correction
    return {layer: layer.gram() for layer in layers if layer.width <= _WIDEST} if wanted else {}


def quantized_layer(layer: LayerMatrix, gram: Gram | None, input_scale: float, choices: Choices) -> Layer:
    """Round a layer's weights to integers, against the Gram matrix of its input where there is one."""
    bias = None if layer.bias is None else layer.bias.astype(np.float64)
    limit = 0 if layer.depthwise else choices.pair_limit
    by_gram = gram is not None and choices.rounding == "gram"
    importance = None if gram is None else _importance(layer, gram)
    grid = weight_grid(
        layer.array,
        choices.weights,
        axis=layer.axis if choices.per_channel else None,
        symmetric=True,
        power_of_two=choices.power_of_two,
        method=choices.weight_ranges,
        pair_limit=limit,
        reduction=layer.reduction,
        by_pixel=choices.pairs_by_pixel,
        importance=importance,
        clamp=by_gram,
    )
    if bias is not None:
        grid = _fit_for(np.abs(bias) / input_scale, layer, grid, power_of_two=choices.power_of_two)
    if grid.axis is not None and grid.scale.size and not np.ptp(grid.scale) and not np.ptp(grid.zero_point):
        # Averages have the same weights in all channels, and a table of equal scales would be read for nothing.
        grid = Grid(grid.scale[0], grid.zero_point[0], grid.dtype)
    if choices.off_middle:
        grid = grid.off_middle()
    if gram is None:
        return Layer(layer.node, grid, grid.quantize(layer.array), bias)
    rows, second = layer.rows(layer.array), gram.second
    by_row = _of_rows(grid, len(rows))
    integers = layer.rows(grid.quantize(layer.array))
    if by_gram:
        by_pixel = choices.pairs_by_pixel
        pairs = pair_columns(layer.array.shape, layer.axis, layer.reduction, by_pixel=by_pixel) if limit else None
        sweeps = _SWEEPS if by_row.qmax - by_row.qmin < _FEW_LEVELS else 0
        integers = round_to_grid(rows, second, by_row, sweeps=sweeps, pairs=pairs, pair_limit=limit)
    rounded = by_row.dequantize(integers)
    if choices.bias_correction and layer.may_have_bias:
        bias = corrected_bias(rows, rounded, gram.mean, bias).astype(np.float64)
    error, power = output_error(rows, rounded, second), output_error(rows, np.zeros_like(rows), second)
    return Layer(layer.node, grid, layer.shaped(integers), bias, error, power)


def _fit_for(bias: NDArray[np.float64], layer: LayerMatrix, grid: Grid, *, power_of_two: bool) -> Grid:
    """Return the weights' grid with scales that a ``bias`` [O], in steps of the input, can be rounded by."""
    filled = layer.rows(layer.array).any(axis=1)
    if grid.axis is None:
        bias, filled = bias.max(initial=0.0), filled.any()
    scale = grid.scale.astype(np.float64)
    if not filled.all():
        # The scale 1 of an empty range would round the bias to steps of the input, and the HTP errs by its multiplier.
        finest = scale[filled].min(initial=np.inf)
        blank = np.maximum(bias / _BLANK_BIAS, finest if np.isfinite(finest) else 0.0)
        scale = np.where(filled, scale, np.where(blank > 0, blank, scale))
    return replace(grid, scale=stored(np.maximum(scale, bias / _LARGEST_BIAS), power_of_two=power_of_two))


def _of_rows(grid: Grid, rows: int) -> Grid:
    """Return the grid with a scale for each row, all the same where the tensor has one."""
    scale, zero_point = np.broadcast_to(grid.scale, rows), np.broadcast_to(grid.zero_point, rows)
    return Grid(scale, zero_point, grid.dtype, 0)


def _importance(layer: LayerMatrix, gram: Gram) -> NDArray[np.float64]:
    """Return E[x²] of the input that each weight multiplies, in the weights' shape."""
    diagonal = np.diagonal(gram.matrix, axis1=1, axis2=2) / gram.count
    return layer.shaped(np.repeat(diagonal, layer.outputs // layer.groups, axis=0))


def chosen(facts: Quantization, **given: Any) -> Choices:
    """Return the choices that a target's facts leave, with those that the user made."""
    base = Choices(
        activations=facts.activations,
        symmetric=facts.activations_symmetric,
        weights=facts.weights,
        pair_limit=facts.pair_limit,
        pairs_by_pixel=facts.pairs_by_pixel,
        power_of_two=facts.power_of_two,
        per_channel=facts.per_channel,
        off_middle=facts.off_middle,
    )
    return replace(base, **given)
