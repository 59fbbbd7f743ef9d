"""merge-chains and merge-concats: what two nodes in a row come to, and which stay two."""

from __future__ import annotations

import re

import numpy as np
import pytest

from graphopt.analysis.casts import first_cast_is_needless, holds_exactly
from graphopt.ir import DataType
from tests.helpers import check_equivalent, model_of, operators, optimized

X = np.array([[-np.inf, -9.5, -1.5, -0.5], [0.0, 0.5, 2.5, np.inf], [3.4e38, 7.0, 5.0, 1.0]], np.float32)
SMALL = np.clip(X, -100, 100)
WEIGHTS = {
    "m1": np.float32(-1),
    "z": np.float32(0),
    "one": np.float32(1),
    "six": np.float32(6),
    "inf": np.float32(np.inf),
    "ninf": np.float32(-np.inf),
    "none": np.zeros((3, 0), np.float32),
    "s": np.array([1]),
    "e": np.array([3]),
    "a0": np.array([0]),
    "a1": np.array([1]),
    "end": np.array([2**31 - 1]),
    "st": np.array([2]),
    "pads": np.array([0, 1, 2, 0]),
    "seven": np.float32(7),
}


def both(lines: str, opset: int = 17, given: str = "float[3,4] x", result: str = "float y"):
    used = {name: array for name, array in WEIGHTS.items() if name in re.findall(r"\w+", lines)}
    before = model_of(f"g ({given}) => ({result}) {{ {lines} }}", opset=opset, weights=used)
    return before, optimized(before, "merge-chains,merge-concats,remove-dead")[0]


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ("a = Relu(x) y = Relu(a)", {"Relu": 1}),
        ("a = Abs(x) b = Abs(a) y = Abs(b)", {"Abs": 1}),
        ("a = Ceil(x) b = Floor(a) y = Round(b)", {"Ceil": 1}),
        ("a = Sign(x) y = Ceil(a)", {"Sign": 1}),
        ("a = Neg(x) b = Neg(a) y = Relu(b)", {"Relu": 1}),
        ("a = Clip(x, z, six) y = Relu(a)", {"Clip": 1}),
        ("a = Relu(x) y = Clip(a, m1, six)", {"Clip": 1}),
        ("a = Relu(x) y = Clip(a, , six)", {"Clip": 1}),
        ("a = Clip(x, m1) y = Clip(a, , six)", {"Clip": 1}),
        ("a = Clip(x, m1, six) y = Clip(a, z, seven)", {"Clip": 1}),
        ("a = Clip(x, ninf, inf) y = Clip(a, z)", {"Clip": 1}),
        ("a = Clip(x, z) b = Clip(a, ninf, six) y = Relu(b)", {"Clip": 1}),
        ("a = Cast<to = 11>(x) y = Cast<to = 1>(a)", {"Identity": 1}),
        ("a = Cast<to = 11>(x) y = Cast<to = 10>(a)", {"Cast": 1}),
        ("a = Slice(x, s, e, a0) y = Slice(a, s, e, a1)", {"Slice": 1}),
        ("a = Slice(x, s, e, a0) y = Slice(a, s, e, a1, st)", {"Slice": 1}),
        ("a = Pad(x, pads) y = Pad(a, pads)", {"Pad": 1}),
        ("a = Pad(x, pads, six) b = Pad(a, pads, six) y = Pad(b, pads, six)", {"Pad": 1}),
        ("a = Concat<axis = 1>(x, none) b = Relu(x) y = Concat<axis = -1>(b, a, x)", {"Concat": 1, "Relu": 1}),
        ("a = Concat<axis = 1>(none, none) y = Relu(a)", {"Concat": 1, "Relu": 1}),
        ("a, b = Split<axis = 1>(x) y = Concat<axis = -1>(a, b)", {"Identity": 1}),
    ],
)
def test_becomes_one_or_none(lines, left):
    kind = "float16" if "to = 10" in lines else "float"
    before, after = both(lines, result=f"{kind}[m,n] y")
    assert operators(after) == left
    check_equivalent(before, after, {"x": SMALL if kind == "float16" else X})


@pytest.mark.parametrize(
    "lines",
    [
        "a = Neg(x) y = Abs(a)",
        "a = Relu(x) b = Clip(a, m1, six) y = Add(a, b)",  # the Relu is read twice
        "a = Clip(x, z, one) y = Clip(a, six, seven)",  # nothing in common
        "a = Clip(x, z, c) y = Relu(a)",  # computed
        "a = Cast<to = 10>(x) y = Cast<to = 1>(a)",  # loses precision
        "a = Cast<to = 6>(x) y = Cast<to = 1>(a)",
        "a = Slice(x, s, e, a1) y = Slice(a, s, e, a1)",
        "a = Slice(x, s, e, a0) b = Slice(a, s, e, a1) y = Concat<axis = 1>(a, b)",
        "a = Pad(x, pads, six) y = Pad(a, pads)",
        'a = Pad<mode = "edge">(x, pads) y = Pad<mode = "edge">(a, pads)',
        "a = Concat<axis = 0>(x, x) y = Concat<axis = 1>(a, a)",
        "a = Concat<axis = 1>(x, x) b = Relu(a) y = Concat<axis = 1>(a, b)",
        "a, b = Split<axis = 1>(x) y = Concat<axis = 1>(b, a)",
        "a, b = Split<axis = 1>(x) y = Concat<axis = 0>(a, b)",
    ],
)
def test_stays_two(lines):
    before, after = both(lines, given="float[3,4] x, float c")
    assert operators(after) == operators(before)


