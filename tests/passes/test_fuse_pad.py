"""fuse-pad: which readers take a Pad in, and what keeps it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.helpers import check_equivalent, codes, model_of, operators, optimized

X = np.random.default_rng(0).normal(size=(2, 3, 6, 7)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
GIVEN = "float[N,3,6,7] x"
ONES = {"ones": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
SPATIAL = np.array([0, 0, 1, 0, 0, 0, 2, 1])
CONV = "y = Conv<strides = [2, 2]>(p, w)"


def both(lines: str, opset: int = 17, pads=SPATIAL, given: str = GIVEN, result: str = "float y", **weights):
    arrays = {"w": W, "pads": pads, **weights}
    words = set(re.findall(r"\w+", lines))
    arrays = {name: array for name, array in arrays.items() if name in words}
    before = model_of(f"g ({given}) => ({result}) {{ {lines} }}", opset=opset, weights=arrays)
    after, run = optimized(before, "fuse-pad,remove-dead")
    return before, after, run


COUNTED = "kernel_shape = [4, 4], pads = [1, 1, 1, 1], count_include_pad = 1"


@pytest.mark.parametrize(
    ("lines", "opset", "weights"),
    [
        (f"p = Pad(x, pads) {CONV}", 17, {}),
        (f"p = Pad(x, pads, v) {CONV}", 17, {"v": np.float32(0)}),
        (f'p = Pad<mode = "constant">(x, pads) {CONV}', 11, {}),
        (f"p = Pad<pads = [0, 0, 1, 0, 0, 0, 2, 1]>(x) {CONV}", 9, {}),
        (f"p = Pad(x, q, , a) {CONV}", 18, {"q": np.array([1, 0, 2, 1]), "a": np.array([-2, 3])}),
        ("p = Pad(x, pads) y = Conv<pads = [1, 1, 1, 0]>(p, w)", 17, {}),
        ('p = Pad(x, pads) y = Conv<auto_pad = "VALID">(p, w)', 17, {}),
        ("p = Pad(x, pads) y = Conv<dilations = [2, 2]>(p, w)", 17, {}),
        ("p = Pad(x, pads) a = Conv(p, w) b = Conv(p, w) y = Add(a, b)", 17, {}),
        ("p = Pad(x, pads) y = AveragePool<kernel_shape = [3, 3]>(p)", 17, {}),
        (
            f"p = Pad(x, pads) y = AveragePool<{COUNTED}>(p)",
            17,
            {},
        ),
        ("p = Pad(x, pads, v) y = MaxPool<kernel_shape = [3, 3]>(p)", 17, {"v": np.float32(-np.inf)}),
    ],
)
def test_goes_into_its_reader(lines, opset, weights):
    before, after, _ = both(lines, opset, **weights)
    assert operators(after)["Pad"] == 0
    check_equivalent(before, after, {"x": X})


@pytest.mark.parametrize("first", ["Relu(x)", "Sigmoid(x)", "Clip(x, z)"])
def test_zeros_go_into_a_max_pool_of_what_is_never_negative(first):
    lines = f"r = {first} p = Pad(r, pads) y = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(p)"
    before, after, _ = both(lines, z=np.float32(0))
    assert operators(after)["Pad"] == 0
    check_equivalent(before, after, {"x": X - 2})


@pytest.mark.parametrize(
    ("lines", "opset", "pads", "weights", "code"),
    [
        (f"p = Pad(x, pads, v) {CONV}", 17, SPATIAL, {"v": np.float32(1)}, "PAD002"),
        (f"p = Pad(x, pads) {CONV}", 17, np.array([0, 0, 0, 0, 1, 0, 0, 0]), {}, "PAD002"),
        (f"p = Pad(x, pads) {CONV}", 17, np.array([0, 0, -1, 0, 0, 0, 0, 0]), {}, "PAD001"),
        (f'p = Pad<mode = "reflect">(x, pads) {CONV}', 17, SPATIAL, {}, "PAD001"),
        ('p = Pad(x, pads) y = Conv<auto_pad = "SAME_UPPER">(p, w)', 17, SPATIAL, {}, "PAD002"),
        ("p = Pad(x, pads) a = Conv(p, w) b = Neg(p) y = Add(a, c)", 17, SPATIAL, {"c": np.float32(0)}, "PAD002"),
        ("p = Pad(x, pads) y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(p)", 17, SPATIAL, {}, "PAD002"),
        ("p = Pad(x, pads) y = AveragePool<kernel_shape = [3, 3], ceil_mode = 1>(p)", 17, SPATIAL, {}, "PAD002"),
        ("p = Pad(x, pads) y = AveragePool<kernel_shape = [2, 2]>(p)", 17, SPATIAL, {}, "PAD002"),
        ("p = Pad(x, pads) y = MaxPool<kernel_shape = [3, 3]>(p)", 17, SPATIAL, {}, "PAD002"),
        ("r = Relu(x) p = Pad(r, pads) y, i = MaxPool<kernel_shape = [3, 3]>(p)", 17, SPATIAL, {}, "PAD002"),
        (
            "r = Relu(x) p = Pad(r, ones) y = MaxPool<kernel_shape = [2, 2], dilations = [5, 5]>(p)",
            17,
            SPATIAL,
            ONES,
            "PAD002",
        ),
    ],
)
def test_stays_and_says_why(lines, opset, pads, weights, code):
    before, after, run = both(lines, opset, pads, **weights)
    assert operators(after)["Pad"] == 1
    assert code in codes(run)
    check_equivalent(before, after, {"x": X})


def test_an_output_stays():
    _, after, run = both(f"p = Pad(x, pads) {CONV}", result="float y, float p")
    assert operators(after)["Pad"] == 1
    assert "PAD001" in codes(run)


def test_computed_amounts_stay():
    _, after, _ = both(f"p = Pad(x, amounts) {CONV}", given=f"{GIVEN}, int64[8] amounts")
    assert operators(after)["Pad"] == 1


def test_a_pad_as_the_kernel_of_a_conv_stays():
    before, after, _ = both("p = Pad(w, pads) y = Conv(x, p)")
    assert operators(after)["Pad"] == 1
    check_equivalent(before, after, {"x": X})


@pytest.mark.parametrize("view", ["q = Reshape(p, t)", "q = Unsqueeze(p, a)"])
def test_through_a_reshape_that_adds_a_unit_dimension(view):
    lines = f"p = Pad(x, pads) {view} y = Conv<strides = [1, 2]>(q, k)"
    before, after, _ = both(
        lines,
        pads=np.array([0, 0, 2, 0, 0, 1]),
        given="float[N,3,8] x",
        t=np.array([-1, 3, 1, 11]),
        a=np.array([2]),
        k=W[:, :, :1],
    )
    assert operators(after) == {"Reshape": 1, "Conv": 1}
    check_equivalent(before, after, {"x": X.reshape(-1)[:144].reshape(6, 3, 8)})


def test_not_through_a_reshape_that_mixes_dimensions():
    before, after, _ = both(
        "p = Pad(x, pads) q = Reshape(p, t) y = Conv(q, k)",
        pads=np.array([0, 0, 2, 0, 0, 2]),
        given="float[N,3,8] x",
        t=np.array([-1, 3, 4, 3]),
        k=W[:, :, :1],
    )
    assert operators(after)["Pad"] == 1
    check_equivalent(before, after, {"x": X.reshape(-1)[:144].reshape(6, 3, 8)})
