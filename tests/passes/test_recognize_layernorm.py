"""recognize-layernorm: every way of writing the two normalisations, and what only looks like one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import check_equivalent, codes, model_of, operators, optimized

RNG = np.random.default_rng(4)


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


WEIGHTS = {
    "two": np.float32(2),
    "eps": np.float32(1e-5),
    "g": normal(8),
    "b": normal(8),
    "g3": normal(1, 1, 8),
    "g2": normal(4, 8),
    "b2": normal(4, 1),
    "one": np.float32(1.5),
    "rows": normal(4, 1),
    "last": np.array([-1]),
    "last2": np.array([1, 2]),
    "first": np.array([1]),
}
MEAN = {17: "ReduceMean <axes = [-1]> ({})", 18: "ReduceMean({}, last)", 23: "ReduceMean({}, last)"}


def layer_norm(opset: int = 17, square: str = "Pow(d, two)", divide: str = "n = Div(d, s)") -> str:
    mean = MEAN[opset].format
    return f"m = {mean('x')} d = Sub(x, m) p = {square} v = {mean('p')} e = Add(v, eps) s = Sqrt(e) {divide}"


def rms_norm(divide: str = "n = Div(x, s)") -> str:
    return f"p = Mul(x, x) v = {MEAN[23].format('p')} e = Add(v, eps) s = Sqrt(e) {divide}"


RECIPROCAL = "r = Reciprocal(s) n = Mul(d, r)"
AFFINE = "q = Mul(n, g) y = Add(q, b)"
RECOGNISED = {
    "with a power": (17, f"{layer_norm()} {AFFINE}", 1),
    "with a product": (17, f"{layer_norm(square='Mul(d, d)')} {AFFINE}", 1),
    "with a reciprocal": (17, f"{layer_norm(divide=RECIPROCAL)} {AFFINE}", 1),
    "axes as an input": (18, f"{layer_norm(18)} {AFFINE}", 1),
    "commuted": (17, f"{layer_norm()} q = Mul(g, n) y = Add(b, q)", 1),
    "a scale of rank 3": (17, f"{layer_norm()} q = Mul(n, g3) y = Add(q, b)", 1),
    "scalars": (17, f"{layer_norm()} q = Mul(n, one) y = Add(q, one)", 1),
    "without bias": (17, f"{layer_norm()} y = Mul(n, g)", 1),
    "without scale": (17, f"{layer_norm()} y = Relu(n)", 2),
    "without scale, with bias": (17, f"{layer_norm()} y = Add(n, b)", 2),
    "over two axes": (
        17,
        "m = ReduceMean <axes = [1, 2]> (x) d = Sub(x, m) p = Mul(d, d) v = ReduceMean <axes = [1, 2]> (p) "
        "e = Add(v, eps) s = Sqrt(e) n = Div(d, s) q = Mul(n, g2) y = Add(q, b2)",
        1,
    ),
}


@pytest.mark.parametrize("what", RECOGNISED)
def test_recognises_layer_normalization(what: str) -> None:
    opset, nodes, count = RECOGNISED[what]
    before = model_of(f"g (float[n, 4, 8] x) => (y) {{ {nodes} }}", opset=opset, weights=WEIGHTS)
    after, _ = optimized(before, "recognize-layernorm")
    assert operators(after)["LayerNormalization"] == 1
    assert sum(operators(after).values()) == count
    for x in (normal(1, 4, 8), normal(3, 4, 8) * 50 + 3, np.zeros((1, 4, 8), np.float32), normal(2, 4, 8) * 1e-4):
        check_equivalent(before, after, {"x": x})


@pytest.mark.parametrize("divide", ["n = Div(x, s)", "r = Reciprocal(s) n = Mul(x, r)"])
@pytest.mark.parametrize("last", ["y = Mul(n, g)", "y = Relu(n)"])
def test_recognises_rms_normalization(divide: str, last: str) -> None:
    before = model_of(f"g (float[n, 4, 8] x) => (y) {{ {rms_norm(divide)} {last} }}", opset=23, weights=WEIGHTS)
    after, _ = optimized(before, "recognize-layernorm")
    assert operators(after)["RMSNormalization"] == 1
    assert sum(operators(after).values()) == (1 if "Mul" in last else 2)
    for x in (normal(1, 4, 8), normal(3, 4, 8) * 50 + 3, np.zeros((1, 4, 8), np.float32)):
        check_equivalent(before, after, {"x": x})


def test_takes_in_the_casts_around_it() -> None:
    nodes = f"x = Cast <to = 1> (h) {layer_norm()} c = Cast <to = 10> (n) q = Mul(c, g16) y = Add(q, b16)"
    weights = {**WEIGHTS, "g16": normal(8, dtype=np.float16), "b16": normal(8, dtype=np.float16)}
    before = model_of(f"g (float16[n, 4, 8] h) => (y) {{ {nodes} }}", weights=weights)
    after, _ = optimized(before, "recognize-layernorm")
    assert operators(after) == {"LayerNormalization": 1}
    check_equivalent(before, after, {"h": normal(2, 4, 8, dtype=np.float16)}, rtol=2 * float(np.finfo(np.float16).eps))


LEFT_ALONE = {
    "an axis in the middle": layer_norm().replace("axes = [-1]", "axes = [1]") + " y = Relu(n)",
    "two different axes": layer_norm().replace("axes = [-1]", "axes = [1]", 1) + " y = Relu(n)",
    "axes that are dropped": "m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) p = Mul(d, d) "
    "v = ReduceMean <axes = [0], keepdims = 0> (p) e = Add(v, eps) s = Sqrt(e) y = Div(d, s)",
    "the cube": layer_norm().replace("two", "one") + " y = Relu(n)",
    "another value divided": layer_norm().replace("Div(d", "Div(x") + " y = Relu(n)",
    "an epsilon for each row": layer_norm().replace("eps", "rows") + " y = Relu(n)",
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    before = model_of(f"g (float[n, 4, 8] x) => (y) {{ {LEFT_ALONE[reason]} }}", weights=WEIGHTS)
    after, _ = optimized(before, "recognize-layernorm")
    assert operators(after) == operators(before)


def test_leaves_a_deviation_that_is_read_elsewhere() -> None:
    before = model_of(f"g (float[n, 4, 8] x) => (y, s) {{ {layer_norm()} {AFFINE} }}", weights=WEIGHTS)
    after, _ = optimized(before, "recognize-layernorm")
    assert operators(after) == operators(before)


def test_a_scale_that_varies_over_other_axes_stays_a_product() -> None:
    before = model_of(f"g (float[n, 4, 8] x) => (y) {{ {layer_norm()} y = Mul(n, rows) }}", weights=WEIGHTS)
    after, _ = optimized(before, "recognize-layernorm")
    assert operators(after) == {"LayerNormalization": 1, "Mul": 1}
    check_equivalent(before, after, {"x": normal(2, 4, 8)})


def test_leaves_double_precision_alone() -> None:
    weights = {**WEIGHTS, "eps": np.float64(1e-5)}
    before = model_of(f"g (double[n, 4, 8] x) => (y) {{ {layer_norm()} y = Relu(n) }}", weights=weights)
    after, _ = optimized(before, "recognize-layernorm")
    assert operators(after) == operators(before)


def test_without_scale_the_size_has_to_be_known_and_within_the_limit() -> None:
    for given, pipeline in (("n, 4, k", "recognize-layernorm"), ("n, 4, 8", "recognize-layernorm{largest=7}")):
        before = model_of(f"g (float[{given}] x) => (y) {{ {layer_norm()} y = Relu(n) }}", weights=WEIGHTS)
        after, _ = optimized(before, pipeline)
        assert operators(after) == operators(before)


def test_says_when_the_opset_is_too_low() -> None:
    before = model_of(f"g (float[n, 4, 8] x) => (y) {{ {layer_norm()} {AFFINE} }}", opset=16, weights=WEIGHTS)
    after, result = optimized(before, "recognize-layernorm")
    assert operators(after) == operators(before)
    assert codes(result) == {"LN001"}
