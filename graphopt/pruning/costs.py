"""What a network costs as its groups shrink: products over the axes of each layer's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Group
from graphopt.ir import Value
from graphopt.ir.query import shape_of

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class State:
    """Units ``removed`` [groups], what is ``left`` [slots] of each axis, and what the network costs in ``total``."""

    removed: NDArray[np.int64]
    left: Array
    total: float


@dataclass(frozen=True, eq=False)
class _Part:
    """The tensors that a group lies on: their slots, tensor by tensor, and the share of each that a unit takes."""

    slots: NDArray[np.int64]
    fall: Array
    starts: NDArray[np.int64]
    tensors: NDArray[np.int64]


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

    def left(self, removed: NDArray[np.int64]) -> Array:
        """Return what is left [slots] of each axis with ``removed`` [groups] units gone from each group."""
        left = np.ones(len(self.slot_tensor))
        lost = np.where(self.group < len(removed), removed[np.minimum(self.group, len(removed) - 1)], 0)
        np.subtract.at(left, self.slots, self.share * lost)
        return left

    def total(self, removed: NDArray[np.int64]) -> float:
        """Return the cost with ``removed`` [groups] units gone from each group."""
        return self._sum(self.left(removed))

    def state(self, removed: NDArray[np.int64]) -> State:
        """Return what :meth:`alone` starts from."""
        left = self.left(removed)
        return State(removed, left, self._sum(left))

    def alone(self, state: State, group: int, counts: NDArray[np.int64]) -> Array:
        """Return the cost [n] for each of ``counts`` [n] units gone from ``group``, the others as in ``state``."""
        part = self._parts.get(group)
        if part is None:
            return np.full(len(counts), state.total)
        now = state.left[part.slots]
        then = now - np.multiply.outer(counts - state.removed[group], part.fall)
        change = np.multiply.reduceat(then, part.starts, axis=1) - np.multiply.reduceat(now, part.starts)
        return np.asarray(state.total + change @ self.base[part.tensors])

    def _sum(self, left: Array) -> float:
        factors = np.ones(len(self.base))
        np.multiply.at(factors, self.slot_tensor, left)
        return float(self.fixed + (self.base * factors).sum())

    @property
    def whole(self) -> float:
        """The cost with nothing removed."""
        return float(self.fixed + self.base.sum())

    @cached_property
    def _parts(self) -> dict[int, _Part]:
        slots_of: dict[int, list[int]] = {}
        for slot, tensor in enumerate(self.slot_tensor.tolist()):
            slots_of.setdefault(tensor, []).append(slot)
        falls: dict[int, dict[int, float]] = {}
        for group, slot, share in zip(self.group.tolist(), self.slots.tolist(), self.share.tolist(), strict=True):
            own = falls.setdefault(group, {})
            own[slot] = own.get(slot, 0.0) + share
        return {group: self._part(own, slots_of) for group, own in falls.items()}

    def _part(self, falls: Mapping[int, float], slots_of: Mapping[int, list[int]]) -> _Part:
        tensors = sorted({int(self.slot_tensor[slot]) for slot in falls})
        slots = [slot for tensor in tensors for slot in slots_of[tensor]]
        starts = np.cumsum([0, *(len(slots_of[tensor]) for tensor in tensors)])[:-1]
        fall = np.array([falls.get(slot, 0.0) for slot in slots])
        return _Part(np.array(slots, np.int64), fall, starts, np.array(tensors, np.int64))
