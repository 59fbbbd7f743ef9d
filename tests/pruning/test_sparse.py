"""Zeros where a pattern wants them, and the other weights at their best: against all choices, and its promises."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.pruning.sparse import (
    Pattern,
    activation_scores,
    magnitudes,
    refit_kept,
    refit_scores,
    select,
    shares,
)
from graphopt.quantization.rounding import output_error, row_errors

Array = np.ndarray[Any, Any]


def layer(rows: int, width: int, seed: int = 0, count: int = 300) -> tuple[Array, Array]:
    """Return weights and the Gram matrix of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width)) @ (np.eye(width) + 0.5 * rng.normal(size=(width, width)) / np.sqrt(width))
    return rng.normal(size=(rows, width)), x.T @ x / count


def solved(w: Array, gram: Array, kept: Array, damping: float = 0.01) -> Array:
    """Solve each row's least-squares problem by itself."""
    damped = gram + damping * np.diagonal(gram).mean() * np.eye(len(gram))
    found = np.zeros_like(w)
    for row, mask in enumerate(kept):
        found[row, mask] = np.linalg.solve(damped[np.ix_(mask, mask)], damped[mask] @ w[row])
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unstructured", Pattern()),
        ("2:4", Pattern(keep=2, of=4)),
        ("4x1", Pattern(rows=4)),
        ("1x16", Pattern(columns=16)),
    ],
)
def test_a_pattern_is_read_and_written(text: str, expected: Pattern) -> None:
    assert Pattern.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize("text", ["", "4:4", "4:2", "0:4", "0x2", "2x", "2:4:8", "random", "-1:4", "2 : 4"])
