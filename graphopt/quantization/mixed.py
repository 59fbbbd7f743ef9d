"""Mixed precision: which nodes have to stay in float, or compute with 16 bits, for a bound on the loss to hold.

Where the target has a type of 16 bits for activations, nodes get that, otherwise they are put back to float. The noise
of every source is measured once; that of several adds up. So a set of nodes is chosen on paper, by the noise that each
of them saves for its multiply-accumulates, written into a copy of the model and checked there. Where the bound does not
hold yet, the choice goes on from what the check found, as long as there may be more nodes with 16 bits, or in float.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from graphopt.errors import PassError, UsageError
from graphopt.ir import Model, Node
from graphopt.quantization.budget import spend
from graphopt.quantization.cover import Cover, Move
from graphopt.quantization.placement import place
from graphopt.quantization.sensitivity import (
    Noise,
    Sensitivity,
    Source,
    decibel,
    measure,
    noise_of,
    plain,
    units_of,
)
from graphopt.quantization.trial import Plan, Runs, Trial
from graphopt.quantization.types import Types
from graphopt.targets import Quantization

_SAMPLES = 8
"""Samples that the noise of each source is measured on."""
_CHECKED = 64
"""Samples that a whole plan is checked on."""
_MARGIN = 0.97
"""How much of the noise that the bound allows is planned with."""
_STEP = 0.5
"""How much of the noise is left after each round when the bound is on the metric, which nothing foretells."""


@dataclass(frozen=True)
class Bound:
    """What has to hold: each output's SQNR is at least ``min_sqnr`` dB, the metric at most ``max_loss`` lower.

    It gives way to ``max_wide``, the part of the Q/DQ pairs that may have 16 bits. With less than all of them, nothing
    is put back to float on targets that want pairs on every edge: a float among integers is what they are slow at.
    """

    min_sqnr: float = 0.0
    max_loss: float = math.inf
    max_wide: float = 1.0

    def __bool__(self) -> bool:
        return self.min_sqnr > 0 or self.max_loss < math.inf


@dataclass(frozen=True)
class Check:
    """What a plan gives: its noise on calibration samples, and how much lower the metric is, 0 without one."""

    noise: Noise
    loss: float = 0.0

    def meets(self, bound: Bound) -> bool:
        """Tell whether the bound holds."""
        return decibel(self.noise) >= bound.min_sqnr and self.loss <= bound.max_loss

    def __str__(self) -> str:
        return f"{decibel(self.noise):.1f} dB" + (f", the metric {self.loss:g} lower" if self.loss else "")


@dataclass(frozen=True, eq=False)
class Mixed:
    """A plan that meets a bound: the nodes put back to float for it, or to 16 bits.

    ``before`` is the check of the plan that it started from, ``after`` that of this one; ``sensitivity`` is None when
    there was nothing to do. ``short`` tells that the bound is not met, for it would take too many 16 bits, or floats.
    """

    plan: Plan
    floats: tuple[Node, ...]
    wide: tuple[Node, ...]
    before: Check
    after: Check
    sensitivity: Sensitivity | None = None
    short: bool = False

    def why(self, node: Node) -> str:
        """Return what speaks for keeping ``node`` in float, with numbers."""
        assert self.sensitivity is not None
        unit = next((unit for unit in self.sensitivity.units if unit.node is node), None)
        whole = f"the model has {self.before} with everything quantized, {self.after} without what stays in float"
        if unit is None:
            return f"what it reads or writes stays in float; {whole}"
        return f"quantizing it alone leaves {decibel(unit.noise):.1f} dB; {whole}"

    def why_wide(self) -> str:
        """Return what speaks for 16 bits, with numbers."""
        return f"the model has {self.before} with 8 bits everywhere, {self.after} with 16 where they are"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the report."""
        return {
            "sqnr_before": plain(decibel(self.before.noise)),
            "sqnr": plain(decibel(self.after.noise)),
            "loss_before": self.before.loss,
            "loss": self.after.loss,
            "float": [node.name for node in self.floats],
            "wide": [node.name for node in self.wide],
            "sensitivity": None if self.sensitivity is None else self.sensitivity.to_json(),
        }


@dataclass
class _Search:
    """The state of a search: ``taken`` are all nodes of the first plan that do not compute with 8 bits any more."""

    model: Model
    facts: Quantization
    first: Plan
    runs: Runs
    bound: Bound
    taken: dict[Move, None] = field(default_factory=dict)
    best: Check | None = None
    _metric: float | None = None

    @property
    def widens(self) -> bool:
        """Whether what is taken gets 16 bits."""
        return self.facts.wide_activations in self.first.grids

    def check(self, plan: Plan) -> Check:
        """Write a plan into a copy and run that."""
        trial = Trial(self.model, self.facts).quantize(plan)
        noise = noise_of(self.model, trial, self.runs, limit=_CHECKED)[1]
        found = Check(noise, self._loss(trial))
        if self.best is None or (found.loss, -decibel(found.noise)) < (self.best.loss, -decibel(self.best.noise)):
            self.best = found
        return found

    def _loss(self, trial: Model) -> float:
        if self.bound.max_loss == math.inf:
            return 0.0
        if self._metric is None:
            self._metric = self.runs.metric(self.model)
        metric = self.runs.metric(trial)
        if self._metric is None or metric is None:
            raise UsageError("a bound on the loss needs a metric", hint="give one with --metric, or bound the SQNR")
        return self._metric - metric

    def share(self, moves: Collection[Move]) -> float:
        """Return the part of all pairs that have 16 bits when ``moves`` are all that is taken."""
        types = Types.of(self.first.placement, self.facts, self.first.wide.union(moves))
        return types.wide_share(self.first.placement, self.facts)

    def exceeds(self, moves: Collection[Move]) -> bool:
        """Tell whether there may not be so many nodes of 16 bits."""
        return self.widens and self.bound.max_wide < 1 and self.share(moves) > self.bound.max_wide

    def plan(self) -> Plan:
        """Return the first plan without what is taken, or with 16 bits for it."""
        if self.widens:
            return replace(self.first, wide=self.first.wide.union(self.taken))
        chosen = set(self.first.placement.nodes)
        outside = [node for node in self.model.graph if node not in chosen or node in self.taken]
        placement = place(self.model, self.facts, outside)
        # What needs a neighbour that is in float now has gone with it.
        left = set(placement.nodes)
        self.taken.update(dict.fromkeys(node for node in self.first.placement.nodes if node not in left))
        return self.first.within(placement)


