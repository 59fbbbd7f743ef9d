"""Cuts timed: what does not pay is put back, a budget of latency is corrected until time has met it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from graphopt.analysis import AnalysisManager
from graphopt.analysis.channels import Channels
from graphopt.analysis.cost import Cost
from graphopt.ir import Editor, Model, nodes
from graphopt.pruning.choose import Removed
from graphopt.pruning.selection import OutOfReachError
from graphopt.pruning.timed import Timed, Trials, seconds_of
from tests.helpers import model_of

CHAIN = """agraph (float[1, 3, 5, 5] x) => (float[1, 4, 5, 5] y) {
    h = Conv(x, w1)
    r = Relu(h)
    k = Conv(r, w2)
    y = Conv(k, w3)
}"""


def chain() -> Model:
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 1, 1), "w2": (8, 8, 1, 1), "w3": (4, 8, 1, 1)}
    return model_of(
        CHAIN, weights={name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    )


class Clock:
    """A layer takes as many seconds as ``seconds`` says of its multiply-accumulates; nothing else takes any."""

    def __init__(self, seconds: Callable[[float], float] = lambda macs: macs) -> None:
        self.seconds = seconds
        self.asked = 0

    def node_seconds(self, model: Model) -> dict[str, float]:
        return {str(node.name): self.seconds(macs) for node, macs in Cost.measure(model).macs.items()}

    def latency_ratio(self, reference: Model, candidate: Model, *, rounds: int = 20) -> float:
        self.asked += 1
        whole, cut = (sum(map(self.seconds, Cost.measure(model).macs.values())) for model in (reference, candidate))
        return cut / whole


class Repeats(Clock):
    """Says what it is told to say of the networks, the last of it again and again."""

    def __init__(self, *ratios: float, seconds: Callable[[float], float] = lambda macs: macs) -> None:
        super().__init__(seconds)
        self.ratios = list(ratios)

    def latency_ratio(self, reference: Model, candidate: Model, *, rounds: int = 20) -> float:
        self.asked += 1
        return self.ratios.pop(0) if len(self.ratios) > 1 else self.ratios[0]


def half(groups: dict[int, int], stays: frozenset[int] = frozenset(), gone: int = 4) -> Removed:
    return {index: np.arange(units) < gone for index, units in groups.items() if index not in stays and gone}


def timed(
    clock: Clock, goal: float | None = None, *, each: bool = False, again: Callable[..., Removed] | None = None
) -> Timed:
    model = chain()
    groups = AnalysisManager(Editor(model)).get(Channels).groups
    units = {group.index: group.units for group in groups}
    trials = Trials(model, chain(), Channels, groups, clock, goal, each)
    return trials.run(half(units), again or (lambda factor, stays: half(units, stays)))


def kept(found: Timed) -> dict[int, int]:
    return {index: int((~gone).sum()) for index, gone in found.removed.items()}


def test_a_cut_that_is_faster_stays_and_is_timed_once():
    clock = Clock()

    found = timed(clock)

    assert kept(found) == {0: 4, 1: 4}
    assert found.ratio == pytest.approx((12 + 16 + 16) / (24 + 64 + 32))
    assert clock.asked == 1


def test_one_slow_moment_decides_nothing():
    assert kept(timed(Repeats(1.3, 1.1, 0.9))) == {0: 4, 1: 4}


def test_what_is_slower_loses_nothing():
    found = timed(Repeats(1.2, seconds=lambda macs: 100 / macs))

    assert found.removed == {}
    assert found.ratio == 1.2
    assert [unpaid.group for unpaid in found.unpaid] == [0, 1]


def test_a_network_that_is_slower_gets_back_the_cuts_that_do_not_pay():
    """The first two layers take twice as long with half of their channels, the last one half as long."""

    def seconds(macs: float) -> float:
        return {24 * 25: 1.0, 64 * 25: 1.0, 12 * 25: 2.0, 32 * 25: 0.9, 16 * 25: 0.5}.get(int(macs), 1.0)

    found = timed(Repeats(1.1, 1.1, 1.1, 0.95, seconds=seconds))

    assert kept(found) == {1: 4}
    assert found.ratio == 0.95
    assert [(unpaid.group, unpaid.before, unpaid.after) for unpaid in found.unpaid] == [(0, 2.0, 2.5)]


@pytest.mark.parametrize(("each", "left"), [(False, {0: 4, 1: 4}), (True, {1: 4})])
def test_layers_of_a_faster_network_are_looked_at_on_demand(each, left):
    def seconds(macs: float) -> float:
        return {24 * 25: 1.0, 64 * 25: 1.0, 12 * 25: 2.0, 32 * 25: 0.9, 16 * 25: 0.5}.get(int(macs), 1.0)

    assert kept(timed(Repeats(0.8, seconds=seconds), each=each)) == left


def test_a_budget_that_is_missed_makes_more_go():
    """Half of the time is a constant, which the first choice did not know of."""
    factors = []

    def again(factor: float, stays: frozenset[int]) -> Removed:
        factors.append(factor)
        return half({0: 8, 1: 8}, gone=6)

    found = timed(Clock(lambda macs: macs + 1000), 0.6, again=again)

    assert kept(found) == {0: 2, 1: 2}
    assert found.ratio <= 0.6
    assert factors == [pytest.approx(0.6 / ((1100 + 3000) / (3000 + 3000)))]


def test_a_budget_that_is_met_by_far_lets_more_stay():
    found = timed(Clock(), 0.7, again=lambda factor, stays: half({0: 8, 1: 8}, gone=2))

    assert kept(found) == {0: 6, 1: 6}


def test_of_choices_around_a_budget_the_slowest_that_meets_it_is_taken():
    choices = iter([1, 6, 3])

    found = timed(Clock(), 0.45, again=lambda factor, stays: half({0: 8, 1: 8}, gone=next(choices)))

    assert kept(found) == {0: 4, 1: 4}


def test_a_budget_out_of_reach_gives_the_fastest():
    def again(factor: float, stays: frozenset[int]) -> Removed:
        raise OutOfReachError(1.0)

    found = timed(Clock(), 0.1, again=again)

    assert kept(found) == {0: 4, 1: 4}
    assert found.ratio > 0.1


def test_nodes_without_names_have_their_seconds():
    model = chain()
    for node in nodes(model):
        node.name = None

    seconds, whole = seconds_of(model, Clock())

    assert [(node.outputs[0].name, count) for node, count in seconds.items()] == [("h", 600), ("k", 1600), ("y", 800)]
    assert whole == 3000
