"""Pruning as a whole: rank units, choose under a budget, rewire, and refit what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Channels, Group
from graphopt.analysis.cost import Cost
from graphopt.ir import Editor, Model
from graphopt.pruning import activations, budget, importance
from graphopt.pruning.choose import Limits, Removed, by_scores, choose, keep_fraction
from graphopt.pruning.costs import CostModel
from graphopt.pruning.effects import Ranking, Runs, rank
from graphopt.pruning.jobs import Declined
from graphopt.pruning.recovery import Refit, recover
from graphopt.pruning.rewire import remove

OBS = "obs"
"""Optimal-brain-surgeon elimination: what the layers that read a group cannot make up for."""

_MEASURING = 2e12
"""Multiply-accumulates that may be spent on finding out what cuts do to the outputs."""

_FEWEST, _MOST = 16, 256
"""Samples that this is found out on."""

Kept = dict[str, dict[int, NDArray[np.int64]]]


@dataclass(frozen=True)
class Budget:
    """``share`` of the ``kind`` of cost (macs, params, channels, seconds) is to stay at most.

    ``together`` spends it where that costs the outputs least; otherwise every group loses the same share.
    """

    kind: str
    share: float
    together: bool

    def costs(self, model: Model, groups: Sequence[Group], seconds: Mapping[str, float] | None = None) -> CostModel:
        """Return the cost of ``model`` by what its groups keep; ``seconds`` are those of nodes, by name."""
        if self.kind == "macs":
            return budget.macs(model, groups)
        if self.kind == "params":
            return budget.parameters(model, groups)
        return budget.channels(groups) if seconds is None else budget.latency(model, groups, seconds)


def rankings(model: Model, groups: Sequence[Group], criterion: str, runner: Runs | None) -> list[Ranking]:
    """Rank the units of each group by ``criterion``; groups that it can tell nothing of are left out."""
    if criterion in importance.CRITERIA or runner is None:
        return [by_scores(group, importance.scores(group, criterion)) for group in groups]
    if criterion == OBS:
        return rank(model, groups, runner, samples=measuring_samples(model, groups))
    found = activations.scores(model, groups, criterion, runner)
    return [by_scores(group, found[group.index]) for group in groups if group.index in found]


def measuring_samples(model: Model, groups: Sequence[Group]) -> int:
    """Return how many samples cuts are measured on: fewer for networks that take long."""
    macs = max(Cost.measure(model).total_macs, 1)
    # Three cuts a group, and on average half of the network is run for each.
    wanted = _MEASURING / (1.5 * macs * max(len(groups), 1))
    return int(np.clip(wanted, _FEWEST, _MOST))


@dataclass
class History:
    """The network before anything was removed, and what has been removed of its values since."""

    original: Model
    kept: Kept = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> History:
        """Keep ``model`` as it is now."""
        copy = model.clone()
        copy.meta.update(model.meta)
        return cls(copy)

    def remove(self, model: Model, edit: Editor, analysis: Channels, removed: Removed) -> int:
        """Take units out of ``model`` and return how many parameters that saved."""
        shrunk = remove(model, edit, analysis, removed)
        for value, axes in shrunk.kept.items():
            mine = self.kept.setdefault(str(value.name), {})
            for axis, stays in axes.items():
                left = np.flatnonzero(stays)
                mine[axis] = mine[axis][left] if axis in mine else left
        return shrunk.parameters

    def recover(self, model: Model, edit: Editor, runner: Runs, declined: Declined) -> list[Refit]:
        """Refit ``model`` to what the original gave; ``declined`` is told of layers that are left as they are."""
        return recover(self.original, model, edit, self.kept, runner, declined=declined)


def pick(ranked: Sequence[Ranking], limits: Limits, wanted: Budget, costs: CostModel, share: float) -> Removed:
    """Return the units that go so that ``share`` of the costs stays at most. Raises OutOfReachError."""
    if wanted.kind == "channels" and not wanted.together:
        return keep_fraction(ranked, share, limits)
    return choose(ranked, costs, share, limits, together=wanted.together)
