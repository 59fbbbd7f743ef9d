"""remove-reshapes: chains of views become one node or none, and only where the shape is proven."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import check_equivalent, model_of, operators, optimized

INTS = {
    "m1": np.array([-1]),
    "z": np.array([0]),
    "a1": np.array([1]),
    "a02": np.array([0, 2]),
    "s6": np.array([6]),
    "s23": np.array([2, 3]),
    "s32": np.array([3, 2]),
    "s123": np.array([1, 2, 3]),
    "keep": np.array([0, 0]),
    "flat": np.array([0, -1]),
    "n23": np.array([-1, 2, 3]),
    "n123": np.array([-1, 1, 2, 3]),
    "n32": np.array([-1, 3, 2]),
    "back": np.array([3, -1]),
}


def both(lines: str, given: str = "float[2,3] x", result: str = "float y", opset: int = 17):
    before = model_of(f"g ({given}) => ({result}) {{ {lines} }}", opset=opset, weights=INTS)
    return before, optimized(before, "fixpoint{max=4}(remove-reshapes),remove-dead")[0]


@pytest.mark.parametrize(
    "lines",
    [
        "t = Reshape(x, keep) y = Neg(t)",
        "t = Reshape(x, s23) y = Neg(t)",
        "t = Reshape(x, flat) y = Neg(t)",
        "t = Flatten(x) y = Neg(t)",
        "a = Reshape(x, s6) t = Reshape(a, s23) y = Neg(t)",
        "a = Flatten<axis = 0>(x) b = Squeeze(a, z) t = Reshape(b, s23) y = Neg(t)",
        "a = Unsqueeze(x, a02) t = Squeeze(a, a02) y = Neg(t)",
        "a = Unsqueeze(x, z) b = Unsqueeze(a, a02) c = Squeeze(b, z) d = Squeeze(c, a1) t = Squeeze(d) y = Neg(t)",
    ],
)
def test_comes_to_nothing(lines):
    before, after = both(lines, result="float[2,3] y")
    assert operators(after) == {"Neg": 1}
    check_equivalent(before, after, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ("a = Reshape(x, s6) y = Reshape(a, s32)", "Reshape"),
        ("a = Reshape(x, s6) y = Unsqueeze(a, z)", "Reshape"),
        ("a = Unsqueeze(x, z) y = Unsqueeze(a, a02)", "Unsqueeze"),
        ("a = Unsqueeze(x, a02) y = Squeeze(a, z)", "Unsqueeze"),
        ("a = Unsqueeze(x, a02) y = Flatten<axis = 0>(a)", "Reshape"),
    ],
)
def test_comes_to_one(lines, left):
    before, after = both(lines)
    assert operators(after) == {left: 1}
    check_equivalent(before, after, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ("a = Reshape(x, n23) b = Neg(a) c = Flatten(b) y = Reshape(c, n32)", {"Reshape": 2, "Neg": 1}),
        ("a = Reshape(x, n123) b = Squeeze(a, a1) y = Reshape(b, n32)", {"Reshape": 1}),
        ("a = Reshape(x, n123) y = Flatten(a)", {}),
    ],
)
def test_symbolic_batch(lines, left):
    before, after = both(lines + " w = Neg(y)", given="float[N,6] x", result="float w")
    assert operators(after) == {"Neg": 1} | {k: v + (k == "Neg") for k, v in left.items()}
    for batch in (1, 4):
        check_equivalent(before, after, {"x": np.arange(batch * 6, dtype=np.float32).reshape(batch, 6)})


def test_two_symbols_are_copied_by_place():
    before, after = both("a = Unsqueeze(x, z) y = Reshape(a, t) ", given="float[N,M,6] x, int64[4] t", result="float y")
    assert operators(after) == operators(before)  # the target is computed: nothing is known of it
    lines = "s = Shape(x) a = Reshape(x, n23) b = Reshape(a, s) y = Neg(b)"
    before, after = both(lines, given="float[N,M,6] x", result="float y")
    check_equivalent(before, after, {"x": np.arange(24, dtype=np.float32).reshape(2, 2, 6)})


def test_an_unproven_chain_stays():
    _, after = both("a = Reshape(x, back) y = Reshape(a, t)", given="float[N,M] x, int64[2] t", result="float y")
    assert operators(after) == {"Reshape": 2}


def test_unsqueezes_merge_whatever_the_dimensions():
    before, after = both("a = Unsqueeze(x, a02) y = Unsqueeze(a, a1)", given="float[N,M] x")
    assert operators(after) == {"Unsqueeze": 1}
    check_equivalent(before, after, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_axes_as_attributes():
    before, after = both("a = Unsqueeze<axes = [0]>(x) y = Unsqueeze<axes = [3]>(a)", opset=11)
    assert operators(after) == {"Unsqueeze": 1}
    check_equivalent(before, after, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_a_shared_view_stays_for_its_other_reader():
    before, after = both("a = Reshape(x, s6) b = Reshape(a, s32) y = Neg(b) w = Neg(a)", result="float y, float w")
    assert operators(after) == {"Reshape": 2, "Neg": 2}
    check_equivalent(before, after, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_a_wrong_declared_output_proves_nothing():
    """The output is declared to have two rows; the target keeps whatever number there is."""
    before, after = both(
        "a = Unsqueeze(x, z) t = Shape(x) y = Reshape(a, t)", given="float[N,M] x", result="float[2,3] y"
    )
    check_equivalent(before, after, {"x": np.arange(20, dtype=np.float32).reshape(4, 5)})


def test_zero_sizes_are_left_alone():
    before, after = both("a = Unsqueeze(x, z) y = Flatten<axis = 1>(a)", given="float[0,3] x")
    check_equivalent(before, after, {"x": np.zeros((0, 3), np.float32)})


def test_a_scalar():
    before, after = both("a = Unsqueeze(x, z) b = Unsqueeze(a, z) y = Squeeze(b)", given="float[1] x")
    assert operators(after) == {"Squeeze": 1}
    check_equivalent(before, after, {"x": np.ones(1, np.float32)})
