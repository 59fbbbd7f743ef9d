"""equalize-layers: what it scales through, what it leaves alone, and that outputs stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import io
from graphopt.calibration import random_inputs
from graphopt.calibration.datasets import dataset_from_feeds
from graphopt.driver import optimize
from graphopt.ir import Model
from graphopt.ir.query import constant
from graphopt.runtime import Session
from tests.helpers import check_equivalent, clone, codes, model_of, operators, optimized, shared

RNG = np.random.default_rng(0)
Weights = dict[str, np.ndarray[Any, Any]]
SPREAD = np.geomspace(1e-2, 1e2, 8)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def uneven(*shape: int, axis: int = 0) -> np.ndarray[Any, Any]:
    """Weights whose 8 channels along ``axis`` differ by four orders of magnitude."""
    factor = SPREAD.reshape([-1 if place == axis else 1 for place in range(len(shape))])
    return (normal(*shape) * factor).astype(np.float32)


def with_data(model: Model, pipeline: str, *feeds: Weights) -> tuple[Model, Any]:
    after = clone(model)
    data = dataset_from_feeds(feeds, Session(io.to_proto(model).SerializeToString()).inputs)
    return after, optimize(after, pipeline=pipeline, data=data)


def weight(model: Model, name: str) -> np.ndarray[Any, Any]:
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array


CONV: Weights = {"W1": uneven(8, 3, 3, 3), "b1": normal(8), "W2": normal(5, 8, 3, 3)}
THROUGH = {
    "nothing": "h = Identity(c)",
    "relu": "h = Relu(c)",
    "leaky relu": "h = LeakyRelu <alpha = 0.1> (c)",
    "prelu": "h = PRelu(c, slope)",
    "pooling": "a = MaxPool <kernel_shape = [2, 2]> (c) h = AveragePool <kernel_shape = [2, 2]> (a)",
    "a sum of both": "a = Relu(c) n = Neg(c) h = Add(a, n)",
    "a constant added": "h = Add(c, off)",
    "a number multiplied": "h = Mul(c, two)",
    "padding": "h = Pad(c, pads)",
    "a gate": "a = GlobalAveragePool(x) g = Slice(a, zero, one, one) s = Sigmoid(g) h = Mul(c, s)",
    "transposes": "a = Transpose <perm = [0, 2, 3, 1]> (c) b = Relu(a) h = Transpose <perm = [0, 3, 1, 2]> (b)",
    "reshapes": "a = Reshape(c, split) b = Relu(a) h = Reshape(b, whole)",
}
CONSTANTS: Weights = {
    "slope": np.abs(normal(8, 1, 1)),
    "off": normal(8, 1, 1),
    "two": np.float32([2]),
    "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
    "zero": np.int64([0]),
    "one": np.int64([1]),
    "split": np.int64([2, 2, 4, 10, 10]),
    "whole": np.int64([2, 8, 10, 10]),
}


@pytest.mark.parametrize("kind", THROUGH)
def test_balances_two_layers_through(kind: str) -> None:
    body = f"g (float[2, 3, 12, 12] x) => (y) {{ c = Conv(x, W1, b1) {THROUGH[kind]} y = Conv(h, W2) }}"
    used = {name: array for name, array in CONSTANTS.items() if name in THROUGH[kind]}
    before = model_of(body, weights=CONV | used)
    after, result = optimized(before, "equalize-layers")
    assert len(result.run.ctx.rewrites) == 1
    made, read = (np.abs(weight(after, name)).max(axis=axes) for name, axes in (("W1", (1, 2, 3)), ("W2", (0, 2, 3))))
    np.testing.assert_allclose(made, read, rtol=1e-3)
    check_equivalent(before, after, {"x": normal(2, 3, 12, 12)})


def test_is_idempotent() -> None:
    body = (
        "g (float[1, 3, 9, 9] x) => (y) { c = Conv(x, W1, b1) r = Relu(c) d = Conv <group = 8> (r, D) y = Conv(d, W2) }"
    )
    before = model_of(body, weights=CONV | {"D": uneven(8, 1, 3, 3)[::-1].copy()})
    once, result = optimized(before, "equalize-layers")
    assert len(result.run.ctx.rewrites) == 2, "in front of the depthwise convolution and behind it"
    check_equivalent(before, once, {"x": normal(1, 3, 9, 9)})
    _, again = optimized(once, "equalize-layers")
    assert not again.run.ctx.rewrites


LAYERS = {
    "gemm": (
        "c = Gemm(x, A, b) r = Relu(c) y = Gemm <transB = 1> (r, B)",
        {"A": uneven(3, 8, axis=1), "B": normal(5, 8)},
    ),
    "matmul": (
        "m = MatMul(x, A) c = Add(m, b) r = Relu(c) y = MatMul(r, B)",
        {"A": uneven(3, 8, axis=1), "B": normal(8, 5)},
    ),
    "one value, two readers": (
        "c = Gemm(x, A, b) p = MatMul(c, B) q = MatMul(c, C) y = Add(p, q)",
        {"A": uneven(3, 8, axis=1), "B": normal(8, 5), "C": normal(8, 5)},
    ),
    "a residual sum": (
        "c = Gemm(x, A, b) r = Relu(c) d = MatMul(r, B) s = Add(c, d) y = MatMul(s, C)",
        {"A": uneven(3, 8, axis=1), "B": normal(8, 8), "C": normal(8, 5)},
    ),
    "one layer on both sides": (
        "c = Gemm(x, A, b) d = MatMul(c, B) s = Add(c, d) y = MatMul(s, C)",
        {"A": uneven(3, 8, axis=1), "B": normal(8, 8), "C": normal(8, 5)},
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_balances_products(kind: str) -> None:
    body, weights = LAYERS[kind]
    before = model_of(
        f"g (float[4, 3] x) => (y) {{ {body} }}", weights=weights | ({"b": normal(8)} if "b)" in body else {})
    )
    after, result = optimized(before, "equalize-layers")
    assert result.run.ctx.rewrites
    check_equivalent(before, after, {"x": normal(4, 3)})


def test_balances_a_classifier_behind_flattened_pixels() -> None:
    body = "g (float[2, 3, 4, 4] x) => (y) { c = Conv(x, W1, b1) f = Flatten(c) y = Gemm(f, B) }"
    before = model_of(body, weights={"W1": CONV["W1"], "b1": CONV["b1"], "B": normal(32, 5)})
    after, result = optimized(before, "equalize-layers")
    assert len(result.run.ctx.rewrites) == 1
    check_equivalent(before, after, {"x": normal(2, 3, 4, 4)})


def test_balances_values_and_output_projection_through_attention() -> None:
    body = """g (float[2, 5, 8] x, float[2, 2, 5, 5] p) => (y) {
        v = MatMul(x, A) r = Reshape(v, heads) t = Transpose <perm = [0, 2, 1, 3]> (r) a = MatMul(p, t)
        u = Transpose <perm = [0, 2, 1, 3]> (a) w = Reshape(u, flat) y = MatMul(w, B) }"""
    weights = {
        "A": uneven(8, 8, axis=1),
        "B": normal(8, 8),
        "heads": np.int64([2, 5, 2, 4]),
        "flat": np.int64([2, 5, 8]),
    }
    before = model_of(body, weights=weights)
    after, result = optimized(before, "equalize-layers")
    assert len(result.run.ctx.rewrites) == 1
    check_equivalent(before, after, {"x": normal(2, 5, 8), "p": normal(2, 2, 5, 5)})


def test_copies_a_weight_that_another_layer_shares() -> None:
    body = "g (float[4, 8] x) => (y, z) { c = MatMul(x, A) y = MatMul(c, B) z = MatMul(x, B) }"
    before = model_of(body, weights={"A": uneven(8, 8, axis=1), "B": normal(8, 8)})
    after, _ = optimized(before, "equalize-layers")
    check_equivalent(before, after, {"x": normal(4, 8)})
    _, result = optimized(before, "equalize-layers{growth=0}")
    assert not result.run.ctx.rewrites
    assert "EQL002" in codes(result)


BLOCKED = {
    "a sigmoid": "h = Sigmoid(c)",
    "a clip": "h = Clip(c, lo, hi)",
    "a square": "h = Mul(c, c)",
    "a sum over channels": "a = ReduceSum(c, chan) h = Add(c, a)",
    "padding with ones": "h = Pad(c, pads, unit)",
    "reversed channels": "h = Slice(c, last, first, chan, back)",
    "channels swapped with columns": "h = Transpose <perm = [0, 2, 1, 3]> (c)",
}
BLOCKERS: Weights = {
    "lo": np.float32(0),
    "hi": np.float32(6),
    "chan": np.int64([1]),
    "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
    "unit": np.float32(1),
    "last": np.int64([-1]),
    "first": np.int64([-100]),
    "back": np.int64([-1]),
}


@pytest.mark.parametrize("kind", BLOCKED)
def test_scales_nothing_through(kind: str) -> None:
    body = f"g (float[2, 3, 10, 10] x) => (y) {{ c = Conv(x, W1, b1) {BLOCKED[kind]} y = Conv(h, W2) }}"
    before = model_of(body, weights=CONV | {name: array for name, array in BLOCKERS.items() if name in BLOCKED[kind]})
    _, result = optimized(before, "equalize-layers")
    assert not result.run.ctx.rewrites
    assert ("EQL001" in codes(result)) == (kind == "a clip"), "said only where a layer would be balanced otherwise"


def test_leaves_an_output_of_the_model_alone() -> None:
    body = "g (float[4, 3] x) => (c, y) { c = MatMul(x, A) y = MatMul(c, B) }"
    _, result = optimized(model_of(body, weights={"A": uneven(3, 8, axis=1), "B": normal(8, 5)}), "equalize-layers")
    assert not result.run.ctx.rewrites


def test_leaves_a_value_alone_that_is_multiplied_with_itself() -> None:
    body = "g (float[8, 3] x) => (y) { c = MatMul(x, A) s = MatMul(c, c) y = MatMul(s, B) }"
    _, result = optimized(model_of(body, weights={"A": uneven(3, 8, axis=1), "B": normal(8, 5)}), "equalize-layers")
    assert not result.run.ctx.rewrites


def test_keeps_dead_channels() -> None:
    first, second = uneven(3, 8, axis=1), normal(8, 5)
    first[:, 2] = 0
    second[5] = 0
    before = model_of(
        "g (float[4, 3] x) => (y) { c = MatMul(x, A) y = MatMul(c, B) }", weights={"A": first, "B": second}
    )
    after, _ = optimized(before, "equalize-layers")
    assert np.isfinite(weight(after, "A")).all()
    check_equivalent(before, after, {"x": normal(4, 3)})


CLIPPED = "g (float[2, 3, 6, 6] x) => (y) { c = Conv(x, W1, b1) h = Clip(c, lo, hi) y = Conv(h, W2) }"


def test_opens_a_clip_that_the_data_never_reaches() -> None:
    weights = CONV | {"lo": np.float32(0), "hi": np.float32(1e4)}
    before, feed = model_of(CLIPPED, weights=weights), {"x": normal(2, 3, 6, 6)}
    after, result = with_data(before, "equalize-layers{relu6=relu}", feed)
    assert operators(after) == {"Conv": 2, "Relu": 1}
    assert len(result.run.ctx.rewrites) == 2
    check_equivalent(before, after, feed)


def test_keeps_a_clip_that_the_data_reaches() -> None:
    before = model_of(CLIPPED, weights=CONV | {"lo": np.float32(0), "hi": np.float32(6)})
    after, result = with_data(before, "equalize-layers{relu6=relu}", {"x": normal(2, 3, 6, 6)})
    assert operators(after)["Clip"] == 1
    assert "EQL004" in codes(result)


@pytest.mark.parametrize("wish", ["relu6=relu", "absorb=true"])
def test_says_that_a_wish_needs_data(wish: str) -> None:
    before = model_of(CLIPPED, weights=CONV | {"lo": np.float32(0), "hi": np.float32(6)})
    _, result = optimized(before, f"equalize-layers{{{wish}}}")
    assert "EQL003" in codes(result)


def test_absorbs_a_bias_that_keeps_a_channel_positive() -> None:
    body = "g (float[4, 3] x) => (y) { c = Gemm(x, A, b) r = Relu(c) y = Gemm(r, B) }"
    bias = np.float32([50, 0, 0, 0, 0, 0, 0, -50])
    before, feed = model_of(body, weights={"A": normal(3, 8), "B": normal(8, 5), "b": bias}), {"x": normal(4, 3)}
    after, _ = with_data(before, "equalize-layers{absorb=true}", feed)
    assert weight(after, "b")[0] < 25, "it was 50, and the channel never falls below some 40"
    check_equivalent(before, after, feed)
    _, again = with_data(after, "equalize-layers{absorb=true}", feed)
    assert not again.run.ctx.rewrites


def test_absorbs_nothing_in_front_of_a_convolution_that_pads() -> None:
    body = "g (float[1, 3, 6, 6] x) => (y) { c = Conv(x, W1, b1) h = Relu(c) y = Conv <pads = [1, 1, 1, 1]> (h, W2) }"
    weights = CONV | {"b1": np.float32([9999] * 8)}
    after, _ = with_data(model_of(body, weights=weights), "equalize-layers{absorb=true}", {"x": normal(1, 3, 6, 6)})
    assert weight(after, "b1").max() > 1


@pytest.mark.parametrize("name", ["cifar10_resnet20", "minilm_l6_v2", "efficientnet_lite0"])
def test_keeps_what_real_models_compute(name: str) -> None:
    path = shared("models", f"{name}.onnx")
    before = optimize(path, pipeline="remove-identities").model
    after = clone(before)
    assert optimize(after, preset="lossless").model is after
    lossless = clone(after)
    assert optimize(after, pipeline="equalize-layers").run.ctx.rewrites
    feeds = random_inputs(Session(io.to_proto(lossless).SerializeToString()).inputs, seed=0)
    check_equivalent(lossless, after, feeds, rtol=1e-4)