def mixed(model: Model, facts: Quantization, plan: Plan, bound: Bound, runs: Runs) -> Mixed:
    """Return the part of ``plan`` that meets ``bound``, or comes near where that would take too many nodes of 16 bits.

    Where the plan has grids of the target's wider type, nodes get that instead of floats. Raises PassError when no plan
    with at least one layer in integers meets the bound, UsageError when a metric is needed and there is none.
    """
    search = _Search(model, facts, plan, runs, bound)
    before = after = search.check(plan)
    if after.meets(bound):
        return Mixed(plan, (), (), before, after)
    if facts.every_edge and not search.widens and bound.max_wide < 1:
        return Mixed(plan, (), (), before, after, short=True)
    found = measure(model, facts, plan, runs, limit=_SAMPLES)
    sources, costs = _movable(search, found)
    current, short = plan, False
    while not after.meets(bound) and not short:
        cover = Cover.scaled(sources, costs, search.taken, after.noise)
        more = [move for move in cover.extend(search.taken, _goal(after, bound)) if move not in search.taken]
        short = search.exceeds([*search.taken, *more])
        if short:
            cover = Cover.scaled(sources, costs, (), before.noise)
            search.taken, more = {}, spend(cover, search.share, bound.max_wide)
        search.taken.update(dict.fromkeys(more))
        current = search.plan()
        if len(current.layers) <= 1 and not search.widens:
            current = _last_layer(search, found)
        after = search.check(current)
        stuck = not more if search.widens else len(current.layers) == 1
        if stuck and not short and not after.meets(bound):
            raise _unreachable(bound, search)
    current, after = _relaxed(search, current, after, sources, costs)
    moved = tuple(node for node in units_of(plan.placement, facts) if node in search.taken)
    floats, wide = ((), moved) if search.widens else (moved, ())
    return Mixed(current, floats, wide, before, after, found, short and not after.meets(bound))


def _movable(search: _Search, found: Sensitivity) -> tuple[list[Source], dict[Node, int]]:
    """Return the noise that moves can do away with, and what they cost: 16 bits leave the weights' noise as it is, and
    take twice the memory wherever they are.
    """
    costs = {unit.node: unit.macs for unit in found.units}
    if not search.widens:
        return list(found.sources), costs
    mean = sum(costs.values()) // max(len(costs), 1)
    return [source for source in found.sources if source.value is not None], {
        node: macs + mean for node, macs in costs.items()
    }


def _relaxed(
    search: _Search, plan: Plan, check: Check, sources: list[Source], costs: Mapping[Node, int]
) -> tuple[Plan, Check]:
    """Take back what was not needed after all, as the last check tells: errors of several sources may cancel out."""
    cover = Cover.scaled(sources, costs, search.taken, check.noise)
    needed = cover.reduced(search.taken, 10 ** (-search.bound.min_sqnr / 10) * _MARGIN)
    if search.bound.min_sqnr == 0 or len(needed) == len(search.taken):
        return plan, check
    before = search.taken
    search.taken = dict.fromkeys(needed)
    fewer = search.plan()
    again = search.check(fewer)
    if again.meets(search.bound):
        return fewer, again
    search.taken = before
    return plan, check


def _goal(check: Check, bound: Bound) -> float:
    """Return the noise to aim at."""
    allowed = 10 ** (-bound.min_sqnr / 10) if bound.min_sqnr > 0 else math.inf
    if check.loss > bound.max_loss:
        worst = float(check.noise.max())
        return min(allowed, worst * _STEP if math.isfinite(worst) else 1.0) * _MARGIN
    return allowed * _MARGIN


def _last_layer(search: _Search, found: Sensitivity) -> Plan:
    """Return the plan whose only layer is the one with least noise."""
    layers = {layer.node for layer in search.first.layers}
    quiet = min((unit for unit in found.units if unit.node in layers), key=lambda unit: float(unit.noise.max()))
    search.taken = {node: None for node in search.first.placement.nodes if node is not quiet.node}
    return search.plan()


def _unreachable(bound: Bound, search: _Search) -> PassError:
    kind = search.facts.activations if search.widens else "integers"
    wanted = [f"an SQNR of {bound.min_sqnr:g} dB"] if bound.min_sqnr > 0 else []
    wanted += [f"a loss of at most {bound.max_loss:g}"] if bound.max_loss < math.inf else []
    return PassError(
        f"{' and '.join(wanted)} cannot be had with any layer in {kind}; the best found is {search.best}",
        where="insert-qdq",
        hint="loosen the bound, or leave the model in float",
    )
