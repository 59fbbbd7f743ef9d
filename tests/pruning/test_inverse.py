"""Inverses block by block, against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.pruning.inverse import inverse


@pytest.mark.parametrize("shape", [(3, 5), (600,), (2, 515)])
def test_it_is_the_inverse(shape: tuple[int, ...]) -> None:
    size = shape[-1]
    rows = np.random.default_rng(3).standard_normal((*shape, 2 * size))
    matrix = rows @ rows.swapaxes(-1, -2) / size + 0.01 * np.eye(size)

    np.testing.assert_allclose(inverse(matrix) @ matrix, np.broadcast_to(np.eye(size), matrix.shape), atol=1e-9)


def test_float32_is_as_exact_as_the_condition_allows() -> None:
    rows = np.random.default_rng(5).standard_normal((700, 40))
    matrix = rows @ rows.T / 40 + 1e-3 * np.eye(700)
    exact = np.linalg.inv(matrix)

    found = inverse(matrix, np.float32)

    assert found.dtype == np.float32
    bound = np.finfo(np.float32).eps * np.linalg.cond(matrix)
    assert np.abs(found - exact).max() < bound * np.abs(exact).max()


def test_a_large_condition_in_is_no_harm() -> None:
    rows = np.random.default_rng(4).standard_normal((700, 40))
    matrix = (rows @ rows.T / 40 + 1e-3 * np.eye(700)).astype(np.float32)

    np.testing.assert_allclose(inverse(matrix), np.linalg.inv(matrix.astype(np.float64)), rtol=1e-6, atol=1e-6)


def test_a_singular_one_is_an_error() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        inverse(np.zeros((300, 300)))
