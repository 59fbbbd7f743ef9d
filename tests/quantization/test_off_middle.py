"""Zero points keep off the middle of their type where the target's compiler would round the numbers anew."""

import numpy as np
import pytest

from graphopt import optimize, targets
from graphopt.quantization.grid import Grid
from tests.helpers import clone, model_of

BODY = "g (float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv(x, w) }"


@pytest.mark.parametrize(("target", "zero"), [("rknn", -1), ("qnn-htp", 0)])
def test_weights_of_convolutions_have_their_zero_where_the_target_wants_it(target, zero):
    weights = {"w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)}
    model = clone(model_of(BODY, weights=weights))

    optimize(model, pipeline="insert-qdq", target=targets.find(target), data="random")

    conv = next(node for node in model.graph if node.op_type == "Conv")
    integers, scale, zeros = (value.const_value.numpy() for value in conv.inputs[1].producer().inputs)
    assert zeros.tolist() == [zero] * 4
    numbers = (integers.astype(np.float64) - zero) * scale.reshape(-1, 1, 1, 1)
    assert np.abs(numbers - weights["w"]).max() < 0.1


def test_only_zero_points_at_the_middle_move_and_scales_stay():
    grid = Grid(np.array([0.1, 0.2, 0.3]), np.array([0, 128, 255]), "uint8", axis=0).off_middle()

    assert grid.zero_point.tolist() == [0, 127, 255]
    assert np.allclose(grid.scale, [0.1, 0.2, 0.3])
    assert Grid(np.float32(0.1), np.int64(0), "int8").off_middle().zero_point == -1


def test_constants_and_values_keep_off_the_middle_too():
    body = "g (float[1,4,8,8] x) => (float[1,4,8,8] y) { c = Conv(x, w) y = Add(c, k) }"
    weights = {"w": np.ones((4, 4, 1, 1), np.float32), "k": np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 4, 1, 1)}
    model = clone(model_of(body, weights=weights))

    optimize(model, pipeline="insert-qdq", target=targets.find("rknn"), data="random")

    found = [node.inputs[2].const_value.numpy() for node in model.graph if node.op_type == "DequantizeLinear"]
    zeros = [(array.dtype.name, int(array.flat[0])) for array in found]
    assert ("uint8", 128) not in zeros
    assert ("uint8", 127) in zeros


def test_channels_whose_weights_are_alike_share_one_scale():
    body = "g (float[1,3,8,8] x) => (float[1,3,4,4] y) { y = Conv <group = 3, strides = [2, 2]> (x, w) }"
    for weights, size in ((np.full((3, 1, 2, 2), 0.25), ()), (np.arange(1, 13).reshape(3, 1, 2, 2), (3,))):
        model = clone(model_of(body, weights={"w": weights.astype(np.float32)}))

        optimize(model, pipeline="insert-qdq", target=targets.find("qnn-htp"), data="random")

        conv = next(node for node in model.graph if node.op_type == "Conv")
        assert conv.inputs[1].producer().inputs[1].const_value.numpy().shape == size
