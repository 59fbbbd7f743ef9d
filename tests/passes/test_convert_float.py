"""Half precision: close to float32, borders as asked for, and what stays in float32 with the reason why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import io
from graphopt.driver import optimize
from graphopt.errors import UsageError
from graphopt.ir import DataType, Model, nodes
from graphopt.ir.infer import infer
from tests.helpers import clone, codes, model_of, operators, optimized, run

RNG = np.random.default_rng(17)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "W": normal(6, 6) / 4,
    "b": normal(6),
    "K": normal(3, 3, 3, 3) / 5,
    "low": np.asarray(-1e38, np.float32),
    "large": np.asarray(1e6, np.float32),
    "tiny": np.asarray(1e-12, np.float32),
    "half": np.asarray(0.5, np.float32),
    "scales": np.asarray([1, 1, 2, 2], np.float32),
    "table": normal(9, 6),
    "one": np.asarray(1, np.float32),
    "infinite": np.asarray(-np.inf, np.float32),
    "shape": np.asarray([6]),
}
X = "g (float[n, 6] x) =>"


def types(model: Model) -> dict[str, DataType | None]:
    """Return the dtype of each node's first output by the node's operator."""
    known, contradiction = infer(model)
    assert not contradiction
    return {node.op_type: known[node.outputs[0]][0] for node in nodes(model) if node.outputs[0] in known}


def check(before: Model, after: Model, feeds: dict[str, np.ndarray[Any, Any]], *, rtol: float = 5e-3) -> None:
    """Assert that the result is valid for ONNX and near that of float32, in float32."""
    onnx.checker.check_model(io.to_proto(after), full_check=True)
    for want, got in zip(run(before, feeds), run(after, feeds), strict=True):
        assert got.dtype == want.dtype
        scale = np.abs(want[np.isfinite(want)]).max(initial=1e-30) if want.size else 1.0
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * scale)


MODELS = {
    "a layer": "m = MatMul(x, W) a = Add(m, b) y = Softmax(a)",
    "a constant node": "c = Constant <value = float[1] {0.5}> () y = Mul(x, c)",
    "filled with a number": "s = Shape(x) c = ConstantOfShape <value = float[1] {0.5}> (s) y = Mul(x, c)",
    "filled with zeros": "s = Shape(x) c = ConstantOfShape(s) y = Add(x, c)",
    "casts": "i = Cast <to = 7> (x) f = Cast <to = 1> (i) h = Cast <to = 10> (f) e = Cast <to = 1> (h) y = Add(x, e)",
    "a value in both types": "a = Exp(x) c = CumSum(a, axis) y = Mul(a, c)",
    "an infinite mask": "z = Less(x, half) m = Where(z, x, infinite) y = Softmax(m)",
    "an If": "c = Constant <value = bool {1}> () y = If (c) <"
    "then_branch = t () => (u) { u = MatMul(x, W) }, else_branch = e () => (v) { v = CumSum(x, axis) }>",
    "a captured value in an If": "c = Constant <value = bool {0}> () r = Relu(x) y = If (c) <"
    "then_branch = t () => (u) { u = MatMul(r, W) }, else_branch = e () => (v) { v = CumSum(r, axis) }>",
    "a Loop": "n3 = Constant <value = int64 {3}> () c = Constant <value = bool {1}> () y = Loop (n3, c, x) <"
    "body = l (int64 i, bool k, float[n, 6] s) => (bool k2, float[n, 6] s2) "
    "{ k2 = Identity(k) m = MatMul(s, W) p = CumSum(m, axis) s2 = Add(p, b) }>",
    "a Constant as output of a branch": "c = Constant <value = bool {1}> () r = If (c) <"
    "then_branch = t () => (u) { u = Constant <value = float {0.5}> () },"
    "else_branch = e () => (v) { v = Identity(half) }> y = Add(x, r)",
}


@pytest.mark.parametrize("options", ["", "{keep=MatMul}", "{keep=If}", "{keep=Loop}", "{io=convert}"])
@pytest.mark.parametrize("name", MODELS)
def test_is_close_to_float32(name: str, options: str) -> None:
    weights = WEIGHTS | {"axis": np.asarray(1)}
    before = model_of(f"{X} (float[n, 6] y) {{ {MODELS[name]} }}", weights=weights)
    kept = options[6:-1] if "keep" in options else None
    if kept and kept not in operators(before):
        options = ""
    after, result = optimized(before, f"convert-float{options}")
    assert result.run.ctx.rewrites or "keep" in options
    if options == "{io=convert}":
        feeds = {"x": normal(3, 6)}
        got = run(after, {"x": feeds["x"].astype(np.float16)})[0]
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, run(before, feeds)[0], rtol=2e-2, atol=2e-2)
        return
    check(before, after, {"x": normal(3, 6)})
    assert operators(optimized(after, f"convert-float{options}")[0]) == operators(after)


def test_every_value_but_inputs_and_outputs_is_half_and_so_are_the_weights() -> None:
    before = model_of(f"{X} (float[n, 6] y) {{ m = MatMul(x, W) y = Add(m, b) }}", weights=WEIGHTS)
    after, _ = optimized(before, "remove-dead,convert-float")
    assert {value.dtype for value in after.graph.initializers.values()} == {DataType.FLOAT16}
    assert operators(after) == {"Cast": 2, "MatMul": 1, "Add": 1}
    assert [value.dtype for value in (*after.graph.inputs, *after.graph.outputs)] == [DataType.FLOAT] * 2
    assert [value.name for value in (*after.graph.inputs, *after.graph.outputs)] == ["x", "y"]


def test_inputs_that_feed_nothing_but_kept_nodes_get_no_cast() -> None:
    before = model_of(f"{X} (y) {{ a = Exp(x) m = MatMul(a, W) y = Softmax(m) }}", weights=WEIGHTS)
    after, _ = optimized(before, 'convert-float{keep="Exp, Softmax"}')
    assert operators(after) == {"Exp": 1, "Cast": 2, "MatMul": 1, "Softmax": 1}
    check(before, after, {"x": normal(3, 6)})


@pytest.mark.parametrize("pattern", ["Exp", "E?p", "/layer/*", "/layer/exp"])
def test_nodes_are_kept_by_operator_and_by_name(pattern: str) -> None:
    before = model_of(f'{X} (y) {{ ["/layer/exp"] a = Exp(x) y = MatMul(a, W) }}', weights=WEIGHTS)
    assert types(optimized(before, f'convert-float{{keep="{pattern}"}}')[0])["Exp"] == DataType.FLOAT
    assert types(optimized(before, "convert-float")[0])["Exp"] == DataType.FLOAT16


def test_a_pattern_that_names_nothing_is_an_error() -> None:
    before = model_of(f"{X} (y) {{ y = Exp(x) }}")
    with pytest.raises(UsageError, match="'Softmax'"):
        optimized(before, 'convert-float{keep="Exp,Softmax"}')


STAY = {
    "no such operator in ONNX": ("Range", "c = Cast <to = 1> (k) r = Range(c, large, large) y = Identity(r)"),
    "scales need all their digits": ("DequantizeLinear", "y = DequantizeLinear(q, half)"),
    "a constant would become zero": ("Add", "y = Add(x, tiny)"),
    "a constant is out of range": ("Mul", "y = Mul(x, large)"),
    "sums leave the range": ("ReduceSum", "y = ReduceSum(x)"),
    "sizes are computed": ("Floor", "c = Cast <to = 1> (k) d = Mul(c, half) f = Floor(d) y = Cast <to = 7> (f)"),
    "angles are computed": ("Sin", "c = Cast <to = 1> (k) d = Mul(c, half) s = Sin(d) y = Mul(x, s)"),
}


@pytest.mark.parametrize("reason", STAY)
def test_what_cannot_go_along_stays_and_a_remark_says_why(reason: str) -> None:
    operator, body = STAY[reason]
    text = f"g (float[n, 6] x, int64 k, uint8[4] q) => (y, z) {{ {body} z = Exp(x) }}"
    before = model_of(text, weights=WEIGHTS)
    after, result = optimized(before, "convert-float")
    found = types(after)
    assert found[operator] == DataType.FLOAT
    assert found["Exp"] == DataType.FLOAT16
    assert "HALF001" in codes(result)


def test_sizes_computed_from_integers_stay_exact() -> None:
    body = "c = Cast <to = 1> (k) d = Mul(c, half) f = Floor(d) y = Cast <to = 7> (f) z = Exp(x)"
    before = model_of(f"g (float[n, 6] x, int64[1] k) => (y, z) {{ {body} }}", weights=WEIGHTS)
    after, _ = optimized(before, "convert-float")
    assert run(after, {"x": normal(1, 6), "k": np.array([2049 * 2])})[0] == 2049


def test_a_resize_keeps_the_type_of_its_scales() -> None:
    text = "g (float[1, 3, 4, 4] x) => (y) { r = Relu(x) y = Resize(r, , scales) }"
    before = model_of(text, weights=WEIGHTS)
    after, _ = optimized(before, "remove-dead,convert-float")
    assert types(after)["Resize"] == DataType.FLOAT16
    assert after.graph.initializers["scales"].dtype == DataType.FLOAT
    check(before, after, {"x": normal(1, 3, 4, 4)})


def test_a_mask_becomes_the_lowest_number_and_hides_as_before() -> None:
    body = "f = Cast <to = 1> (k) i = Sub(one, f) m = Mul(i, low) s = Add(x, m) y = Softmax(s)"
    before = model_of(f"g (float[n, 6] x, int64[6] k) => (y) {{ {body} }}", weights=WEIGHTS)
    after, result = optimized(before, "remove-dead,convert-float")
    assert codes(result) == {"HALF002"}
    assert types(after)["Mul"] == DataType.FLOAT16
    check(before, after, {"x": normal(2, 6), "k": np.array([1, 1, 0, 1, 0, 0])})
    assert np.isfinite(run(after, {"x": normal(2, 6), "k": np.zeros(6, np.int64)})[0]).all()


def test_a_weight_that_both_types_read_is_there_in_both() -> None:
    before = model_of(f"{X} (y, z) {{ y = MatMul(x, W) z = Exp(W) }}", weights={"W": WEIGHTS["W"]})
    after, _ = optimized(before, "convert-float{keep=Exp}")
    assert {value.dtype for value in after.graph.initializers.values()} == {DataType.FLOAT, DataType.FLOAT16}
    check(before, after, {"x": normal(3, 6)})


def test_a_default_that_callers_may_override_goes_with_the_inputs() -> None:
    before = model_of("g (float[n, 6] x, float[6, 6] W) => (y) { y = MatMul(x, W) }", weights={"W": WEIGHTS["W"]})
    after, _ = optimized(before, "convert-float{io=convert}")
    assert {value.dtype for value in after.graph.inputs} == {DataType.FLOAT16}
    got = run(after, {"x": np.ones((1, 6), np.float16)})[0]
    np.testing.assert_allclose(got, run(before, {"x": np.ones((1, 6), np.float32)})[0], atol=1e-2)


def test_bfloat16_keeps_the_range_and_warns_where_nothing_runs_it() -> None:
    before = model_of(f"{X} (float[n, 6] y) {{ m = MatMul(x, W) a = Mul(m, large) y = Relu(a) }}", weights=WEIGHTS)
    after, result = optimized(before, "convert-float{dtype=bfloat16}")
    onnx.checker.check_model(io.to_proto(after), full_check=True)
    found = types(after)
    assert found["MatMul"] == found["Mul"] == found["Relu"] == DataType.BFLOAT16
    assert codes(result) == {"HALF003"}


def test_a_model_without_float32_is_left_alone() -> None:
    before = model_of("g (int64[3] x, double[2] d) => (y, z) { y = Neg(x) z = Exp(d) }")
    after, result = optimized(before, "convert-float")
    assert not result.run.ctx.rewrites
    assert operators(after) == operators(before)


def test_without_fuel_nothing_changes() -> None:
    before = model_of(f"{X} (y) {{ y = Exp(x) }}")
    after = clone(before)
    optimize(after, pipeline="convert-float", fuel={"convert-float": 0})
    assert operators(after) == operators(before)
