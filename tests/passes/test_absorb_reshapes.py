"""absorb-reshapes: which neighbours take a reshape in, and what keeps it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.helpers import check_equivalent, model_of, operators, optimized

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
WEIGHTS = {
    "i": np.array(2),
    "li": np.array([2]),
    "one": np.array([1]),
    "two": np.array([2]),
    "zero": np.array([0]),
    "both": np.array([0, 1]),
    "three": np.array([3]),
    "minus": np.array([-1]),
    "end": np.array([2**63 - 1]),
    "n1": np.array([-1, 1, 4]),
    "n4": np.array([-1, 4]),
    "c": np.float32(2),
    "row": np.ones(4, np.float32),
    "p4": np.array([0, 0, 0, 1, 0, 0, 0, 2]),
    "p4x": np.array([1, 0, 0, 1, 0, 0, 0, 2]),
}


def both(lines: str, opset: int = 18, given: str = "float[N,3,4] x", result: str = "float y"):
    used = {name: array for name, array in WEIGHTS.items() if name in re.findall(r"\w+", lines)}
    before = model_of(f"g ({given}) => ({result}) {{ {lines} }}", opset=opset, weights=used)
    return before, optimized(before, "absorb-reshapes,remove-dead")[0]


@pytest.mark.parametrize(
    ("lines", "left", "opset"),
    [
        ("a = Gather<axis = 1>(x, i) y = Unsqueeze(a, one)", {"Gather": 1}, 18),
        ("a = Gather<axis = -2>(x, i) y = Reshape(a, n1)", {"Gather": 1}, 18),
        ("a = Slice(x, one, two, one) y = Squeeze(a, one)", {"Gather": 1}, 18),
        ("a = Slice(x, minus, end, two) y = Squeeze(a, two)", {"Gather": 1}, 18),
        ("a = Slice<starts = [-2], ends = [-1], axes = [1]>(x) y = Squeeze<axes = [1]>(a)", {"Gather": 1}, 9),
        ("a = ReduceMean(x, two) y = Squeeze(a, two)", {"ReduceMean": 1}, 18),
        ("a = ReduceMax<axes = [1], keepdims = 0>(x) y = Reshape(a, n1)", {"ReduceMax": 1}, 13),
        ("a = ReduceSum<keepdims = 0>(x, one) y = Unsqueeze(a, one)", {"ReduceSum": 1}, 18),
        ("b = ArgMax<axis = 1>(x) a = Squeeze(b, one) y = Cast<to = 1>(a)", {"ArgMax": 1, "Cast": 1}, 18),
        ("a = Unsqueeze(x, zero) b = Relu(a) y = Squeeze(b, zero)", {"Relu": 1}, 18),
        ("a = Unsqueeze(x, zero) b = Mul(a, c) y = Squeeze(b, zero)", {"Mul": 1}, 18),
        ("a = Unsqueeze(x, zero) b = Clip(a, c) y = Reshape(b, n4)", {"Clip": 1, "Reshape": 1}, 18),
        ("a = Unsqueeze(x, one) b = Pad(a, p4) y = Squeeze(b, one)", {"Pad": 1}, 18),
        ('a = Unsqueeze(x, two) b = Pad<mode = "reflect">(a, p4) y = Squeeze(b, two)', {"Pad": 1}, 18),
    ],
)
def test_is_absorbed(lines, left, opset):
    before, after = both(lines, opset)
    assert operators(after) == left
    for batch in (2, 5):
        check_equivalent(before, after, {"x": np.resize(X, (batch, 3, 4))})


@pytest.mark.parametrize(
    "lines",
    [
        "a = Gather<axis = 1>(x, i) y = Unsqueeze(a, zero)",  # another place
        "a = Gather<axis = 1>(x, li) y = Unsqueeze(a, one)",  # already a list
        "a = Slice(x, zero, two, one) y = Reshape(a, n4)",  # two elements
        "a = Slice(x, minus, zero, one) b = Reshape(a, n1) y = Relu(b)",  # from -1 to 0: nothing
        "a = ReduceMean(x, two) y = Unsqueeze(a, two)",
        "a = ReduceMean<keepdims = 0>(x, two) y = Unsqueeze(a, one)",
        "a = ReduceMean(x, two) b = Squeeze(a, two) d = Relu(a) y = Mul(b, d)",  # read twice
        "a = Unsqueeze(x, zero) b = Mul(a, row) y = Squeeze(b, zero)",
        "a = Unsqueeze(x, zero) b = Softmax(a) y = Squeeze(b, zero)",
        "a = Unsqueeze(x, zero) b = Pad(a, p4x) y = Relu(b)",
        "a = Unsqueeze(x, zero) b = Pad(a, p4x) y = Reshape(b, n4)",  # pads the new dimension
    ],
)
def test_stays(lines):
    before, after = both(lines)
    assert operators(after) == operators(before)


def test_a_reduction_that_is_an_output_stays():
    before, after = both("y = ReduceMean(x, two) z = Squeeze(y, two)", result="float y, float z")
    assert operators(after) == operators(before)
    check_equivalent(before, after, {"x": X})
