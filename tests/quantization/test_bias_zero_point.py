"""Biases get a zero point where the target's compiler cannot do without."""

import numpy as np
import pytest

from graphopt import optimize, targets
from tests.helpers import clone, model_of

BODY = "g (float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv(x, w, b) }"


@pytest.mark.parametrize(("target", "inputs"), [("rknn", 3), ("qnn-htp", 2)])
def test_a_bias_has_a_zero_point_where_the_target_asks_for_it(target, inputs):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
    model = clone(model_of(BODY, weights=weights))

    optimize(model, pipeline="insert-qdq", target=targets.find(target), data="random")

    conv = next(node for node in model.graph if node.op_type == "Conv")
    bias = conv.inputs[2].producer()
    assert bias.op_type == "DequantizeLinear"
    assert len(bias.inputs) == inputs
    if inputs == 3:
        zeros = bias.inputs[2].const_value.numpy()
        assert (zeros.dtype, zeros.tolist()) == (np.int32, [0, 0, 0, 0])
