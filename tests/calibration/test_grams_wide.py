"""Gram matrices of wide layers: sample by sample they are what they are at once."""

import numpy as np
import pytest

from graphopt.analysis.patches import unfolded
from graphopt.analysis.statistics import Unfold
from graphopt.calibration.grams import GramSum

RNG = np.random.default_rng(2)


@pytest.mark.parametrize("unfold", [None, Unfold((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))])
@pytest.mark.parametrize("parts", [1, 7, 30])
def test_few_rows_at_a_time_give_the_same(unfold, parts):
    shape = (30, 600) if unfold is None else (30, 64, 3, 4)
    array = RNG.standard_normal(shape).astype(np.float32)
    rows = array.T[None].copy() if unfold is None else unfolded(array, unfold)
    sums = GramSum(-1, unfold)

    for part in np.array_split(array, parts):
        sums.add(part)
        part[...] = 0.0  # the runtime uses its memory again
    found = sums.result()

    assert found is not None
    assert found.count == rows.shape[2]
    np.testing.assert_allclose(found.matrix, rows @ rows.swapaxes(1, 2), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.total, rows.sum(axis=2), rtol=1e-4, atol=1e-3)


def test_what_waits_is_told_whenever_it_is_asked_for():
    unfold = Unfold((3, 3), (1, 1), (1, 1, 1, 1), (1, 1))
    array = RNG.standard_normal((8, 64, 3, 4)).astype(np.float32)
    sums = GramSum(-1, unfold)

    for number, sample in enumerate(array, 1):
        sums.add(sample[None])
        found = sums.result()
        rows = unfolded(array[:number], unfold)
        assert found is not None
        assert found.count == rows.shape[2]
        np.testing.assert_allclose(found.matrix, rows @ rows.swapaxes(1, 2), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found.total, rows.sum(axis=2), rtol=1e-4, atol=1e-3)
