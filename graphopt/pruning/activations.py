"""How much each unit of a group matters, told from what flows through it.

As with the criteria that read weights alone (:mod:`graphopt.pruning.importance`), the numbers of each layer are divided
by their mean over the units, and the mean is taken over the layers that read the group: 1 is average in every group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Group, Use
from graphopt.analysis.taps import Tap
from graphopt.ir import Model
from graphopt.pruning.effects import Runs, columns_of, readers_in, waves
from graphopt.quantization.layers import LayerMatrix

Scores = NDArray[np.float64]

CRITERIA = ("energy", "entropy")
"""The criteria that need data only to see activations, by the name they have as an option."""

_BINS = 16
_PART = 16


def scores(model: Model, groups: Sequence[Group], criterion: str, runner: Runs) -> dict[int, Scores]:
    """Return what the units of each group are worth, by the group's index; groups that no layer reads are left out.

    energy: the power that a unit's weights and activations bring into the layers that read it, each for itself.
    entropy: how evenly a unit's mean activations are spread over the samples: what is always the same tells nothing.
    """
    return _energy(model, groups, runner) if criterion == "energy" else _entropy(model, groups, runner)


def _energy(model: Model, groups: Sequence[Group], runner: Runs) -> dict[int, Scores]:
    found = {}
    for bundle in waves(groups):
        uses = {group.index: readers_in(group) for group in bundle}
        requests = dict.fromkeys(LayerMatrix.of(use.node).gram() for some in uses.values() for use in some)
        statistics = runner.collect(model, list(requests))
        for group in bundle:
            rows = []
            for use in uses[group.index]:
                layer = LayerMatrix.of(use.node)
                power = np.diagonal(statistics[layer.gram()].second, axis1=1, axis2=2)
                weights = layer.rows(layer.array).astype(np.float64).reshape(layer.groups, -1, layer.width)
                columns = np.sqrt((weights**2).sum(axis=1) * power).sum(axis=0)
                rows.append(columns[columns_of(use, group.units)].sum(axis=1))
            if rows:
                found[group.index] = _added(rows)
    return found


def _entropy(model: Model, groups: Sequence[Group], runner: Runs) -> dict[int, Scores]:
    uses = {group.index: readers_in(group) for group in groups}
    names = dict.fromkeys(str(use.node.inputs[0].name) for some in uses.values() for use in some if use.node.inputs[0])
    means: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    axes = {str(use.node.inputs[0].name): _axis(use) for some in uses.values() for use in some if use.node.inputs[0]}
    for (values,) in runner.trace([Tap(model, tuple(names))], samples=_PART):
        for name, array in values.items():
            moved = np.moveaxis(np.asarray(array, np.float64), axes[name] % array.ndim, -1)
            means[name].append(moved.reshape(moved.shape[0], -1, moved.shape[-1]).mean(axis=1))
    found = {}
    for group in groups:
        rows = []
        for use in uses[group.index]:
            spread = _spread(np.concatenate(means[str(use.node.inputs[0].name)] if use.node.inputs[0] else []))
            sums = np.zeros(group.units)
            np.add.at(sums, use.member.units, spread[use.member.positions % len(spread)])
            rows.append(sums)
        if rows:
            found[group.index] = _added(rows)
    return found


def _axis(use: Use) -> int:
    return 1 if use.node.op_type == "Conv" else -1


def _spread(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each column's histogram, in nats."""
    low, high = samples.min(axis=0), samples.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    bins = np.minimum((samples - low) / width * _BINS, _BINS - 1).astype(np.int64)
    counts = np.stack([(bins == index).mean(axis=0) for index in range(_BINS)])
    return np.asarray(-(counts * np.log(np.where(counts > 0, counts, 1.0))).sum(axis=0))


def _added(rows: Sequence[Scores]) -> Scores:
    relative = [numbers / mean for numbers in rows if (mean := numbers.mean()) > 0]
    return np.asarray(np.mean(relative, axis=0) if relative else np.ones(len(rows[0])))
