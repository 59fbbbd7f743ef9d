"""What a network costs as its groups shrink: products over the axes of each layer's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Group
from graphopt.ir import Value
from graphopt.ir.query import shape_of

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs of tensors, each a number that is proportional to the size of every axis of the tensor.

    ``base`` [T] are the costs of the whole tensors. Axis ``axis[i]`` of tensor ``tensor[i]`` loses ``share[i]`` of
    itself with each unit that group ``group[i]`` loses.
    """

    base: Array
    fixed: float
    slots: NDArray[np.int64]
    slot_tensor: NDArray[np.int64]
    group: NDArray[np.int64]
    share: Array

    @classmethod
    def of(cls, groups: Sequence[Group], weighing: Mapping[Value, float], fixed: float = 0.0) -> CostModel:
        """Return the model for the constants in ``weighing`` and what they cost whole, besides ``fixed``."""
        tensors = {value: index for index, value in enumerate(weighing)}
        slots: dict[tuple[int, int], int] = {}
        rows: list[tuple[int, int, float]] = []
        for group in groups:
            for member in group.members:
                value, axis = member.axis
                if value not in tensors:
                    continue
                size = (shape_of(value) or ())[axis]
                if not isinstance(size, int):
                    continue  # known to the analysis alone: what it costs stays in the sum
                slot = slots.setdefault((tensors[value], axis), len(slots))
                rows.append((slot, group.index, len(member.positions) / group.units / size))
        return cls(
            np.array(list(weighing.values()), np.float64),
            fixed,
            np.array([row[0] for row in rows], np.int64),
            np.array([tensor for tensor, _ in slots], np.int64),
            np.array([row[1] for row in rows], np.int64),
            np.array([row[2] for row in rows], np.float64),
        )

    def total(self, removed: NDArray[np.int64]) -> float:
        """Return the cost with ``removed`` [groups] units gone from each group."""
        left = np.ones(len(self.slot_tensor))
        lost = np.where(self.group < len(removed), removed[np.minimum(self.group, len(removed) - 1)], 0)
        np.subtract.at(left, self.slots, self.share * lost)
        factors = np.ones(len(self.base))
        np.multiply.at(factors, self.slot_tensor, left)
        return float(self.fixed + (self.base * factors).sum())

    @property
    def whole(self) -> float:
        """The cost with nothing removed."""
        return float(self.fixed + self.base.sum())
