"""What the channel-dependency analysis speaks of: axes, the groups that lie on them, and why some are pinned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graphopt.ir import Node, Value

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Axis(NamedTuple):
    """One axis of a value: an activation, an initializer or the output of a Constant node."""

    value: Value
    axis: int
    """Never negative."""


@dataclass(frozen=True, eq=False)
class Member:
    """How a group lies on one axis: position ``positions[i]`` of it belongs to unit ``units[i]`` of the group.

    Both are int64 arrays of the same length, ``positions`` rising. A unit may own several positions of an axis: a
    head its dimensions, a channel its pixels behind Flatten. Positions that are in no member are not the group's.
    """

    axis: Axis
    positions: IntArray
    units: IntArray


class Use(NamedTuple):
    """A layer whose weight has a group on one of its axes."""

    node: Node
    member: Member
    """How the group lies on that axis of the weight."""


@dataclass(frozen=True, eq=False)
class Group:
    """Units (channels, neurons, heads) that touch the same axes in the same way; each can be removed on its own.

    At least one unit has to stay. ``members`` are in the order of the graph and include the weights, which are what
    shrinks. ``writers`` are the layers whose weights produce the units, a depthwise convolution among them; ``readers``
    those whose weights sum over them. ``parameters`` is the number of weights that the removal of one unit saves, the
    other groups left as they are. ``normalized`` tells that a LayerNormalization or RMSNormalization takes its
    statistics over the units, so that what it computes changes with the units that stay. The number of units that stay
    must be a multiple of ``multiple``.
    """

    index: int
    units: int
    members: tuple[Member, ...]
    writers: tuple[Use, ...] = ()
    readers: tuple[Use, ...] = ()
    parameters: int = 0
    normalized: bool = False
    multiple: int = 1


@dataclass(frozen=True)
class Pin:
    """Why an axis cannot be pruned, or some positions of it: ``node`` is what fixes it, ``None`` for the interface."""

    axis: Axis
    why: str
    node: Node | None = None
