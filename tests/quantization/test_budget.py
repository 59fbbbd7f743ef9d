"""Spending an allowance of 16 bits: all around a value or nothing, most noise for the price, never above it."""

from collections.abc import Collection

import numpy as np
import pytest

from graphopt.ir import Node
from graphopt.quantization.budget import spend
from graphopt.quantization.cover import Cover
from graphopt.quantization.sensitivity import Source
from tests.helpers import model_of

MODEL = model_of("g (float[2] x) => (float[2] y) { a = Abs(x) b = Neg(a) c = Exp(b) d = Sqrt(c) y = Sin(d) }")
A, B, C, D, E = MODEL.graph


def cover(*found: tuple[Collection[Node], float]) -> Cover:
    value = MODEL.graph.inputs[0]
    return Cover([Source(value, tuple(nodes), np.array([noise])) for nodes, noise in found], {}, np.ones(1))


def tenths(moves: Collection[Node]) -> float:
    return len(moves) / 10


def test_nodes_around_a_value_are_taken_together_or_not_at_all():
    noisy = cover(([A, B, C], 9.0), ([D], 2.0), ([E], 1.0))

    assert set(spend(noisy, tenths, 0.2)) == {D, E}
    assert set(spend(noisy, tenths, 0.3)) == {A, B, C}
    assert set(spend(noisy, tenths, 0.4)) == {A, B, C, D}


def test_what_goes_away_with_a_group_counts_for_it():
    # A alone brings 1 and B alone 1; together they save what lies between them too.
    assert set(spend(cover(([A], 1.0), ([B], 1.0), ([A, B], 3.0), ([C], 2.0)), tenths, 0.2)) == {A, B}


def test_a_group_that_adds_no_pairs_is_taken_first():
    def price(moves: Collection[Node]) -> float:
        return 0.1 * ("Neg" not in {node.op_type for node in moves}) if moves else 0.0

    assert spend(cover(([A], 5.0), ([B], 0.1)), price, 0.0)[0] is B


@pytest.mark.parametrize("most", [0.0, 0.1])
def test_nothing_above_the_allowance_and_nothing_without_gain(most):
    assert spend(cover(([A, B], 1.0), ([C], 0.0)), tenths, most) == []
