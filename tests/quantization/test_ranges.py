"""Each estimator against a plain one that loops over the numbers, bins and candidates themselves."""

import math

import numpy as np
import pytest

from graphopt.analysis.statistics import Histogram, Moving
from graphopt.quantization.grid import LIMITS, grid_for_range
from graphopt.quantization.ranges import (
    METHODS,
    PERCENTILES,
    TOLERANCE,
    auto,
    entropy,
    error,
    estimate,
    mse,
    percentile,
)


def numbers(kind: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    normal = rng.normal(size=20_000)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "heavy": rng.standard_t(3, 20_000),
        "shifted": normal * 0.1 + 3,
        "outlier": np.append(normal, [200.0]),
    }[kind].astype(np.float32)


KINDS = ("normal", "relu", "heavy", "shifted", "outlier")


def plain_error(histogram: Histogram, low: float, high: float, dtype: str, symmetric: bool) -> float:
    """Sum over the bins, one at a time."""
    grid = grid_for_range(low, high, dtype, symmetric=symmetric)
    total = 0.0
    for center, count in zip(histogram.centers, histogram.counts, strict=True):
        center = min(max(center, histogram.low), histogram.high)
        q = min(max(round(float(np.float32(center) / grid.scale)) + int(grid.zero_point), grid.qmin), grid.qmax)
        total += int(count) * ((q - int(grid.zero_point)) * float(grid.scale) - float(center)) ** 2
    return total / histogram.total


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_the_smallest_and_the_largest(kind):
    x = numbers(kind)

    assert estimate("minmax", Histogram.of(x), "uint8") == (float(x.min()), float(x.max()))


def test_moving_is_the_average_over_batches():
    histogram = Histogram.of(np.array([-4.0, 2.0]))

    assert estimate("moving", histogram, "uint8", moving=Moving(-6.0, 3.0, 2)) == (-3.0, 1.5)
    with pytest.raises(ValueError, match="moving"):
        estimate("moving", histogram, "uint8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [90.003, 99.893])
def test_percentile_is_that_of_the_sorted_numbers(kind, percent):
    x = np.sort(numbers(kind))
    histogram = Histogram.of(x)
    tail = (1 - percent / 100) / 2

    low, high = percentile(histogram, percent)

    assert low == pytest.approx(x[int(tail * len(x))], abs=2 * histogram.width)
    assert high == pytest.approx(x[math.ceil((1 - tail) * len(x)) - 1], abs=2 * histogram.width)


@pytest.mark.parametrize("kind", KINDS)
def test_percentile_symmetric_is_that_of_the_sizes(kind):
    x = np.sort(np.abs(numbers(kind)))
    width = Histogram.of(x).width

    low, high = percentile(Histogram.of(numbers(kind)), 99.003, symmetric=True)

    assert low == -high
    assert high == pytest.approx(x[math.ceil(0.99003 * len(x)) - 1], abs=4 * width)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "symmetric"), [("uint8", False), ("int8", True), ("int4", False)])
def test_error_is_the_mean_over_the_bins(kind, dtype, symmetric):
    histogram = Histogram.of(numbers(kind))
    low, high = float(histogram.low) * 0.5, float(histogram.high) * 0.75

    found = error(histogram, grid_for_range(low, high, dtype, symmetric=symmetric))

    assert found == pytest.approx(plain_error(histogram, low, high, dtype, symmetric), rel=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_error_is_near_that_of_the_numbers_themselves(dtype, share):
    x = numbers("heavy")
    grid = grid_for_range(float(x.min()) * share, float(x.max()) * share, dtype)

    exact = float(((grid.fake(x).astype(np.float64) - x) ** 2).mean())

    assert error(Histogram.of(x), grid) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["uint4", "uint8"])