def test_a_pattern_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|removes nothing"):
        Pattern.parse(text)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 3, 9]),
    st.sampled_from(["unstructured", "1:2", "2:4", "1:4", "1x4", "4x1", "4x4", "2x2"]),
    st.floats(0, 0.95),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_zeros_stand_exactly_where_the_pattern_wants_them(
    rows: int, columns: int, places: int, text: str, share: float, seed: int
) -> None:
    pattern = Pattern.parse(text)
    rng = np.random.default_rng(seed)
    # Few different numbers make equal scores common.
    scores = rng.integers(0, 5, (4 * rows, 4 * columns * places)).astype(float)

    kept = pattern.chosen(scores, places, share)

    cube = kept.reshape(4 * rows, 4 * columns, places)
    if pattern.of:
        groups = cube.reshape(4 * rows, -1, pattern.of, places)
        assert (groups.sum(axis=2) == pattern.keep).all()
        lowest_kept = np.where(groups, scores.reshape(groups.shape), np.inf).min(axis=2)
        highest_gone = np.where(groups, -np.inf, scores.reshape(groups.shape)).max(axis=2)
        assert (lowest_kept >= highest_gone).all()
        return
    blocks = cube.reshape(4 * rows // pattern.rows, pattern.rows, -1, pattern.columns, places)
    whole = blocks.all(axis=(1, 3))
    assert (whole == blocks.any(axis=(1, 3))).all()
    assert np.count_nonzero(~whole) == round(whole.size * share)
    sums = pattern.blocks(scores, places)
    assert sums[~whole].max(initial=-np.inf) <= sums[whole].min(initial=np.inf)
    assert pattern.holds(scores * kept, places, share)


@pytest.mark.parametrize("text", ["unstructured", "2:4", "4x1"])
def test_weights_that_are_not_sparse_enough_do_not_hold_the_pattern(text: str) -> None:
    w = np.ones((4, 8))
    assert not Pattern.parse(text).holds(w, 1, 0.5)
    w[:, ::2] = 0
    assert Pattern.parse(text).holds(w, 1, 0.5)
    w[0, 0] = 1
    assert not Pattern.parse(text).holds(w, 1, 0.5)


@pytest.mark.parametrize(
    ("text", "outputs", "channels", "reason"),
    [
        ("2:4", 8, 3, "3 input channels are no multiple of 4"),
        ("4x1", 6, 8, "6 outputs are no multiple of 4"),
        ("1x4", 8, 6, "6 input channels are no multiple of 4"),
        ("4x4", 8, 8, None),
        ("unstructured", 1, 1, None),
    ],
)
def test_a_layer_that_the_pattern_does_not_fit_is_refused(
    text: str, outputs: int, channels: int, reason: str | None
) -> None:
    why = Pattern.parse(text).refusal(outputs, channels)
    assert why is None if reason is None else reason in str(why)


@pytest.mark.parametrize("seed", range(5))
def test_what_remains_is_the_least_squares_solution_of_each_row(seed: int) -> None:
    w, gram = layer(6, 20, seed)
    kept = np.random.default_rng(seed).random(w.shape) < 0.4

    found = refit_kept(w, gram, kept, tolerance=1e-8)

    np.testing.assert_allclose(found, solved(w, gram, kept), atol=1e-6)
    assert not found[~kept].any()


def test_the_exact_update_of_optimal_brain_surgeon_ends_at_the_same_weights() -> None:
    w, gram = layer(1, 12)
    damped = gram + 0.01 * np.diagonal(gram).mean() * np.eye(12)
    row, left, gone = w[0].copy(), np.arange(12), [3, 7, 0, 9]
    for index in gone:
        inverse, at = np.linalg.inv(damped[np.ix_(left, left)]), left.tolist().index(index)
        row[left] -= row[index] / inverse[at, at] * inverse[at]
        row[index], left = 0, left[left != index]

    kept = ~np.isin(np.arange(12), gone)[None]
    np.testing.assert_allclose(refit_kept(w, gram, kept, tolerance=1e-9)[0], row, atol=1e-7)


def test_the_score_of_a_weight_is_what_its_absence_costs() -> None:
    w, gram = layer(3, 8)
    damped = gram + 0.01 * np.diagonal(gram).mean() * np.eye(8)
    scores = refit_scores(w, gram)
    for column in range(8):
        kept = np.ones(w.shape, bool)
        kept[:, column] = False
        np.testing.assert_allclose(scores[:, column], row_errors(w, solved(w, gram, kept), damped), rtol=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_close_to_the_best_of_all_choices(seed: int) -> None:
    w, gram = layer(1, 10, seed)
    best = np.inf
    for chosen in combinations(range(10), 5):
        kept = np.isin(np.arange(10), chosen)[None]
        best = min(best, output_error(w, solved(w, gram, kept), gram))

    kept = select(w, gram, Pattern(), 1, 0.5)

    assert np.count_nonzero(kept) == 5
    assert output_error(w, refit_kept(w, gram, kept), gram) <= 1.1 * best


@pytest.mark.parametrize("text", ["unstructured", "2:4", "1x4", "4x1", "4x4"])
def test_the_choice_beats_magnitude_and_activation_with_the_same_refit(text: str) -> None:
    w, gram = layer(16, 72, 3)
    pattern = Pattern.parse(text)

    def error(kept: Array) -> float:
        return output_error(w, refit_kept(w, gram, kept), gram)

    kept = select(w, gram, pattern, 9, 0.5)

    assert np.count_nonzero(kept) == w.size // 2
    assert error(kept) < 0.95 * error(pattern.chosen(magnitudes(w), 9, 0.5))
    assert error(kept) < 0.95 * error(pattern.chosen(activation_scores(w, gram), 9, 0.5))


def test_activations_beat_magnitude_where_inputs_differ() -> None:
    w, gram = layer(16, 32)
    scale = np.geomspace(0.01, 10, 32)
    gram = gram * scale * scale[:, None]
    by_size = w * Pattern().chosen(magnitudes(w), 1, 0.5)
    by_use = w * Pattern().chosen(activation_scores(w, gram), 1, 0.5)
    assert output_error(w, by_use, gram) < 0.1 * output_error(w, by_size, gram)


def test_groups_are_layers_of_their_own() -> None:
    first, second = layer(4, 12, 1), layer(4, 12, 2)
    w, gram = np.concatenate([first[0], second[0]]), np.stack([first[1], second[1]])
    kept = select(w, gram, Pattern.parse("2:4"), 1, 0.5)
    found = refit_kept(w, gram, kept)
    for index, (rows, one) in enumerate((first, second)):
        part = slice(4 * index, 4 * index + 4)
        np.testing.assert_array_equal(kept[part], select(rows, one, Pattern.parse("2:4"), 1, 0.5))
        np.testing.assert_allclose(found[part], refit_kept(rows, one, kept[part]), rtol=1e-10)


def test_inputs_that_are_always_zero_cost_nothing_and_break_nothing() -> None:
    w, gram = layer(4, 8)
    gram[:, :4], gram[:4] = 0, 0
    kept = select(w, gram, Pattern(), 1, 0.5, damping=1e-6)
    assert kept[:, 4:].all() and not kept[:, :4].any()
    np.testing.assert_allclose(refit_kept(w, gram, kept)[:, 4:], w[:, 4:], rtol=1e-10)
    nothing = np.zeros((8, 8))
    assert np.isfinite(refit_kept(w, nothing, select(w, nothing, Pattern(), 1, 0.5))).all()


def test_the_same_comes_out_every_time() -> None:
    w, gram = layer(16, 36)
    first, second = (select(w, gram, Pattern(), 1, 0.7) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(refit_kept(w, gram, first), refit_kept(w, gram, first))


def test_layers_that_compete_lose_the_lowest_of_all() -> None:
    low, high = np.full((2, 10), 1.0), np.full((4, 10), 5.0)
    assert shares([low, high], Pattern(), [1, 1], 0.2) == [0.6, 0.0]
    assert shares([low, high], Pattern(), [1, 1], 0.5) == pytest.approx([0.95, 11 / 40])
    assert shares([low, high], Pattern(), [1, 1], 0.97)[1] > 0.9
    blocks = shares([low, high], Pattern(columns=5), [1, 1], 1 / 3)
    assert blocks == [0.75, 0.125]
