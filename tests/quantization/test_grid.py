"""Grids against ONNX's reference evaluator, the edges of ranges, and the search for weights' scales."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphopt.errors import ModelError
from graphopt.quantization.grid import LIMITS, Grid, grid_for_range, weight_grid
from graphopt.quantization.pairs import clamp_pairs, largest_pair_sum, pair_columns

ONNX_TYPES = {name: getattr(TensorProto, name.upper()) for name in LIMITS}

numbers = st.floats(-1e4, 1e4, width=32)
# ONNX's evaluator overflows instead of saturating beyond 2**31 steps.
scales = st.floats(2.0**-10, 2.0**10, width=32)


def in_onnx(grid: Grid, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantize and dequantize ``x`` with ONNX's own evaluator."""
    attributes = {} if grid.axis is None else {"axis": grid.axis, "block_size": grid.block or 0}
    zero_point = helper.make_tensor(
        "z", ONNX_TYPES[grid.dtype], grid.zero_point.shape, grid.zero_point.reshape(-1).tolist()
    )
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in (("q", ONNX_TYPES[grid.dtype]), ("y", 1))],
        [numpy_helper.from_array(grid.scale, "s"), zero_point],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    q, y = ReferenceEvaluator(model).run(None, {"x": x})
    return q.astype(np.int64), y


def grid_like(data: st.DataObject, dtype: str, shape: tuple[int, ...], axis: int | None, block: int | None) -> Grid:
    zeros = st.integers(*LIMITS[dtype])
    return Grid(
        data.draw(hnp.arrays(np.float32, shape, elements=scales)),
        data.draw(hnp.arrays(np.int64, shape, elements=zeros)),
        dtype,
        axis,
        block,
    )


@pytest.mark.parametrize("dtype", LIMITS)
@settings(max_examples=25)
@given(data=st.data())
def test_a_grid_for_the_tensor_is_onnx(dtype, data):
    x = data.draw(hnp.arrays(np.float32, (3, 4), elements=numbers))
    grid = grid_like(data, dtype, (), None, None)

    q, y = in_onnx(grid, x)

    np.testing.assert_array_equal(grid.quantize(x), q)
    np.testing.assert_array_equal(grid.fake(x), y)


@pytest.mark.parametrize("dtype", LIMITS)
@settings(max_examples=25)
@given(data=st.data())
def test_a_grid_along_an_axis_is_onnx(dtype, data):
    axis = data.draw(st.integers(0, 2))
    x = data.draw(hnp.arrays(np.float32, (2, 3, 4), elements=numbers))
    grid = grid_like(data, dtype, (x.shape[axis],), axis, None)

    q, y = in_onnx(grid, x)

    np.testing.assert_array_equal(grid.quantize(x), q)
    np.testing.assert_array_equal(grid.fake(x), y)


@pytest.mark.parametrize("dtype", ["int4", "uint8"])
@settings(max_examples=25)
@given(data=st.data())
def test_a_grid_by_blocks_is_onnx(dtype, data):
    axis = data.draw(st.integers(0, 1))
    x = data.draw(hnp.arrays(np.float32, (4, 6), elements=numbers))
    shape = (2, 6) if axis == 0 else (4, 3)
    grid = grid_like(data, dtype, shape, axis, 2)

    q, y = in_onnx(grid, x)

    np.testing.assert_array_equal(grid.quantize(x), q)
    np.testing.assert_array_equal(grid.fake(x), y)


def test_the_last_block_may_be_shorter():
    grid = Grid(np.array([[1.0, 10.0]]), np.zeros((1, 2)), "int8", axis=1, block=2)

    assert grid.quantize(np.array([[30.0, 30.0, 30.0]])).tolist() == [[30, 30, 3]]


def test_halves_go_to_the_even_integer_and_large_numbers_saturate():
    grid = Grid(np.array(2.0), np.array(3), "int8")

    assert grid.quantize(np.array([1.0, 3.0, 5.0, -1.0, -3.0])).tolist() == [3, 5, 5, 3, 1]
    assert grid.quantize(np.array([1e30, -1e30, np.inf, -np.inf])).tolist() == [127, -128, 127, -128]


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="uint3"):
        Grid(np.array(1.0), np.array(0), "uint3")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("dtype", LIMITS)
