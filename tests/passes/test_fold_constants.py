"""fold-constants: what constants decide is computed in one run, within a budget that is checked beforehand."""

from __future__ import annotations

from unittest import mock

import numpy as np
import onnx
import pytest

from graphopt import driver, io
from graphopt.ir import Editor, verify
from graphopt.runtime import evaluate
from tests.helpers import check_equivalent, codes, model_of, operators, optimized, run

X = {"x": np.array([[1.0, -2.0, 3.0], [0.5, np.nan, -0.0]], np.float32)}
W = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}
LARGEST = 4 << 20


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch):
    """Record the runs of the evaluator: the shapes of all that each computed."""
    seen: list[list[tuple[int, ...]]] = []

    def recording(model, feeds, names):
        proto = onnx.ModelProto.FromString(model)
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=o) for node in proto.graph.node for o in node.output if o)
        everything = evaluate(proto.SerializeToString(), feeds, [value.name for value in proto.graph.output])
        seen.append([array.shape for array in everything])
        assert sum(array.nbytes for array in everything) < LARGEST
        return evaluate(model, feeds, names)

    monkeypatch.setattr(driver, "evaluate", recording)
    return seen


def test_a_chain_of_constants_is_folded_in_one_run(runs):
    before = model_of(
        """g (float[2,3] x) => (float[2,2] y, float[2] z) {
        t = Neg(w) m = Exp(t) y = MatMul(x, m) a = ReduceSum<keepdims = 0>(t, zero) z = Mul(a, a) }""",
        weights=W | {"zero": np.array([0])},
    )
    after, result = optimized(before, "fold-constants")
    assert operators(after) == {"MatMul": 1}
    assert len(runs) == 1
    assert result.run.records[0].changes == {"values folded": 2}
    assert {"m", "z"} <= set(after.graph.initializers)
    verify(after)
    check_equivalent(before, after, X)


def test_an_output_that_is_constant_keeps_its_name():
    before = model_of("g () => (float[3,2] y) { y = Neg(w) }", weights=W)
    after, _ = optimized(before, "fold-constants")
    assert not operators(after)
    assert [value.name for value in after.graph.outputs] == ["y"]
    check_equivalent(before, after, {})


def test_shape_and_size_of_known_shapes():
    before = model_of(
        """g (float[2,3] x, float[n,4] v) => (int64[2] s, int64 n, int64[1] e, int64[2] d) {
        s = Shape(x) n = Size(x) e = Shape<start = -1>(v) d = Shape(v) }"""
    )
    after, _ = optimized(before, "fold-constants")
    assert operators(after) == {"Shape": 1}
    check_equivalent(before, after, X | {"v": np.ones((5, 4), np.float32)})


def test_inside_branches_and_for_their_outputs():
    before = model_of(
        """g (float[3,2] x, bool c) => (float[3,2] y) { y = If(c) <
        then_branch = t () => (float[3,2] r) { n = Neg(w) r = Add(x, n) },
        else_branch = e () => (float[3,2] r) { n = Abs(w) r = Exp(n) }> }""",
        weights=W,
    )
    after, _ = optimized(before, "fold-constants")
    verify(after)
    assert operators(after) == {"If": 1, "Add": 1}
    for c in (True, False):
        check_equivalent(before, after, {"x": np.ones((3, 2), np.float32), "c": np.array(c)})


def test_reshaping_a_weight_does_not_copy_it_nor_run_anything(runs):
    array = np.arange(6, dtype=np.float32)
    before = model_of(
        "g (float[2,3] x) => (float[2,2] y) { i = Identity(w) r = Reshape(i, s) y = MatMul(x, r) }",
        weights={"w": array, "s": np.array([3, -1])},
    )
    Editor(before).set_weight(before.graph.initializers["w"], array)
    driver.optimize(before, pipeline="fold-constants")
    assert operators(before) == {"MatMul": 1}
    assert runs == []
    result = before.graph.initializers["r"].const_value
    assert result is not None
    assert np.shares_memory(result.numpy(), array)


