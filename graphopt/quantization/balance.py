"""Balancing regions against each other: the scales of cross-layer equalization."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphopt.ir import Node
from graphopt.quantization.regions import Region
from graphopt.quantization.scaling import magnitudes

Vector = NDArray[np.float64]
_ROUNDS = 200
_SETTLED = 1e-4
_WIDEST = 2.0**20
"""No channel is scaled by more: what is left of it then is rounding."""


def balanced(regions: Sequence[Region]) -> list[Vector]:
    """Return the scale of each region, float64[channels]: its weights on both sides are equally large after it.

    Layers between two of the regions couple them: the scales are found in turns until none moves.
    """
    scales = [np.ones(region.channels) for region in regions]
    layers = _Layers(regions, scales)
    for _ in range(_ROUNDS):
        moved = 0.0
        for number, region in enumerate(regions):
            before, after = layers.produced(region), layers.read(region)
            alive = (before > 0) & (after > 0)
            step = np.ones(region.channels)
            np.sqrt(before, out=step, where=alive)
            np.divide(step, np.sqrt(after), out=step, where=alive)
            scales[number] *= step
            moved = max(moved, float(np.abs(np.log(step)).max(initial=0.0)))
        if moved < _SETTLED:
            break
    return [np.clip(scale, 1 / _WIDEST, _WIDEST) for scale in scales]


class _Layers:
    """The weights of all layers at the ends of the regions, as the scales found so far leave them."""

    def __init__(self, regions: Sequence[Region], scales: list[Vector]):
        self._scales = scales
        self._behind: dict[Node, int] = {}
        self._ahead: dict[Node, tuple[int, int]] = {}
        self._sizes: dict[Node, NDArray[np.float64]] = {}
        for number, region in enumerate(regions):
            self._behind |= {end.node: number for end in region.sources if end.is_linear}
            self._ahead |= {end.node: (number, end.layout.inner) for end in region.sinks if end.is_linear}
        for node in (*self._behind, *self._ahead):
            self._sizes.setdefault(node, magnitudes(node))

    def _scaled(self, node: Node) -> NDArray[np.float64]:
        sizes: NDArray[np.float64] = self._sizes[node]
        groups, outputs, inputs = sizes.shape
        if node in self._behind:
            sizes = sizes / self._scales[self._behind[node]].reshape(groups, outputs, 1)
        if node in self._ahead:
            number, inner = self._ahead[node]
            sizes = sizes * np.repeat(self._scales[number], inner).reshape(groups, 1, inputs)
        return sizes

    def produced(self, region: Region) -> Vector:
        """Return the largest absolute weight behind each channel."""
        found = [self._scaled(end.node).max(axis=2).reshape(-1) for end in region.sources if end.is_linear]
        largest: Vector = np.maximum.reduce(found)
        return largest

    def read(self, region: Region) -> Vector:
        """Return the largest absolute weight that reads each channel."""
        found = [self._scaled(end.node).max(axis=1).reshape(region.channels, -1) for end in region.sinks]
        largest: Vector = np.maximum.reduce([sizes.max(axis=1) for sizes in found])
        return largest
