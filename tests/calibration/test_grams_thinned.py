"""A Gram matrix of at most so many patches of a sample."""

import numpy as np

from graphopt.analysis.statistics import Unfold
from graphopt.calibration.grams import GramSum


def gram(x: np.ndarray, most: int):
    total = GramSum(-1, Unfold((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, most))
    for part in x:
        total.add(part[None])
    found = total.result()
    assert found is not None
    return found


def test_few_patches_are_all_taken():
    x = np.random.default_rng(0).standard_normal((2, 2, 8, 8)).astype(np.float32)

    assert gram(x, 64) == gram(x, 0)


def test_of_many_patches_an_even_grid_is_taken_that_tells_the_same():
    rng = np.random.default_rng(0)
    coarse = rng.standard_normal((40, 2, 16, 16)).astype(np.float32)
    smooth = coarse.repeat(4, axis=2).repeat(4, axis=3)
    all_of_them, some = gram(smooth, 0), gram(smooth, 256)

    assert some.count <= 40 * 256 < all_of_them.count
    width = all_of_them.matrix.shape[-1]
    sampling_error = np.sqrt(width / some.count)
    off = np.linalg.norm(some.second - all_of_them.second) / np.linalg.norm(all_of_them.second)
    assert off < 2 * sampling_error
