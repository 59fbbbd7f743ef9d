"""Pruning as a whole: rank units, choose under a budget, rewire, and refit what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Channels, Group
from graphopt.analysis.cost import Cost
from graphopt.errors import UsageError
from graphopt.ir import Editor, Model, Node
from graphopt.pruning import activations, budget, importance
from graphopt.pruning.choose import Limits, Removed, by_scores, choose, keep_fraction
from graphopt.pruning.costs import CostModel
from graphopt.pruning.effects import Ranking, Runs, rank
from graphopt.pruning.jobs import Declined
from graphopt.pruning.recovery import Refit, recover
from graphopt.pruning.rewire import remove
from graphopt.pruning.timed import seconds_of
from graphopt.quantization.measured import Timer

OBS = "obs"
"""Optimal-brain-surgeon elimination: what the layers that read a group cannot make up for."""

_MEASURING = 1e12
"""Multiply-accumulates that may be spent on finding out what cuts do to the outputs."""

_FEWEST, _MOST = 4, 256
"""Samples that this is found out on."""

_MOST_REASONS = 20
"""Reasons listed of a model with nothing to prune."""

Kept = dict[str, dict[int, NDArray[np.int64]]]


@dataclass(frozen=True)
class Budget:
    """``share`` of the ``kind`` of cost (macs, params, latency, channels) is to stay at most.

    ``together`` spends it where that costs the outputs least; otherwise every group loses the same share.
    """

    kind: str
    share: float
    together: bool

    def costs(self, model: Model, groups: Sequence[Group], timer: Timer | None = None) -> CostModel:
        """Return the cost of ``model`` by what its groups keep. Raises UsageError for seconds without a ``timer``."""
        if self.kind == "macs":
            return budget.macs(model, groups)
        if self.kind == "params":
            return budget.parameters(model, groups)
        if self.kind == "channels":
            return budget.channels(groups)
        if timer is None:
            raise UsageError("nothing here can measure latency")
        return budget.latency(model, groups, *seconds_of(model, timer))


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


@dataclass(frozen=True)
class Choice:
    """What ``ranked`` units are to go so that ``share`` of the ``costs`` stays at most."""

    wanted: Budget
    ranked: Sequence[Ranking]
    costs: CostModel
    limits: Limits
    share: float

    def removed(self, factor: float = 1.0, staying: Collection[int] = ()) -> Removed:
        """Return the units that go, none of the groups ``staying``, by index, for ``factor`` times the share.

        Raises OutOfReachError.
        """
        limits = replace(self.limits, floors={**self.limits.floors, **dict.fromkeys(staying, 1.0)})
        share = min(1.0, self.share * factor)
        if self.wanted.kind == "channels" and not self.wanted.together:
            return keep_fraction(self.ranked, share, limits)
        return choose(self.ranked, self.costs, share, limits, together=self.wanted.together)


def computed(analysis: Channels) -> dict[Node, str]:
    """Return the nodes at which channels are held up by what is computed and could be constant, and what that is."""
    return {pin.node: pin.why for pin in analysis.pins if pin.node is not None and pin.why.endswith("computed")}


def reasons(analysis: Channels) -> str:
    """Return why nothing of a model can be pruned, the most frequent reasons first."""
    found = Counter(pin.why for pin in analysis.pins)
    listed = "; ".join(f"{why} ({count})" for why, count in found.most_common(_MOST_REASONS))
    return listed or "no layer has weights with channels"
