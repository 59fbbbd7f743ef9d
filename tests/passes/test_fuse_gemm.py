"""fuse-gemm: bias, transposes, factors and products of constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import check_equivalent, model_of, operators, optimized

RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "W": normal(4, 6),
    "V": normal(6, 3),
    "wide": normal(3, 50),
    "b": normal(6),
    "b2": normal(1, 6),
    "b1": normal(1),
    "s": np.float32(0.5),
    "rows": normal(5, 6),
    "high": normal(1, 1, 6),
}
FUSED = {
    "a vector": ("t = MatMul(x, W) y = Add(t, b)", {"Gemm": 1}),
    "a row, first": ("t = MatMul(x, W) y = Add(b2, t)", {"Gemm": 1}),
    "one number": ("t = MatMul(x, W) y = Add(t, b1)", {"Gemm": 1}),
    "a scalar": ("t = MatMul(x, W) y = Add(t, s)", {"Gemm": 1}),
    "behind a Gemm": ("t = Gemm <alpha = 0.5> (x, W) y = Add(t, b)", {"Gemm": 1}),
    "products": ("t = MatMul(x, W) y = MatMul(t, V)", {"MatMul": 1}),
}


@pytest.mark.parametrize("what", FUSED)
@pytest.mark.parametrize("opset", [11, 17])
def test_fuses(what: str, opset: int) -> None:
    nodes, left = FUSED[what]
    before = model_of(f"g (float[n, 4] x) => (y) {{ {nodes} }}", weights=WEIGHTS, opset=opset)
    after, _ = optimized(before, "fuse-gemm")
    assert operators(after) == left
    for rows in (1, 5):
        check_equivalent(before, after, {"x": normal(rows, 4)})


PAIR = "float[4, n] p, float[6, 4] q, float[6] r"
COMPUTED = {
    "both transposed": "a = Transpose(p) c = Transpose <perm = [1, 0]> (q) y = MatMul(a, c)",
    "a transpose of a transpose": "a = Transpose(p) c = Transpose(q) y = Gemm <transB = 0> (a, c, r)",
    "a factor": "t = Gemm <transA = 1, transB = 1> (p, q, r) y = Mul(t, s)",
    "a divisor": "t = Gemm <transA = 1, transB = 1, alpha = 3.0> (p, q, r) y = Div(t, s)",
    "a computed bias": "a = Transpose(p) c = Transpose(q) t = MatMul(a, c) y = Add(t, r)",
}


@pytest.mark.parametrize("what", COMPUTED)
@pytest.mark.parametrize("opset", [9, 17])
def test_absorbs_around_computed_matrices(what: str, opset: int) -> None:
    before = model_of(f"g ({PAIR}) => (y) {{ {COMPUTED[what]} }}", weights=WEIGHTS, opset=opset)
    after, _ = optimized(before, "fixpoint(fuse-gemm)")
    assert operators(after) == {"Gemm": 1}
    check_equivalent(before, after, {"p": normal(4, 5), "q": normal(6, 4), "r": normal(6)})


LEFT_ALONE = {
    "rank 3": ("float[n, 3, 4] x", "t = MatMul(x, W) y = Add(t, b)"),
    "unknown rank": ("float[n, 4] x, int64[k] z", "r = Reshape(x, z) t = MatMul(r, W) y = Add(t, b)"),
    "a bias for each row": ("float[n, 4] x", "t = MatMul(x, W) y = Add(t, rows)"),
    "a bias that adds an axis": ("float[n, 4] x", "t = MatMul(x, W) y = Add(t, high)"),
    "a product with more elements": ("float[n, 6] x", "t = MatMul(x, V) y = MatMul(t, wide)"),
    "the transpose of a larger tensor": ("float[4, 4, 4] x", "t = Transpose(x) y = MatMul(t, W)"),
    "integers": ("int32[n, 4] x", "t = MatMul(x, I) y = Add(t, i)"),
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    given, nodes = LEFT_ALONE[reason]
    integers = {"I": np.ones((4, 6), np.int32), "i": np.ones(6, np.int32)}
    before = model_of(f"g ({given}) => (y) {{ {nodes} }}", weights={**WEIGHTS, **integers})
    after, result = optimized(before, "fuse-gemm")
    assert operators(after) == operators(before)
    assert not result.run.ctx.rewrites
    assert not list(result.diagnostics)


def test_leaves_a_product_that_is_read_twice() -> None:
    before = model_of("g (float[n, 4] x) => (y, t) { t = MatMul(x, W) y = Add(t, b) }", weights=WEIGHTS)
    after, _ = optimized(before, "fuse-gemm")
    assert operators(after) == operators(before)
