"""Optimal-brain-surgeon elimination against refitting by brute force."""

import dataclasses
import itertools

import numpy as np

from graphopt.pruning import saliency
from graphopt.pruning.saliency import Reader, eliminate

RNG = np.random.default_rng(3)


def reader(units=5, per=2, outputs=3, groups=1, weight=1.0):
    width = units * per
    data = RNG.standard_normal((groups, 4 * width, width)) @ RNG.standard_normal((groups, width, width))
    gram = data.swapaxes(1, 2) @ data / data.shape[1]
    columns = RNG.permutation(width).reshape(units, per)
    weights = RNG.standard_normal((groups, outputs, width))
    return Reader(weights, gram, np.zeros((groups, width)), columns, weight=weight)


def brute(item: Reader, gone):
    """The least squared error that weights without the columns of ``gone`` make, and those weights."""
    rest = np.setdiff1d(np.arange(item.gram.shape[-1]), item.columns[list(gone)].reshape(-1))
    error, best = 0.0, np.zeros_like(item.weights)
    for group, (w, gram) in enumerate(zip(item.weights, item.gram, strict=True)):
        best[group][:, rest] = np.linalg.solve(gram[np.ix_(rest, rest)], gram[rest] @ w.T).T
        change = w - best[group]
        error += np.trace(change @ gram @ change.T)
    return error, best


def test_errors_are_those_of_refitting_at_every_step():
    for groups in (1, 2):
        item = reader(groups=groups)

        found, _ = eliminate([item])

        assert found.errors[0] == 0
        for count in range(1, 5):
            np.testing.assert_allclose(found.errors[count], brute(item, found.order[:count])[0], rtol=1e-5)


def test_the_first_to_go_is_the_cheapest_over_all_readers():
    items = [reader(weight=0.5), reader(per=1, weight=3.0)]
    costs = [sum(item.weight * brute(item, [unit])[0] for item in items) for unit in range(5)]

    found, _ = eliminate(items)

    assert found.order[0] == np.argmin(costs)
    np.testing.assert_allclose(found.errors[1], min(costs), rtol=1e-5)


def test_weights_at_a_cut_are_the_least_squares_solution():
    items = [reader(units=70, per=1), reader(units=70)]

    found, weights = eliminate(items, cuts=[1, 36, 40])

    assert list(weights) == [1, 36, 40]
    for count, pair in weights.items():
        for item, kept in zip(items, pair, strict=True):
            np.testing.assert_allclose(kept, brute(item, found.order[:count])[1], rtol=1e-4, atol=1e-5)


def test_greedy_is_near_the_best_pair():
    item = reader(units=6)
    best = min(brute(item, pair)[0] for pair in itertools.combinations(range(6), 2))

    assert eliminate([item])[0].errors[2] <= 1.5 * best


def test_some_units_stay():
    found, _ = eliminate([reader(units=8)], least=3)

    assert len(found.order) == 5
    assert len(set(found.order.tolist())) == 5


def test_a_unit_that_is_never_active_goes_first_and_costs_nothing():
    item = reader(units=4, per=1)
    gram = item.gram.copy()
    gram[:, 2, :] = gram[:, :, 2] = 0
    silent = Reader(item.weights, gram, item.mean, np.arange(4)[:, None])

    found, _ = eliminate([silent])

    assert found.order[0] == 2
    assert found.errors[1] < 1e-6 * silent.power


def test_columns_of_no_unit_stay_and_make_up_for_those_that_go():
    whole = reader(units=6, per=3)
    item = Reader(whole.weights, whole.gram, whole.mean, whole.columns[:4])

    found, weights = eliminate([item], cuts=[2])

    np.testing.assert_allclose(found.errors[2], brute(item, found.order[:2])[0], rtol=1e-5)
    np.testing.assert_allclose(weights[2][0], brute(item, found.order[:2])[1], rtol=1e-4, atol=1e-5)
    assert sorted([*found.order, *set(range(4)) - set(found.order)]) == [0, 1, 2, 3]


def test_wide_covariances_do_in_float32(monkeypatch):
    item = dataclasses.replace(reader(units=60, per=3, groups=2), damping=0.1)
    exact, best = eliminate([item], cuts=[20, 45])
    monkeypatch.setattr(saliency, "_WIDE", 100)

    found, weights = eliminate([item], cuts=[20, 45])

    np.testing.assert_allclose(found.errors, exact.errors, rtol=1e-3)
    assert list(found.order[:20]) == list(exact.order[:20])
    for count in (20, 45):
        np.testing.assert_allclose(weights[count][0], best[count][0], atol=1e-3)
        assert not np.array_equal(weights[count][0], best[count][0])


def test_what_the_ridge_does_not_tame_stays_in_float64(monkeypatch):
    item = reader(units=60, per=3)
    exact, _ = eliminate([item])
    monkeypatch.setattr(saliency, "_WIDE", 100)

    found, _ = eliminate([item])

    np.testing.assert_array_equal(found.errors, exact.errors)
