"""Dynamic quantization: close to float, one kernel a layer, no overflow in the kernel, and what stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt import io
from graphopt.driver import optimize
from graphopt.errors import PassError
from graphopt.ir import Model, constant, nodes
from graphopt.targets import find
from tests.helpers import clone, codes, model_of, operators, optimized, run

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "W": normal(32, 48),
    "T": normal(48, 32),
    "b": normal(48),
    "B": normal(1, 48),
    "K": normal(6, 4, 3, 3),
    "k": normal(6),
    "small": normal(32, 4),
    "half": normal(32, 48).astype(np.float16),
    "broken": np.where(np.arange(32 * 48).reshape(32, 48) == 5, np.inf, normal(32, 48)).astype(np.float32),
}
X = "g (float[n, 32] x) =>"


def error(before: Model, after: Model, feeds: dict[str, np.ndarray[Any, Any]]) -> float:
    """Return the root mean square of the error over that of the output, the worst of all outputs."""
    pairs = zip(run(before, feeds), run(after, feeds, optimize_graph=True), strict=True)
    return max(float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean())) for a, b in pairs)


FORMS = {
    "MatMul": "y = MatMul(x, W)",
    "MatMul and Add": "m = MatMul(x, W) y = Add(m, b)",
    "Gemm": "y = Gemm(x, W)",
    "Gemm, transposed, scaled": "y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, T, b)",
    "Gemm, bias of rank 2": "y = Gemm <beta = -3.0> (x, W, B)",
    "Gemm, input transposed": "t = Transpose(x) y = Gemm <transA = 1> (t, W)",
    "Gemm, bias computed": "c = Relu(b) y = Gemm <beta = 0.5> (x, W, c)",
    "in a branch": "i = Constant <value_int = 1> () c = Cast <to = 9> (i) y = If (c) <"
    "then_branch = t () => (u) { u = MatMul(x, W) }, else_branch = e () => (v) { v = Neg(b) }>",
}


@pytest.mark.parametrize("form", FORMS)
def test_is_close_to_float(form: str) -> None:
    before = model_of(f"{X} (float[n, 48] y) {{ {FORMS[form]} }}", weights=WEIGHTS)
    after, result = optimized(before, "quantize-dynamic")
    assert operators(after)["MatMulInteger"] == 1
    assert not operators(after)["MatMul"] + operators(after)["Gemm"]
    assert [str(record.changes) for record in result.run.records] == ["1 layers quantized"]
    assert error(before, after, {"x": normal(5, 32)}) < 0.02


def test_convolutions_are_left_alone_unless_asked_for() -> None:
    text = "g (float[n, 8, 9, 9] x) => (y) { y = Conv <group = 2, pads = [1, 1, 1, 1], strides = [2, 2]> (x, K, k) }"
    before = model_of(text, weights=WEIGHTS)
    assert operators(optimized(before, "quantize-dynamic")[0]) == operators(before)
    after, _ = optimized(before, "quantize-dynamic{convolutions=true,min_weights=1}")
    assert operators(after)["ConvInteger"] == 1
    assert error(before, after, {"x": normal(2, 8, 9, 9)}) < 0.02


def test_layers_that_read_one_value_share_its_integers() -> None:
    text = f"{X} (y, z, u) {{ y = MatMul(x, W) r = Relu(x) u = MatMul(r, W) z = Gemm <transB = 1> (x, T) }}"
    before = model_of(text, weights=WEIGHTS)
    after, _ = optimized(before, "quantize-dynamic")
    assert operators(after)["DynamicQuantizeLinear"] == 2
    integers = [node.inputs[1] for node in nodes(after) if node.op_type == "MatMulInteger"]
    assert len({value.name for value in integers if value is not None}) == 2, (
        "layers with one weight share its integers"
    )
    assert error(before, after, {"x": normal(5, 32)}) < 0.02


def test_a_later_layer_in_the_index_may_stand_first() -> None:
    # The index lists MatMul before Gemm; in the graph it is the other way round.
    before = model_of(f"{X} (y, z) {{ r = Relu(x) y = Gemm(r, W) z = MatMul(r, W) }}", weights=WEIGHTS)
    after, _ = optimized(before, "quantize-dynamic")
    assert operators(after)["DynamicQuantizeLinear"] == 1
    assert error(before, after, {"x": normal(5, 32)}) < 0.02


def test_onnxruntime_makes_one_kernel_of_a_layer(tmp_path) -> None:
    before = model_of(f"{X} (y) {{ y = Gemm(x, W, b) }}", weights=WEIGHTS)
    after, _ = optimized(before, "quantize-dynamic")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(io.to_proto(after).SerializeToString(), options)
    kernels = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kernels == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize(("target", "limit"), [("cpu-x64-avx2", 128), ("cpu-x64", 254)])
def test_pairs_of_weights_keep_to_the_target_s_limit(target: str, limit: int) -> None:
    model = model_of(f"{X} (y) {{ y = MatMul(x, P) }}", weights={"P": np.abs(WEIGHTS["W"]) + 1})
    optimize(model, pipeline="quantize-dynamic", target=find(target))
    integers = constant(next(node for node in nodes(model) if node.op_type == "MatMulInteger").inputs[1])
    assert integers is not None
    sums = integers[0::2].astype(int) + integers[1::2]
    assert 0.75 * limit < sums.max() <= limit


LEFT_ALONE = {
    "few weights": ("y = MatMul(x, small)", {"DYN002"}),
    "weights that are not finite": ("y = MatMul(x, broken)", {"DYN002"}),
    "the constant on the left": ("t = Transpose(x) y = MatMul(W2, t)", {"DYN002"}),
    "no weights": ("t = Transpose(x) y = MatMul(x, t)", set()),
    "half precision": ("h = Cast <to = 10> (x) y = MatMul(h, half)", {"DYN002"}),
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    body, remarks = LEFT_ALONE[reason]
    before = model_of(f"{X} (y) {{ {body} }}", weights=WEIGHTS | {"W2": normal(48, 32)})
    after, result = optimized(before, "quantize-dynamic")
    assert operators(after) == operators(before)
    assert codes(result) == remarks
    assert not result.run.ctx.rewrites


def test_an_old_opset_is_told_what_to_do() -> None:
    before = model_of(f"{X} (y) {{ y = MatMul(x, W) }}", weights=WEIGHTS, opset=10)
    after, result = optimized(before, "quantize-dynamic")
    assert operators(after) == operators(before)
    assert next(d.hint for d in result.diagnostics) == "run convert-opset{version=11} first"
    assert operators(optimized(before, "convert-opset{version=11},quantize-dynamic")[0])["MatMulInteger"] == 1


def test_a_quantized_model_is_refused() -> None:
    model = model_of(f"{X} (y) {{ y = MatMul(x, W) }}", weights=WEIGHTS)
    optimize(model, pipeline="quantize-dynamic")
    with pytest.raises(PassError, match="quantized already") as caught:
        optimize(clone(model), pipeline="quantize-dynamic")
    assert "strip-qdq" in (caught.value.hint or "")


def test_tables_are_stored_in_8_bits_when_asked_for() -> None:
    weights = WEIGHTS | {"table": normal(100, 32)}
    before = model_of("g (int64[k] ids) => (y) { e = Gather(table, ids) y = MatMul(e, W) }", weights=weights, opset=21)
    assert operators(optimized(before, "quantize-dynamic")[0])["Gather"] == 1
    after, _ = optimized(before, "quantize-dynamic{tables=true}")
    assert operators(after)["DequantizeLinear"] == 1
    assert "table" not in after.graph.initializers
    assert error(before, after, {"ids": np.array([0, 99, 7])}) < 0.02
    old = model_of("g (int64[k] ids) => (y) { y = Gather(table, ids) }", weights=weights)
    assert codes(optimized(old, "quantize-dynamic{tables=true}")[1]) == {"DYN003"}


def test_fuel_counts_layers() -> None:
    before = model_of(f"{X} (y, z) {{ y = MatMul(x, W) z = Gemm <transB = 1> (x, T) }}", weights=WEIGHTS)
    after = clone(before)
    optimize(after, pipeline="quantize-dynamic", fuel={"quantize-dynamic": 1})
    assert operators(after)["MatMulInteger"] == 1
    assert error(before, after, {"x": normal(3, 32)}) < 0.02
