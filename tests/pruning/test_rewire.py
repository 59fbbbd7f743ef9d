"""Rewiring, operator by operator: groups are stated here, so that nothing hangs on how they are found."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from graphopt.analysis import AnalysisManager
from graphopt.analysis.channels import Channels
from graphopt.errors import PassError
from graphopt.ir import Editor, Model, attr, nodes
from graphopt.ir.query import ints
from graphopt.pruning.rewire import mask, remove
from tests.helpers import check_equivalent, clone, model_of, run
from tests.pruning.pruned import Lies, cut, sizes, stated, value_of

EACH_TWICE = [unit for unit in range(8) for _ in range(2)]


@dataclass(frozen=True)
class Case:
    """A graph from x, weights by shape, operands by value, and how one group of channels lies in it."""

    graph: str
    weights: dict[str, tuple[int, ...]]
    lies: Lies
    operands: dict[str, list[int]] = field(default_factory=dict)
    x: tuple[int, ...] = (1, 3, 6, 6)
    opset: int = 17

    def model(self) -> Model:
        rng = np.random.default_rng(0)
        arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in self.weights.items()}
        numbers = {name: np.array(value, np.int64) for name, value in self.operands.items()}
        dims = ",".join(map(str, self.x))
        body = f"agraph (float[{dims}] x) => (float[...] y) {{ {self.graph} }}".replace("[...]", "")
        return model_of(body, opset=self.opset, weights=arrays | numbers)

    def feeds(self) -> dict[str, np.ndarray]:
        return {"x": np.random.default_rng(1).standard_normal(self.x).astype(np.float32)}


CONVS = {"w1": (8, 3, 1, 1), "b1": (8,), "w2": (4, 8, 1, 1)}
CONVS_LIE: Lies = {"w1": 0, "b1": 0, "h": 1, "r": 1, "w2": 1}

CASES = {
    "conv": Case("h = Conv(x, w1, b1) r = Relu(h) y = Conv(r, w2)", CONVS, CONVS_LIE),
    "normalization": Case(
        "h = Conv(x, w1, b1) r = BatchNormalization(h, s, o, m, v) y = Conv(r, w2)",
        CONVS | {"s": (8,), "o": (8,), "m": (8,), "v": (8,)},
        CONVS_LIE | {"s": 0, "o": 0, "m": 0, "v": 0},
    ),
    "nonzero at zero": Case("h = Conv(x, w1, b1) r = Exp(h) y = Conv(r, w2)", CONVS, CONVS_LIE),
    "depthwise": Case(
        "h = Conv(x, w1, b1) r = Conv<group = 8>(h, d) y = Conv(r, w2)",
        CONVS | {"d": (8, 1, 3, 3)},
        CONVS_LIE | {"d": 0},
    ),
    "depthwise multiplied": Case(
        "h = Conv(x, w1, b1) r = Conv<group = 8>(h, d) y = Conv(r, w2)",
        CONVS | {"d": (16, 1, 3, 3), "w2": (4, 16, 1, 1)},
        CONVS_LIE | {"d": (0, EACH_TWICE), "r": (1, EACH_TWICE), "w2": (1, EACH_TWICE)},
    ),
    "grouped inputs": Case(
        "h = Conv(x, w1, b1) r = Relu(h) y = Conv<group = 2>(r, w2)",
        CONVS | {"w2": (4, 4, 1, 1)},
        {"w1": (0, [0, 1, 2, 3] * 2), "b1": (0, [0, 1, 2, 3] * 2)}
        | {"h": (1, [0, 1, 2, 3] * 2), "r": (1, [0, 1, 2, 3] * 2), "w2": 1},
    ),
    "transposed conv": Case(
        "h = ConvTranspose(x, w1, b1) r = Relu(h) y = ConvTranspose(r, w2)",
        CONVS | {"w1": (3, 8, 2, 2), "w2": (8, 4, 1, 1)},
        CONVS_LIE | {"w1": 1, "w2": 0},
    ),
    "transposed depthwise": Case(
        "h = Conv(x, w1, b1) r = ConvTranspose<group = 8>(h, d) y = Conv(r, w2)",
        CONVS | {"d": (8, 1, 3, 3)},
        CONVS_LIE | {"d": 0},
    ),
    "flatten": Case(
        "h = Conv(x, w1, b1) r = Flatten(h) y = MatMul(r, w2)",
        CONVS | {"w2": (8 * 36, 5)},
        {"w1": 0, "b1": 0, "h": 1, "r": (1, np.repeat(range(8), 36)), "w2": (0, np.repeat(range(8), 36))},
    ),
    "reshape": Case(
        "h = Conv(x, w1, b1) r = Reshape(h, shape) y = MatMul(r, w2)",
        CONVS | {"w2": (8 * 36, 5)},
        {"w1": 0, "b1": 0, "h": 1, "r": (1, np.repeat(range(8), 36)), "w2": (0, np.repeat(range(8), 36))},
        {"shape": [0, 288]},
    ),
    "reshape copying": Case(
        "h = Conv(x, w1, b1) r = Reshape(h, shape) t = Transpose<perm = [0, 2, 1]>(r) y = MatMul(t, w2)",
        CONVS | {"w2": (8, 5)},
        {"w1": 0, "b1": 0, "h": 1, "r": 1, "t": 2, "w2": 0},
        {"shape": [0, 0, -1]},
    ),
    "expand": Case(
        "h = MatMul(x, w1) r = Expand(h, shape) y = MatMul(r, w2)",
        {"w1": (3, 8), "w2": (8, 4)},
        {"w1": 1, "h": 1, "r": 2, "w2": 0},
        {"shape": [2, 1, 8]},
        x=(5, 3),
    ),
    "split": Case(
        "h = Conv(x, w1, b1) p, q = Split<axis = 1>(h, parts) r = Mul(p, q) y = Conv(r, w2)",
        CONVS | {"w1": (16, 3, 1, 1), "b1": (16,)},
        {name: (axis, [*range(8), *range(8)]) for name, axis in (("w1", 0), ("b1", 0), ("h", 1))}
        | {"p": 1, "q": 1, "r": 1, "w2": 1},
        {"parts": [8, 8]},
    ),
    "split before opset 13": Case(
        "h = Conv(x, w1, b1) p, q = Split<axis = 1, split = [8, 4]>(h) y = Conv(p, w2) z = Conv(q, w3)",
        CONVS | {"w1": (12, 3, 1, 1), "b1": (12,), "w3": (2, 4, 1, 1)},
        {name: (axis, [*range(8), -1, -1, -1, -1]) for name, axis in (("w1", 0), ("b1", 0), ("h", 1))}
        | {"p": 1, "w2": 1},
        opset=11,
    ),
    "split by number": Case(
        "h = Conv(x, w1, b1) p, q = Split<axis = 1, num_outputs = 2>(h) y = Conv(p, w2) z = Conv(q, w2)",
        CONVS | {"w1": (16, 3, 1, 1), "b1": (16,)},
        {name: (axis, [*range(8), *range(8)]) for name, axis in (("w1", 0), ("b1", 0), ("h", 1))}
        | {"p": 1, "q": 1, "w2": 1},
        opset=18,
    ),
    "split by number into unequal": Case(
        "h = Conv(x, w1, b1) p, q = Split<axis = 1, num_outputs = 2>(h) y = Conv(p, w2) z = Relu(q)",
        CONVS | {"w1": (16, 3, 1, 1), "b1": (16,)},
        {name: (axis, [*range(8), *[-1] * 8]) for name, axis in (("w1", 0), ("b1", 0), ("h", 1))} | {"p": 1, "w2": 1},
        opset=18,
    ),
    "slice": Case(
        "h = Conv(x, w1, b1) r = Slice(h, starts, ends, axes) y = Conv(r, w2) z = Conv(h, w3)",
        CONVS | {"w2": (4, 5, 1, 1), "w3": (2, 8, 1, 1)},
        {"w1": 0, "b1": 0, "h": 1, "r": (1, [1, 2, 3, 4, 5]), "w2": (1, [1, 2, 3, 4, 5]), "w3": 1},
        {"starts": [1, -7], "ends": [-2, 9], "axes": [1, -1]},
    ),
    "gather": Case(
        "h = Conv(x, w1, b1) r = Gather<axis = 1>(h, order) y = Conv(r, w2)",
        CONVS,
        {"w1": 0, "b1": 0, "h": 1, "r": (1, [3, 1, 7, 5, 0, 2, 4, 6]), "w2": (1, [3, 1, 7, 5, 0, 2, 4, 6])},
        {"order": [3, 1, -1, 5, 0, 2, 4, 6]},
    ),
    "embedding": Case(
        "h = Gather(table, ids) r = Add(h, x) y = MatMul(r, w2)",
        {"table": (9, 8), "w2": (8, 4), "w3": (8, 2)},
        {"table": 1, "h": 1, "r": 1, "w2": 0},
        {"ids": [0, 3, 5]},
        x=(3, 1),
    ),
    "pad": Case(
        "h = Conv(x, w1, b1) r = Pad(h, pads) y = Conv(r, w2)",
        CONVS | {"w2": (4, 13, 1, 1)},
        {"w1": 0, "b1": 0, "h": 1} | {"r": (1, [0, 1, *range(8), 2, 3, 4]), "w2": (1, [0, 1, *range(8), 2, 3, 4])},
        {"pads": [0, 2, 0, 0, 0, 3, 0, 1]},
    ),
    "crop": Case(
        "h = Conv(x, w1, b1) r = Pad(h, pads) y = Conv(r, w2)",
        CONVS | {"w2": (4, 5, 1, 1)},
        {"w1": 0, "b1": 0, "h": 1, "r": (1, [2, 3, 4, 5, 6]), "w2": (1, [2, 3, 4, 5, 6])},
        {"pads": [0, -2, 0, 0, 0, -1, 0, 0]},
    ),
    "resize": Case(
        "h = Conv(x, w1, b1) r = Resize(h, , , sizes) y = Conv(r, w2)",
        CONVS,
        CONVS_LIE,
        {"sizes": [1, 8, 9, 9]},
    ),
    "group normalization": Case(
        "h = Conv(x, w1, b1) r = GroupNormalization<num_groups = 4>(h, s, o) y = Conv(r, w2)",
        CONVS | {"s": (8,), "o": (8,)},
        {name: (axis, [0, 0, 1, 1, 2, 2, 3, 3]) for name, axis in (("w1", 0), ("b1", 0), ("h", 1), ("r", 1))}
        | {name: (axis, [0, 0, 1, 1, 2, 2, 3, 3]) for name, axis in (("s", 0), ("o", 0), ("w2", 1))},
        opset=21,
    ),
    "layer normalization": Case(
        "h = MatMul(x, w1) r = LayerNormalization<axis = -1>(h, s, o) y = MatMul(r, w2)",
        {"w1": (3, 8), "s": (8,), "o": (8,), "w2": (8, 4)},
        {"w1": 1, "h": 2, "s": 0, "o": 0, "r": 2, "w2": 0},
        x=(2, 5, 3),
    ),
    "layer normalization over two axes": Case(
        "h = MatMul(x, w1) r = LayerNormalization<axis = 1>(h, s, o) y = MatMul(r, w2)",
        {"w1": (3, 8), "s": (5, 8), "o": (5, 8), "w2": (8, 4)},
        {"w1": 1, "h": 2, "s": 1, "o": 1, "r": 2, "w2": 0},
        x=(2, 5, 3),
    ),
    "layer normalization over others": Case(
        "h = MatMul(w1, x) r = LayerNormalization<axis = -1>(h, s) y = MatMul(w2, r)",
        {"w1": (8, 5), "s": (3,), "w2": (4, 8)},
        {"w1": 0, "h": 1, "r": 1, "w2": 1},
        x=(2, 5, 3),
    ),
    "hidden units": Case(
        "h, last = LSTM<hidden_size = 4>(x, w1, r1, b1) y = MatMul(h, w2)",
        {"w1": (1, 16, 3), "r1": (1, 16, 4), "b1": (1, 32), "w2": (4, 5)},
        {
            "w1": (1, [*range(4)] * 4),
            "b1": (1, [*range(4)] * 8),
            "h": 3,
            "last": 2,
            "w2": 0,
            "r1": [(1, [*range(4)] * 4), 2],
        },
        x=(6, 2, 3),
    ),
    "constant node": Case(
        "k = Constant<value_floats = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>()"
        " h = MatMul(x, w1) r = Add(h, k) y = MatMul(r, w2)",
        {"w1": (3, 8), "w2": (8, 4)},
        {"w1": 1, "h": 1, "k": 0, "r": 1, "w2": 0},
        x=(5, 3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_computes_what_zeros_in_place_of_the_rest_do(name):
    case = CASES[name]

    pair = cut(case.model(), 0, Channels, case.lies)

    check_equivalent(pair.masked, pair.removed, case.feeds())


@pytest.mark.parametrize("name", CASES)
def test_the_zeros_change_the_outputs(name):
    """Otherwise the test above would say nothing."""
    case = CASES[name]

    pair = cut(case.model(), 0, Channels, case.lies)

    assert not np.allclose(run(case.model(), case.feeds())[0], run(pair.masked, case.feeds())[0])


@pytest.mark.parametrize("name", CASES)
def test_the_sizes_noted_on_values_are_those_that_are_computed(name):
    case = CASES[name]

    pair = cut(case.model(), 0, Channels, case.lies)

    noted = {name: shape for name, shape in sizes(pair.removed).items() if shape and name != "y"}
    inferred = clone(pair.removed)
    for node in inferred.graph:
        for value in node.outputs:
            Editor(inferred).annotate(value, value.dtype, None)
    stated(inferred)
    assert {name: shape for name, shape in sizes(inferred).items() if shape and name != "y"} == noted


def only(model: Model, operator: str):
    (node,) = (node for node in nodes(model) if node.op_type == operator)
    return node


def test_groups_of_a_depthwise_convolution_are_those_left():
    case = CASES["depthwise"]

    pair = cut(case.model(), 0, Channels, case.lies)

    assert attr([node for node in nodes(pair.removed) if node.op_type == "Conv"][1], "group") == 4


def test_a_shape_keeps_its_zeros_and_minus_ones():
    case = CASES["reshape copying"]

    pair = cut(case.model(), 0, Channels, case.lies)

    assert ints(only(pair.removed, "Reshape").inputs[1]) == [0, 0, -1]


def test_a_shape_that_others_read_stays_for_them():
    body = "agraph (float[4, 3] x) => (float y, float z) {"
    body += " h = MatMul(x, w1) r = Reshape(h, shape) y = MatMul(r, w2) k = MatMul(x, w3) z = Reshape(k, shape) }"
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(s).astype(np.float32) for name, s in {"w1": (3, 8), "w3": (3, 8)}.items()}
    arrays |= {"w2": rng.standard_normal((8, 5)).astype(np.float32), "shape": np.array([2, 2, 8])}
    model = model_of(body, weights=arrays)

    pair = cut(model, 0, Channels, {"w1": 1, "h": 1, "r": 2, "w2": 0})

    shapes = [ints(node.inputs[1]) for node in nodes(pair.removed) if node.op_type == "Reshape"]
    assert shapes == [[2, 2, 4], [2, 2, 8]]
    check_equivalent(pair.masked, pair.removed, {"x": rng.standard_normal((4, 3)).astype(np.float32)})


def test_parts_that_stay_equal_need_no_sizes():
    case = CASES["split by number"]

    split = only(cut(case.model(), 0, Channels, case.lies).removed, "Split")

    assert attr(split, "num_outputs") == 2
    assert len(split.inputs) == 1


def test_parts_that_become_unequal_get_sizes():
    case = CASES["split by number into unequal"]

    split = only(cut(case.model(), 0, Channels, case.lies).removed, "Split")

    assert attr(split, "num_outputs") is None
    assert ints(split.inputs[1]) == [4, 8]


def test_zeros_hide_what_is_not_a_number():
    case = CASES["conv"]
    model = case.model()
    weight = np.array(value_of(model, "b1").const_value.numpy())
    weight[:] = np.nan
    channels = stated(model, case.lies)
    gone = np.ones(8, np.bool_)
    gone[3] = False
    weight[3] = 0.0
    edit = Editor(model)
    edit.set_weight(value_of(model, "b1"), weight)

    mask(model, edit, channels, {0: gone})

    assert np.isfinite(run(model, case.feeds())[0]).all()


def test_how_many_parameters_are_gone():
    case = CASES["conv"]
    model = case.model()
    gone = np.arange(8) < 2

    shrunk = remove(model, Editor(model), stated(model, case.lies), {0: gone})

    assert shrunk.parameters == 2 * (3 + 1 + 4)


def test_an_axis_is_not_emptied():
    case = CASES["conv"]
    model = case.model()

    with pytest.raises(PassError, match="nothing would be left of axis 0 of 'w1'"):
        remove(model, Editor(model), stated(model, case.lies), {0: np.ones(8, np.bool_)})


def test_nothing_is_written_when_a_node_cannot_state_the_new_sizes():
    case = CASES["group normalization"]
    model = case.model()
    before = sizes(model)
    channels = stated(model, {name: (place[0], [*range(8)]) for name, place in case.lies.items()})

    with pytest.raises(PassError, match="only whole groups of normalization can go"):
        remove(model, Editor(model), channels, {0: np.arange(8) == 0})

    assert {name: shape for name, shape in sizes(model).items() if before.get(name)} == {
        name: shape for name, shape in before.items() if shape
    }


def test_input_channels_of_unknown_number_are_no_matter_without_groups():
    body = """g (float[1,3,4,4] x, int64[8] pads) => (float[n,c,h,w] y) {
        p = Pad(x, pads) a = Conv(p, v) y = Conv(a, w) }"""
    weights = {"v": np.ones((6, 3, 1, 1), np.float32), "w": np.ones((2, 6, 1, 1), np.float32)}
    model = model_of(body, opset=17, weights=weights)
    edit = Editor(model)
    channels = AnalysisManager(edit).get(Channels)

    remove(model, edit, channels, {0: np.array([True, False, False, True, False, False])})

    feeds = {"x": np.ones((1, 3, 4, 4), np.float32), "pads": np.zeros(8, np.int64)}
    np.testing.assert_array_equal(run(model, feeds)[0], np.full((1, 2, 4, 4), 12, np.float32))
