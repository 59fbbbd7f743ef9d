"""The choice under a budget: as good as trying everything, and never over the budget."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.lowrank.select import Option, choose
from graphopt.pruning.selection import OutOfReachError

OPTIONS = st.tuples(st.integers(1, 40), st.integers(0, 1000)).map(lambda pair: Option(pair[0], pair[1] / 1000))
LAYERS = st.lists(
    st.tuples(st.integers(20, 40), st.lists(OPTIONS, max_size=4)).map(lambda pair: [Option(pair[0], 0.0), *pair[1]]),
    min_size=1,
    max_size=4,
)


def totals(layers: list[list[Option]], indices: tuple[int, ...]) -> tuple[float, float]:
    chosen = [options[index] for options, index in zip(layers, indices, strict=True)]
    return sum(option.cost for option in chosen), sum(option.loss for option in chosen)


@settings(max_examples=200, deadline=None)
@given(LAYERS, st.floats(0.2, 1.1))
def test_it_is_as_good_as_trying_everything(layers: list[list[Option]], share: float) -> None:
    """Costs are whole numbers, so a budget a little looser than a sum of them is met in spite of rounding."""
    budget = int(share * sum(options[0].cost for options in layers)) + 0.5
    every = [totals(layers, found) for found in itertools.product(*(range(len(options)) for options in layers))]
    reachable = [loss for cost, loss in every if cost <= budget]
    if not reachable:
        with pytest.raises(OutOfReachError) as caught:
            choose(layers, budget)
        assert caught.value.best == min(cost for cost, _ in every)
        return
    cost, loss = totals(layers, tuple(choose(layers, budget)))
    assert cost <= budget
    assert loss == pytest.approx(min(reachable))


def test_without_need_nothing_is_split() -> None:
    assert choose([[Option(10, 0.0), Option(5, 0.0)]] * 3, 30) == [0, 0, 0]


def test_a_budget_that_only_the_cheapest_meets_is_met() -> None:
    """Here rounding savings down to steps would leave nothing."""
    layers = [[Option(1.0, 0.0), Option(1.0 - 1.0 / 3, 0.1)] for _ in range(9)]
    assert choose(layers, 6.0 + 1e-9) == [1] * 9


def test_one_large_split_may_do_better_than_many_small() -> None:
    layers = [[Option(100, 0.0), Option(40, 0.3)], *([[Option(20, 0.0), Option(10, 0.1)]] * 6)]
    assert choose(layers, 160) == [1, 0, 0, 0, 0, 0, 0]
