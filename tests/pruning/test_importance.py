"""Importance of channels from weights alone."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis.channels import Channels, Group
from graphopt.analysis.manager import AnalysisManager
from graphopt.ir import Editor
from graphopt.pruning.importance import CRITERIA, scores
from tests.helpers import model_of


def only_group(body: str, **weights: np.ndarray) -> Group:
    arrays = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    model = model_of(body, weights=arrays)
    (group,) = AnalysisManager(Editor(model)).get(Channels).groups
    return group


def conv_group(filters: np.ndarray) -> Group:
    """Filters [channels, 2, 1, 1] between x and y."""
    body = "agraph (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) { h = Conv(x, w1) y = Conv(h, w2) }"
    return only_group(body, w1=filters, w2=np.ones((2, len(filters), 1, 1)))


FILTERS = np.array([[3.0, 4.0], [0.0, 6.0], [-1.0, 1.0]]).reshape(3, 2, 1, 1)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("l1", [7.0, 6.0, 2.0]),
        ("l2", [5.0, 6.0, 2.0**0.5]),
        ("fpgm", [13**0.5 + 25**0.5, 13**0.5 + 26**0.5, 25**0.5 + 26**0.5]),
    ],
)
def test_the_numbers_of_one_layer_over_their_mean(criterion, expected):
    found = scores(conv_group(FILTERS), criterion)

    np.testing.assert_allclose(found, np.array(expected) / np.mean(expected), rtol=1e-6)


def test_two_layers_that_add_up_say_as_much_as_each_other_whatever_their_size():
    body = """agraph (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) {
        a = Conv(x, w1)
        b = Conv(x, w2)
        h = Add(a, b)
        y = Conv(h, w3)
    }"""
    one = np.array([1.0, 3.0]).reshape(2, 1, 1, 1) * np.ones((2, 2, 1, 1))
    other = np.array([200.0, 200.0]).reshape(2, 1, 1, 1) * np.ones((2, 2, 1, 1))

    found = scores(only_group(body, w1=one, w2=other, w3=np.ones((2, 2, 1, 1))), "l1")

    np.testing.assert_allclose(found, [(0.5 + 1) / 2, (1.5 + 1) / 2])


def test_the_scale_of_a_normalization():
    body = """agraph (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) {
        h = Conv(x, w1)
        n = BatchNormalization(h, s, o, m, v)
        y = Conv(n, w2)
    }"""
    scale, rest = np.array([1.0, -3.0, 0.0]), {name: np.ones(3) for name in "omv"}

    found = scores(only_group(body, w1=FILTERS, s=scale, w2=np.ones((2, 3, 1, 1)), **rest), "bn")

    np.testing.assert_allclose(found, np.array([1.0, 3.0, 0.0]) / (4 / 3))


def test_without_a_normalization_its_criterion_is_l1():
    np.testing.assert_array_equal(scores(conv_group(FILTERS), "bn"), scores(conv_group(FILTERS), "l1"))


def test_positions_of_a_unit_add_up():
    """Two groups of a convolution lose the same position each: a unit has two filters."""
    body = "agraph (float[1, 2, 4, 4] x) => (float[1, 4, 4, 4] y) { h = Conv(x, w1) y = Conv<group = 2>(h, w2) }"
    filters = np.array([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1, 1) * np.ones((4, 2, 1, 1))

    found = scores(only_group(body, w1=filters, w2=np.ones((4, 2, 1, 1))), "l1")

    np.testing.assert_allclose(found, [(1 + 3) / 5, (2 + 4) / 5])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_channels_without_weights_are_all_alike(criterion):
    np.testing.assert_array_equal(scores(conv_group(np.zeros((3, 2, 1, 1))), criterion), [1.0, 1.0, 1.0])


def test_distances_do_not_hang_on_how_they_are_blocked(monkeypatch):
    filters = np.random.default_rng(0).standard_normal((50, 2, 1, 1))
    whole = scores(conv_group(filters), "fpgm")

    monkeypatch.setattr("graphopt.pruning.importance._MOST_PAIRS", 150)

    np.testing.assert_allclose(scores(conv_group(filters), "fpgm"), whole, rtol=1e-12)
