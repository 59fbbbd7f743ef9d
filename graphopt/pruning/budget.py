"""What may go of each group, and what is left of the network's cost then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Group
from graphopt.analysis.cost import Cost
from graphopt.ir import Model, Node, Value, constant, nodes
from graphopt.pruning.costs import CostModel
from graphopt.pruning.selection import Curve

_MANY = 16
"""Groups of fewer vectors than this are aligned to a part of one."""

_QUANTUM = 4
"""Channels in which the kernels of CPUs count: others take a slower one (measured on onnxruntime's blocked Conv)."""


def macs(model: Model, groups: Sequence[Group]) -> CostModel:
    """Return how many multiply-accumulates the layers with constant weights take."""
    cost = Cost.measure(model)
    weights = {value for group in groups for member in group.members for value in [member.axis.value]}
    shares: dict[Value, float] = {}
    fixed = 0.0
    for node, count in cost.macs.items():
        own = next((value for value in node.inputs[1:2] if value in weights), None)
        if own is None:
            fixed += count
        else:
            shares[own] = shares.get(own, 0.0) + count
    return CostModel.of(groups, shares, fixed)


def parameters(model: Model, groups: Sequence[Group]) -> CostModel:
    """Return how many elements the constants have."""
    sizes: dict[Value, float] = {}
    for group in groups:
        for member in group.members:
            array = constant(member.axis.value)
            if array is not None:
                sizes[member.axis.value] = float(array.size)
    return CostModel.of(groups, sizes, Cost.measure(model).parameters - sum(sizes.values()))


def channels(groups: Sequence[Group]) -> CostModel:
    """Return how many units there are."""
    index = np.arange(len(groups))
    share = np.array([1.0 / group.units for group in groups])
    sizes = np.array([float(group.units) for group in groups])
    return CostModel(sizes, 0.0, index, index, np.array([group.index for group in groups], np.int64), share)


def alignment(units: int, align: int) -> int:
    """Return what the number of units that stay is to be a multiple of, ``align`` being the width of a vector.

    A group of few vectors would lose a large part of itself, or nothing, with every step: a quarter of a vector is
    enough there, four channels at least, which cost no more than what they are padded to.
    """
    if align <= 1 or units < 2 * _QUANTUM:
        return 1
    return align if units >= _MANY * align else min(align, max(_QUANTUM, align // 4))


def levels(group: Group, align: int, least: int) -> NDArray[np.int64]:
    """Return how many units of a group may go, rising from 0."""
    step = int(np.lcm(alignment(group.units, align), group.multiple))
    stays = np.arange(step, group.units, step)
    gone = group.units - stays[stays >= min(least, group.units)]
    return np.sort(np.append(gone, 0)).astype(np.int64)


def thinned(curve: Curve, allowed: NDArray[np.int64], most: int = 64) -> Curve:
    """Return the curve at the numbers ``allowed`` alone, at most ``most`` of them."""
    reach = allowed[allowed < len(curve.removed)]
    if len(reach) > most:
        reach = reach[np.unique(np.linspace(0, len(reach) - 1, most).round().astype(int))]
    return Curve(curve.group, curve.removed[reach], curve.losses[reach])


def latency(model: Model, groups: Sequence[Group], seconds: Mapping[Node, float], whole: float) -> CostModel:
    """Return the seconds of the layers with constant weights, out of the ``whole`` that the network takes."""
    weights = {member.axis.value for group in groups for member in group.members}
    shares: dict[Value, float] = {}
    for node in nodes(model):
        own = next((value for value in node.inputs[1:2] if value in weights), None)
        if own is not None and node in seconds:
            shares[own] = shares.get(own, 0.0) + seconds[node]
    return CostModel.of(groups, shares, max(whole - sum(shares.values()), 0.0))
