"""Quantized models back to floats: what quantizing wrote goes, what it dropped comes back, the rest is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.driver import optimize
from graphopt.ir import Model, constant
from graphopt.targets import find
from tests.helpers import check_equivalent, codes, model_of, operators, optimized, run

RNG = np.random.default_rng(13)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "W": normal(64, 48),
    "T": normal(48, 64),
    "b": normal(48),
    "K": normal(8, 4, 3, 3),
    "k": normal(8),
    "table": normal(100, 24),
}
QUANTIZERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
OWN = {
    "quantize-dynamic": "g (float[n, 64] x) => (y) { y = MatMul(x, W) }",
    "quantize-dynamic{min_weights=1}": "g (float[n, 64] x) => (y) { y = Gemm <transB = 1, alpha = 0.5> (x, T, b) }",
    "quantize-dynamic{min_weights=1,convolutions=true}": "g (float[n, 8, 64, 9] x) => (y) "
    "{ y = Conv <group = 2, pads = [1, 1, 0, 0]> (x, K, k) }",
    "quantize-weights": "g (float[n, 64] x) => (y) { y = MatMul(x, W) }",
    "quantize-weights{bits=4,block=32}": "g (float[n, 64] x) => (y) { y = Gemm <transB = 1> (x, T, b) }",
    "quantize-weights{tables=true}": "g (int64[n] ids) => (y) { y = Gather(table, ids) }",
}


def relative(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean()))


@pytest.mark.parametrize("pipeline", OWN)
def test_what_the_other_passes_wrote_goes_but_for_the_rounded_weights(pipeline: str) -> None:
    before = model_of(OWN[pipeline], weights=WEIGHTS, opset=21)
    quantized, _ = optimized(before, pipeline)
    after, result = optimized(quantized, "strip-qdq,remove-dead")
    assert set(operators(quantized)) & QUANTIZERS
    assert not set(operators(after)) & QUANTIZERS
    assert not codes(result)
    shapes = {"ids": np.array([1, 5, 99])} if "ids" in OWN[pipeline] else {"x": normal(3, 64)}
    feeds = {"x": normal(2, 8, 64, 9)} if "Conv" in OWN[pipeline] else shapes
    assert relative(run(before, feeds)[0], run(after, feeds)[0]) < (0.1 if "bits=4" in pipeline else 0.01)
    optimize(after, pipeline=pipeline)
    assert set(operators(after)) & QUANTIZERS, "and it can be quantized again"


DECODED = {
    "one scale": ("DequantizeLinear(q, s, z)", {"s": np.float32(0.5), "z": np.int8(3)}),
    "no zero point": ("DequantizeLinear(q, s)", {"s": np.float32(0.5)}),
    "the last axis": ("DequantizeLinear(q, v)", {"v": normal(6)}),
    "another axis": ("DequantizeLinear <axis = -2> (q, v, u)", {"v": normal(4), "u": np.arange(4, dtype=np.int8)}),
    "blocks": ("DequantizeLinear <axis = 1, block_size = 3> (q, v)", {"v": normal(4, 2)}),
    "half precision": ("DequantizeLinear(q, s)", {"s": np.float16(0.3)}),
}


@pytest.mark.parametrize("form", DECODED)
def test_constants_are_decoded_as_the_runtime_does(form: str) -> None:
    text, weights = DECODED[form]
    arrays = {name: np.asarray(array) for name, array in weights.items()}
    arrays["q"] = RNG.integers(-128, 128, (4, 6)).astype(np.int8)
    kind = "float16" if form == "half precision" else "float"
    before = model_of(f"g () => ({kind}[4, 6] y) {{ w = {text} y = Identity(w) }}", weights=arrays, opset=21)
    after, _ = optimized(before, "strip-qdq")
    assert operators(after) == {"Identity": 1}
    check_equivalent(before, after, {}, rtol=0)


def quantized_behind(body: str, scale: float, zero: int) -> Model:
    text = f"g (float[1, 4] x) => (y) {{ a = {body} q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z) }}"
    weights = {"s": np.asarray(scale, np.float32), "z": np.asarray(zero, np.uint8), "W": normal(4, 4), "c": normal(4)}
    return model_of(text, weights=weights)


@pytest.mark.parametrize(
    ("body", "scale", "zero", "activation"),
    [
        ("MatMul(x, W)", 0.05, 0, "Relu"),
        ("Add(x, c)", 0.05, 0, "Relu"),
        ("MatMul(x, W)", 6 / 255, 0, "Clip"),
        ("MatMul(x, W)", 0.1, 128, None),
        ("Relu(x)", 0.05, 0, None),
        ("Sigmoid(x)", 1 / 255, 0, None),
    ],
)
def test_an_activation_that_the_range_stood_for_comes_back(body, scale, zero, activation) -> None:
    before = quantized_behind(body, scale, zero)
    after, result = optimized(before, "strip-qdq")
    assert not set(operators(after)) & QUANTIZERS
    added = set(operators(after)) - set(operators(before))
    assert added == ({activation} if activation else set())
    assert codes(result) == ({"STRIP002"} if activation else set())
    feeds = {"x": np.clip(normal(1, 4), -2, 2)}
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], rtol=0, atol=scale * 0.51)


def test_pairs_that_share_integers_share_what_they_read() -> None:
    nodes = "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z) b = DequantizeLinear(q, s, z) y = Add(a, b)"
    weights = {"s": np.asarray(0.1, np.float32), "z": np.asarray(0, np.int8)}
    after, _ = optimized(model_of(f"g (float[3] x) => (y) {{ {nodes} }}", weights=weights), "strip-qdq")
    assert operators(after) == {"Add": 1}


MOVED = {
    "MaxPool <kernel_shape = [2, 2]> (q)",
    "Reshape(q, shape)",
    "Gather <axis = 3> (q, picks)",
    "Slice(q, picks, ends)",
}


@pytest.mark.parametrize("mover", sorted(MOVED))
def test_what_moves_integers_moves_floats(mover: str) -> None:
    nodes = (
        f"q = QuantizeLinear(x, s, z) m = {mover} t = Transpose <perm = [0, 1, 3, 2]> (m) y = DequantizeLinear(t, s, z)"
    )
    weights = {"s": np.asarray(0.1, np.float32), "z": np.asarray(0, np.int8), "shape": np.array([1, 4, 2, 8])}
    weights |= {"picks": np.array([0, 1]), "ends": np.array([1, 3])}
    before = model_of(f"g (float[1, 4, 4, 4] x) => (y) {{ {nodes} }}", weights=weights)
    after, _ = optimized(before, "strip-qdq")
    assert set(operators(after)) == {mover.split("(")[0].split()[0], "Transpose"}
    feeds = {"x": np.rint(normal(1, 4, 4, 4) * 10).astype(np.float32) / 10}
    check_equivalent(before, after, feeds)


def test_what_cannot_be_undone_is_named() -> None:
    nodes = "q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, V, z)"
    before = model_of(f"g (float[2, 4] x) => (y) {{ {nodes} }}", weights={"V": np.ones((4, 4), np.int8)})
    after, result = optimized(before, "strip-qdq")
    assert operators(after) == operators(before)
    assert codes(result) == {"STRIP001"}


def test_integers_that_the_caller_gives_stay() -> None:
    weights = {"s": np.asarray(0.1, np.float32), "w": np.ones((4, 4), np.int8)}
    before = model_of(
        "g (uint8[2, 4] q) => (y) { x = DequantizeLinear(q, s) v = DequantizeLinear(w, s) y = MatMul(x, v) }",
        weights=weights,
    )
    after, result = optimized(before, "strip-qdq")
    assert operators(after) == {"DequantizeLinear": 1, "MatMul": 1}
    assert codes(result) == {"STRIP001"}
    assert constant(next(value for name, value in after.graph.initializers.items() if name == "v")) is not None


@pytest.mark.parametrize(("fill", "stripped"), [("z", True), ("", False)])
def test_a_pad_of_integers_pads_floats_with_zero_again_if_that_is_what_it_filled_in(fill: str, stripped: bool) -> None:
    text = """g (float[1,2,3,3] x) => (float[1,4,3,3] y) {
      q = QuantizeLinear(x, s, z)
      p = Pad(q, pads, FILL)
      y = DequantizeLinear(p, s, z)
    }""".replace(", FILL", f", {fill}" if fill else "")
    weights = {"s": np.float32(0.05), "z": np.uint8(7), "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0], np.int64)}
    before = model_of(text, weights={name: np.asarray(array) for name, array in weights.items()}, opset=17)
    after, result = optimized(before, "strip-qdq")

    assert (QUANTIZERS.isdisjoint(operators(after))) is stripped
    assert ("STRIP001" in codes(result)) is not stripped
    x = RNG.uniform(0, 10, (1, 2, 3, 3)).astype(np.float32)
    (coarse,), (exact,) = run(before, {"x": x}), run(after, {"x": x})
    np.testing.assert_allclose(coarse, exact, atol=0.026)


def test_a_product_of_integers_with_its_bias_becomes_a_product_of_floats() -> None:
    model = model_of("g (float[n, 64] x) => (y) { m = MatMul(x, W) y = Add(m, b) }", weights=WEIGHTS, opset=17)
    optimize(model, pipeline="insert-qdq{placement=all}", data="random", target=find("ort-cpu"))
    assert operators(model)["MatMulIntegerToFloat"] == 1

    stripped, result = optimized(model, "strip-qdq")

    assert operators(stripped) == {"MatMul": 1, "Add": 1} and not codes(result)
    x = RNG.standard_normal((5, 64)).astype(np.float32)
    (coarse,), (exact,) = run(model, {"x": x}), run(stripped, {"x": x})
    assert relative(exact, coarse) < 0.02
