"""Weight-only quantization: close to float, smaller, decoded inside one kernel, and what stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt import io
from graphopt.driver import optimize
from graphopt.errors import PassError, UsageError
from graphopt.ir import Model
from tests.helpers import clone, codes, model_of, operators, optimized, run

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "W": normal(64, 48),
    "odd": normal(50, 48),
    "T": normal(48, 64),
    "b": normal(48),
    "table": normal(100, 24) * np.geomspace(0.01, 100, 100, dtype=np.float32)[:, None],
    "small": normal(64, 4),
    "stack": normal(3, 64, 48),
    "broken": np.where(np.arange(64 * 48).reshape(64, 48) == 5, np.nan, normal(64, 48)).astype(np.float32),
}
X = "g (float[n, 64] x, int64[k] ids) =>"
FEEDS = {"x": normal(5, 64), "ids": np.array([3, 99, 0, 3])}


def error(before: Model, after: Model) -> float:
    """Return the root mean square of the error over that of the output, the worst of all outputs."""
    pairs = zip(run(before, FEEDS), run(after, FEEDS), strict=True)
    return max(float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean())) for a, b in pairs)


def size(model: Model) -> int:
    return io.to_proto(model).ByteSize()


LAYERS = {
    "MatMul": "y = MatMul(x, W)",
    "Gemm": "y = Gemm <alpha = 0.5> (x, W, b)",
    "Gemm, transposed": "y = Gemm <transB = 1> (x, T, b)",
    "in a branch": "i = Constant <value_int = 1> () c = Cast <to = 9> (i) y = If (c) <"
    "then_branch = t () => (u) { u = MatMul(x, W) }, else_branch = e () => (v) { v = Neg(b) }>",
}
OPTIONS = {  # error allowed, share of the bytes of the weights
    "": (0.01, 0.3),
    "{symmetric=true}": (0.015, 0.3),
    "{block=32}": (0.01, 0.35),
    "{bits=4,block=16}": (0.1, 0.3),
    "{bits=4,block=32,symmetric=true}": (0.13, 0.2),
    "{bits=4}": (0.16, 0.2),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("form", LAYERS)
def test_is_close_to_float_and_smaller(form: str, options: str) -> None:
    before = model_of(f"{X} (float[n, 48] y) {{ {LAYERS[form]} }}", weights=WEIGHTS, opset=21)
    optimize(before, pipeline="remove-dead")
    after, result = optimized(before, f"quantize-weights{options}")
    assert [str(record.changes) for record in result.run.records] == ["1 weights quantized"]
    allowed, share = OPTIONS[options]
    assert error(before, after) < allowed
    assert size(after) < size(before) * share + 1200
    assert after.ir_version == (10 if "b" in options else 8)


def test_a_block_may_be_cut_short_by_the_last() -> None:
    text = "g (float[n, 50] x) => (float[n, 48] y) { y = MatMul(x, odd) }"
    before = model_of(text, weights=WEIGHTS, opset=21)
    after, _ = optimized(before, "quantize-weights{bits=4,block=16}")
    feeds = {"x": normal(4, 50)}
    want, got = run(before, feeds)[0], run(after, feeds)[0]
    assert np.sqrt(((want - got) ** 2).mean() / (want**2).mean()) < 0.1


def test_rows_of_a_table_have_scales_of_their_own_and_are_decoded_when_read() -> None:
    before = model_of(f"{X} (float[k, 24] y) {{ y = Gather(table, ids) }}", weights=WEIGHTS, opset=21)
    after, _ = optimized(before, "quantize-weights{bits=4}")
    assert operators(after) == {"Gather": 2, "DequantizeLinear": 1}
    for want, got in zip(run(before, FEEDS)[0], run(after, FEEDS)[0], strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=np.abs(want).max() / 253)


def test_readers_share_what_was_written_once() -> None:
    body = "y = MatMul(x, W) r = Relu(x) z = MatMul(r, W) e = Gather(table, ids) j = Neg(ids) f = Gather(table, j)"
    before = model_of(f"{X} (y, z, e, f) {{ {body} }}", weights=WEIGHTS, opset=21)
    after, _ = optimized(before, "quantize-weights")
    names = set(after.graph.initializers)
    assert len([name for name in names if name.startswith("W_")]) == 3
    assert len([name for name in names if name.startswith("table_")]) == 2
    assert not names & {"W", "table"}
    assert error(before, after) < 0.01


@pytest.mark.parametrize("options", ["", "{bits=4,block=32}"])
@pytest.mark.parametrize("form", ["MatMul", "Gemm", "Gemm, transposed"])
def test_onnxruntime_decodes_inside_the_product(form: str, options: str, tmp_path) -> None:
    before = model_of(f"{X} (float[n, 48] y) {{ {LAYERS[form]} }}", weights=WEIGHTS, opset=21)
    after, _ = optimized(before, f"quantize-weights{options}")
    session = onnxruntime.SessionOptions()
    session.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(io.to_proto(after).SerializeToString(), session)
    kernels = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kernels == ["MatMulNBits"]


LEFT_ALONE = {
    "few weights": ("y = MatMul(x, small)", set()),
    "weights that are not finite": ("y = MatMul(x, broken)", {"WGT002"}),
    "a stack of matrices": ("y = MatMul(x, stack)", {"WGT002"}),
    "weights that are read otherwise": ("y = MatMul(x, W) z = Relu(W)", {"WGT003"}),
    "a table that is read otherwise": ("y = Gather(table, ids) z = Relu(table)", {"WGT004"}),
    "columns of a table": ("y = Gather <axis = 1> (table, ids)", set()),
    "a convolution": ("i = Unsqueeze(x, two) y = Conv(i, C)", set()),
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    body, remarks = LEFT_ALONE[reason]
    outputs = "(y, z)" if " z = " in body else "(y)"
    weights = WEIGHTS | {"two": np.array([2]), "C": normal(64, 64, 1)}
    before = model_of(f"{X} {outputs} {{ {body} }}", weights=weights, opset=21)
    after, result = optimized(before, "quantize-weights")
    assert operators(after) == operators(before)
    assert codes(result) == remarks
    assert not result.run.ctx.rewrites


@pytest.mark.parametrize(
    ("opset", "options", "form"), [(12, "", "MatMul"), (17, "{bits=4}", "MatMul"), (17, "{block=32}", "Gemm")]
)
def test_an_old_opset_is_told_what_to_do(opset: int, options: str, form: str) -> None:
    before = model_of(f"{X} (y) {{ {LAYERS[form]} }}", weights=WEIGHTS, opset=opset)
    after, result = optimized(before, f"quantize-weights{options}")
    assert operators(after) == operators(before)
    assert [d.hint for d in result.diagnostics] == ["run convert-opset{version=21} first"]
    assert operators(optimized(before, f"convert-opset{{version=21}},quantize-weights{options}")[0])["DequantizeLinear"]


def test_opset_13_has_scales_for_channels_but_none_for_rows_of_tables() -> None:
    before = model_of(f"{X} (y, e) {{ y = MatMul(x, W) e = Gather(table, ids) }}", weights=WEIGHTS, opset=13)
    after, result = optimized(before, "quantize-weights")
    assert [str(record.changes) for record in result.run.records] == ["1 weights quantized"]
    assert codes(result) == {"WGT004"}
    assert error(before, after) < 0.01


@pytest.mark.parametrize("options", ["{bits=5}", "{block=8}", "{block=48}"])
def test_options_that_no_model_can_be_written_with_are_refused(options: str) -> None:
    with pytest.raises(UsageError):
        optimized(model_of(f"{X} (y) {{ y = Relu(x) }}"), f"quantize-weights{options}")


def test_a_quantized_model_is_refused() -> None:
    model = model_of(f"{X} (y) {{ y = MatMul(x, W) }}", weights=WEIGHTS, opset=21)
    optimize(model, pipeline="quantize-weights")
    with pytest.raises(PassError, match="quantized already"):
        optimize(clone(model), pipeline="quantize-weights")
