"""Codebooks against plain k-means and plain nearest powers of two."""

from itertools import combinations

import numpy as np
import pytest

from graphopt.quantization.codebook import kmeans, logarithmic, nearest


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cost(w: np.ndarray, book: np.ndarray, indices: np.ndarray) -> float:
    return float(((book[indices] - w) ** 2).sum())


def test_indices_point_to_the_nearest_entry():
    w = weights(5, 7)
    book, indices = kmeans(w, 6)

    assert book.dtype == np.float32
    assert indices.dtype == np.uint8
    assert indices.shape == w.shape
    np.testing.assert_array_equal(indices, np.abs(w[..., None] - book).argmin(axis=-1))


def test_entries_are_the_means_of_their_weights():
    w = weights(300)
    book, indices = kmeans(w, 8, rounds=1000)

    np.testing.assert_allclose(book, [w[indices == i].mean(dtype=np.float64) for i in range(8)], rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_near_the_best_split_of_all(seed):
    w = np.sort(weights(12, seed=seed))
    best = min(
        sum(((part - part.mean()) ** 2).sum() for part in np.split(w, borders))
        for borders in combinations(range(1, 12), 2)
    )
    found = cost(w, *kmeans(w, 3))

    assert best <= found * (1 + 1e-5)
    assert found <= 2 * best


def test_it_beats_even_spacing():
    w = weights(2000)
    even = np.linspace(w.min(), w.max(), 16).astype(np.float32)

    assert cost(w, *kmeans(w, 16)) < 0.6 * cost(w, even, nearest(w, even))


def test_important_weights_pull_the_entries():
    w = np.array([0.0, 1.0, 2.0, 10.0], np.float32)

    book, _ = kmeans(w, 2, importance=np.array([1.0, 0.0, 1e6, 1.0]))

    assert book[np.abs(book - 2.0).argmin()] == pytest.approx(2.0, abs=1e-4)


def test_few_different_weights_are_kept_exactly():
    w = np.array([[0.5, -1.0], [0.5, 0.25]], np.float32)
    book, indices = kmeans(w, 16)

    np.testing.assert_array_equal(book, [-1.0, 0.25, 0.5])
    np.testing.assert_array_equal(book[indices], w)


def test_equal_weights_give_equal_codebooks():
    first, second = kmeans(weights(500), 16), kmeans(weights(500), 16)

    np.testing.assert_array_equal(first[0], second[0])


@pytest.mark.parametrize("entries", [0, 257])
def test_a_codebook_that_uint8_cannot_index_is_refused(entries):
    with pytest.raises(ValueError, match="1 to 256"):
        kmeans(weights(4), entries)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_logarithmic_entries_are_powers_of_two_and_zero(bits):
    book, indices = logarithmic(weights(50), bits)

    assert len(book) == 2**bits - 1
    assert 0.0 in book
    assert set(np.frexp(np.abs(book[book != 0]))[0]) == {0.5}
    np.testing.assert_array_equal(book, -book[::-1])
    assert indices.max() < len(book)


@pytest.mark.parametrize(("largest", "top"), [(1.0, 1.0), (1.49, 1.0), (1.51, 2.0), (0.3, 0.25)])
def test_the_largest_power_is_the_one_nearest_to_the_largest_weight(largest, top):
    book, indices = logarithmic(np.array([largest, 0.0]), 3)

    assert book.max() == top
    assert book[indices].tolist() == [top, 0.0]


def test_weights_all_zero_stay_zero():
    book, indices = logarithmic(np.zeros(3), 4)

    assert book[indices].tolist() == [0.0, 0.0, 0.0]


def test_too_many_bits_are_refused():
    with pytest.raises(ValueError, match="2 to 8"):
        logarithmic(weights(3), 9)
