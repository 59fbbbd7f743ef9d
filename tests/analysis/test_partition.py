"""The cheapest division of items, against all divisions there are."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analysis.partition import Crossing, cheapest_inside

SIZE = 5
costs = st.integers(0, 20).map(float)
ends = st.one_of(st.none(), st.integers(0, SIZE - 1))
crossings = st.lists(
    st.builds(Crossing, ends, st.lists(ends, min_size=1, max_size=3).map(tuple), costs, costs), max_size=6
)


def total(inside: set[int], kept: list[float], left: list[float], flows: list[Crossing[int]]) -> float:
    result = sum(kept[item] if item in inside else left[item] for item in range(SIZE))
    for flow in flows:
        if flow.producer in inside and any(reader not in inside for reader in flow.readers):
            result += flow.leave
        if flow.producer not in inside and any(reader in inside for reader in flow.readers):
            result += flow.enter
    return result


@given(st.lists(costs, min_size=SIZE, max_size=SIZE), st.lists(costs, min_size=SIZE, max_size=SIZE), crossings)
def test_no_other_division_is_cheaper(kept: list[float], left: list[float], flows: list[Crossing[int]]) -> None:
    found = cheapest_inside(dict(enumerate(kept)), dict(enumerate(left)), flows)
    divisions = [{item for item in range(SIZE) if bits[item]} for bits in product((False, True), repeat=SIZE)]
    assert total(found, kept, left, flows) == pytest.approx(min(total(each, kept, left, flows) for each in divisions))


def test_what_is_no_dearer_inside_is_inside() -> None:
    assert cheapest_inside({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 1.0}, []) == {"a"}


def test_a_saving_smaller_than_the_conversions_is_not_worth_it() -> None:
    flows = [Crossing(None, ("a",), 0.0, 2.0), Crossing("a", (None, None), 2.0, 0.0)]
    assert cheapest_inside({"a": 1.0}, {"a": 4.0}, flows) == set()
    assert cheapest_inside({"a": 1.0}, {"a": 6.0}, flows) == {"a"}
