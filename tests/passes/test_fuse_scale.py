"""fuse-scale: the factor of attention goes into the weights of the query, and stays where it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import check_equivalent, model_of, operators, optimized

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "Q": normal(8, 8),
    "K": normal(8, 8),
    "bq": normal(8),
    "bk": normal(8),
    "heads": np.array([0, 0, 2, 4]),
    "d": np.float32(2.7),
    "d1": np.full(1, 0.3, np.float32),
    "zero": np.float32(0),
    "tiniest": np.float32(1e-42),
    "row": normal(3),
}
QUERY = "a = MatMul(x, Q) b = Add(a, bq) c = Reshape(b, heads) q = Transpose <perm = [0, 2, 1, 3]> (c)"
KEY = "e = MatMul(x, K) f = Add(bk, e) h = Reshape(f, heads) k = Transpose <perm = [0, 2, 3, 1]> (h)"
HEADER = "g (float[n, s, 8] x) =>"


@pytest.mark.parametrize("factor", ["Div(p, d)", "Mul(p, d1)", "Mul(d, p)"])
def test_moves_the_factor_of_attention(factor: str) -> None:
    before = model_of(f"{HEADER} (y) {{ {QUERY} {KEY} p = MatMul(q, k) y = {factor} }}", weights=WEIGHTS)
    after, _ = optimized(before, "fuse-scale")
    left = operators(before) - operators(after)
    assert sum(left.values()) == 1
    for shape in ((1, 3, 8), (2, 5, 8)):
        check_equivalent(before, after, {"x": normal(*shape)})


def test_moves_it_through_the_other_operand() -> None:
    nodes = f"{KEY} q = Relu(z) p = MatMul(q, k) y = Div(p, d)"
    before = model_of(f"g (float[n, s, 8] x, float[n, 2, s, 4] z) => (y) {{ {nodes} }}", weights=WEIGHTS)
    after, _ = optimized(before, "fuse-scale")
    assert operators(after)["Div"] == 0
    check_equivalent(before, after, {"x": normal(1, 3, 8), "z": normal(1, 2, 3, 4)})


LEFT_ALONE = {
    "the product is read twice": f"(y, p) {{ {QUERY} {KEY} p = MatMul(q, k) y = Div(p, d) }}",
    "both operands are read elsewhere": f"(y, q, k) {{ {QUERY} {KEY} p = MatMul(q, k) y = Div(p, d) }}",
    "no constant weights": "(y) { p = MatMul(x, x) y = Div(p, d) }",
    "an activation on the way": "(y) { a = MatMul(x, Q) b = Relu(a) y = Mul(b, d) }",
    "zero": f"(y) {{ {QUERY} {KEY} p = MatMul(q, k) y = Div(p, zero) }}",
    "a factor that leaves few digits of the weights": f"(y) {{ {QUERY} {KEY} p = MatMul(q, k) y = Mul(p, tiniest) }}",
    "a vector": f"(y) {{ {QUERY} {KEY} p = MatMul(q, k) y = Mul(p, row) }}",
    "a number over the product": f"(y) {{ {QUERY} {KEY} p = MatMul(q, k) y = Div(d, p) }}",
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    before = model_of(f"{HEADER} {LEFT_ALONE[reason]}", weights=WEIGHTS)
    after, result = optimized(before, "fuse-scale")
    assert operators(after) == operators(before)
    assert not result.run.ctx.rewrites
