"""Layers that may be split: what of them is known, and why others may not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Request
from graphopt.errors import ModelError
from graphopt.ir import Node, Value
from graphopt.ir.linear import Linear, is_overridable, linear_behind, linear_of
from graphopt.ir.query import attr, constant, place, shape_of, sole_use, tensor_of
from graphopt.quantization.layers import LayerMatrix

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Extent:
    """How often a layer is computed in one run of the model.

    ``batch`` is the product of the axes besides channels and the spatial ones, ``inputs`` and ``outputs`` are the sizes
    of a Conv's spatial axes (empty for Gemm and MatMul). A symbolic size counts as 1, as in
    :class:`graphopt.analysis.cost.Cost`.
    """

    batch: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def positions(self) -> int:
        """How many times an output channel is computed."""
        return self.batch * math.prod(self.outputs)


@dataclass(frozen=True, eq=False)
class Site:
    """One weight that may be split, with every layer that reads it (nearly always one).

    ``weights`` is float64, [O, C / groups, *kernel] for a Conv and [O, K] for Gemm and MatMul. ``extents`` belong to
    ``layers``; where sizes are not known, outputs count as one position.
    """

    layers: tuple[Linear, ...]
    weights: Array
    groups: int
    extents: tuple[Extent, ...]

    @property
    def layer(self) -> Linear:
        """The first layer."""
        return self.layers[0]

    @property
    def name(self) -> str:
        """The name of the first layer's node, or of its output where it has none."""
        node = self.layer.node
        return str(node.name or node.outputs[0].name)

    @property
    def kernel(self) -> tuple[int, ...]:
        """The sizes of a Conv's kernel; empty for Gemm and MatMul."""
        return tuple(self.weights.shape[2:])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers in one run of the model."""
        return self.parameters * sum(extent.positions for extent in self.extents)

    @property
    def parameters(self) -> int:
        """Elements of the weights."""
        return int(self.weights.size)

    def requests(self) -> tuple[Request, ...]:
        """Return the request for the Gram matrix of each layer's input.

        Raises ValueError where ``auto_pad`` needs sizes that are not known.
        """
        return tuple(LayerMatrix.of(layer.node).gram() for layer in self.layers)


def site_of(node: Node) -> Site | str:
    """Return the site of a node's weights, or why they cannot be split.

    Nodes with the same weights have equal sites: the caller takes each weight (``site.layer.weight``) once. Shapes of
    the values should be annotated (``ctx.get(Shapes)``). Raises ModelError, naming the node, for weights with NaN or
    Inf.
    """
    layer = linear_of(node)
    if layer is None:
        return _why_not_linear(node)
    if node.op_type == "ConvTranspose":
        return "a ConvTranspose is not split"
    stored = constant(layer.weight)
    assert stored is not None
    weights = stored.astype(np.float64)
    if not np.isfinite(weights).all():
        raise ModelError("its weights hold NaN or Inf", where=place(node))
    groups = int(attr(node, "group", 1))
    if node.op_type != "Conv":
        weights = weights if node.op_type == "Gemm" and attr(node, "transB", 0) else weights.T
    elif groups > 1 and weights.shape[1] == 1:
        return "a depthwise convolution has one input channel for each output: there is nothing to split"
    if len(weights) // max(groups, 1) < 2 or weights[0].size < 2:
        return "it has one input or one output"
    layers = _readers(layer)
    if isinstance(layers, str):
        return layers
    return Site(layers, weights, groups, tuple(_extent(layer) for layer in layers))


def _why_not_linear(node: Node) -> str:
    if is_overridable(node):
        return "its weights are inputs of the model, which a caller may override"
    if node.domain or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return f"{node.op_type} is no Conv, Gemm or MatMul"
    weight = tensor_of(node.inputs[1])
    if len(node.inputs) > 2 and weight is not None and weight.dtype.is_floating_point():
        return "its bias is not one constant number for each output"
    return "it does not multiply by a constant matrix of floats"


def _readers(layer: Linear) -> tuple[Linear, ...] | str:
    """Return every layer that reads the weights, with the Add of its bias; or why they cannot be split together."""
    weight, first = layer.weight, layer.node
    if weight.is_graph_output():
        return "its weights are an output of the model"
    found = []
    for use in weight.uses():
        other = linear_of(use.node) if use.idx == 1 else None
        if other is None or other.node.op_type != first.op_type:
            return f"its weights are read by {place(use.node)} too"
        if attr(other.node, "transB", 0) != attr(first, "transB", 0):
            return f"its weights are read the other way round by {place(use.node)}"
        if attr(other.node, "group", 1) != attr(first, "group", 1):
            return f"its weights are read in other groups by {place(use.node)}"
        found.append(_with_add(other))
    return tuple(found)


def _with_add(layer: Linear) -> Linear:
    if layer.node.op_type != "MatMul":
        return layer
    add = sole_use(layer.node.outputs[0])
    biased = linear_behind(add.outputs[0]) if add is not None else None
    return biased if biased is not None and biased.node is layer.node else layer


def _extent(layer: Linear) -> Extent:
    """Return the sizes as the values are annotated; a Conv's whose spatial ones are not all known has one position."""
    node = layer.node
    outputs = [dim if isinstance(dim, int) else 1 for dim in shape_of(node.outputs[0]) or ()]
    if node.op_type != "Conv":
        return Extent(math.prod(outputs[:-1]), (), ())
    spatial = (layer.rank or 2) - 2
    inputs, results = (_known(value, spatial) for value in (node.inputs[0], node.outputs[0]))
    if inputs is None or results is None:
        inputs, results = tuple(attr(node, "strides", [1] * spatial)), (1,) * spatial
    return Extent(outputs[0] if outputs else 1, inputs, results)


def _known(value: Value | None, spatial: int) -> tuple[int, ...] | None:
    """Return the last ``spatial`` sizes of a value if all are known."""
    dims = (shape_of(value) or ())[2:]
    known = tuple(dim for dim in dims if isinstance(dim, int))
    return known if len(known) == spatial else None
