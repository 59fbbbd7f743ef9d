"""matmul-to-conv: the same numbers in every form that a product with constant weights comes in."""

import numpy as np
import pytest

from tests.helpers import check_equivalent, codes, model_of, operators, optimized

RNG = np.random.default_rng(2)
WEIGHTS = {
    "w": RNG.standard_normal((5, 7)).astype(np.float32),
    "t": RNG.standard_normal((7, 5)).astype(np.float32),
    "b": RNG.standard_normal(7).astype(np.float32),
    "row": RNG.standard_normal((1, 7)).astype(np.float32),
    "one": np.array([3], np.float32),
}


@pytest.mark.parametrize(
    ("dims", "out", "body"),
    [
        ("3,5", "3,7", "y = Gemm(x, w, b)"),
        ("3,5", "3,7", "y = Gemm<transB = 1>(x, t, row)"),
        ("3,5", "3,7", "y = Gemm(x, w, one)"),
        ("3,5", "3,7", "y = MatMul(x, w)"),
        ("2,3,5", "2,3,7", "m = MatMul(x, w) y = Add(b, m)"),
        ("1,4,5", "1,4,7", "y = MatMul(x, w)"),
        ("2,1,5", "2,1,7", "y = MatMul(x, w)"),
        ("2,3,4,5", "2,3,4,7", "m = MatMul(x, w) y = Add(m, row)"),
    ],
)
def test_the_numbers_stay(dims, out, body):
    used = {
        name: array
        for name, array in WEIGHTS.items()
        if name in body.replace(",", " ").replace(")", " ").replace("(", " ").split()
    }
    before = model_of(f"g (float[{dims}] x) => (float[{out}] y) {{ {body} }}", weights=used)
    after, _ = optimized(before, "matmul-to-conv")

    assert operators(after)["Conv"] == 1
    assert not {"MatMul", "Gemm", "Add"} & set(operators(after))
    shape = [int(size) for size in dims.split(",")]
    check_equivalent(before, after, {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)})


@pytest.mark.parametrize(
    "body", ["y = MatMul(x, x)", "y = Gemm<alpha = 2.0>(x, s)", "y = Gemm<transA = 1>(x, s)", "y = MatMul(s, x)"]
)
def test_other_products_stay(body):
    weights = {"s": np.ones((5, 5), np.float32)} if "s)" in body or "(s" in body else {}
    before = model_of(f"g (float[5,5] x) => (float[5,5] y) {{ {body} }}", weights=weights)

    after, _ = optimized(before, "matmul-to-conv")

    assert operators(after) == operators(before)


def test_unknown_sizes_are_said():
    before = model_of("g (float[N,5] x) => (float[N,7] y) { y = MatMul(x, w) }", weights={"w": WEIGHTS["w"]})

    _, result = optimized(before, "matmul-to-conv")

    assert "M2C001" in codes(result)
