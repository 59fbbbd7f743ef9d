"""Channels whose weights are all zero, as pruning and new heads leave them, still have a bias."""

import numpy as np
import pytest

from graphopt import optimize, targets
from tests.helpers import clone, model_of

BODY = "g (float[1,6] x) => (float[1,4] y) { y = Gemm<transB=1>(x, w, b) }"


def quantized_bias(weights, target):
    """Return the bias that the quantized layer adds, and the scale of its weights."""
    model = clone(model_of(BODY, weights=weights))
    optimize(model, pipeline="insert-qdq", target=targets.find(target), data="random")
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    integers, scale = (value.const_value.numpy() for value in gemm.inputs[2].producer().inputs[:2])
    return integers * np.asarray(scale, np.float64), gemm.inputs[1].producer().inputs[1].const_value.numpy()


@pytest.mark.parametrize("target", ["qnn-htp", "vitisai"])
@pytest.mark.parametrize("blank", [[1], [0, 1, 2, 3]])
def test_the_bias_of_a_channel_without_weights_is_as_fine_as_others(target, blank):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 6)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
    weights["w"][blank] = 0

    bias, scale = quantized_bias(weights, target)

    np.testing.assert_allclose(bias[blank], weights["b"][blank], atol=1e-3)
    assert scale.max() < 0.1


def test_scales_stay_powers_of_two_where_biases_are_large():
    weights = {"w": np.full((4, 6), 1e-12, np.float32), "b": np.full(4, 3.0, np.float32)}

    _, scale = quantized_bias(weights, "vitisai-xint8")

    assert np.log2(scale).tolist() == np.rint(np.log2(scale)).tolist()
