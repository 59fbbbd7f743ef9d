"""fuse-affine: constants into the layer in front, into the layer behind, and into each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import check_equivalent, codes, model_of, operators, optimized

RNG = np.random.default_rng(1)


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


WEIGHTS = {
    "W": normal(6, 4, 3, 3),
    "T": normal(4, 6, 2, 2),
    "A": normal(4, 6),
    "c": normal(6),
    "s": np.float32(1.5),
    "s1": np.full((1,), -0.25, np.float32),
    "s4": np.full((1, 1, 1, 1), 3, np.float32),
    "row": normal(6),
    "row2": normal(1, 6),
    "chan": normal(6, 1, 1),
    "chan4": normal(1, 6, 1, 1),
    "in_chan": normal(4, 1, 1),
    "in_row": normal(4),
    "image": normal(5, 5),
}
IMAGE, MATRIX, BATCH = "float[n, 4, 7, 7] x", "float[n, 4] x", "float[n, 3, 4] x"
FEEDS = {IMAGE: (2, 4, 7, 7), MATRIX: (5, 4), BATCH: (2, 3, 4)}

FOLDED = {
    "conv times a scalar": (IMAGE, "t = Conv(x, W, c) y = Mul(t, s)", "Conv"),
    "conv times a scalar of rank 4": (IMAGE, "t = Conv(x, W, c) y = Mul(s4, t)", "Conv"),
    "conv times a channel vector": (IMAGE, "t = Conv(x, W) y = Mul(chan, t)", "Conv"),
    "conv over a channel vector": (IMAGE, "t = Conv(x, W, c) y = Div(t, chan4)", "Conv"),
    "conv plus": (IMAGE, "t = Conv(x, W) y = Add(t, chan)", "Conv"),
    "conv minus": (IMAGE, "t = Conv(x, W, c) y = Sub(t, s1)", "Conv"),
    "constant minus conv": (IMAGE, "t = Conv(x, W, c) y = Sub(chan, t)", "Conv"),
    "minus conv": (IMAGE, "t = Conv(x, W, c) y = Neg(t)", "Conv"),
    "a chain behind conv": (IMAGE, "t = Conv(x, W) u = Mul(t, chan) v = Add(u, s) y = Div(v, s1)", "Conv"),
    "transposed convolution": (IMAGE, "t = ConvTranspose(x, T) u = Mul(t, chan) y = Add(u, chan)", "ConvTranspose"),
    "gemm": (MATRIX, "t = Gemm <alpha = 2.0, beta = 0.5> (x, A, c) u = Mul(t, row2) y = Sub(u, row)", "Gemm"),
    "matmul": (MATRIX, "t = MatMul(x, A) u = Mul(t, row) y = Add(u, row)", "Gemm"),
    "matmul of rank 3": (BATCH, "t = MatMul(x, A) y = Mul(t, row)", "MatMul"),
    "conv behind a factor, padded": (IMAGE, "t = Mul(x, in_chan) y = Conv <pads = [1, 1, 1, 1]> (t, W)", "Conv"),
    "conv behind a shift": (IMAGE, "t = Sub(x, in_chan) y = Conv(t, W, c)", "Conv"),
    "conv behind both": (IMAGE, "t = Sub(x, in_chan) u = Div(t, s) y = Conv(u, W, c)", "Conv"),
    "gemm behind both": (MATRIX, "t = Sub(x, in_row) u = Div(t, s) y = Gemm <alpha = 2.0> (u, A, c)", "Gemm"),
    "matmul behind a factor": (BATCH, "t = Mul(x, in_row) y = MatMul(t, A)", "MatMul"),
}


@pytest.mark.parametrize("what", FOLDED)
def test_folds_into_weights(what: str) -> None:
    given, nodes, left = FOLDED[what]
    before = model_of(f"g ({given}) => (y) {{ {nodes} }}", weights=WEIGHTS)
    after, _ = optimized(before, "fixpoint(fuse-affine)")
    assert operators(after) == {left: 1}
    check_equivalent(before, after, {"x": normal(*FEEDS[given])})


def test_a_shift_goes_into_the_bias_that_a_matmul_has_in_an_add() -> None:
    body = f"g ({BATCH}) => (y) {{ t = Add(x, in_row) u = MatMul(t, A) v = Add(u, c) y = Div(v, row) }}"
    before = model_of(body, weights=WEIGHTS)
    after, _ = optimized(before, "fixpoint(fuse-affine)")
    assert operators(after) == {"MatMul": 1, "Add": 1}
    check_equivalent(before, after, {"x": normal(2, 3, 4)})


MERGED = {
    "factors": ("a = Mul(x, s) b = Div(a, s1) y = Mul(s4, b)", {"Mul": 1}),
    "shifts": ("a = Add(x, s) b = Sub(a, s1) y = Add(b, in_chan)", {"Add": 1}),
    "a line times a factor": ("a = Mul(x, s) b = Add(a, s1) y = Mul(b, s)", {"Mul": 1, "Add": 1}),
    "two signs": ("a = Neg(x) b = Mul(a, in_chan) y = Neg(b)", {"Mul": 1}),
}


@pytest.mark.parametrize("what", MERGED)
def test_merges_chains(what: str) -> None:
    nodes, left = MERGED[what]
    before = model_of(f"g ({IMAGE}) => (y) {{ {nodes} }}", weights=WEIGHTS)
    after, _ = optimized(before, "fuse-affine")
    assert operators(after) == left
    x = normal(1, 4, 7, 7)
    x[0, 0, 0, :5] = [np.nan, np.inf, -np.inf, 0.0, -0.0]
    check_equivalent(before, after, {"x": x})


LEFT_ALONE = {
    "an operand that varies over the image": (IMAGE, "t = Conv(x, W) y = Mul(t, image)"),
    "an operand that adds an axis": (MATRIX, "t = Gemm(x, A, c) y = Mul(t, s4)"),
    "a matmul of rank 3 without bias": (BATCH, "t = MatMul(x, A) y = Add(t, row)"),
    "a shift in front of padding": (IMAGE, "t = Add(x, in_chan) y = Conv <pads = [1, 1, 1, 1]> (t, W)"),
    "a constant over the layer": (IMAGE, "t = Conv(x, W) y = Div(s, t)"),
    "a zero divisor": (IMAGE, "t = Conv(x, W) z = Sub(s, s) y = Div(t, zero)"),
    "an infinite factor": (IMAGE, "t = Conv(x, W) y = Mul(t, infinite)"),
    "two steps that need two": (IMAGE, "t = Mul(x, s) y = Add(t, s1)"),
    "a merged constant out of range": (IMAGE, "t = Mul(x, tiny) y = Mul(t, tiny)"),
    "a factor that leaves few digits of the weights": (IMAGE, "t = Conv(x, W) y = Mul(t, tiniest)"),
    "a factor in front that does": (IMAGE, "t = Mul(x, tiniest) y = Conv(t, W)"),
    "a divisor whose reciprocal is out of range": (IMAGE, "t = Div(x, tiniest) y = Mul(t, tiny)"),
    "the end of a Gelu": (
        MATRIX,
        "d = Div(x, root) e = Erf(d) f = Add(e, one) h = Mul(x, f) i = Mul(h, half) y = MatMul(i, A)",
    ),
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    given, nodes = LEFT_ALONE[reason]
    extra = {
        name: np.float32(value)
        for name, value in (("zero", 0), ("infinite", np.inf), ("tiny", 1e-30), ("tiniest", 1e-42))
    }
    extra |= {name: np.float32(value) for name, value in (("root", 2**0.5), ("one", 1), ("half", 0.5))}
    before = model_of(f"g ({given}) => (y) {{ {nodes} }}", weights={**WEIGHTS, **extra})
    after, result = optimized(before, "fuse-affine")
    assert operators(after) == operators(before)
    assert not result.run.ctx.rewrites


def test_a_chain_whose_factors_overflow_stays_without_a_warning(recwarn) -> None:
    lines = "".join(f"t{i + 1} = Mul(t{i}, large) " for i in range(60))
    before = model_of(
        f"g ({IMAGE}) => (y) {{ t0 = Relu(x) {lines} y = Neg(t60) }}", weights={"large": np.float32(1e30)}
    )
    after, _ = optimized(before, "fuse-affine")
    assert operators(after) == operators(before)
    assert not recwarn.list


def test_leaves_a_result_that_is_read_twice() -> None:
    before = model_of(f"g ({IMAGE}) => (y, z) {{ t = Conv(x, W) y = Mul(t, s) z = Relu(t) }}", weights=WEIGHTS)
    after, _ = optimized(before, "fuse-affine")
    assert operators(after) == operators(before)


def test_leaves_integers_alone() -> None:
    weights = {"a": np.int64(3), "b": np.int64(5)}
    before = model_of("g (int64[n] x) => (y) { t = Mul(x, a) y = Mul(t, b) }", weights=weights)
    after, _ = optimized(before, "fuse-affine")
    assert operators(after) == {"Mul": 2}


def test_a_shared_weight_is_copied_within_the_limit_and_refused_above_it() -> None:
    body = f"g ({IMAGE}) => (y, z) {{ t = Conv(x, W) y = Mul(t, s) z = Conv(x, W) }}"
    before = model_of(body, weights=WEIGHTS)
    after, _ = optimized(before, "fuse-affine")
    assert operators(after) == {"Conv": 2}
    check_equivalent(before, after, {"x": normal(1, 4, 7, 7)})
    after, result = optimized(before, "fuse-affine{growth=10}")
    assert operators(after)["Mul"] == 1
    assert codes(result) == {"AFF001"}


@pytest.mark.parametrize(("name", "dtype"), [("float16", np.float16), ("double", np.float64)])
def test_keeps_dtypes(name: str, dtype: type) -> None:
    weights = {"W": normal(3, 2, dtype=dtype), "s": dtype(1.25), "t": dtype(0.5)}
    body = f"g ({name}[n, 3] x) => (y) {{ a = Gemm(x, W) b = Mul(a, s) y = Add(b, t) }}"
    before = model_of(body, weights=weights)
    after, _ = optimized(before, "fixpoint(fuse-affine)")
    assert operators(after) == {"Gemm": 1}
    check_equivalent(before, after, {"x": normal(4, 3, dtype=dtype)}, rtol=4 * float(np.finfo(dtype).eps))