@given(ends=st.tuples(st.floats(-1e30, 1e30), numbers))
def test_a_range_is_covered_and_zero_lies_on_the_grid(dtype, power_of_two, symmetric, ends):
    low, high = min(ends), max(ends)
    grid = grid_for_range(low, high, dtype, symmetric=symmetric, power_of_two=power_of_two)

    assert grid.scale > 0
    assert np.isfinite(grid.scale)
    assert grid.fake(np.zeros(1, np.float32)) == 0.0
    if power_of_two:
        assert np.frexp(grid.scale)[0] == 0.5
    # The zero point is whole, which may move the ends by half a step.
    ends = np.array([low, high], np.float32).astype(np.float64)
    assert (np.abs(grid.fake(ends) - ends) <= 1.001 * grid.scale.astype(np.float64)).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (1.0, -1.0), (np.inf, -np.inf)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_without_numbers_gets_the_scale_one(low, high, symmetric):
    grid = grid_for_range(low, high, "uint8", symmetric=symmetric)

    assert grid.scale == 1.0
    assert grid.fake(np.zeros(1)) == 0.0


def test_a_range_off_zero_is_widened_to_it():
    grid = grid_for_range(5.0, 10.2, "uint8")

    assert grid.scale == np.float32(10.2 / 255)
    assert grid.zero_point == 0


def test_a_range_too_small_for_float32_keeps_a_normal_scale():
    assert grid_for_range(0.0, 1e-42, "uint8").scale >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("bad", [(0.0, np.inf), (np.nan, 1.0)])
def test_a_range_that_is_not_finite_is_refused(bad):
    with pytest.raises(ModelError, match="not finite"):
        grid_for_range(*bad, "uint8")


def test_a_symmetric_grid_has_its_zero_in_the_middle():
    assert grid_for_range(-1.0, 3.0, "uint8", symmetric=True).zero_point == 128
    assert grid_for_range(-1.0, 3.0, "int8", symmetric=True).zero_point == 0
    assert grid_for_range(-1.0, 3.0, "int8", symmetric=True).scale == np.float32(3 / 127)


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, shape).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_largest_weights_take_the_last_integer_of_their_channel(axis):
    w = weights((3, 4, 5))
    grid = weight_grid(w, "int8", axis=axis)
    rest = tuple(i for i in range(3) if i != axis % 3)

    assert (np.abs(grid.quantize(w)).max(axis=rest) == 127).all()


def test_blocks_have_their_own_scales_along_their_axis():
    w = weights((6, 7))
    grid = weight_grid(w, "int8", axis=0, block=4)

    np.testing.assert_array_equal(
        grid.scale, np.stack([np.abs(w[:4]).max(axis=0), np.abs(w[4:]).max(axis=0)]) / np.float32(127)
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_the_search_lowers_the_error_of_every_channel(dtype, symmetric):
    w = weights((8, 200))
    plain, found = (weight_grid(w, dtype, axis=0, symmetric=symmetric, method=method) for method in ("maxabs", "mse"))
    before, after = (((grid.fake(w) - w) ** 2).sum(axis=1) for grid in (plain, found))

    assert (after <= before).all()
    # Eight bits have room for these weights' tails.
    assert dtype == "int8" or (after < before).any()


def test_the_search_finds_what_trying_every_scale_finds():
    w = weights((5, 64))
    found = weight_grid(w, "int4", axis=0, method="mse")
    for row, scale in zip(w, found.scale, strict=True):
        tried = np.abs(row).max() / 7 * np.geomspace(1.0, 0.2, 48)
        errors = [((np.clip(np.round(row / s), -8, 7) * s - row) ** 2).sum() for s in tried]

        np.testing.assert_allclose(scale, tried[np.argmin(errors)], rtol=1e-6)


def test_important_weights_are_not_clipped():
    w = np.append(np.full(63, 0.1), 1.0).astype(np.float32)[None]
    importance = np.append(np.full(63, 1e-6), 1.0)[None]

    plain, weighted = (weight_grid(w, "int4", axis=0, method="mse", importance=given) for given in (None, importance))

    assert abs(plain.fake(w)[0, -1] - 1.0) > abs(weighted.fake(w)[0, -1] - 1.0)


def test_constant_and_zero_weights_have_a_scale():
    w = np.array([[0.0, 0.0], [2.0, 2.0]], np.float32)
    grid = weight_grid(w, "int8", axis=0, method="mse")

    np.testing.assert_array_equal(grid.fake(w), w)


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ModelError, match="not finite"):
        weight_grid(np.array([[np.nan]]), "int8")


