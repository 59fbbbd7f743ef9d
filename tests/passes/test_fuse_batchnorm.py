"""fuse-batchnorm: each layer it folds into, and each reason to leave a BatchNormalization alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers import check_equivalent, codes, model_of, operators, optimized, run

RNG = np.random.default_rng(0)
Weights = dict[str, np.ndarray[Any, Any]]


def statistics(channels: int, dtype: type = np.float32) -> Weights:
    return {
        "g": RNG.uniform(0.5, 2, channels).astype(dtype),
        "b": RNG.standard_normal(channels).astype(dtype),
        "m": RNG.standard_normal(channels).astype(dtype),
        "v": RNG.uniform(0.1, 3, channels).astype(dtype),
    }


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


LAYERS = {
    "conv": ("Conv(x, W, c)", (2, 4, 7, 7), {"W": normal(6, 4, 3, 3), "c": normal(6)}, 6),
    "conv without bias": ("Conv(x, W)", (2, 4, 7, 7), {"W": normal(6, 4, 3, 3)}, 6),
    "conv in groups": ("Conv <group = 2> (x, W)", (2, 4, 7, 7), {"W": normal(6, 2, 3, 3)}, 6),
    "conv in 1-d": ("Conv <pads = [1, 1]> (x, W)", (2, 4, 7), {"W": normal(6, 4, 3)}, 6),
    "transposed": ("ConvTranspose(x, W)", (2, 4, 5, 5), {"W": normal(4, 6, 3, 3)}, 6),
    "transposed in groups": (
        "ConvTranspose <group = 2> (x, W, c)",
        (2, 4, 5, 5),
        {"W": normal(4, 3, 2, 2), "c": normal(6)},
        6,
    ),
    "gemm": ("Gemm <alpha = 0.5, beta = 3.0> (x, W, c)", (5, 4), {"W": normal(4, 6), "c": normal(6)}, 6),
    "gemm transposed": ("Gemm <transB = 1> (x, W)", (5, 4), {"W": normal(6, 4)}, 6),
    "gemm with a scalar bias": ("Gemm <transB = 1> (x, W, c)", (5, 4), {"W": normal(6, 4), "c": normal(1)}, 6),
    "matmul": ("MatMul(x, W)", (5, 4), {"W": normal(4, 6)}, 6),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_folds_into_the_layer_in_front(kind: str) -> None:
    layer, shape, weights, channels = LAYERS[kind]
    dims = ", ".join(["n", *map(str, shape[1:])])
    body = f"g (float[{dims}] x) => (y) {{ t = {layer} y = BatchNormalization <epsilon = 0.001> (t, g, b, m, v) }}"
    before = model_of(body, weights={**weights, **statistics(channels)})
    after, result = optimized(before, "fuse-batchnorm")
    assert sum(operators(after).values()) == 1
    assert len(result.run.ctx.rewrites) == 1
    check_equivalent(before, after, {"x": normal(*shape)})


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_keeps_the_precision_of_the_weights(dtype: type) -> None:
    name = {np.float16: "float16", np.float64: "double"}[dtype]
    body = f"g ({name}[n, 2] x) => (y) {{ t = Gemm(x, W) y = BatchNormalization(t, g, b, m, v) }}"
    before = model_of(body, weights={"W": normal(2, 3, dtype=dtype), **statistics(3, dtype)})
    after, _ = optimized(before, "fuse-batchnorm")
    assert operators(after) == {"Gemm": 1}
    check_equivalent(before, after, {"x": normal(5, 2, dtype=dtype)}, rtol=4 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("layer", ["Conv(t, W, c)", "Conv <group = 2> (t, V, c)"])
def test_folds_into_a_convolution_without_padding_behind_it(layer: str) -> None:
    body = f"g (float[1, 4, 6, 6] x) => (y) {{ t = BatchNormalization(x, g, b, m, v) y = {layer} }}"
    weights = {"W": normal(6, 4, 3, 3), "V": normal(6, 2, 3, 3), "c": normal(6), **statistics(4)}
    before = model_of(body, weights=weights)
    after, _ = optimized(before, "fuse-batchnorm")
    assert operators(after) == {"Conv": 1}
    check_equivalent(before, after, {"x": normal(1, 4, 6, 6)})


@pytest.mark.parametrize("layer", ["MatMul(t, W)", "Gemm <alpha = 2.0> (t, W, c)", "Gemm <transB = 1> (t, V)"])
def test_folds_into_a_matrix_product_behind_it(layer: str) -> None:
    body = f"g (float[3, 4] x) => (y) {{ t = BatchNormalization(x, g, b, m, v) y = {layer} }}"
    weights = {"W": normal(4, 6), "V": normal(6, 4), "c": normal(6), **statistics(4)}
    before = model_of(body, weights=weights)
    after, _ = optimized(before, "fuse-batchnorm")
    assert operators(after) == {"Gemm": 1}
    check_equivalent(before, after, {"x": normal(3, 4)})


def test_copies_weights_that_another_layer_reads_too() -> None:
    body = "g (float[1, 2, 5, 5] x) => (y, z) { t = Conv(x, W) y = BatchNormalization(t, g, b, m, v) z = Conv(x, W) }"
    before = model_of(body, weights={"W": normal(3, 2, 3, 3), **statistics(3)})
    after, _ = optimized(before, "fuse-batchnorm")
    assert operators(after) == {"Conv": 2}
    check_equivalent(before, after, {"x": normal(1, 2, 5, 5)})


def test_refuses_a_copy_above_the_limit() -> None:
    body = "g (float[1, 2, 5, 5] x) => (y, z) { t = Conv(x, W) y = BatchNormalization(t, g, b, m, v) z = Conv(x, W) }"
    before = model_of(body, weights={"W": normal(3, 2, 3, 3), **statistics(3)})
    after, result = optimized(before, "fuse-batchnorm{growth=100}")
    assert operators(after)["BatchNormalization"] == 1
    assert codes(result) == {"BN003"}


BATCHNORM = "y = BatchNormalization(t, g, b, m, v)"
LEFT_ALONE = {
    "the layer's result is read twice": f"g (float[1, 2, 5, 5] x) => (y, t) {{ t = Conv(x, W) {BATCHNORM} }}",
    "nothing linear in front": f"g (float[1, 3, 5, 5] x) => (y) {{ t = Relu(x) {BATCHNORM} }}",
    "weights computed": f"g (float[1, 2, 5, 5] x, float[3, 2, 3, 3] k) => (y) {{ t = Conv(x, k) {BATCHNORM} }}",
    "bias computed": f"g (float[1, 2, 5, 5] x, float[3] k) => (y) {{ t = Conv(x, W, k) {BATCHNORM} }}",
    "weights overridable": f"g (float[1, 2, 5, 5] x, float[3, 2, 3, 3] W) => (y) {{ t = Conv(x, W) {BATCHNORM} }}",
    "statistics overridable": f"g (float[1, 2, 5, 5] x, float[3] m) => (y) {{ t = Conv(x, W) {BATCHNORM} }}",
    "padding behind it": "g (float[1, 3, 5, 5] x) => (y) "
    "{ t = BatchNormalization(x, g, b, m, v) y = Conv <pads = [1, 1, 1, 1]> (t, V) }",
    "automatic padding behind it": "g (float[1, 3, 5, 5] x) => (y) "
    '{ t = BatchNormalization(x, g, b, m, v) y = Conv <auto_pad = "SAME_UPPER"> (t, V) }',
    "channels of a 3-d product lie elsewhere": f"g (float[2, 3, 4] x) => (y) {{ t = MatMul(x, A) {BATCHNORM} }}",
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    weights = {"W": normal(3, 2, 3, 3), "V": normal(2, 3, 3, 3), "A": normal(4, 3), **statistics(3)}
    before = model_of(LEFT_ALONE[reason], weights=weights)
    after, result = optimized(before, "fuse-batchnorm")
    assert operators(after) == operators(before)
    assert not result.run.ctx.rewrites
    assert ("BN001" in codes(result)) == ("overridable" in reason)


def test_leaves_training_mode_alone() -> None:
    body = (
        "g (float[2, 2, 5, 5] x) => (y, s, u) "
        "{ t = Conv(x, W) y, s, u = BatchNormalization <training_mode = 1> (t, g, b, m, v) }"
    )
    before = model_of(body, weights={"W": normal(3, 2, 3, 3), **statistics(3)})
    after, _ = optimized(before, "fuse-batchnorm")
    assert operators(after) == operators(before)


def test_leaves_a_variance_that_is_not_positive() -> None:
    weights = {"W": normal(3, 2, 3, 3), **statistics(3), "v": np.array([1, -1, 1], np.float32)}
    before = model_of(f"g (float[1, 2, 5, 5] x) => (y) {{ t = Conv(x, W) {BATCHNORM} }}", weights=weights)
    after, result = optimized(before, "fuse-batchnorm")
    assert operators(after) == operators(before)
    assert codes(result) == {"BN004"}


def test_leaves_weights_that_would_overflow() -> None:
    weights = {"W": np.full((3, 2, 1, 1), 6e4, np.float16), **statistics(3, np.float16)}
    weights["g"] = np.full(3, 100, np.float16)
    before = model_of(f"g (float16[1, 2, 5, 5] x) => (y) {{ t = Conv(x, W) {BATCHNORM} }}", weights=weights)
    after, result = optimized(before, "fuse-batchnorm")
    assert operators(after) == operators(before)
    assert codes(result) == {"BN003"}


def test_folds_inside_a_branch() -> None:
    body = """g (float[1, 2, 5, 5] x, bool c) => (y) {
      y = If (c) <then_branch = a () => (p) { t = Conv(x, W) p = BatchNormalization(t, g, b, m, v) },
                  else_branch = o () => (q) { q = Conv(x, W) }>
    }"""
    before = model_of(body, weights={"W": normal(3, 2, 3, 3), **statistics(3)})
    after, _ = optimized(before, "fuse-batchnorm")
    assert operators(after) == {"If": 1, "Conv": 2}
    for chosen in (True, False):
        check_equivalent(before, after, {"x": normal(1, 2, 5, 5), "c": np.array(chosen)})


def test_the_output_keeps_its_name() -> None:
    before = model_of(
        f"g (float[1, 2, 5, 5] x) => (y) {{ t = Conv(x, W) {BATCHNORM} }}",
        weights={"W": normal(3, 2, 3, 3), **statistics(3)},
    )
    after, _ = optimized(before, "fuse-batchnorm")
    assert [value.name for value in after.graph.outputs] == ["y"]
    assert run(after, {"x": normal(1, 2, 5, 5)})[0].shape == (1, 3, 3, 3)