@pytest.mark.parametrize("opset", [6, 10])
def test_attributes_of_old_opsets(opset):
    lines = "a = Clip<max = 6.0>(x) b = Clip<min = 0.5>(a) c = Relu(b) y = Neg(c)"
    before, after = both(lines, opset=opset)
    assert operators(after) == {"Clip": 1, "Neg": 1}
    check_equivalent(before, after, {"x": X})


def test_slices_and_pads_of_old_opsets():
    lines = """a = Slice<starts = [1], ends = [3], axes = [0]>(x) b = Slice<starts = [0], ends = [2], axes = [1]>(a)
               c = Pad<pads = [0, 1, 0, 0], value = 2.0>(b) y = Pad<pads = [1, 1, 0, 0], value = 2.0>(c)"""
    before, after = both(lines, opset=9)
    assert operators(after) == {"Slice": 1, "Pad": 1}
    check_equivalent(before, after, {"x": X})


def test_behind_a_node_without_inputs():
    """Found on a real model: the producer was a Constant node."""
    before, after = both("a = Constant<value_int = 3>() y = Cast<to = 1>(a)")
    assert operators(after) == operators(before)


def test_slices_that_share_their_first_cut():
    """The four phases of a picture: six Slices become four."""
    lines = """t = Slice(x, a0, end, a0, st) b = Slice(x, s, end, a0, st)
               p = Slice(t, a0, end, a1, st) q = Slice(t, s, end, a1, st) r = Slice(b, a0, end, a1, st)
               u = Slice(b, s, end, a1, st) y = Concat<axis = 0>(p, q, r, u)"""
    before, after = both(lines)
    assert operators(after)["Slice"] == 4
    check_equivalent(before, after, {"x": X})


def test_integer_clips():
    before = model_of(
        "g (int32[4] x) => (int32[4] y) { a = Clip(x, l) y = Clip(a, , h) }",
        weights={"l": np.int32(-2), "h": np.int32(5)},
    )
    after, _ = optimized(before, "merge-chains")
    assert operators(after) == {"Clip": 1}
    check_equivalent(before, after, {"x": np.array([-(2**31), -1, 5, 2**31 - 1], np.int32)})


def test_a_long_chain_merges_in_one_run():
    lines = " ".join(f"v{i + 1} = Relu(v{i})" for i in range(50))
    before = model_of(f"g (float[2] v0) => (float[2] v50) {{ {lines} }}")
    after, result = optimized(before, "merge-chains")
    assert operators(after) == {"Relu": 1}
    assert result.run.records[0].changes["nodes merged"] == 49


def test_nested_concats_of_many_levels_are_flat_in_one_run():
    lines = " ".join(f"v{i + 1} = Concat<axis = 0>(v{i}, x)" for i in range(20))
    before = model_of(f"g (float[2] x) => (float[n] v20) {{ v0 = Relu(x) {lines} }}")
    after, _ = optimized(before, "merge-concats")
    assert operators(after) == {"Concat": 1, "Relu": 1}
    check_equivalent(before, after, {"x": np.array([-1, 1], np.float32)})


def test_a_concat_outside_a_loop_is_not_pulled_into_it():
    body = """g (float[2] x, bool k) => (float[n] y) {
        a = Concat<axis = 0>(x, x)
        y = If(k) <then_branch = t () => (float[n] u) { u = Concat<axis = 0>(a, x) },
                   else_branch = e () => (float[n] w) { w = Relu(x) }>
    }"""
    assert operators(optimized(model_of(body), "merge-concats")[0])["Concat"] == 2


@pytest.mark.parametrize(
    ("wide", "narrow", "holds"),
    [
        ("INT64", "INT32", True),
        ("INT32", "UINT32", False),
        ("INT64", "UINT32", True),
        ("UINT64", "INT8", False),
        ("FLOAT", "INT16", True),
        ("FLOAT", "INT32", False),
        ("DOUBLE", "INT32", True),
        ("FLOAT16", "UINT8", True),
        ("FLOAT16", "UINT16", False),
        ("FLOAT", "BFLOAT16", True),
        ("FLOAT16", "BFLOAT16", False),
        ("BFLOAT16", "FLOAT16", False),
        ("BOOL", "UINT8", False),
        ("UINT8", "BOOL", True),
    ],
)
def test_which_types_hold_which(wide, narrow, holds):
    assert holds_exactly(DataType[wide], DataType[narrow]) is holds


@pytest.mark.parametrize("start", ["BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FLOAT16", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("middle", ["BOOL", "INT16", "INT64", "FLOAT16", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("end", ["BOOL", "INT8", "INT32", "INT64", "FLOAT", "FLOAT16"])
def test_a_needless_cast_changes_nothing(start, middle, end):
    """Held against NumPy's conversions of edge values that every step can represent."""
    a, b, c = (DataType[name] for name in (start, middle, end))
    if not first_cast_is_needless(a.value, b.value, c.value):
        return
    kind = a.numpy()
    values = [0, 1, 2, 100, 2047, 32767, 2**24 + 1, 2**53 + 1] + ([-1, -128, 0.1, 0.3] if kind.kind == "f" else [])
    limit = np.iinfo(kind).max if kind.kind in "iu" else 65504 if kind.kind == "f" else 1
    x = np.array([value for value in values if value <= limit], kind)
    with np.errstate(over="ignore"):  # into float16
        np.testing.assert_array_equal(x.astype(b.numpy()).astype(c.numpy()), x.astype(c.numpy()))
