"""Layers as matrices: their weights [outputs, K] and bias [outputs] in float64, read and written."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from graphopt.ir import Editor, Node, attr, constant
from graphopt.ir import linear as layers
from graphopt.ir.query import sole_use, static_shape

Array = NDArray[np.float64]

WIDEST = 6144
"""Layers of more weights an output have no Gram matrix: it would be hundreds of megabytes."""


def layer_of(node: Node) -> layers.Linear | None:
    """Return a Conv, Gemm or MatMul with constant weights, with the Add of its bias where it is a MatMul."""
    layer = layers.linear_of(node)
    if layer is None or node.op_type == "ConvTranspose":
        return None
    if node.op_type == "Gemm" and (attr(node, "alpha", 1.0) == 0.0 or attr(node, "transA", 0)):
        return None
    if node.op_type != "MatMul":
        return layer
    add = sole_use(node.outputs[0])
    biased = layers.linear_behind(add.outputs[0]) if add is not None else None
    return biased if biased is not None and biased.node is node else layer


def has_bias(layer: layers.Linear) -> bool:
    """Tell whether the layer has, or can be given, a bias."""
    return layers.can_hold(layer, np.zeros(layer.channels))


def rows_of(layer: layers.Linear) -> Array:
    """Return the layer's weights, a Gemm's alpha multiplied in, the outputs of a group side by side."""
    array = constant(layer.weight)
    assert array is not None
    wide = array.astype(np.float64) * _alpha(layer)
    turned = wide if _outputs_first(layer) else wide.T
    return turned.reshape(len(turned), -1)


def width_of(layer: layers.Linear) -> int:
    """Return how many weights an output has."""
    return math.prod(static_shape(layer.weight) or ()) // max(layer.channels, 1)


def bias_of(layer: layers.Linear) -> Array:
    """Return the layer's bias, zeros where it has none."""
    array = constant(layer.bias) if layer.bias is not None else None
    flat = np.zeros(1) if array is None else array.astype(np.float64).reshape(-1)
    factor = float(attr(layer.node, "beta", 1.0)) if layer.node.op_type == "Gemm" else 1.0
    return np.broadcast_to(flat * factor, (layer.channels,)).copy()


def write_rows(edit: Editor, layer: layers.Linear, weights: Array, bias: Array) -> None:
    """Give the layer other weights and, where it can have one, another bias."""
    old = constant(layer.weight)
    assert old is not None
    shaped = weights.reshape(old.shape) if _outputs_first(layer) else weights.T.reshape(old.shape)
    stored = np.ascontiguousarray(shaped / _alpha(layer), old.dtype)
    layers.write(edit, layer, stored, bias.astype(old.dtype) if has_bias(layer) else None)


def _alpha(layer: layers.Linear) -> float:
    return float(attr(layer.node, "alpha", 1.0)) if layer.node.op_type == "Gemm" else 1.0


def _outputs_first(layer: layers.Linear) -> bool:
    return layer.node.op_type == "Conv" or bool(layer.node.op_type == "Gemm" and attr(layer.node, "transB", 0))
