"""Layers that may be split: what of them is known, and why others may not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.statistics import Request
from graphopt.ir import Node
from graphopt.ir.linear import Linear

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Extent:
    """How often a layer is computed in one run of the model.

    ``batch`` is the product of the leading axes, ``inputs`` and ``outputs`` are the sizes of a Conv's spatial axes
    (empty for Gemm and MatMul). A symbolic size counts as 1, as in :class:`graphopt.analysis.cost.Cost`.
    """

    batch: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


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
        raise NotImplementedError

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all layers in one run of the model."""
        raise NotImplementedError

    @property
    def parameters(self) -> int:
        """Elements of the weights."""
        return int(self.weights.size)

    def requests(self) -> tuple[Request, ...]:
        """Return the request for the Gram matrix of each layer's input.

        Raises ValueError where ``auto_pad`` needs sizes that are not known.
        """
        raise NotImplementedError


def site_of(node: Node) -> Site | str:
    """Return the site of a node's weights, or why they cannot be split.

    Nodes with the same weights have equal sites: the caller takes each weight (``site.layer.weight``) once. Shapes of
    the values should be annotated (``ctx.get(Shapes)``). Raises ModelError, naming the node, for weights with NaN or Inf.
    """
    raise NotImplementedError
