"""Rounding by the Gram matrix against the textbook form with the inverse, against all roundings, and its promises."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.quantization.grid import Grid, weight_grid
from graphopt.quantization.pairs import largest_pair_sum, pair_columns
from graphopt.quantization.rounding import (
    corrected_bias,
    output_error,
    refit,
    round_nearest,
    round_to_grid,
    round_with_scale,
    row_errors,
)


def layer(rows: int, width: int, seed: int = 0, count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights, inputs that depend on each other, and their Gram matrix."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + 0.5
    return rng.normal(size=(rows, width)), x, x.T @ x / count


def with_inverse(w: np.ndarray, gram: np.ndarray, grid: Grid, damping: float, order: np.ndarray) -> np.ndarray:
    """GPTQ as published: after each column the rest moves by the error times a row of the remaining inverse."""
    w = w[:, order].copy()
    damped = gram[np.ix_(order, order)] + damping * np.diagonal(gram).mean() * np.eye(len(gram))
    q = np.zeros(w.shape, np.int64)
    for j in range(len(gram)):
        inverse = np.linalg.inv(damped[j:, j:])
        scaled = np.rint(w[:, j] / grid.scale)
        q[:, j] = np.clip(scaled, grid.qmin, grid.qmax)
        wrong = w[:, j] - q[:, j] * grid.scale
        w[:, j:] -= np.outer(wrong / inverse[0, 0], inverse[0])
    return q[:, np.argsort(order)]


@pytest.mark.parametrize("order", ["gram", "natural"])
@pytest.mark.parametrize("block", [4, 128])
def test_feedback_is_that_with_the_inverse(order, block):
    w, _, gram = layer(6, 20)
    grid = weight_grid(w, "int4", axis=0)
    columns = np.argsort(-np.diagonal(gram), kind="stable") if order == "gram" else np.arange(20)
    expected = with_inverse(w, gram, grid, 0.01, columns)
    nearest = grid.quantize(w)
    worse = row_errors(w, grid.dequantize(expected), gram) > row_errors(w, grid.dequantize(nearest), gram)

    q = round_to_grid(w, gram, grid, damping=0.01, order=order, block=block, sweeps=0)

    np.testing.assert_array_equal(q, np.where(worse[:, None], nearest, expected))


def test_the_update_after_a_column_is_the_least_squares_of_the_rest():
    _, _, gram = layer(1, 6)
    wrong = 0.3
    inverse = np.linalg.inv(gram)

    update = -wrong * inverse[0] / inverse[0, 0]

    # With the first weight off by -wrong, the rest minimises the error of the whole row.
    rest = np.linalg.solve(gram[1:, 1:], gram[1:, 0] * wrong)
    np.testing.assert_allclose(update[1:], rest, rtol=1e-8)
    assert update[0] == pytest.approx(-wrong)


@pytest.mark.parametrize("seed", range(8))
def test_the_result_lies_between_the_best_of_all_roundings_and_the_nearest(seed):
    w, _, gram = layer(3, 5, seed)
    grid = Grid(np.full(3, 0.5), np.zeros(3), "int4", axis=0)
    q = round_to_grid(w, gram, grid)

    found = row_errors(w, grid.dequantize(q), gram)
    nearest = row_errors(w, grid.fake(w), gram)
    around = np.array(list(product((-1, 0, 1, 2), repeat=5)))
    for row in range(3):
        all_roundings = np.clip(np.floor(w[row] / 0.5) + around, -8, 7) * 0.5
        best = row_errors(np.tile(w[row], (len(around), 1)), all_roundings, gram).min()

        assert best <= found[row] * (1 + 1e-9)
        assert found[row] <= nearest[row]


def test_it_gains_where_inputs_depend_on_each_other_and_sweeps_gain_more():
    w, _, gram = layer(16, 48)
    grid = weight_grid(w, "int4", axis=0)
    nearest = output_error(w, grid.fake(w), gram)
    feedback, swept = (
        output_error(w, grid.dequantize(round_to_grid(w, gram, grid, sweeps=sweeps)), gram) for sweeps in (0, 3)
    )

    assert feedback < 0.5 * nearest
    assert swept < feedback


def test_after_enough_sweeps_no_single_step_helps():
    w, _, gram = layer(4, 12)
    grid = weight_grid(w, "int4", axis=0)
    q = round_to_grid(w, gram, grid, damping=0, sweeps=50)
    least = row_errors(w, grid.dequantize(q), gram)

    for column in range(12):
        for step in (-1, 1):
            moved = q.copy()
            moved[:, column] = np.clip(moved[:, column] + step, -8, 7)
            assert (row_errors(w, grid.dequantize(moved), gram) >= least * (1 - 1e-9)).all()


def test_without_correlation_it_is_nearest_rounding():
    w, _, _ = layer(4, 10)
    grid = weight_grid(w, "int4", axis=0)

    np.testing.assert_array_equal(round_to_grid(w, np.diag(np.arange(1.0, 11.0)), grid), grid.quantize(w))


def test_dead_inputs_take_their_nearest_integers():
    w, _, gram = layer(4, 10)
    dead = [2, 7]
    gram[dead] = gram[:, dead] = 0.0
    grid = weight_grid(w, "int4", axis=0)

    q = round_to_grid(w, gram, grid)

    np.testing.assert_array_equal(q[:, dead], grid.quantize(w)[:, dead])


def test_inputs_that_were_never_anything_but_zero_leave_nearest_rounding():
    w, _, gram = layer(4, 10)
    grid = weight_grid(w, "int4", axis=0)

    np.testing.assert_array_equal(round_to_grid(w, gram * 0, grid), grid.quantize(w))


def test_fewer_inputs_than_columns_do_no_harm():
    w, _, gram = layer(4, 30, count=5)
    grid = weight_grid(w, "int4", axis=0)

    q = round_to_grid(w, gram, grid, damping=0)

    assert output_error(w, grid.dequantize(q), gram) <= output_error(w, grid.fake(w), gram)


@pytest.mark.parametrize("dtype", ["uint4", "int8"])
@pytest.mark.parametrize("kind", ["tensor", "rows", "blocks", "one column"])
def test_all_kinds_of_grids_are_respected(kind, dtype):
    width = 1 if kind == "one column" else 12
    w, _, gram = layer(6, width)
    options = {"tensor": {}, "blocks": {"axis": 1, "block": 5}}.get(kind, {"axis": 0})
    grid = weight_grid(w, dtype, symmetric=False, **options)

    q = round_to_grid(w, gram, grid)

    assert q.min() >= grid.qmin
    assert q.max() <= grid.qmax
    assert output_error(w, grid.dequantize(q), gram) <= output_error(w, grid.fake(w), gram)


@pytest.mark.parametrize("block", [None, 3])
def test_groups_are_rounded_each_by_its_own_matrix(block):
    parts = [layer(2, 8, seed) for seed in range(3)]
    w, grams = np.concatenate([w for w, _, _ in parts]), np.stack([gram for _, _, gram in parts])
    options = {"axis": 0} if block is None else {"axis": 1, "block": block}
    grid = weight_grid(w, "int4", **options)

    q = round_to_grid(w, grams, grid)

    for i, (part, _, gram) in enumerate(parts):
        rows = slice(2 * i, 2 * i + 2)
        own = Grid(grid.scale[rows], grid.zero_point[rows], "int4", grid.axis, grid.block)
        np.testing.assert_array_equal(q[rows], round_to_grid(part, gram, own))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), clamp=st.booleans(), order=st.sampled_from(["gram", "natural"]))
def test_pairs_keep_their_limit(seed, clamp, order):
    rng = np.random.default_rng(seed)
    w = rng.standard_t(2, size=(3, 4, 1, 3))
    _, _, gram = layer(1, 12, seed)
    grid = weight_grid(w, "int8", axis=0, pair_limit=128, clamp=clamp, method="mse")
    pairs = pair_columns(w.shape)
    rows = w.reshape(3, 12)

    q = round_to_grid(rows, gram, grid, order=order, pairs=pairs, pair_limit=128)
    nearest = round_nearest(rows, grid, pairs=pairs, pair_limit=128)

    assert largest_pair_sum(q, pairs).max() <= 128
    assert largest_pair_sum(nearest, pairs).max() <= 128


def test_other_columns_make_up_for_a_pair_that_gives_way():
    w, _, gram = layer(8, 16)
    w[:, :2] = 3.0
    grid = Grid(np.full(8, 3.0 / 127), np.zeros(8), "int8", axis=0)
    pairs = pair_columns(w.shape)
    nearest = grid.dequantize(round_nearest(w, grid, pairs=pairs, pair_limit=128, importance=np.diagonal(gram)))

    q = round_to_grid(w, gram, grid, pairs=pairs, pair_limit=128)

    assert output_error(w, grid.dequantize(q), gram) < 0.5 * output_error(w, nearest, gram)


def test_a_search_of_scales_takes_for_each_row_the_best_tried():
    w, _, gram = layer(8, 24)
    grid = weight_grid(w, "int4", axis=0)
    factors = (0.7, 0.9)
    tried = [Grid(grid.scale * np.float32(factor), grid.zero_point, "int4", 0) for factor in (1.0, *factors)]
    errors = [row_errors(w, one.dequantize(round_to_grid(w, gram, one)), gram) for one in tried]

    found, q = round_with_scale(w, gram, grid, factors=factors)

    np.testing.assert_array_equal(row_errors(w, found.dequantize(q), gram), np.min(errors, axis=0))
    assert (np.argmin(errors, axis=0) > 0).any()


def test_a_search_of_scales_wants_one_for_each_row():
    w, _, gram = layer(2, 4)

    with pytest.raises(ValueError, match="rows"):
        round_with_scale(w, gram, weight_grid(w, "int4"))


def test_output_error_is_the_mean_square_of_the_change_of_the_outputs():
    w, x, gram = layer(4, 10)
    changed = np.round(w)

    assert output_error(w, changed, gram) == pytest.approx((((x @ (w - changed).T) ** 2).sum(axis=1)).mean())


def test_output_error_of_groups_is_the_sum_over_them():
    parts = [layer(2, 5, seed) for seed in range(3)]
    w, grams = np.concatenate([w for w, _, _ in parts]), np.stack([gram for _, _, gram in parts])

    assert output_error(w, np.round(w), grams) == pytest.approx(
        sum(output_error(w, np.round(w), gram) for w, _, gram in parts)
    )


def test_the_corrected_bias_keeps_the_mean_of_the_outputs():
    w, x, _ = layer(4, 10)
    bias, changed = np.arange(4.0), np.round(w)

    fixed = corrected_bias(w, changed, x.mean(axis=0), bias)

    np.testing.assert_allclose((x @ changed.T + fixed).mean(axis=0), (x @ w.T + bias).mean(axis=0), rtol=1e-5)


def test_the_corrected_bias_takes_in_what_changed_the_inputs():
    w, x, _ = layer(4, 10)
    other = x * 1.1 - 0.2

    fixed = corrected_bias(w, w, x.mean(axis=0), mean_hat=other.mean(axis=0))

    np.testing.assert_allclose((other @ w.T + fixed).mean(axis=0), (x @ w.T).mean(axis=0), rtol=1e-5)


def test_refit_is_the_ridge_regression_of_the_old_outputs():
    w, x, _ = layer(3, 8)
    other = x + np.random.default_rng(1).normal(size=x.shape)
    gram, cross = other.T @ other / len(x), x.T @ other / len(x)
    ridge = 0.1 * np.diagonal(gram).mean()
    rows = np.concatenate([other / np.sqrt(len(x)), np.sqrt(ridge) * np.eye(8)])
    wanted = np.concatenate([x @ w.T / np.sqrt(len(x)), np.sqrt(ridge) * w.T])

    np.testing.assert_allclose(refit(w, cross, gram, 0.1), np.linalg.lstsq(rows, wanted)[0].T, rtol=1e-6)


def test_refit_on_fewer_inputs_makes_up_for_those_missing():
    w, x, gram = layer(3, 8)
    kept = [0, 2, 3, 6, 7]

    found = refit(w, gram[:, kept], gram[np.ix_(kept, kept)], 1e-6, towards=w[:, kept])

    least = np.linalg.lstsq(x[:, kept], x @ w.T)[0].T
    np.testing.assert_allclose(found, least, rtol=1e-3)


def test_refit_on_unchanged_inputs_changes_nothing():
    w, _, gram = layer(3, 8)

    np.testing.assert_allclose(refit(w, gram, gram, 0.01), w, rtol=1e-9)


def test_rounding_what_was_refitted_beats_rounding_the_old_weights():
    w, x, _ = layer(6, 12)
    other = x * 0.9 + 0.3 * np.random.default_rng(1).normal(size=x.shape)
    gram, cross = other.T @ other / len(x), x.T @ other / len(x)
    grid = weight_grid(w, "int8", axis=0)

    def change(weights: np.ndarray) -> float:
        q = grid.dequantize(round_to_grid(weights, gram, grid))
        return float(((x @ w.T - other @ q.T) ** 2).mean())

    assert change(refit(w, cross, gram)) < change(w)
