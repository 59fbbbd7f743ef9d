"""Layers as matrices: the weights of Conv, Gemm and MatMul as [outputs, K], and what their input's Gram matrix is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Request, Unfold
from graphopt.ir import Node, Value
from graphopt.ir.query import attr, constant, shape_of

WEIGHT, BIAS = 1, 2
"""Which inputs of a layer are its weights and its bias."""

_FEWEST, _MOST = 16, 128
"""Patches of a sample that a convolution's Gram matrix is made of: one for each weight of an output, within these."""


@dataclass(frozen=True, eq=False)
class LayerMatrix:
    """The weights of a layer as a matrix.

    ``array`` is the weights as the model holds them, ``axis`` the axis of its outputs, ``groups`` the number of groups.
    A row of the matrix holds an output's weights in the order of the layer's Gram matrix: (channel within the group,
    *kernel) for a convolution, features otherwise.
    """

    node: Node
    weight: Value
    array: NDArray[np.float32]
    axis: int
    groups: int

    @classmethod
    def of(cls, node: Node) -> LayerMatrix:
        """Read a Conv, Gemm or MatMul with constant weights (of rank 2 unless it is a Conv)."""
        weight = node.inputs[WEIGHT]
        array = constant(weight)
        assert weight is not None and array is not None
        if node.op_type == "Conv":
            return cls(node, weight, array, 0, int(attr(node, "group", 1)))
        return cls(node, weight, array, 0 if node.op_type == "Gemm" and attr(node, "transB", 0) else 1, 1)

    @property
    def data(self) -> Value:
        """The value that the layer multiplies by its weights."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    def rows(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array shaped like the weights as [outputs, K], the outputs of a group side by side."""
        turned = array if self.axis == 0 else array.T
        return turned.reshape(turned.shape[0], -1)

    def shaped(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Undo :meth:`rows`."""
        if self.axis == 0:
            return rows.reshape(self.array.shape)
        return np.ascontiguousarray(rows.reshape(self.array.shape[::-1]).T)

    @property
    def outputs(self) -> int:
        """How many outputs (channels, features) the layer has."""
        return int(self.array.shape[self.axis])

    @property
    def width(self) -> int:
        """How many weights an output has, K."""
        return int(self.array.size // self.outputs)

    @property
    def depthwise(self) -> bool:
        """Whether each group has one input channel."""
        return self.groups > 1 and self.array.shape[1] == 1

    @property
    def reduction(self) -> tuple[int, ...] | None:
        """The order of the weights' axes in which kernels add up products; ``None`` for the axes as they are."""
        if self.node.op_type != "Conv":
            return (0,) if self.axis == 1 else (1,)
        return (*range(2, self.array.ndim), 1)

    @property
    def bias(self) -> NDArray[np.float32] | None:
        """The bias as float[outputs]; ``None`` where the layer has none, or one of another form."""
        value = self.node.inputs[BIAS] if self.node.op_type != "MatMul" and len(self.node.inputs) > BIAS else None
        array = constant(value)
        return array if array is not None and array.shape == (self.outputs,) else None

    @property
    def may_have_bias(self) -> bool:
        """Whether the layer takes a bias of float[outputs] and has none of another form."""
        absent = len(self.node.inputs) <= BIAS or self.node.inputs[BIAS] is None
        return self.node.op_type != "MatMul" and (absent or self.bias is not None)

    def gram(self) -> Request:
        """Return the request for the Gram matrix of the layer's input."""
        data = self.node.inputs[0]
        assert data is not None and data.name is not None
        if self.node.op_type != "Conv":
            return Request(data.name, "gram", axis=-1)
        return Request(data.name, "gram", unfold=unfold_of(self.node, self.array.shape))


def unfold_of(node: Node, weight_shape: tuple[int, ...]) -> Unfold:
    """Return how a Conv with constant weights reads its input, ``auto_pad`` resolved where sizes are needed for it.

    Raises ValueError for auto_pad SAME_* on an input of unknown size.
    """
    spatial = len(weight_shape) - 2
    kernel = tuple(int(size) for size in weight_shape[2:])
    strides = tuple(attr(node, "strides", [1] * spatial))
    dilations = tuple(attr(node, "dilations", [1] * spatial))
    pads = tuple(attr(node, "pads", [0] * (2 * spatial)))
    mode = attr(node, "auto_pad", "NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same_pads(node, kernel, strides, dilations, lower=mode == "SAME_LOWER")
    elif mode == "VALID":
        pads = (0,) * (2 * spatial)
    most = min(max(_FEWEST, math.prod(weight_shape[1:])), _MOST)
    return Unfold(kernel, strides, pads, dilations, int(attr(node, "group", 1)), most)


def _same_pads(
    node: Node, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...], *, lower: bool
) -> tuple[int, ...]:
    begins, ends = [], []
    sizes = (shape_of(node.inputs[0]) or (None,) * (len(kernel) + 2))[2:]
    for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (extent - 1) * dilation + 1
        if not isinstance(size, int) and stride != 1:
            raise ValueError("auto_pad needs the size of the input")
        total = reach - 1 if not isinstance(size, int) else max((-(-size // stride) - 1) * stride + reach - size, 0)
        begins.append(total - total // 2 if lower else total // 2)
        ends.append(total - begins[-1])
    return (*begins, *ends)
