"""The mathematics of recovery: ridge regression from sums, against least squares on the rows themselves."""

import numpy as np
import pytest

from graphopt.pruning.refit import DAMPINGS, Moments, _lowest, fit, products

RNG = np.random.default_rng(5)


def sums(rows, targets):
    """Moments of rows [G, K, P] and targets [O, P], added in two parts."""
    found = Moments.zeros(len(rows), len(targets) // len(rows), rows.shape[1])
    half = rows.shape[2] // 2
    found.include(products(rows[:, :, :half], targets[:, :half]))
    found.include(products(rows[:, :, half:], targets[:, half:]))
    return found


def case(groups=1, outputs=3, width=5, count=400, noise=0.3):
    rows = RNG.standard_normal((groups, width, count)).astype(np.float32) + 1
    true = RNG.standard_normal((groups, outputs, width))
    targets = (
        (true @ rows).reshape(groups * outputs, count) + 2 + noise * RNG.standard_normal((groups * outputs, count))
    )
    return rows, targets.astype(np.float32)


@pytest.mark.parametrize("groups", [1, 4])
def test_without_damping_it_is_least_squares_with_a_bias(groups):
    rows, targets = case(groups)
    means = sums(rows, targets).means(centred=True)

    weights = means.fitted(np.zeros((groups, 3, 5)), 0.0)
    bias = means.bias(weights).reshape(groups, 3)

    for group in range(groups):
        design = np.vstack([rows[group], np.ones(rows.shape[2])]).T
        best = np.linalg.lstsq(design, targets.reshape(groups, 3, -1)[group].T, rcond=None)[0]
        np.testing.assert_allclose(weights[group], best[:-1].T, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(bias[group], best[-1], rtol=1e-3, atol=1e-3)


def test_damping_is_a_ridge_towards_the_weights_that_the_layer_has():
    rows, targets = case()
    old = RNG.standard_normal((1, 3, 5))
    means = sums(rows, targets).means(centred=True)

    weights = means.fitted(old, 0.7)

    x, t = (a - a.mean(axis=-1, keepdims=True) for a in (rows[0].astype(float), targets.astype(float)))
    ridge = 0.7 * np.mean((x**2).mean(axis=1))
    design = np.vstack([x.T / np.sqrt(x.shape[1]), np.sqrt(ridge) * np.eye(5)])
    wanted = np.vstack([t.T / np.sqrt(x.shape[1]), np.sqrt(ridge) * old[0].T])
    np.testing.assert_allclose(weights[0], np.linalg.lstsq(design, wanted, rcond=None)[0].T, rtol=1e-4, atol=1e-4)


def test_errors_are_those_on_the_rows():
    rows, targets = case(groups=2)
    weights, bias = RNG.standard_normal((2, 3, 5)), RNG.standard_normal(6)

    errors = sums(rows, targets).means(centred=True).errors(weights, bias)

    given = (weights @ rows).reshape(6, -1) + bias[:, None]
    np.testing.assert_allclose(errors, ((targets - given) ** 2).mean(axis=1), rtol=1e-4)


def test_a_layer_without_bias_keeps_none():
    rows, targets = case(noise=0.0)

    found = fit(sums(rows, targets), Moments.zeros(1, 3, 5), np.zeros((3, 5)), np.zeros(3), centred=False)

    assert not found.bias.any()


def test_damping_is_the_one_that_does_best_on_what_is_held_out():
    """Few noisy rows and old weights that are nearly right: a strong pull towards those does best."""
    rows, targets = case(width=30, count=2000, noise=3.0)
    design = np.vstack([rows[0], np.ones(2000)]).T
    best = np.linalg.lstsq(design, targets.T, rcond=None)[0].T
    old, bias = best[:, :-1] + 0.01, best[:, -1]

    few = fit(sums(rows[:, :, :40], targets[:, :40]), sums(rows[:, :, 40:], targets[:, 40:]), old, bias)
    exact = fit(sums(rows[:, :, :1900], targets[:, :1900]), sums(rows[:, :, 1900:], targets[:, 1900:]), 0 * old, bias)

    assert few.damping in (0.0, *DAMPINGS[-2:])
    assert exact.damping in DAMPINGS[:3]
    assert exact.after < 0.5 * exact.before


def test_nothing_changes_where_nothing_does_better():
    rows, targets = case()
    everything, other = sums(rows[:, :, :300], targets[:, :300]), sums(rows[:, :, 300:], targets[:, 300:])
    means = other.means(centred=True)
    right = means.fitted(np.zeros((1, 3, 5)), 0.0)

    found = fit(everything, other, right[0], means.bias(right))

    assert found.damping == 0.0
    np.testing.assert_array_equal(found.weights, right[0])
    assert found.before == found.after


def test_targets_can_be_replaced_without_seeing_the_rows_again():
    rows, targets = case()
    again = sums(rows, targets)
    again.forget_targets()
    again.include(products(rows, targets + 1, again=True))

    fresh = sums(rows, targets + 1)

    for name in ("inputs", "cross", "input_sum", "target_sum", "target_square"):
        np.testing.assert_allclose(getattr(again, name), getattr(fresh, name), rtol=1e-5)
    assert again.count == fresh.count


@pytest.mark.parametrize("best", range(len(DAMPINGS)))
def test_the_lowest_of_the_dampings_is_found(best):
    tried = []

    def score(damping):
        tried.append(damping)
        return abs(DAMPINGS.index(damping) - best) + 1.0

    assert _lowest(score) == (DAMPINGS[best], 1.0)
    assert len(tried) == len(set(tried)) <= 3 + abs(best - 2)


def test_a_damping_that_is_given_is_the_one_taken():
    rows, targets = case()
    parts = sums(rows[:, :, :300], targets[:, :300]), sums(rows[:, :, 300:], targets[:, 300:])

    found = fit(*parts, np.zeros((3, 5)), np.zeros(3), damping=0.37)

    assert found.damping == 0.37
    means = (parts[0] + parts[1]).means(centred=True)
    np.testing.assert_allclose(found.weights, means.fitted(np.zeros((1, 3, 5)), 0.37)[0])


def test_few_positions_at_a_time_give_the_same():
    rows, targets = case(groups=2)
    found = Moments.zeros(2, 3, 5)

    for place in range(0, rows.shape[2], 10):
        found.include(products(rows[:, :, place : place + 10], targets[:, place : place + 10]))

    whole = sums(rows, targets)
    for name in ("inputs", "cross", "input_sum", "target_sum", "target_square"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-5, atol=1e-3)
    assert found.count == rows.shape[2]
