"""Averages in steps: as the target's facts say, for several channels, whatever the sides are."""

import numpy as np
import pytest

from graphopt import optimize, targets
from tests.helpers import check_equivalent, clone, model_of, operators

BODY = "g (float[2,3,H,W] x) => (float[2,3,1,1] y) { y = GlobalAveragePool(x) }"


@pytest.mark.parametrize(
    ("size", "steps"), [((7, 7), 2), ((8, 8), 2), ((6, 4), 2), ((8, 5), 2), ((14, 14), 3), ((1, 7), 0), ((11, 11), 0)]
)
def test_the_average_stays_what_it_was(size, steps):
    model = model_of(BODY.replace("H", str(size[0])).replace("W", str(size[1])))
    before = clone(model)

    optimize(model, pipeline="split-pool{largest=16}")

    assert operators(model) == ({"Conv": steps} if steps else {"GlobalAveragePool": 1})
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 3, *size)).astype(np.float32)}
    check_equivalent(before, model, feeds)


@pytest.mark.parametrize(("target", "found"), [("rknn", {"Conv": 2}), ("qnn-htp", {"GlobalAveragePool": 1})])
def test_facts_of_the_target_decide(target, found):
    model = model_of(BODY.replace("H", "7").replace("W", "7"))

    optimize(model, pipeline="split-pool", target=targets.find(target))

    assert operators(model) == found
