"""The analysis that passes ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from graphopt.analysis.channels.types import Axis, BoolArray, Group, Pin
from graphopt.analysis.manager import AnalysisManager
from graphopt.ir import Model, Value
from graphopt.ir.query import static_shape


@dataclass(frozen=True, eq=False)
class Channels:
    """The groups of channels that can be removed from a model, and the reasons why other axes are pinned.

    Attention loses whole heads; ask for :class:`HeadDimensions` to take dimensions of every head instead.
    """

    groups: tuple[Group, ...]
    pins: tuple[Pin, ...]

    inner_of_heads: ClassVar[bool] = False

    @classmethod
    def compute(cls, model: Model, manager: AnalysisManager) -> Self:
        """Find the groups; only axes of known size count, and nothing in or captured by a nested graph."""
        raise NotImplementedError

    def kept(self, removed: Mapping[int, BoolArray]) -> dict[Axis, BoolArray]:
        """Return which positions of each touched axis stay when ``removed`` (group index -> bool[units]) goes."""
        kept: dict[Axis, BoolArray] = {}
        for index, gone in removed.items():
            for member in self.groups[index].members if gone.any() else ():
                axis = member.axis
                if axis not in kept:
                    kept[axis] = np.ones((static_shape(axis.value) or ())[axis.axis], dtype=np.bool_)
                kept[axis][member.positions[gone[member.units]]] = False
        return kept

    def integers(self, value: Value | None) -> list[int] | None:
        """Return what a shape operand is worth: constant or computed from static shapes; ``None`` when not known."""
        raise NotImplementedError


class HeadDimensions(Channels):
    """The same with the other choice for attention: the same dimensions go from every head, and all heads stay."""

    inner_of_heads: ClassVar[bool] = True
