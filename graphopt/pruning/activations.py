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
from graphopt.errors import UsageError
from graphopt.ir import Model, attr
from graphopt.ir.query import static_shape
from graphopt.pruning.effects import Runs, columns_of, readers_in, waves
from graphopt.quantization.layers import LayerMatrix

Scores = NDArray[np.float64]

CRITERIA = ("energy", "entropy")
"""The criteria that need data only to see activations, by the name they have as an option."""

_Place = tuple[str, int]

_AXES = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}
"""Along which axis of its input a layer sums over channels."""

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
                gram = statistics.get(layer.gram())
                if gram is None:
                    continue  # empty for all of the data
                power = np.diagonal(gram.second, axis1=1, axis2=2)
                weights = layer.rows(layer.array).astype(np.float64).reshape(layer.groups, -1, layer.width)
                columns = np.sqrt((weights**2).sum(axis=1) * power).sum(axis=0)
                rows.append(columns[columns_of(use, group.units)].sum(axis=1))
            if rows:
                found[group.index] = _added(rows)
    return found


def _entropy(model: Model, groups: Sequence[Group], runner: Runs) -> dict[int, Scores]:
    uses = {group.index: [use for use in group.readers if use.node.op_type in _AXES] for group in groups}
    means: dict[_Place, list[NDArray[np.float64]]] = {_place(use): [] for some in uses.values() for use in some}
    names = tuple(dict.fromkeys(name for name, _ in means))
    for (values,) in runner.trace([Tap(model, names)], samples=_PART):
        for (name, axis), parts in means.items():
            parts.append(_means(values[name], name, axis))
    found = {}
    for group in groups:
        rows = []
        for use in uses[group.index]:
            # What a grouped convolution has at one place of its weights it reads from each of its groups.
            size = (static_shape(use.member.axis.value) or ())[use.member.axis.axis]
            spread = _spread(np.concatenate(means[_place(use)])).reshape(-1, size).sum(axis=0)
            sums = np.zeros(group.units)
            np.add.at(sums, use.member.units, spread[use.member.positions])
            rows.append(sums)
        if rows:
            found[group.index] = _added(rows)
    return found


def _place(use: Use) -> _Place:
    """Return the name of what the layer reads, and the axis that it sums over."""
    data = use.node.inputs[0]
    turned = use.node.op_type == "Gemm" and attr(use.node, "transA", 0)
    return str(data.name) if data is not None else "", 0 if turned else _AXES[use.node.op_type]


def _means(array: NDArray[np.generic], name: str, axis: int) -> NDArray[np.float64]:
    """Return the means [samples, channels] over all other axes; without an axis of samples there is one."""
    channels_last = np.moveaxis(np.atleast_2d(np.asarray(array, np.float64)), axis, -1)
    found = channels_last.mean(axis=tuple(range(1, channels_last.ndim - 1))) if channels_last.size else channels_last
    found = found.reshape(-1, channels_last.shape[-1])
    if not np.isfinite(found).all():
        raise UsageError(
            f"the value {name!r} becomes NaN or infinite",
            hint="the model overflows on this data; leave out the inputs that make it, or mend the model",
        )
    return np.asarray(found)


def _spread(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each column's histogram, in nats; without samples nothing is told by any."""
    if not len(samples):
        return np.zeros(samples.shape[1])
    low, high = samples.min(axis=0), samples.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    bins = np.minimum((samples - low) / width * _BINS, _BINS - 1).astype(np.int64)
    counts = np.stack([(bins == index).mean(axis=0) for index in range(_BINS)])
    return np.asarray(-(counts * np.log(np.where(counts > 0, counts, 1.0))).sum(axis=0))


def _added(rows: Sequence[Scores]) -> Scores:
    relative = [numbers / mean for numbers in rows if (mean := numbers.mean()) > 0]
    return np.asarray(np.mean(relative, axis=0) if relative else np.ones(len(rows[0])))