KEPT = {
    "random": "t = RandomUniformLike(w)",
    "bernoulli": "b = Abs(w) t = Bernoulli(b)",
    "dropout in training": "t = Dropout(w, half, true)",
    "quantizers": "q = QuantizeLinear(w, half) t = DequantizeLinear(q, half)",
}


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT.keys())
def test_random_operators_and_quantizers_stay(body):
    weights = W | {"half": np.float32(0.5), "true": np.array(True)}
    before = model_of(f"g (float[3,2] x) => (float[3,2] y) {{ {body} y = Add(x, t) }}", weights=weights)
    after, result = optimized(before, "fold-constants")
    left = operators(before)
    left.pop("Abs", None)
    assert {op: n for op, n in operators(after).items() if op != "Abs"} == left
    assert not codes(result)


def test_quantizers_on_request():
    before = model_of(
        f"g (float[3,2] x) => (float[3,2] y) {{ {KEPT['quantizers']} y = Add(x, t) }}",
        weights=W | {"half": np.float32(0.5)},
    )
    after, _ = optimized(before, "fold-constants{fold_quantizers=true}")
    assert operators(after) == {"Add": 1}
    check_equivalent(before, after, {"x": np.ones((3, 2), np.float32)})


def test_overridable_initializers_are_no_constants():
    proto = io.to_proto(model_of("g (float[2] x, float[2] w) => (float[2] y) { n = Neg(w) y = Add(x, n) }"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    after, _ = optimized(io.from_proto(proto), "fold-constants")
    assert operators(after) == {"Neg": 1, "Add": 1}


TYPES = {
    "float16": (np.array([1.5, -2.0], np.float16), "float16"),
    "double": (np.array([1.5, np.inf]), "double"),
    "int8": (np.array([-128, 127], np.int8), "int8"),
    "string": (np.array(["a", "bc"], object), "string"),
    "bool": (np.array([True, False]), "bool"),
}


@pytest.mark.parametrize("name", TYPES)
def test_element_types(name):
    array, kind = TYPES[name]
    before = model_of(f"g () => ({kind}[4] y) {{ y = Concat<axis = 0>(w, w) }}", weights={"w": array}, opset=19)
    after, _ = optimized(before, "fold-constants")
    assert not operators(after)
    check_equivalent(before, after, {})


def test_bfloat16_and_int4():
    before = model_of(
        "g (float[2] x) => (float[2] y) { b = Cast<to = 16>(w) i = Cast<to = 22>(w) "
        "c = Cast<to = 1>(b) d = Cast<to = 1>(i) s = Add(c, d) y = Mul(x, s) }",
        weights={"w": np.array([3.0, -7.0], np.float32)},
        opset=21,
    )
    after, _ = optimized(before, "fold-constants")
    assert operators(after) == {"Mul": 1}
    np.testing.assert_array_equal(run(after, {"x": np.ones(2, np.float32)})[0], [6, -14])


def test_what_the_runtime_has_no_kernel_for_stays_alone():
    before = model_of(
        "g (float[3,2] x) => (float[3,2] y, double[3,2] z) { n = Neg(w) d = Cast<to = 11>(n) z = Softsign(d) "
        "e = Exp(n) y = Add(x, e) }",
        weights=W,
    )
    after, result = optimized(before, "fold-constants")
    assert operators(after) == {"Softsign": 1, "Add": 1}
    assert codes(result) == {"FOLD003"}


BOMBS = {
    "ConstantOfShape": "t = ConstantOfShape(huge)",
    "Expand": "t = Expand(one, huge)",
    "Tile": "u = Expand(one, small) t = Tile(u, huge)",
    "Range": "t = Range(zero, many, step)",
    "Pad": "u = Expand(one, small) t = Pad(u, pads)",
    "Resize": 'u = Expand(one, small) t = Resize<mode = "nearest">(u, , scales)',
    "OneHot": "t = OneHot(ids, many_i, values)",
    "EyeLike": "u = Expand(one, side) v = EyeLike(u) t = MatMul(v, v)",
    "nested": "a = ConstantOfShape(unit) b = Expand(a, medium) c = Tile(b, medium) t = ReduceMax(c)",
    "outer product": "a = Expand(one, column) b = Expand(one, row) c = MatMul(a, b) t = ReduceMax(c)",
    "doubling": " ".join(f"d{i + 1} = Concat<axis = 0>(d{i}, d{i})" for i in range(40)) + " t = ReduceMax(d40)",
}
BOMB_SIZES = {
    "huge": np.array([1 << 14, 1 << 14]),
    "small": np.array([8, 8]),
    "unit": np.array([1, 1]),
    "medium": np.array([1024, 1024]),
    "side": np.array([2048, 2048]),
    "column": np.array([1 << 14, 1]),
    "row": np.array([1, 1 << 14]),
    "one": np.ones((1, 1), np.float32),
    "zero": np.float32(0),
    "step": np.float32(1),
    "many": np.float32(1e9),
    "many_i": np.array([1 << 30]),
    "ids": np.array([1]),
    "values": np.array([0.0, 1.0], np.float32),
    "pads": np.array([0, 0, 1 << 15, 1 << 15]),
    "scales": np.array([4096.0, 4096.0], np.float32),
    "d0": np.ones((1, 1), np.float32),
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_refused_before_anything_large_is_computed(body, runs):
    before = model_of(f"g (float x) => (float[a,b] y) {{ {body} y = Add(x, t) }}", weights=BOMB_SIZES)
    after, result = optimized(before, "fold-constants")
    assert "FOLD001" in codes(result)
    assert "Add" in operators(after)
    verify(after)


def test_many_small_bombs_together_stay_within_memory(runs):
    lines = "".join(f"a{i} = ConstantOfShape(side) r{i} = ReduceMax<keepdims = 0>(a{i})\n" for i in range(64))
    sums = "s0 = Add(x, r0)\n" + "".join(f"s{i} = Add(s{i - 1}, r{i})\n" for i in range(1, 64))
    before = model_of(
        f"g (float x) => (float y) {{ {lines} {sums} y = Neg(s63) }}", weights={"side": np.array([500, 500])}
    )
    after, _ = optimized(before, "fold-constants{max_memory=3000000}")
    assert operators(after) == {"Add": 64, "Neg": 1}
    check_equivalent(before, after, {"x": np.float32(1)})


def test_memory_beyond_the_limit_is_refused():
    before = model_of(
        "g (float[64,64] x) => (float[64,64] y) { a = Neg(w) b = Exp(a) y = Add(x, b) }",
        weights={"w": np.ones((64, 64), np.float32)},
    )
    after, result = optimized(before, "fold-constants{max_memory=10000}")
    assert operators(after) == operators(before)
    assert codes(result) == {"FOLD004"}


def test_a_weight_that_stays_in_use_is_not_stored_twice():
    body = "g (float[64,64] x) => (float[64,64] y) { a = Neg(w) b = Add(x, a) y = Mul(b, w) }"
    before = model_of(body, weights={"w": np.ones((64, 64), np.float32)})
    after, result = optimized(before, "fold-constants{max_growth=1000}")
    assert operators(after) == operators(before)
    assert codes(result) == {"FOLD001"}
    alone = model_of(body.replace("Mul(b, w)", "Mul(b, b)"), weights={"w": np.ones((64, 64), np.float32)})
    assert operators(optimized(alone, "fold-constants{max_growth=0}")[0]) == {"Add": 1, "Mul": 1}


INVALID = {
    "negative size": ("n = Neg(bad) t = ConstantOfShape(n)", {"bad": np.array([1, 2])}),
    "wrong reshape": ("t = Reshape(w, bad)", {"bad": np.array([5, 5])}),
}


@pytest.mark.parametrize("body,weights", INVALID.values(), ids=INVALID.keys())
def test_invalid_sizes_leave_the_node_alone_and_say_so(body, weights):
    before = model_of(f"g (float x) => (float[a,b] y) {{ {body} y = Add(x, t) }}", weights=W | weights)
    after, result = optimized(before, "fold-constants")
    assert {*operators(after)} == {*operators(before)} - {"Neg"}
    assert codes(result) & {"FOLD002", "FOLD003"}


def test_sizes_that_are_computed_first_take_a_second_sweep(runs):
    before = model_of(
        "g (float[6] x) => (float[6] y) { c = Cast<to = 1>(two) f = Mul(c, c) r = Floor(f) s = Cast<to = 7>(r) "
        "q = Add(s, two) k = ConstantOfShape(q) y = Add(x, k) }",
        weights={"two": np.array([2])},
    )
    after, _ = optimized(before, "fold-constants")
    assert operators(after) == {"Add": 1}
    assert len(runs) == 2


def test_range_gets_scalars_where_it_had_vectors_of_one_element():
    body = "a = Neg(zero) b = Neg(five) c = Neg(two) r = Range(a, b, c) y = Mul(r, x)"
    weights = {name: np.full(1, -number, np.float32) for name, number in (("zero", 0), ("five", 5), ("two", 2))}
    before = model_of(f"g (float[1] x) => (float[n] y) {{ {body} }}", weights=weights)
    after, _ = optimized(before, "fold-constants")
    assert operators(after) == {"Mul": 1}
    check_equivalent(before, after, {"x": np.array([2], np.float32)})


def test_fuel_stops_the_folding():
    before = model_of(
        "g (float[3,2] x) => (float[3,2] y) { a = Neg(w) b = Add(x, a) c = Abs(w) y = Mul(b, c) }", weights=W
    )
    result = driver.optimize(before, pipeline="fold-constants", fuel={"fold-constants": 1})
    assert result.run.records[0].changes == {"values folded": 1}
    verify(before)


def test_a_declared_shape_that_lies_does_not_hide_a_bomb(runs):
    proto = io.to_proto(
        model_of(
            "g (float x) => (float y) { t = ConstantOfShape(huge) r = ReduceMax<keepdims=0>(t) y = Add(x, r) }",
            weights={"huge": np.array([1 << 14, 1 << 14])},
        )
    )
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("t", 1, [1]))
    after, result = optimized(io.from_proto(proto), "fold-constants")
    assert codes(result) == {"FOLD001"}
    assert operators(after) == {"ConstantOfShape": 1, "ReduceMax": 1, "Add": 1}


def test_the_evaluator_is_not_asked_when_there_is_nothing_to_fold():
    with mock.patch.object(driver, "evaluate") as asked:
        optimized(model_of("g (float x) => (float y) { y = Neg(x) }"), "fold-constants")
    asked.assert_not_called()


VECTORS = {
    "direct": "t = ConstantOfShape(n)",
    "computed": "m = Mul(k, k) t = ConstantOfShape(m)",
    "range": "t = Range(zero, f, step)",
    "reshaped": "u = Expand(one, s) t = Reshape(u, all)",
}


@pytest.mark.parametrize("body", VECTORS.values(), ids=VECTORS.keys())
def test_a_long_vector_drowns_neither_inference_nor_folding(body, runs):
    sizes = {
        "n": np.array([1 << 40]),
        "k": np.array([1 << 20]),
        "s": np.array([1 << 20, 1 << 20]),
        "all": np.array([-1]),
    }
    scalars = {"f": np.float32(1e12), "zero": np.float32(0), "step": np.float32(1), "one": np.ones((1, 1), np.float32)}
    before = model_of(
        f"g (float x) => (float[a] y) {{ {body} y = Add(x, t) }}",
        weights={name: np.array(size) for name, size in sizes.items()} | scalars,
    )
    after, result = optimized(before, "fold-constants,fold-shapes")
    assert "FOLD001" in codes(result)
    assert operators(after)["Add"] == 1