def test_mse_is_as_good_as_trying_all_pairs_of_ends(kind, dtype):
    histogram = Histogram.of(numbers(kind))
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    shares = np.linspace(1, 1 / 32, 32)
    tried = [
        error(histogram, grid_for_range(low * a, high * b, dtype))
        for a in (shares if low < 0 else [0.0])
        for b in shares
    ]

    found = error(histogram, grid_for_range(*mse(histogram, dtype), dtype))

    assert found <= min(tried) * 1.03


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_mse_symmetric_is_as_good_as_trying_all_bounds(kind, dtype):
    histogram = Histogram.of(numbers(kind))
    largest = max(-histogram.low, histogram.high)
    tried = [
        error(histogram, grid_for_range(-largest * s, largest * s, dtype, symmetric=True))
        for s in np.linspace(1, 0.02, 200)
    ]

    low, high = mse(histogram, dtype, symmetric=True)

    assert low == -high
    assert error(histogram, grid_for_range(low, high, dtype, symmetric=True)) <= min(tried) * 1.03


def test_mse_of_power_of_two_scales_counts_what_these_cost():
    histogram = Histogram.of(numbers("heavy"))

    chosen = grid_for_range(*mse(histogram, "int4", symmetric=True, power_of_two=True), "int4", symmetric=True)
    tried = [error(histogram, grid_for_range(-7.0 * 2**k, 7.0 * 2**k, "int4", symmetric=True)) for k in range(-4, 6)]
    scale = np.exp2(np.ceil(np.log2(chosen.scale)))

    assert error(histogram, grid_for_range(-7 * scale, 7 * scale, "int4", symmetric=True)) == min(tried)


def plain_divergences(histogram: Histogram, levels: int) -> dict[int, float]:
    """Migacz's procedure for every number of bins kept, written out."""
    folded: dict[int, int] = {}
    for i, count in enumerate(histogram.counts):
        index = histogram.first + i
        folded[index if index >= 0 else -1 - index] = folded.get(index if index >= 0 else -1 - index, 0) + int(count)
    bins = [folded.get(i, 0) for i in range(max(folded) + 1)]
    bins[0] = bins[1]
    found = {}
    for size in range(levels, len(bins) + 1):
        p = [float(count) for count in bins[:size]]
        p[-1] += sum(bins[size:])
        q = [0.0] * size
        for level in range(levels):
            members = [j for j in range(size) if j * levels // size == level]
            filled = [j for j in members if p[j] > 0]
            for j in filled:
                q[j] = sum(bins[k] for k in members) / len(filled)
        p = [(1 - 1e-4) * value / sum(p) + 1e-4 / size for value in p]
        q = [(1 - 1e-4) * value / sum(q) + 1e-4 / size for value in q]
        found[size] = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return found


@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_entropy_is_near_the_least_divergence_of_all_thresholds(kind):
    x = np.round(numbers(kind) * 32) / 32
    histogram = Histogram.of(x.astype(np.float32)).coarsened(-5)
    divergences = plain_divergences(histogram, levels=8 if kind == "normal" else 16)

    low, high = entropy(histogram, "uint4")
    size = math.ceil(max(-low, high) / histogram.width)

    # Within a step between candidates of the best, and as good as the best candidate.
    step = max((max(divergences) - min(divergences)) // 64, 1)
    candidates = [n for n in divergences if (n - min(divergences)) % step == 0 or n == max(divergences)]
    assert divergences[size] == pytest.approx(min(divergences[n] for n in candidates), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "symmetric"), [("uint8", False), ("int8", True)])
def test_auto_is_the_widest_of_those_near_the_least_error(kind, dtype, symmetric):
    histogram = Histogram.of(numbers(kind))
    ranges = [estimate(name, histogram, dtype, symmetric) for name in ("minmax", "entropy", "mse")]
    ranges += [percentile(histogram, percent, symmetric) for percent in PERCENTILES]
    errors = [error(histogram, grid_for_range(*found, dtype, symmetric=symmetric)) for found in ranges]
    near = [found for found, cost in zip(ranges, errors, strict=True) if cost <= TOLERANCE * min(errors)]

    assert auto(histogram, dtype, symmetric) == max(near, key=lambda found: found[1] - found[0])


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"moving"}))
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("value", [0.0, 3.0, -1e-30])
def test_a_constant_lies_on_its_grid(method, dtype, value):
    histogram = Histogram.of(np.full(4, value, np.float32))
    grid = grid_for_range(*estimate(method, histogram, dtype), dtype)

    np.testing.assert_allclose(grid.fake(np.array([value])), [value], rtol=1e-6)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="guess"):
        estimate("guess", Histogram.of(np.ones(1)), "uint8")
