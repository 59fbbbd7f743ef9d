"""Plans: goals of a budget and of single layers, what is too slow, and what is timed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from graphopt.lowrank.forms import Candidate
from graphopt.lowrank.plan import Goal, Planner
from graphopt.lowrank.speed import Times
from graphopt.lowrank.ways import Way
from graphopt.pruning.selection import OutOfReachError


@dataclass(frozen=True)
class Layer:
    """What a plan asks of a site."""

    macs: int

    @property
    def parameters(self) -> int:
        return self.macs


LARGE: Any = Layer(100)
SMALL: Any = Layer(40)


def way(macs: int, loss: float, form: str = "matrix") -> Way:
    return Way(Candidate(form, (macs,), macs, macs, loss), loss)


WAYS = {LARGE: [way(30, 0.3), way(50, 0.1), way(70, 0.05)], SMALL: [way(10, 0.2), way(20, 0.01, "channel")]}


def times(ratios: Mapping[Any, float]) -> Times:
    """Return times that are these ratios for every candidate of a site, which itself takes as long as it has MACs."""
    splits = {(site, item.candidate): ratios[site] * site.macs for site, ways in WAYS.items() for item in ways}
    return Times(True, 200.0, {site: float(site.macs) for site in WAYS}, splits)


class Clock:
    """Finds every split of one site slow until it has at most so many MACs."""

    def __init__(self, site: Any, most: int) -> None:
        self.site, self.most, self.trials = site, most, 0

    def slow(self, chosen: Mapping[Any, Candidate]) -> dict[Any, float]:
        self.trials += 1
        found = chosen.get(self.site)
        return {self.site: 1.1} if found is not None and found.macs > self.most else {}

    def ratio(self, chosen: Mapping[Any, Candidate]) -> float:
        return 0.5 + 0.1 * len(chosen)


def plan(kind: str, share: float, clock: Any = None, timed: Times | None = None, of_layers: bool = False) -> Any:
    return Planner(WAYS, Goal(kind, share, 200.0, of_layers), timed).plan(clock)


class Measure:
    """Finds that the choices that leave ``site`` alone lose less: a share ``less`` of what others do."""

    def __init__(self, site: Any, less: float = 0.5) -> None:
        self.site, self.less, self.seen = site, less, list[list[Any]]()

    def __call__(self, choices: Sequence[Any]) -> list[float]:
        self.seen.append(list(choices))
        return [1.0 if self.site in choice else self.less for choice in choices]


def macs(found: Any) -> dict[Any, int]:
    return {site: candidate.macs for site, candidate in found.chosen.items()}


def test_a_budget_is_of_the_whole_model_or_of_its_layers() -> None:
    assert macs(plan("macs", 0.9)) == {SMALL: 20}
    assert macs(plan("params", 0.75)) == {LARGE: 70, SMALL: 20}
    assert macs(plan("macs", 0.5, of_layers=True)) == {LARGE: 50, SMALL: 20}


def test_energy_takes_the_cheapest_and_a_ratio_the_most_exact() -> None:
    assert macs(plan("energy", 0.9)) == {LARGE: 50, SMALL: 20}
    assert macs(plan("ratio", 0.5)) == {LARGE: 50, SMALL: 20}
    assert macs(plan("ratio", 0.25)) == {SMALL: 10}


def test_what_is_too_slow_is_left_out_and_said() -> None:
    found = plan("energy", 0.9, timed=times({LARGE: 1.2, SMALL: 0.6}))
    assert macs(found) == {SMALL: 20}
    assert found.slow == {LARGE: pytest.approx(1.2)}


def test_a_budget_of_time_counts_time() -> None:
    assert plan("latency", 0.9, timed=times({LARGE: 0.9, SMALL: 0.5})).chosen.keys() == {SMALL}


def test_a_budget_that_only_slow_splits_meet_is_out_of_reach() -> None:
    with pytest.raises(OutOfReachError) as caught:
        plan("macs", 0.6, timed=times({LARGE: 1.2, SMALL: 0.6}))
    assert caught.value.best == pytest.approx((200 - 30) / 200)


def test_a_split_that_is_slow_in_company_is_chosen_anew() -> None:
    clock = Clock(LARGE, most=30)
    found = plan("ratio", 0.8, clock)
    assert macs(found) == {LARGE: 30, SMALL: 20}
    assert clock.trials == 3
    assert found.ratio == pytest.approx(0.7)
    assert not found.slow


def test_a_site_that_stays_slow_is_given_up() -> None:
    found = plan("ratio", 0.8, Clock(LARGE, most=0))
    assert macs(found) == {SMALL: 20}
    assert found.slow == {LARGE: 1.1}


SURE = Candidate("matrix", (30,), 30, 30, 0.4)
TOLD = Candidate("matrix", (10,), 10, 10, 0.1)
DOUBTFUL = {LARGE: [Way(SURE, 0.01)], SMALL: [Way(TOLD, 0.3)]}
"""By what outputs lose, the large layer is to be split; by the layers' own errors, the small one."""


def test_of_several_choices_the_one_is_taken_that_is_measured_to_lose_least() -> None:
    goal = Goal("macs", 0.85, 200.0)
    assert macs(Planner(DOUBTFUL, goal, None).plan(None)) == {LARGE: 30}
    for site, other in ((LARGE, SMALL), (SMALL, LARGE)):
        measure = Measure(site)
        assert set(macs(Planner(DOUBTFUL, goal, None, measure).plan(None))) == {other}
        (choices,) = measure.seen
        assert [set(choice) for choice in choices] == [{LARGE}, {SMALL}]


def test_what_may_be_chance_is_no_ground_for_another_choice() -> None:
    for less, expected in ((0.8, {SMALL}), (0.95, {LARGE})):
        assert (
            set(macs(Planner(DOUBTFUL, Goal("macs", 0.85, 200.0), None, Measure(LARGE, less)).plan(None))) == expected
        )


def test_a_choice_made_again_is_made_as_the_first_was() -> None:
    thinner = Way(Candidate("matrix", (4,), 4, 4, 0.11), 0.33)
    measure = Measure(LARGE)
    ways = {**DOUBTFUL, SMALL: [*DOUBTFUL[SMALL], thinner]}
    found = Planner(ways, Goal("macs", 0.85, 200.0), None, measure).plan(Clock(SMALL, 5))
    assert macs(found) == {SMALL: 4}
    assert len(measure.seen) == 1
