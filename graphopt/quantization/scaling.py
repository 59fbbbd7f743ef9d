"""Scaling the channels of a region: how large the weights at its ends are, and writing the scaled constants."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.ir import Editor, Node, Value, attr, constant, rank_of
from graphopt.ir import linear as layers
from graphopt.quantization.regions import End, Layout, Region, region_of

Vector = NDArray[np.float64]


def regions_behind(nodes: list[Node], *, through_clips: bool = False) -> list[Region]:
    """Return the regions that the first outputs of ``nodes`` (layers, normalisations, Mul) are in, each once."""
    found: list[Region] = []
    seen: set[Value] = set()
    for node in nodes:
        value = node.outputs[0]
        layout = layout_of(node)
        if layout is None or value in seen:
            continue
        region = region_of(value, layout, through_clips=through_clips)
        seen.update(region.values)
        found.append(region)
    return found


def layout_of(node: Node) -> Layout | None:
    """Return where a layer, LayerNormalization or factor by a vector has the channels of its result."""
    layer = layers.linear_of(node)
    rank = rank_of(node.outputs[0])
    if layer is not None:
        axis = 1 if layer.axis == 1 else None if rank is None else rank - 1
        return None if axis is None else Layout((axis,), (layer.channels,))
    vector = next((array for value in node.inputs[1:] if (array := constant(value)) is not None and array.ndim), None)
    if vector is None and node.op_type == "Mul":
        vector = constant(node.inputs[0])
    if rank is None or vector is None or vector.ndim == 0:
        return None
    return Layout((rank - 1,), (vector.shape[-1],))


def magnitudes(node: Node) -> NDArray[np.float64]:
    """Return the largest absolute weight between each pair of channels: [groups, outputs, inputs] of a group."""
    layer = layers.linear_of(node)
    weight = None if layer is None else constant(layer.weight)
    if weight is None:
        raise ValueError(f"{node.name!r} has no constant weights")
    kernel = tuple(range(2, weight.ndim))
    absolute: NDArray[np.float64] = np.abs(weight.astype(np.float64))
    sizes: NDArray[np.float64] = absolute.max(axis=kernel, initial=0.0) if kernel else absolute
    groups = int(attr(node, "group", 1))
    if node.op_type == "Conv":
        return sizes.reshape(groups, -1, sizes.shape[1])
    if node.op_type == "ConvTranspose":
        return sizes.reshape(groups, -1, sizes.shape[1]).transpose(0, 2, 1)
    return (sizes if attr(node, "transB", 0) else sizes.T)[None]


def input_weights(node: Node) -> NDArray[np.float64]:
    """Return the weights of a Gemm or MatMul as [outputs, inputs], those of a Conv as [outputs, inputs, kernel].

    A convolution in groups gives [outputs, inputs of its group, kernel].
    """
    layer = layers.linear_of(node)
    weight = None if layer is None else constant(layer.weight)
    if weight is None:
        raise ValueError(f"{node.name!r} has no constant weights")
    wide: NDArray[np.float64] = weight.astype(np.float64)
    if node.op_type == "Conv":
        return wide.reshape(*wide.shape[:2], -1)
    return wide if attr(node, "transB", 0) else wide.T


def refusal(region: Region, scale: Vector, growth: int) -> str | None:
    """Return why the region cannot be divided by ``scale``: a dtype that cannot hold it, or copies above ``growth``."""
    for end, is_source in _ends(region):
        if not end.is_linear:
            factor = 1 / scale if is_source else scale
            arrays = [_scaled(end, index, factor) for index in end.inputs]
            if not all(np.isfinite(array).all() for array in arrays):
                return "the scaled constants would leave the range of their dtype"
            continue
        layer = layers.linear_of(end.node)
        why = "a layer has no constant weights" if layer is None else layers.refusal(
            layer, _rescaled(layer, end, scale, is_source), growth
        )  # fmt: skip
        if why is not None:
            return why
    return None


def divide(edit: Editor, region: Region, scale: Vector) -> None:
    """Divide each channel of the region's values by ``scale`` (positive, float64[channels]) and undo it at its sinks.

    Ask :func:`refusal` first.
    """
    for end, is_source in _ends(region):
        layer = layers.linear_of(end.node)
        if layer is not None and end.is_linear:
            layers.write(edit, layer, *(_rescaled(layer, end, scale, is_source) or (None, None)))
            continue
        for index in end.inputs:
            _put(edit, end.node, index, _scaled(end, index, 1 / scale if is_source else scale))
    for end in region.offsets:
        for index in end.inputs:
            _put(edit, end.node, index, _scaled(end, index, 1 / scale))


def _ends(region: Region) -> list[tuple[End, bool]]:
    return [(end, True) for end in region.sources] + [(end, False) for end in region.sinks]


def _rescaled(layer: layers.Linear, end: End, scale: Vector, is_source: bool) -> Any:
    zeros = np.zeros(scale.size * end.layout.inner)
    if is_source:
        return layers.rescaled(layer, 1 / scale, zeros)
    return layers.rescaled_input(layer, np.repeat(scale, end.layout.inner), zeros)


def _scaled(end: End, index: int, factor: Vector) -> NDArray[Any]:
    """Return the constant at an input times ``factor``, of its own dtype; of Div, the divisor gets the inverse."""
    value = end.node.inputs[index]
    array = constant(value)
    if array is None:
        raise ValueError(f"input {index} of {end.node.name!r} is no constant")
    inverse = end.node.op_type == "Div" and index == 1
    wide = end.layout.spread(1 / factor if inverse else factor, rank_of(end.node.outputs[0]) or 1)
    while wide.ndim > max(array.ndim, 1) and wide.shape[0] == 1:
        wide = wide[0]
    with np.errstate(over="ignore"):
        scaled: NDArray[Any] = (array.astype(np.float64) * wide).astype(array.dtype)
    return scaled


def _put(edit: Editor, node: Node, index: int, array: NDArray[Any]) -> None:
    """Make ``array`` the constant at an input; one that others read too is copied."""
    old = node.inputs[index]
    if old is not None and old.is_initializer() and not layers.is_shared(old):
        edit.set_weight(old, array)
        return
    edit.set_input(node, index, edit.constant(array, (old.name if old is not None else None) or "vector"))
    if old is not None:
        edit.drop_unread(old)
