"""Statistics are a monoid, and what they say is exact."""

import io
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphopt.analysis.statistics import (
    BINS,
    ChannelMean,
    ChannelPower,
    ChannelRange,
    Gram,
    Histogram,
    Moving,
    Range,
    Request,
    Statistics,
    Unfold,
    bin_exponent,
    bin_index,
)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = hnp.arrays(np.float32, st.integers(1, 40), elements=FLOATS)
# Sums of integers are exact, so that the laws hold to the last bit.
WHOLE = st.integers(-1000, 1000)


def vectors(draw_shape: tuple[int, ...], dtype=np.float64):
    return hnp.arrays(dtype, draw_shape, elements=WHOLE.map(float))


STATISTICS = {
    "range": st.tuples(FLOATS, FLOATS).map(lambda pair: Range(*sorted(pair))),
    "moving": st.builds(Moving, WHOLE.map(float), WHOLE.map(float), st.integers(1, 100)),
    "histogram": ARRAYS.map(Histogram.of),
    "channel_range": st.builds(ChannelRange, vectors((3,), np.float32), vectors((3,), np.float32)),
    "channel_mean": st.builds(ChannelMean, vectors((3,)), st.integers(1, 100)),
    "channel_power": st.builds(ChannelPower, vectors((3,)), st.integers(1, 100)),
    "gram": st.builds(Gram, vectors((2, 3, 3)), vectors((2, 3)), st.integers(1, 100)),
}


@pytest.mark.parametrize("kind", STATISTICS)
@given(data=st.data())
def test_merging_is_associative_and_commutative(kind, data):
    a, b, c = (data.draw(STATISTICS[kind]) for _ in range(3))

    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)


@given(data=st.data())
def test_statistics_of_several_values_have_an_empty_one_that_changes_nothing(data):
    stats = Statistics({Request(kind, kind): data.draw(STATISTICS[kind]) for kind in STATISTICS})

    assert dict(stats.merge(Statistics())) == dict(stats) == dict(Statistics().merge(stats))


@given(ARRAYS, st.integers(0, 40), st.randoms(use_true_random=False))
def test_a_histogram_does_not_depend_on_order_nor_on_parts(values, cut, random):
    shuffled = values[random.sample(range(len(values)), len(values))]
    parts = [Histogram.of(part) for part in (shuffled[:cut], shuffled[cut:]) if len(part)]

    assert reduce(Histogram.merge, parts) == Histogram.of(values)


@given(ARRAYS)
def test_every_number_is_in_the_bin_that_covers_it(values):
    histogram = Histogram.of(values)
    edges, exact = histogram.edges, values.astype(np.float64)

    assert len(histogram.counts) <= BINS
    expected = [int(((low <= exact) & (exact < high)).sum()) for low, high in pairwise(edges)]
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.total == values.size
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0


@given(FLOATS, FLOATS, FLOATS)
def test_bins_never_become_finer_when_the_range_grows(a, b, c):
    low, high = min(a, b), max(a, b)

    assert bin_exponent(min(low, c), max(high, c)) >= bin_exponent(low, high)


@given(FLOATS, FLOATS)
def test_bins_are_as_fine_as_their_number_allows(a, b):
    low, high = min(a, b), max(a, b)
    exponent = bin_exponent(low, high)

    assert bin_index(high, exponent) - bin_index(low, exponent) < BINS
    finer_is_too_many = bin_index(high, exponent - 1) - bin_index(low, exponent - 1) >= BINS
    with np.errstate(over="ignore"):  # the largest float32 has no next one
        step = np.spacing(np.float32(max(abs(low), abs(high))))
    finer_is_below_float32 = 2.0 ** (exponent - 1) < step
    assert finer_is_too_many or finer_is_below_float32 or exponent == -126


def test_a_histogram_tells_widths_and_centers():
    histogram = Histogram.of(np.array([0.0, 0.25, 2047.0], np.float32))

    assert histogram.exponent == 0
    assert histogram.width == 1.0
    assert histogram.centers[[0, -1]].tolist() == [0.5, 2047.5]
    assert histogram.counts[[0, 1, -1]].tolist() == [2, 0, 1]


def test_a_constant_has_one_bin():
    histogram = Histogram.of(np.full(5, -3.0, np.float32))

    assert histogram.counts.tolist() == [5]
    assert histogram.edges[0] <= -3.0 < histogram.edges[1]


def test_bins_cannot_be_split():
    with pytest.raises(ValueError, match="cannot be split"):
        Histogram.of(np.array([0.0, 100.0], np.float32)).coarsened(-10)


def test_statistics_of_other_channels_do_not_merge():
    with pytest.raises(ValueError, match="do not belong together"):
        ChannelMean(np.zeros(2), 1).merge(ChannelMean(np.zeros(3), 1))


def test_means_are_over_what_was_counted():
    assert ChannelMean(np.array([6.0]), 3).mean.tolist() == [2.0]
    assert Moving(-4.0, 8.0, 2).low == -2.0
    assert Moving(-4.0, 8.0, 2).high == 4.0
    gram = Gram(np.full((1, 1, 1), 10.0), np.full((1, 1), 4.0), 2)
    assert gram.second.item() == 5.0
    assert gram.mean.item() == 2.0


@given(data=st.data())
def test_what_is_saved_is_loaded(data):
    requests = [Request(kind, kind, axis=1) for kind in STATISTICS]
    requests[-1] = Request("ü/x", "gram", unfold=Unfold((3, 1), (2, 2), (0, 1, 0, 1), (1, 1), 2))
    stats = Statistics({r: data.draw(STATISTICS[r.kind]) for r in requests})
    file = io.BytesIO()

    stats.save(file)
    file.seek(0)
    loaded = Statistics.load(file)

    assert list(loaded) == requests
    assert dict(loaded) == dict(stats)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_file_is_an_error(damage):
    file = io.BytesIO()
    Statistics({Request("x", "histogram"): Histogram.of(np.arange(1000, dtype=np.float32))}).save(file)
    good = file.getvalue()
    middle = len(good) // 2
    bad = {
        "cut": good[:middle],
        "flipped": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "empty": b"",
        "other": b"{}",
    }[damage]

    with pytest.raises(ValueError, match="not statistics of graphopt"):
        Statistics.load(io.BytesIO(bad))
