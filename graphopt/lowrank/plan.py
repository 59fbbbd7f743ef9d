"""Which layers are split, in which form and at which ranks: by a budget, or layer by layer, and by what is faster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphopt.lowrank.forms import Candidate
from graphopt.lowrank.select import Option, choose
from graphopt.lowrank.sites import Site
from graphopt.lowrank.speed import WORTH, Clock, Times
from graphopt.lowrank.ways import Way
from graphopt.pruning.selection import OutOfReachError

BUDGETS = ("macs", "params", "latency")
"""What a budget of the whole can be of."""

_EXACT = 1e-12
"""What rounding may make of a number that was 1 minus another."""

_TRUSTS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""How far to go from a layer's own error to what the outputs were seen to lose: as an exponent, so many choices."""

_CLEARLY = 0.9
"""Share of what the choice by the measured losses loses that another may lose to be taken: the rest may be chance."""

_TRIALS = 4
"""How often a choice is timed, and made again without what was slow, at most."""


@dataclass(frozen=True)
class Goal:
    """``share`` of the ``kind`` is to stay at most: of all of the model (BUDGETS), or of each layer ("ratio").

    For "energy" it is the least share of each layer's output that stays. ``whole`` is what the model costs;
    ``of_layers`` makes a budget a share of what the sites cost.
    """

    kind: str
    share: float
    whole: float = 0.0
    of_layers: bool = False

    @property
    def is_budget(self) -> bool:
        """Whether there is one budget for all layers."""
        return self.kind in BUDGETS


@dataclass
class Plan:
    """The candidates ``chosen``; ``slow`` holds the least time, over the layer's own, of sites not split for that.

    ``times`` are those of the sites chosen, over the layer's own, measured or by the model of costs. ``ratio`` is the
    time of the whole model over that before, as timed with random weights, None when it was not.
    """

    chosen: dict[Site, Candidate] = field(default_factory=dict)
    slow: dict[Site, float] = field(default_factory=dict)
    times: dict[Site, float] = field(default_factory=dict)
    ratio: float | None = None


Choice = dict[Site, Candidate]

Measure = Callable[[Sequence[Choice]], Sequence[float]]
"""Tells what the outputs lose by each of some choices."""


