"""Weights as places in a codebook: close, smaller, left alone by constant folding, folded when asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import io
from graphopt.driver import optimize
from graphopt.errors import PassError
from graphopt.ir import DataType, Model
from tests.helpers import check_equivalent, codes, model_of, operators, optimized, run

RNG = np.random.default_rng(19)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "W": normal(64, 48),
    "T": normal(48, 64),
    "K": normal(16, 8, 3, 3),
    "D": normal(8, 16, 3, 3),
    "small": normal(64, 4),
}
X = "g (float[n, 64] x) =>"
LAYERS = {
    "MatMul": (f"{X} (y) {{ y = MatMul(x, W) }}", (3, 64)),
    "Gemm": (f"{X} (y) {{ y = Gemm <transB = 1> (x, T) }}", (3, 64)),
    "Conv": ("g (float[n, 8, 9, 9] x) => (y) { y = Conv(x, K) }", (2, 8, 9, 9)),
    "ConvTranspose": ("g (float[n, 8, 9, 9] x) => (y) { y = ConvTranspose(x, D) }", (2, 8, 9, 9)),
    "shared": (f"{X} (y) {{ a = MatMul(x, W) r = Relu(x) b = MatMul(r, W) y = Add(a, b) }}", (3, 64)),
}


def size(model: Model) -> int:
    return io.to_proto(model).ByteSize()


def relative(before: Model, after: Model, shape: tuple[int, ...]) -> float:
    feeds = {"x": normal(*shape)}
    want, got = run(before, feeds)[0], run(after, feeds)[0]
    return float(np.sqrt(((want - got) ** 2).mean() / (want**2).mean()))


@pytest.mark.parametrize(
    ("options", "error", "share"),
    [("", 0.12, 1 / 8), ("{bits=8}", 0.025, 0.6), ("{bits=3}", 0.23, 1 / 8), ("{kind=log}", 0.2, 1 / 8)],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_is_close_and_smaller(layer: str, options: str, error: float, share: float) -> None:
    text, shape = LAYERS[layer]
    before, _ = optimized(model_of(text, weights=WEIGHTS, opset=21), "remove-dead")
    after, result = optimized(before, f"codebook-weights{options}")
    assert [str(record.changes) for record in result.run.records] == ["1 weights stored"]
    assert relative(before, after, shape) < error
    assert size(after) < size(before) * share + 1000
    assert after.ir_version == (8 if "8" in options else 10)


@pytest.mark.parametrize("step", ["fold-constants", "fold-shapes", "merge-common", "remove-identities"])
def test_a_later_step_leaves_the_places_alone(step: str) -> None:
    before = model_of(LAYERS["MatMul"][0], weights=WEIGHTS, opset=21)
    after, _ = optimized(before, f"codebook-weights,{step},remove-dead")
    assert operators(after) == {"Cast": 1, "Gather": 1, "MatMul": 1}


def test_folding_gives_the_rounded_weights_when_asked_for() -> None:
    before, _ = optimized(model_of(LAYERS["MatMul"][0], weights=WEIGHTS, opset=21), "codebook-weights")
    after, _ = optimized(before, "fold-constants{fold_quantizers=true}")
    assert operators(after) == {"MatMul": 1}
    check_equivalent(before, after, {"x": normal(3, 64)}, rtol=0)


def test_before_opset_21_places_take_8_bits_and_a_remark_says_so() -> None:
    before = model_of(LAYERS["MatMul"][0], weights=WEIGHTS, opset=17)
    after, result = optimized(before, "codebook-weights")
    assert after.graph.initializers["W_places"].dtype == DataType.UINT8
    assert codes(result) == {"BOOK002"}
    assert relative(before, after, (3, 64)) < 0.12


def test_few_different_weights_come_out_exactly() -> None:
    weights = {"W": RNG.choice(np.array([-1.5, 0.0, 0.25, 7.0], np.float32), (64, 48))}
    before = model_of(LAYERS["MatMul"][0], weights=weights, opset=21)
    check_equivalent(before, optimized(before, "codebook-weights")[0], {"x": normal(3, 64)}, rtol=0)


LEFT_ALONE = {
    "few weights": (f"{X} (y) {{ y = MatMul(x, small) }}", set()),
    "no constant": (f"{X} (y) {{ t = Transpose(x) y = MatMul(x, t) }}", set()),
    "overridable": ("g (float[n, 64] x, float[64, 48] W) => (y) { y = MatMul(x, W) }", {"BOOK001"}),
    "an output": (f"{X} (y, float[64, 48] W) {{ y = MatMul(x, W) }}", {"BOOK001"}),
    "not finite": (f"{X} (y) {{ y = MatMul(x, broken) }}", {"BOOK001"}),
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    text, remarks = LEFT_ALONE[reason]
    weights = WEIGHTS | {"broken": np.full((64, 48), np.nan, np.float32)}
    before = model_of(text, weights=weights, opset=21)
    after, result = optimized(before, "codebook-weights")
    assert operators(after) == operators(before)
    assert codes(result) == remarks
    assert not result.run.ctx.rewrites


def test_a_quantized_model_is_refused() -> None:
    model = model_of(LAYERS["MatMul"][0], weights=WEIGHTS, opset=21)
    optimize(model, pipeline="quantize-weights")
    with pytest.raises(PassError, match="quantized already"):
        optimize(model, pipeline="codebook-weights")
