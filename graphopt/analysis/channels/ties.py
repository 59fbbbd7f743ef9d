"""How axes hang together: what the rules of the operators write down, and what the groups are found from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels.types import Axis, IntArray
from graphopt.analysis.layout import REDUCING
from graphopt.analysis.shape_values import ShapeValues
from graphopt.ir import Node, Value
from graphopt.ir.query import constant, is_constant, shape_of, tensor_of
from graphopt.ir.tensors import dims_of

Place = tuple[Value | None, int]
"""An axis as a rule names it: a value that may be left out, and a number that may be negative."""


OPERANDS = {
    "CumSum": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Gather": (1,),
    "Pad": (1, 3),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
    **dict.fromkeys(REDUCING, (1,)),
}
"""Inputs that tell an operator about shapes: with constants in their place it does the same."""


@dataclass(frozen=True)
class Map:
    """Which position of one axis is which of another."""

    def pairs(self) -> tuple[IntArray, IntArray]:
        """Return positions of the first axis and those of the second that they are, as int64[n] each."""
        raise NotImplementedError


@dataclass(frozen=True)
class Window(Map):
    """``length`` positions from ``first`` on are those from ``second`` on: Concat, Split, Slice and Pad."""

    first: int
    second: int
    length: int

    def pairs(self) -> tuple[IntArray, IntArray]:
        """Return the two runs."""
        run = np.arange(self.length, dtype=np.int64)
        return run + self.first, run + self.second


@dataclass(frozen=True, eq=False)
class Pick(Map):
    """Position ``indices[i]`` of the first axis is position ``i`` of the second: Gather."""

    indices: IntArray

    def pairs(self) -> tuple[IntArray, IntArray]:
        """Return the indices, and a count."""
        return self.indices, np.arange(len(self.indices), dtype=np.int64)


@dataclass(frozen=True)
class Digit(Map):
    """Position ``p`` of the first axis, which has ``total``, is ``(p // stride) % size`` of the second.

    One digit of a number: what Reshape does, the repetition in a depthwise multiplier, or the place in a group.
    """

    total: int
    stride: int
    size: int

    def pairs(self) -> tuple[IntArray, IntArray]:
        """Return a count, and the digit."""
        run = np.arange(self.total, dtype=np.int64)
        return run, run // self.stride % self.size


@dataclass(frozen=True)
class First(Map):
    """Each run of ``length`` positions out of ``total`` goes with its first: channels that share statistics."""

    total: int
    length: int

    def pairs(self) -> tuple[IntArray, IntArray]:
        """Return a count, and the start of the run."""
        run = np.arange(self.total, dtype=np.int64)
        return run, run // self.length * self.length


@dataclass(frozen=True)
class Tie:
    """Two axes (by number) whose positions go together; ``pairs`` tells which."""

    first: int
    second: int
    pairs: tuple[IntArray, IntArray]


@dataclass(frozen=True)
class Split:
    """An axis whose position is a number of several digits, the ``parts``, outer before inner: only one can shrink."""

    node: Node
    whole: int
    parts: tuple[int, ...]


@dataclass(frozen=True)
class PinnedAxis:
    """A pin on an axis by number; ``positions`` are the pinned ones, ``None`` for all."""

    axis: int
    why: str
    node: Node | None
    positions: IntArray | None = None


@dataclass(frozen=True)
class Role:
    """A weight axis (by number) that a layer writes its outputs from, or that it sums its inputs over."""

    node: Node
    axis: int
    writes: bool


@dataclass(eq=False)
class Ties:
    """What is known of all axes, numbered in the order in which nodes first touch them.

    Only axes of a known size above 1 have a number: the others cannot shrink. ``fixed`` are the values that are
    computed from constants alone; ``operands`` are known although they are computed from shapes. ``same`` are pairs of
    axes that are the same position by position. ``heads`` are axes over which a product of two computed operands is
    repeated, ``contracted`` those that it sums over, ``normalized`` those over which statistics are taken.
    """

    sizes: ShapeValues
    version: int
    fixed: set[Value] = field(default_factory=set)
    operands: dict[tuple[Node, int], tuple[int, ...]] = field(default_factory=dict)
    axes: list[Axis | None] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    same: list[tuple[int, int]] = field(default_factory=list)
    ties: list[Tie] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    pins: list[PinnedAxis] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    contracted: list[int] = field(default_factory=list)
    normalized: list[int] = field(default_factory=list)
    _numbers: dict[Value, tuple[int | None, ...]] = field(default_factory=dict)
    _dims: dict[Value, tuple[int | None, ...] | None] = field(default_factory=dict)
    _mentioned: set[int] = field(default_factory=set)

    def dims(self, value: Value | None) -> tuple[int | None, ...] | None:
        """Return the sizes of ``value``, ``None`` for each that is not known; ``None`` when the rank is not."""
        if value is None:
            return None
        # Looked up at once: this is asked for several times for every axis.
        try:
            return self._dims[value]
        except KeyError:
            found = self._dims[value] = self._look_up(value)
            return found

    def _look_up(self, value: Value) -> tuple[int | None, ...] | None:
        tensor = tensor_of(value)
        if tensor is not None:
            return tuple(dims_of(tensor))
        shape = shape_of(value)
        if shape is not None and all(isinstance(dim, int) for dim in shape):
            return tuple(dim if isinstance(dim, int) else None for dim in shape)
        found = self.sizes.sizes(value)
        return None if found is None else tuple(size.value for size in found)

    def rank(self, value: Value | None) -> int:
        """Return the number of axes; 0 for a value that is left out or of which nothing is known."""
        return len(self.dims(value) or ())

    def size(self, place: Place) -> int | None:
        """Return the size of an axis, ``None`` when it is not known or there is no such axis."""
        value, axis = place
        dims = self.dims(value)
        return dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None

    def integers(self, value: Value | None) -> list[int] | None:
        """Return the elements of a small integer tensor, constant or computed from sizes; ``None`` when not known."""
        found = self.sizes.elements(value)
        return None if found is None else found.known

    def array(self, value: Value | None) -> NDArray[Any] | None:
        """Return a constant, or a small integer tensor computed from sizes; ``None`` when neither."""
        found = constant(value)
        known = self.integers(value) if found is None else None
        if known is None:
            return found
        return np.asarray(known, dtype=np.int64).reshape(() if self.rank(value) == 0 else -1)

    def is_computed(self, value: Value | None) -> bool:
        """Tell whether a value hangs on the inputs of the model."""
        return value is not None and value not in self.fixed and not is_constant(value)

    def _is_known(self, value: Value | None) -> bool:
        return not self.is_computed(value) or self.integers(value) is not None

    def number(self, place: Place) -> int | None:
        """Return the number of an axis; ``None`` for one that cannot shrink: of size 1, of unknown size, or absent."""
        value, axis = place
        numbers = self._all_numbers(value) if value is not None else ()
        return numbers[axis] if -len(numbers) <= axis < len(numbers) else None

    def _all_numbers(self, value: Value) -> tuple[int | None, ...]:
        numbers = self._numbers.get(value)
        if numbers is None:
            dims = enumerate(self.dims(value) or ())
            numbers = tuple(self._new(Axis(value, axis), size) if size is not None and size > 1 else None
                            for axis, size in dims)  # fmt: skip
            self._numbers[value] = numbers
        return numbers

    def inner(self, size: int) -> int:
        """Return the number of a new axis of no value: a digit that two reshaped axes share."""
        return self._new(None, size)

    def _new(self, axis: Axis | None, size: int) -> int:
        self.axes.append(axis)
        self.lengths.append(size)
        return len(self.axes) - 1

    def tie(self, node: Node, first: Place, second: Place, by: Map | None = None) -> None:
        """Write down that positions of two axes go together, all in order where ``by`` is left out."""
        one, two = self.number(first), self.number(second)
        if one is None and two is None:
            return
        pairs = None if by is None else by.pairs()
        if one is None or two is None:
            number, positions = (two, pairs and pairs[1]) if one is None else (one, pairs and pairs[0])
            assert number is not None
            self._pin(number, f"the axis it meets {self._lack(first if one is None else second)}", node, positions)
            return
        self._mentioned.update((one, two))
        if pairs is not None:
            self.ties.append(Tie(one, two, pairs))
        elif self.lengths[one] == self.lengths[two]:
            self.same.append((one, two))
        else:
            for number in (one, two):
                self._pin(number, "the axis it meets has another size", node)

    def _lack(self, place: Place) -> str:
        size = self.size(place)
        return "is of unknown size" if size is None else f"has size {size}"

    def tie_numbers(self, first: int, second: int) -> None:
        """Write down that two axes given by number are the same."""
        self._mentioned.update((first, second))
        self.same.append((first, second))

    def split(self, node: Node, whole: int, parts: Sequence[int]) -> None:
        """Write down that positions of ``whole`` are numbers with the digits ``parts``, outer before inner."""
        self._mentioned.update((whole, *parts))
        self.splits.append(Split(node, whole, tuple(parts)))

    def pin(self, node: Node | None, place: Place, why: str, positions: Sequence[int] | None = None) -> None:
        """Write down that an axis, or some positions of it, cannot shrink."""
        number = self.number(place)
        if number is not None:
            self._pin(number, why, node, None if positions is None else np.asarray(positions, dtype=np.int64))

    def _pin(self, number: int, why: str, node: Node | None, positions: IntArray | None = None) -> None:
        self._mentioned.add(number)
        self.pins.append(PinnedAxis(number, why, node, positions))

    def free(self, place: Place) -> None:
        """Write down that the node does not mind what becomes of an axis: it sums over it."""
        number = self.number(place)
        if number is not None:
            self._mentioned.add(number)

    def writes(self, node: Node, place: Place) -> None:
        """Write down that a layer's outputs come from this axis of its weight."""
        self._role(node, place, writes=True)

    def reads(self, node: Node, place: Place) -> None:
        """Write down that a layer sums over this axis of its weight."""
        self._role(node, place, writes=False)

    def _role(self, node: Node, place: Place, *, writes: bool) -> None:
        number = self.number(place)
        if number is not None:
            self.roles.append(Role(node, number, writes))

    def mark(self, marked: list[int], place: Place) -> None:
        """Add an axis to ``heads``, ``contracted`` or ``normalized``."""
        number = self.number(place)
        if number is not None:
            marked.append(number)

    def close(self, node: Node, why: str) -> None:
        """Pin all axes of the node's values that its rule said nothing of."""
        stated = () if node.domain else OPERANDS.get(node.op_type, ())
        data = [value for index, value in enumerate(node.inputs) if index not in stated or not self._is_known(value)]
        for value in (*data, *node.outputs):
            for number in () if value is None else self._all_numbers(value):
                if number is not None and number not in self._mentioned:
                    self._pin(number, why, node)
        self._mentioned.clear()

    def places(self, value: Value) -> Iterator[Place]:
        """Yield the axes of a value."""
        for axis in range(self.rank(value)):
            yield value, axis