@dataclass
class Planner:
    """Chooses among the ``ways`` of each site. ``times`` tells which are slow (None: take any).

    Where several choices meet a budget, ``measure`` tells which to take (None: that by the ways' losses).
    """

    ways: Mapping[Site, Sequence[Way]]
    goal: Goal
    times: Times | None
    measure: Measure | None = None
    _trusts: Sequence[float] = _TRUSTS

    def plan(self, clock: Clock | None) -> Plan:
        """Return the choice, timed as a whole by ``clock`` and corrected where it is slow. Raises OutOfReachError."""
        plan, barred = Plan(), dict[tuple[Site, str], int]()
        for _ in range(_TRIALS):
            plan.chosen = self._choice(barred)
            slow = clock.slow(plan.chosen) if clock is not None and plan.chosen else {}
            for site, ratio in slow.items():
                candidate = plan.chosen.pop(site)
                barred[site, candidate.form] = candidate.macs
                plan.slow[site] = min(ratio, plan.slow.get(site, ratio))
            if not slow:
                break
        for site, ways in self.ways.items():
            if ways and self.times is not None and not self._fast(site, ways, barred):
                best = min(self.times.ratio(site, way.candidate) for way in ways)
                plan.slow[site] = max(best, plan.slow.get(site, best))
        plan.slow = {site: ratio for site, ratio in plan.slow.items() if site not in plan.chosen}
        if self.times is not None:
            plan.times = {site: self.times.ratio(site, item) for site, item in plan.chosen.items()}
        if clock is not None and plan.chosen:
            plan.ratio = clock.ratio(plan.chosen)
        return plan

    def _choice(self, barred: Mapping[tuple[Site, str], int]) -> Choice:
        fast = {site: self._fast(site, ways, barred) for site, ways in self.ways.items()}
        if self.goal.is_budget:
            return self._best_by_budget(fast)
        found = {site: self._alone(site, ways) for site, ways in fast.items()}
        return {site: candidate for site, candidate in found.items() if candidate is not None}

    def _fast(self, site: Site, ways: Sequence[Way], barred: Mapping[tuple[Site, str], int]) -> list[Way]:
        """Return the ways that are worth it: not those of as many operations as one that was found to be slow."""
        return [
            way
            for way in ways
            if way.candidate.macs < barred.get((site, way.candidate.form), way.candidate.macs + 1)
            and (self.times is None or self.times.ratio(site, way.candidate) <= WORTH)
        ]

    def _best_by_budget(self, fast: Mapping[Site, Sequence[Way]]) -> Choice:
        """Return the choice measured to lose clearly least, or the first; from then on, others are made as that was."""
        choices: dict[float, Choice] = {}
        for trust in self._trusts if self.measure is not None else _TRUSTS[:1]:
            choice = self._by_budget(fast, trust)
            if choice not in choices.values():
                choices[trust] = choice
        if len(choices) > 1 and self.measure is not None:
            losses = dict(zip(choices, self.measure(list(choices.values())), strict=True))
            first, best = self._trusts[0], min(losses, key=losses.__getitem__)
            self._trusts = (best if losses[best] <= _CLEARLY * losses[first] else first,)
            return choices[self._trusts[0]]
        return next(iter(choices.values()))

    def _by_budget(self, fast: Mapping[Site, Sequence[Way]], trust: float) -> Choice:
        options = [
            [
                Option(self._cost(site, None), 0.0),
                *(Option(self._cost(site, way.candidate), _expected(way, trust)) for way in ways),
            ]
            for site, ways in fast.items()
        ]
        mine = sum(of_site[0].cost for of_site in options)
        whole = mine if self.goal.of_layers else self.goal.whole
        try:
            indices = choose(options, self.goal.share * whole - (whole - mine))
        except OutOfReachError as error:
            raise OutOfReachError((error.best + whole - mine) / whole) from error
        pairs = zip(fast.items(), indices, strict=True)
        return {site: ways[index - 1].candidate for (site, ways), index in pairs if index}

    def _cost(self, site: Site, candidate: Candidate | None) -> float:
        if self.goal.kind == "macs":
            return site.macs if candidate is None else candidate.macs
        if self.goal.kind == "params":
            return site.parameters if candidate is None else candidate.parameters
        assert self.times is not None
        return self.times.sites[site] if candidate is None else self.times.splits[site, candidate]

    def _alone(self, site: Site, ways: Sequence[Way]) -> Candidate | None:
        """Return the best way of a layer by its own error: the cheapest that keeps the energy, or the most exact."""
        items = [way.candidate for way in ways]
        if self.goal.kind == "energy":
            found = [item for item in items if item.error <= 1.0 - self.goal.share + _EXACT]
            return min(found, key=lambda item: (item.macs, item.error), default=None)
        found = [item for item in items if item.macs <= self.goal.share * site.macs]
        return min(found, key=lambda item: (item.error, item.macs), default=None)


def _expected(way: Way, trust: float) -> float:
    error = way.candidate.error
    return error * (way.loss / error) ** trust if error > 0 else way.loss


def described(site: Site, item: Candidate, time: float | None) -> dict[str, Any]:
    """Return what a report tells of a split: the layers by name, costs before and after, and the ratio of times."""
    return {
        "layers": [layer.node.name or layer.node.outputs[0].name for layer in site.layers],
        "form": item.form,
        "ranks": list(item.ranks),
        "error": item.error,
        "macs": [site.macs, item.macs],
        "parameters": [site.parameters, item.parameters],
        "time": time,
    }
