"""How much each unit of a group matters, told from the weights alone.

A criterion gives one number a unit for one weight. The rule for adding up over a group, the same for all: each weight's
numbers are divided by their mean over the units, so that a layer with large weights says no more than one with small
ones, and the mean is taken over the weights. A unit that matters as much as the others so gets 1, in every group.

The weights that count are those that produce the units (``Group.writers``); where none does, as for the channels of
an embedding, those that read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Group, Member
from graphopt.ir import Node, constant

Scores = NDArray[np.float64]
"""One number a unit, float64[units]; the lowest go first."""

_NORMALIZATIONS = ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
_MOST_PAIRS = 1 << 24
"""Elements of a block of distances between filters."""


def scores(group: Group, criterion: str) -> Scores:
    """Return what the units of ``group`` are worth by a criterion of :data:`CRITERIA`, 1.0 on average.

    bn falls back on l1 for a group that no normalization scales.
    """
    return CRITERIA[criterion](group)


def l1(group: Group) -> Scores:
    """Sum of the absolute weights of a unit."""
    found = [_by_unit(np.abs(rows).sum(axis=1, dtype=np.float64), m, group) for m, rows in _filters(group)]
    return _added(found, group)


def l2(group: Group) -> Scores:
    """Euclidean norm of the weights of a unit."""
    found = [np.sqrt(_by_unit(_squares(rows), m, group)) for m, rows in _filters(group)]
    return _added(found, group)


def geometric_median(group: Group) -> Scores:
    """Sum of the distances from a unit's filter to all others of the layer: what is close to the rest can be spared."""
    return _added([_by_unit(_distances(rows), member, group) for member, rows in _filters(group)], group)


def normalization_scale(group: Group) -> Scores:
    """Absolute scale that normalizations give a unit; l1 where there is none."""
    found = []
    for member in group.members:
        scale = constant(member.axis.value)
        if scale is not None and scale.ndim == 1 and _is_scale(member):
            found.append(_by_unit(np.abs(scale.astype(np.float64))[member.positions], member, group))
    return _added(found, group) if found else l1(group)


CRITERIA: Mapping[str, Callable[[Group], Scores]] = {
    "l1": l1,
    "l2": l2,
    "bn": normalization_scale,
    "fpgm": geometric_median,
}
"""The criteria that need no data, by the name they have as an option."""


def _added(found: Sequence[Scores], group: Group) -> Scores:
    """Return the mean over weights of each weight's numbers over their own mean (see the module's text)."""
    relative = [numbers / mean for numbers in found if (mean := numbers.mean()) > 0]
    return np.mean(relative, axis=0) if relative else np.ones(group.units)


def _by_unit(numbers: Scores, member: Member, group: Group) -> Scores:
    """Add up what the positions of each unit are worth."""
    sums = np.zeros(group.units)
    np.add.at(sums, member.units, numbers)
    return sums


def _filters(group: Group) -> list[tuple[Member, NDArray[Any]]]:
    """Return, for each layer that counts, the weights at each position of the group: [positions, rest], as stored."""
    found = []
    for use in group.writers or group.readers:
        weight = constant(use.member.axis.value)
        if weight is not None:
            rows = np.moveaxis(weight, use.member.axis.axis, 0)
            rows = rows if len(rows) == len(use.member.positions) else rows[use.member.positions]
            found.append((use.member, rows.reshape(len(rows), -1)))
    return found


def _squares(rows: NDArray[Any]) -> Scores:
    """Return the sum of squares of each row, added up in float64 without a copy."""
    sums: Scores = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return sums


def _distances(rows: NDArray[Any]) -> Scores:
    """Return the sum of Euclidean distances from each row to all rows, in blocks of rows."""
    norms, filters = _squares(rows), rows.astype(np.float64)
    size = max(1, _MOST_PAIRS // len(filters))
    sums = []
    for first in range(0, len(filters), size):
        block = filters[first : first + size]
        squares = norms[first : first + size, None] + norms[None, :] - 2 * block @ filters.T
        sums.append(np.sqrt(np.maximum(squares, 0.0)).sum(axis=1))
    return np.concatenate(sums)


def _is_scale(member: Member) -> bool:
    return any(_scales(use.node, use.idx) for use in member.axis.value.uses())


def _scales(node: Node, index: int) -> bool:
    return node.op_type in _NORMALIZATIONS and index == 1
