"""One budget for all groups: met, spent where it costs least, and out of reach with the least that can be had."""

import itertools

import numpy as np
import pytest

from graphopt.pruning.budget import alignment
from graphopt.pruning.costs import CostModel
from graphopt.pruning.selection import Curve, OutOfReachError, select


def chain(widths=(8, 8, 8)):
    """Layers between groups of these widths: layer i reads group i - 1 and writes group i, so that costs multiply."""
    base = [4.0 * widths[0]] + [float(a * b) for a, b in itertools.pairwise(widths)] + [3.0 * widths[-1]]
    slots, tensors, groups, shares = [], [], [], []
    for index, width in enumerate(widths):
        for tensor in (index, index + 1):
            slots.append(len(slots))
            tensors.append(tensor)
            groups.append(index)
            shares.append(1 / width)
    return CostModel(np.array(base), 5.0, np.array(slots), np.array(tensors), np.array(groups), np.array(shares))


def curves(*scales, units=8, power=2.0):
    counts = np.arange(units)
    return [Curve(index, counts, scale * (counts / units) ** power) for index, scale in enumerate(scales)]


def test_costs_multiply_along_the_axes_of_a_layer():
    costs = chain((8, 8))

    assert costs.whole == 5 + 32 + 64 + 24
    assert costs.total(np.array([4, 2])) == pytest.approx(5 + 16 + 4 * 6 + 18)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.3])
def test_the_budget_is_met_and_nothing_more_is_cut_than_needed(share):
    costs, given = chain(), curves(1.0, 5.0, 2.0)

    found = select(given, costs, share * costs.whole, 3)

    assert costs.total(found) <= share * costs.whole
    for group in np.flatnonzero(found):
        less = found.copy()
        less[group] -= 1
        assert costs.total(less) > share * costs.whole


@pytest.mark.parametrize("share", [0.8, 0.5])
def test_it_is_close_to_the_best_of_all_choices(share):
    costs, given = chain(), curves(1.0, 5.0, 2.0)

    def loss(counts):
        return sum(curve.losses[count] for curve, count in zip(given, counts, strict=True))

    allowed = [c for c in itertools.product(range(8), repeat=3) if costs.total(np.array(c)) <= share * costs.whole]
    found = select(given, costs, share * costs.whole, 3)

    assert loss(found) <= 1.1 * min(map(loss, allowed))


def test_a_step_that_is_dear_at_first_is_taken_when_the_rest_is_cheap():
    """Losses that rise at once and then hardly: only a long cut is worth it."""
    costs = chain((8, 8))
    jump = Curve(0, np.array([0, 1, 6]), np.array([0.0, 1.0, 1.01]))
    even = Curve(1, np.arange(8), 0.6 * np.arange(8.0))

    found = select([jump, even], costs, 0.6 * costs.whole, 2)

    assert found[0] == 6


def test_out_of_reach_says_what_can_be_reached():
    costs = chain()

    with pytest.raises(OutOfReachError) as caught:
        select(curves(1.0, 1.0, 1.0), costs, 0.01 * costs.whole, 3)

    assert caught.value.best == costs.total(np.array([7, 7, 7]))


def test_groups_that_are_not_named_stay():
    costs = chain()
    only = curves(1.0, 1.0, 1.0)[1:2]

    assert select(only, costs, 0.8 * costs.whole, 3).tolist()[::2] == [0, 0]


@pytest.mark.parametrize(
    ("units", "align", "expected"),
    [(128, 8, 8), (512, 16, 16), (32, 8, 4), (16, 8, 4), (64, 16, 4), (6, 8, 1), (64, 0, 1)],
)
def test_groups_of_few_vectors_are_aligned_to_part_of_one(units, align, expected):
    assert alignment(units, align) == expected


def test_the_cost_of_one_group_alone_is_that_of_the_whole():
    costs = chain((8, 6, 4))
    now, counts = np.array([1, 2, 0]), np.arange(4)

    for group in range(3):
        wanted = [costs.total(np.where(np.arange(3) == group, count, now)) for count in counts]
        np.testing.assert_allclose(costs.alone(costs.state(now), group, counts), wanted, rtol=1e-12)


def test_a_group_that_a_layer_reads_and_writes_is_counted_on_both_axes():
    both = CostModel(
        np.array([64.0]), 1.0, np.array([0, 1]), np.array([0, 0]), np.array([0, 0]), np.array([1 / 8, 1 / 8])
    )

    assert both.alone(both.state(np.array([0])), 0, np.array([0, 4])).tolist() == [65.0, 17.0]


def test_a_group_that_costs_nothing_changes_nothing():
    costs = chain((8, 8))

    state = costs.state(np.array([4, 2, 0]))

    assert costs.alone(state, 2, np.array([0, 3])).tolist() == [state.total, state.total]
