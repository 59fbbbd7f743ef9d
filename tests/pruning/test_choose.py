"""Units ranked by what they are worth: in which order they go, and what that is taken to cost."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis import AnalysisManager
from graphopt.analysis.channels import Channels, Group
from graphopt.ir import Editor
from graphopt.pruning.choose import by_scores
from tests.helpers import model_of

CHAIN = """agraph (float[1, 3, 5, 5] x) => (float[1, 4, 5, 5] y) {
    h = Conv(x, w1)
    r = Relu(h)
    y = Conv(r, w2)
}"""


def group_of(units: int = 4, body: str = CHAIN) -> Group:
    weights = {"w1": np.ones((units, 3, 1, 1), np.float32), "w2": np.ones((4, units, 1, 1), np.float32)}
    weights |= {"d": np.ones((units, 1, 1, 1), np.float32), "w3": weights["w2"]}
    (group,) = AnalysisManager(Editor(model_of(body, weights=weights))).get(Channels).groups
    return group


def test_what_is_worth_least_goes_first_and_of_equals_the_later():
    ranking = by_scores(group_of(), np.array([2.0, 1.0, 1.0, 3.0]))

    assert ranking.elimination.order.tolist() == [2, 1, 0]


def test_the_last_units_are_dear():
    """Two layers; 1, 2 and 3 of four equal units gone leave 1/3, 1 and 3 times as much gone as stays."""
    assert by_scores(group_of(), np.ones(4)).curve.losses == pytest.approx([0.0, 2 / 3, 2.0, 6.0])


def test_each_layer_that_hangs_on_a_group_counts_and_a_depthwise_one_does_not():
    twice = CHAIN.replace("y = Conv(r, w2)", "a = Conv(r, w2) b = Conv(r, w3) y = Add(a, b)")
    depthwise = CHAIN.replace("y = Conv(r, w2)", "m = Conv<group = 4>(r, d) y = Conv(m, w2)")
    chain, more, same = (by_scores(group_of(body=body), np.ones(4)).curve.losses for body in (CHAIN, twice, depthwise))

    assert more == pytest.approx(1.5 * chain)
    assert same == pytest.approx(chain)


def test_units_worth_nothing_are_free():
    assert by_scores(group_of(), np.array([0.0, 1.0, 0.0, 1.0])).curve.losses[:3] == pytest.approx([0.0, 0.0, 0.0])
    assert by_scores(group_of(), np.zeros(4)).curve.losses.tolist() == [0.0] * 4
