"""From statistics to grids: one for each quantized value, and integers for each layer's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Gram, Histogram, Moving, Request, Statistics
from graphopt.ir import Value
from graphopt.quantization.grid import Grid, grid_for_range, weight_grid
from graphopt.quantization.insert import Layer
from graphopt.quantization.layers import LayerMatrix
from graphopt.quantization.placement import Placement
from graphopt.quantization.ranges import error, estimate
from graphopt.quantization.rounding import corrected_bias, output_error, round_to_grid
from graphopt.targets import Quantization

_LARGEST_BIAS = 2.0**30
"""A bias is kept below this many steps of its int32 grid; a channel of tiny weights gets a coarser grid for that."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How to quantize: estimator of the values' ranges, types, and what is done about the weights' rounding."""

    calibrate: str = "mse"
    activations: str = "uint8"
    symmetric: bool = False
    weights: str = "int8"
    weight_ranges: str = "mse"
    rounding: str = "gram"
    bias_correction: bool = True
    pair_limit: int = 0
    power_of_two: bool = False


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
    kinds = ("histogram", "moving") if choices.calibrate == "moving" else ("histogram",)
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
        if choices.calibrate == "moving":
            moving: Moving = statistics[requests[1]]
            low, high = moving.low, moving.high
        else:
            low, high = estimate(choices.calibrate, histogram, choices.activations, choices.symmetric)
        grid = grid_for_range(
            low, high, choices.activations, symmetric=choices.symmetric, power_of_two=choices.power_of_two
        )
        power = float((histogram.centers**2 * histogram.counts).sum() / max(histogram.total, 1))
        found[value] = ValueRange(low, high, grid, error(histogram, grid), power)
    return found


def layer_requests(placement: Placement, choices: Choices) -> dict[LayerMatrix, Request]:
    """Return the Gram matrices that rounding the layers' weights needs, none for nearest rounding."""
    wanted = choices.rounding == "gram" or choices.bias_correction
    layers = [LayerMatrix.of(node) for node in placement.layers]
    return {layer: layer.gram() for layer in layers} if wanted else {}


def quantized_layer(layer: LayerMatrix, gram: Gram | None, input_scale: float, choices: Choices) -> Layer:
    """Round a layer's weights to integers, against the Gram matrix of its input where there is one."""
    grid = _weight_grid(layer, input_scale, choices)
    rows = layer.matrix
    if gram is None:
        return Layer(layer.node, grid, grid.quantize(layer.array), _bias(layer))
    integers = layer.rows(grid.quantize(layer.array)).copy()
    rounded = np.empty(rows.shape, np.float64)
    total_error, power = 0.0, 0.0
    for index in range(layer.groups):
        second = gram.second[index]
        scale = _group_grid(grid, layer, index)
        if choices.rounding == "gram":
            integers[index] = round_to_grid(rows[index], second, scale)
        rounded[index] = scale.dequantize(integers[index])
        total_error += float(output_error(rows[index], rounded[index], second))
        power += float(output_error(rows[index], np.zeros_like(rows[index]), second))
    bias = _bias(layer)
    if choices.bias_correction and layer.may_have_bias:
        start = np.zeros(layer.outputs) if bias is None else bias
        parts = start.reshape(layer.groups, -1)
        bias = np.concatenate(
            [corrected_bias(rows[i], rounded[i], gram.mean[i], parts[i]) for i in range(layer.groups)]
        )
    return Layer(layer.node, grid, layer.shaped(integers), bias, total_error, power)


def _bias(layer: LayerMatrix) -> NDArray[np.float64] | None:
    return None if layer.bias is None else layer.bias.astype(np.float64)


def _weight_grid(layer: LayerMatrix, input_scale: float, choices: Choices) -> Grid:
    limit = 0 if layer.depthwise else choices.pair_limit
    grid = weight_grid(
        layer.array,
        choices.weights,
        axis=layer.axis,
        symmetric=True,
        power_of_two=choices.power_of_two,
        method=choices.weight_ranges,
        pair_limit=limit,
        reduction=layer.reduction,
    )
    if layer.bias is None:
        return grid
    floor = np.abs(layer.bias.astype(np.float64)) / (input_scale * _LARGEST_BIAS)
    return replace(grid, scale=np.maximum(grid.scale, floor.astype(np.float32)))


def _group_grid(grid: Grid, layer: LayerMatrix, index: int) -> Grid:
    """Return the grid of one group's rows."""
    size = layer.outputs // layer.groups
    part = slice(index * size, (index + 1) * size)
    return Grid(grid.scale[part], grid.zero_point[part], grid.dtype, 0, None)


def chosen(facts: Quantization, **given: object) -> Choices:
    """Return the choices that a target's facts leave, with those that the user made."""
    base: Mapping[str, object] = {
        "activations": facts.activations,
        "symmetric": facts.activations_symmetric,
        "weights": facts.weights,
        "pair_limit": facts.pair_limit,
    }
    return Choices(**{**base, **given})  # type: ignore[arg-type]  # the caller's names are the fields'