def test_pairs_of_a_convolution_follow_its_kernel_then_its_channels():
    shape = (2, 3, 1, 2)
    order = np.arange(6).reshape(3, 1, 2).transpose(1, 2, 0).reshape(-1)

    assert pair_columns(shape).tolist() == order.reshape(-1, 2).tolist()


def test_pairs_of_a_matrix_follow_the_other_axis():
    assert pair_columns((4, 5), 0).tolist() == [[0, 1], [2, 3]]
    assert pair_columns((5, 4), 1).tolist() == [[0, 1], [2, 3]]
    assert pair_columns((3, 2), None).tolist() == [[0, 2], [1, 3]]


pair_weights = hnp.arrays(np.float32, (4, 3, 1, 3), elements=st.floats(-4, 4, width=16))


@pytest.mark.parametrize("method", ["maxabs", "mse"])
@pytest.mark.parametrize("power_of_two", [False, True])
@settings(max_examples=50)
@given(w=pair_weights)
def test_nearest_integers_keep_the_limit_on_pairs(method, power_of_two, w):
    grid = weight_grid(w, "int8", axis=0, pair_limit=128, method=method, power_of_two=power_of_two)
    q = grid.quantize(w)

    for row in q.transpose(0, 2, 3, 1).reshape(4, -1):
        for a, b in zip(row[0:8:2], row[1:8:2], strict=True):
            assert a * b <= 0 or abs(a + b) <= 128


def test_a_limit_on_pairs_leaves_grids_that_keep_it_alone():
    w = np.array([[1.0, 0.0, -1.0, 1.0]], np.float32)

    assert weight_grid(w, "int8", axis=0, pair_limit=128).scale == weight_grid(w, "int8", axis=0).scale


def test_with_clamping_the_search_takes_a_finer_grid_where_that_pays():
    w = np.append(weights((1, 500)) * 0.02, [[1.0, 1.0]], axis=1).astype(np.float32)
    pairs = pair_columns(w.shape)
    strict, fine = (
        weight_grid(w, "int8", axis=0, pair_limit=128, method="mse", clamp=clamp) for clamp in (False, True)
    )
    q = clamp_pairs(fine.quantize(w), w / fine.scale[:, None].astype(np.float64), pairs, 128)

    assert largest_pair_sum(q, pairs) <= 128
    assert ((fine.dequantize(q) - w) ** 2).sum() <= ((strict.fake(w) - w) ** 2).sum()


@given(
    a=st.integers(-128, 127),
    b=st.integers(-128, 127),
    cost=st.tuples(st.floats(0, 10), st.floats(0, 10)),
    off=st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
)
def test_a_pair_gives_way_where_it_costs_least(a, b, cost, off):
    q, wanted = np.array([[a, b]]), np.array([[a + off[0], b + off[1]]])
    clamped = clamp_pairs(q, wanted, np.array([[0, 1]]), 100, np.array(cost))[0]

    def price(x, y):
        weights = cost if sum(cost) > 0 else (1.0, 1.0)
        return weights[0] * (x - wanted[0, 0]) ** 2 + weights[1] * (y - wanted[0, 1]) ** 2

    sign = np.sign(a)
    excess = max(abs(a + b) - 100, 0) if a * b > 0 else 0
    allowed = [
        price(a - sign * n, b - sign * (excess - n)) for n in range(excess + 1) if n <= abs(a) and excess - n <= abs(b)
    ]
    assert clamped[0] * clamped[1] <= 0 or abs(clamped.sum()) <= 100
    assert price(*clamped) <= min(allowed) * (1 + 1e-9) + 1e-9


def test_the_last_of_an_odd_number_of_channels_has_no_neighbour_where_pairs_end_with_a_pixel():
    assert pair_columns((2, 3, 1, 2)).tolist() == [[0, 2], [4, 1], [3, 5]]
    assert pair_columns((2, 3, 1, 2), by_pixel=True).tolist() == [[0, 2], [1, 3]]
    assert pair_columns((2, 1, 3, 3), by_pixel=True).tolist() == []
