"""Weights made zero: where the pattern says, by what they cost, the others refit, and everything else left alone."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graphopt import io
from graphopt.calibration.datasets import dataset_from_feeds
from graphopt.driver import Result, optimize
from graphopt.errors import PassError, UsageError
from graphopt.ir import Model
from graphopt.pruning.sparse import Pattern
from graphopt.runtime import Session
from tests.helpers import clone, codes, model_of, operators, run, shared

RNG = np.random.default_rng(3)
MIX = RNG.standard_normal((64, 64)) / 8 + np.eye(64)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def inputs(*shape: int) -> np.ndarray[Any, Any]:
    """Return numbers with a mean whose last axis is correlated."""
    x = np.maximum(RNG.standard_normal(shape) @ MIX[: shape[-1], : shape[-1]] + 0.3, 0)
    return np.asarray(x, np.float32)


WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "W": normal(32, 24),
    "V": normal(24, 16),
    "T": normal(24, 32),
    "K": normal(16, 8, 3, 3),
    "L": normal(8, 16, 1, 1),
    "G": normal(16, 4, 3, 3),
    "D": normal(8, 1, 3, 3),
    "H": normal(32, 24).astype(np.float16),
    "b": normal(24),
    "k": normal(16),
}
ROWS = "g (float[n, 32] x) =>"
IMAGE = "g (float[n, 8, 9, 12] x) =>"
LAYERS = {
    "MatMul": (f"{ROWS} (y) {{ y = MatMul(x, W) }}", (200, 32)),
    "MatMul with Add": (f"{ROWS} (y) {{ a = MatMul(x, W) y = Add(a, b) }}", (200, 32)),
    "Gemm": (f"{ROWS} (y) {{ y = Gemm <transB = 1> (x, T, b) }}", (200, 32)),
    "Conv": (f"{IMAGE} (y) {{ y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, K, k) }}", (16, 8, 9, 12)),
    "Conv in groups": (f"{IMAGE} (y) {{ y = Conv <group = 2> (x, G) }}", (16, 8, 9, 12)),
    "depthwise": (f'{IMAGE} (y) {{ y = Conv <group = 8, auto_pad = "SAME_UPPER"> (x, D) }}', (16, 8, 9, 12)),
    "two": (f"{ROWS} (y) {{ a = MatMul(x, W) r = Relu(a) y = MatMul(r, V) }}", (200, 32)),
}


def pruned(
    body: str, options: str = "", *, data: np.ndarray[Any, Any] | None = None, weights: Any = None
) -> tuple[Model, Model, Result]:
    """Return the model of ``body``, the same one pruned with ``data`` for calibration, and the result of the run."""
    used = {name: array for name, array in (weights or WEIGHTS).items() if f"{name})" in body or f"{name}," in body}
    before = model_of(body, weights=used)
    after = clone(before)
    dataset = None
    if data is not None:
        feeds = [{"x": batch} for batch in np.array_split(data, 4)]
        dataset = dataset_from_feeds(feeds, Session(_bytes(after)).inputs)
    step = f"prune-weights{{{options}}}" if options else "prune-weights"
    return before, after, optimize(after, pipeline=step, data=dataset)


def _bytes(model: Model) -> bytes:
    return io.to_proto(model).SerializeToString()


def weight(model: Model, name: str) -> np.ndarray[Any, Any]:
    """Return an initializer as an array."""
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def zeros(model: Model, name: str) -> float:
    return float((weight(model, name) == 0).mean())


def error(before: Model, after: Model, data: np.ndarray[Any, Any]) -> float:
    """Return the power of what changed in the output, as a share of the output's."""
    want, got = run(before, {"x": data})[0].astype(float), run(after, {"x": data})[0].astype(float)
    return float(((want - got) ** 2).mean() / (want**2).mean())


@pytest.mark.parametrize("kind", LAYERS)
def test_refit_weights_leave_less_error_than_the_smallest_removed(kind: str) -> None:
    body, shape = LAYERS[kind]
    data = inputs(*shape)
    before, after, result = pruned(body, data=data)
    _, plain, _ = pruned(body, "criterion=magnitude", data=None)
    assert operators(after) == operators(before)
    note = result.run.ctx.notes["prune-weights"]
    assert note["criterion"] == "obs"
    assert note["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert error(before, after, data) < 0.8 * error(before, plain, data)


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_the_error_in_the_report_is_that_of_the_outputs(kind: str) -> None:
    body, shape = LAYERS[kind]
    data = inputs(*shape)
    before, after, result = pruned(body, data=data)
    want, got = run(before, {"x": data})[0].astype(float), run(after, {"x": data})[0].astype(float)
    # A bias can give any mean, so that what it gives is no power of the output.
    power = want - want.mean(axis=0) if kind == "Gemm" else want
    (note,) = result.run.ctx.notes["prune-weights"]["layers"].values()
    assert note["error"] == pytest.approx(((want - got) ** 2).sum() / (power**2).sum(), rel=1e-3)


def test_the_mean_of_the_outputs_stays_where_there_is_a_bias() -> None:
    data = inputs(400, 32)
    before, after, _ = pruned(LAYERS["Gemm"][0], "sparsity=0.8", data=data)
    want, got = run(before, {"x": data})[0], run(after, {"x": data})[0]
    np.testing.assert_allclose(got.mean(axis=0), want.mean(axis=0), atol=1e-4)
    assert not np.array_equal(weight(after, "b"), weight(before, "b"))


def test_without_recovery_the_weights_that_remain_and_biases_stay() -> None:
    before, after, result = pruned(LAYERS["Gemm"][0], "recover=false", data=inputs(200, 32))
    kept = weight(after, "T") != 0
    assert result.run.ctx.notes["prune-weights"]["criterion"] == "activation"
    np.testing.assert_array_equal(weight(after, "T")[kept], weight(before, "T")[kept])
    np.testing.assert_array_equal(weight(after, "b"), weight(before, "b"))


def test_without_data_the_smallest_weights_go_and_a_remark_says_so() -> None:
    before, after, result = pruned(LAYERS["MatMul"][0], "sparsity=0.25")
    w, found = weight(before, "W"), weight(after, "W")
    gone = np.sort(np.abs(w), axis=None)[: w.size // 4]
    np.testing.assert_array_equal(found, np.where(np.abs(w) <= gone[-1], 0, w))
    assert codes(result) == {"PRW003", "PRW005"}


def test_magnitude_with_data_refits_and_is_no_worse() -> None:
    body, shape = LAYERS["MatMul"]
    data = inputs(*shape)
    before, plain, _ = pruned(body, "criterion=magnitude,recover=false", data=data)
    _, after, _ = pruned(body, "criterion=magnitude", data=data)
    np.testing.assert_array_equal(weight(after, "W") == 0, weight(plain, "W") == 0)
    assert error(before, after, data) < 0.7 * error(before, plain, data)


@pytest.mark.parametrize("has_data", [True, False])
@pytest.mark.parametrize("text", ["2:4", "1:4", "1x4", "4x1", "4x4", "unstructured"])
def test_the_pattern_holds_along_the_channels_at_each_place_of_the_kernel(text: str, has_data: bool) -> None:
    body, shape = LAYERS["Conv"]
    _, after, _ = pruned(body, f'pattern="{text}"', data=inputs(*shape) if has_data else None)
    pattern, rows = Pattern.parse(text), weight(after, "K").reshape(16, -1)
    assert pattern.holds(rows, 9, pattern.share or 0.5)
    if text == "2:4":
        assert ((weight(after, "K").reshape(16, 2, 4, 3, 3) != 0).sum(axis=2) <= 2).all()


def test_the_reduction_of_a_product_is_its_first_axis_and_with_transb_its_last() -> None:
    _, after, _ = pruned(LAYERS["MatMul"][0], 'pattern="2:4"')
    assert ((weight(after, "W").reshape(8, 4, 24) != 0).sum(axis=1) == 2).all()
    _, after, _ = pruned(LAYERS["Gemm"][0], 'pattern="2:4"')
    assert ((weight(after, "T").reshape(24, 8, 4) != 0).sum(axis=2) == 2).all()


def test_layers_compete_with_data_and_each_loses_its_share_without() -> None:
    weights = WEIGHTS | {"V": np.float32(0.01) * WEIGHTS["V"]}
    body, shape = LAYERS["two"]
    _, alone, _ = pruned(body, weights=weights)
    assert [zeros(alone, name) for name in "WV"] == [0.5, 0.5]
    _, smallest, _ = pruned(body, "scope=global", weights=weights)
    assert zeros(smallest, "V") == pytest.approx(0.95, abs=0.01)
    _, measured, _ = pruned(body, data=inputs(*shape), weights=weights)
    share = zeros(measured, "V")
    assert 0.2 < share < 0.8
    total = (weight(measured, "W") == 0).sum() + (weight(measured, "V") == 0).sum()
    assert total == (WEIGHTS["W"].size + WEIGHTS["V"].size) // 2


def test_shared_weights_are_pruned_once_for_all_that_reads_them() -> None:
    weights = {"S": normal(32, 32)}
    body = f"{ROWS} (y) {{ a = MatMul(x, S) r = Relu(a) y = MatMul(r, S) }}"
    data = inputs(200, 32)
    before, after, result = pruned(body, data=data, weights=weights)
    _, plain, _ = pruned(body, "criterion=magnitude", weights=weights)
    assert [str(record.changes) for record in result.run.records] == ["1 layers pruned"]
    assert len(after.graph.initializers) == 1
    assert zeros(after, "S") == 0.5
    assert error(before, after, data) < error(before, plain, data)


def test_a_bias_of_another_layer_too_is_copied() -> None:
    body = f"{ROWS} (y) {{ a = Gemm <transB = 1> (x, T, b) y = Add(a, b) }}"
    data = inputs(200, 32)
    before, after, _ = pruned(body, data=data)
    np.testing.assert_array_equal(weight(after, "b"), weight(before, "b"))
    assert len(after.graph.initializers) == len(before.graph.initializers) + 1


def test_half_precision_stays() -> None:
    body = "g (float16[n, 32] x) => (float16[n, 24] y) { y = MatMul(x, H) }"
    data = inputs(200, 32).astype(np.float16)
    before, after, _ = pruned(body, data=data)
    assert weight(after, "H").dtype == np.float16
    assert zeros(after, "H") == 0.5
    assert error(before, after, data) < 0.2


def test_a_second_run_changes_nothing() -> None:
    body, shape = LAYERS["two"]
    data = inputs(*shape)
    for options in ("", 'pattern="2:4"', "scope=layer,criterion=activation"):
        _, after, _ = pruned(body, options, data=data)
        first = {name: weight(after, name).copy() for name in "WV"}
        step = f"prune-weights{{{options}}}" if options else "prune-weights"
        feeds = dataset_from_feeds([{"x": data}], Session(_bytes(after)).inputs)
        again = optimize(after, pipeline=step, data=feeds)
        assert not again.run.ctx.rewrites, options
        for name, array in first.items():
            np.testing.assert_array_equal(weight(after, name), array)


def test_the_same_comes_out_every_time() -> None:
    body, shape = LAYERS["Conv"]
    data = inputs(*shape)
    first, second = (pruned(body, data=data)[1] for _ in range(2))
    np.testing.assert_array_equal(weight(first, "K"), weight(second, "K"))


LEFT_ALONE = {
    "not finite": (f"{ROWS} (y) {{ y = MatMul(x, broken) }}", "", "not finite"),
    "overridable": ("g (float[n, 32] x, float[32, 24] W) => (y) { y = MatMul(x, W) }", "", "callers may override"),
    "an output": (f"{ROWS} (y, float[32, 24] W) {{ y = MatMul(x, W) }}", "", "others read its weights"),
    "another reader": (f"{ROWS} (y) {{ a = MatMul(x, W) y = Add(a, W) }}", "", "others read its weights"),
    "both ways": (f"{ROWS} (y) {{ a = MatMul(x, Q) y = Gemm <transB = 1> (a, Q) }}", "", "others read its weights"),
    "rank 3": (f"{ROWS} (y) {{ y = MatMul(x, cube) }}", "", "rank 3"),
    "transposed": ("g (float[32, n] x) => (y) { y = Gemm <transA = 1> (x, W) }", "", "input transposed"),
    "ConvTranspose": (f"{IMAGE} (y) {{ y = ConvTranspose(x, L2) }}", "", "ConvTranspose"),
    "channels": (f"{IMAGE} (y) {{ y = Conv <group = 8> (x, D) }}", 'pattern="2:4"', "1 input channels"),
    "outputs": (f"{ROWS} (y) {{ y = MatMul(x, W) }}", "pattern=16x1", "24 outputs are no multiple of 16"),
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone_and_says_why(reason: str) -> None:
    body, options, why = LEFT_ALONE[reason]
    broken = normal(32, 24)
    broken[3, 5] = np.nan
    weights = WEIGHTS | {"broken": broken, "cube": normal(2, 32, 24), "L2": normal(8, 4, 2, 2), "Q": normal(32, 32)}
    used = {name: array for name, array in weights.items() if f"{name})" in body or f" {name}" in body}
    before = model_of(body, weights=used)
    after = clone(before)
    result = optimize(after, pipeline=f"prune-weights{{{options}}}" if options else "prune-weights")
    assert any(item.code == "PRW001" and why in item.message for item in result.diagnostics), result.diagnostics
    assert "PRW002" in codes(result)
    assert not result.run.ctx.rewrites
    for name in used:
        np.testing.assert_array_equal(weight(after, name), used[name])


def test_what_has_no_gram_matrix_goes_by_magnitude_and_a_remark_says_so() -> None:
    body = """g (float[n, 32] x, bool c) => (float[n, 24] y) {
        y = If (c) <
            then_branch = t () => (float[n, 24] u) { u = MatMul(x, W) },
            else_branch = e () => (float[n, 24] v) { v = Gemm <transB = 1> (x, T, b) } > }"""
    after = model_of(body, weights={name: WEIGHTS[name] for name in "WTb"})
    result = optimize(after, pipeline="prune-weights", data="random")
    assert {"PRW004", "PRW005"} <= codes(result)
    assert [zeros(after, name) for name in "WT"] == [0.5, 0.5]


def test_nothing_to_prune_is_said_and_no_error() -> None:
    result = optimize(model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }"), pipeline="prune-weights")
    assert codes(result) == {"PRW002"}


def test_layers_that_are_to_be_ignored_stay() -> None:
    _, after, result = pruned(LAYERS["two"][0].replace("y = MatMul", "[last] y = MatMul"), 'ignore="la*"')
    assert [zeros(after, name) for name in "WV"] == [0.5, 0.0]
    assert list(result.run.ctx.notes["prune-weights"]["layers"]) == ["W"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sparsity=1", "below 1"),
        ("sparsity=-0.5", "at least 0"),
        ('pattern="4:2"', "removes nothing"),
        ("pattern=sparse", "no pattern"),
        ('pattern="2:4",sparsity=0.7', "makes 0.5 of the weights zero, not 0.7"),
        ('pattern="2:4",scope=global', "none can compete"),
        ("criterion=taylor", "criterion must be one of"),
        ("criterion=obs,recover=false", "needs recover=true"),
        ('ignore="Conv,fc*"', "no operator and no node is called 'Conv'|no node and no operator is called 'Conv'"),
        ("criterion=obs", "needs calibration data"),
        ("criterion=activation", "needs calibration data"),
    ],
)
def test_bad_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pruned(LAYERS["MatMul"][0], options)


def test_a_quantized_model_is_refused() -> None:
    model = model_of(LAYERS["MatMul"][0], weights={"W": WEIGHTS["W"]}, opset=21)
    optimize(model, pipeline="quantize-weights{min_weights=0}")
    with pytest.raises(PassError, match="quantized already"):
        optimize(model, pipeline="prune-weights")


def test_the_report_names_each_layer_and_who_gains() -> None:
    data = inputs(200, 32)
    _, _, result = pruned(LAYERS["two"][0], 'pattern="2:4"', data=data)
    note = result.run.ctx.notes["prune-weights"]
    assert set(note["layers"]) == {"W", "V"}
    assert all(layer["sparsity"] == 0.5 and 0 < layer["error"] < 0.2 for layer in note["layers"].values())
    (summary,) = [item.message for item in result.diagnostics if item.code == "PRW005"]
    assert "50.0% of the weights of 2 layers are zero" in summary
    assert "onnxruntime" in summary and "TensorRT" in summary


def test_fuel_prunes_the_first_layers_only() -> None:
    model = model_of(LAYERS["two"][0], weights={name: WEIGHTS[name] for name in "WV"})
    optimize(model, pipeline="prune-weights", fuel={"prune-weights": 1})
    assert [zeros(model, name) for name in "WV"] == [0.5, 0.0]


def test_a_real_network_keeps_its_answers_at_half_the_weights() -> None:
    path = shared("models", "cifar10_resnet20.onnx")
    images = _cifar(shared("data", "cifar10_train4096.npz"), 1088)
    calibration, unseen = images[:64], images[64:]
    session = Session(path.read_bytes())
    want = next(iter(session.run({"input": unseen}).values())).argmax(axis=1)
    agreed = {}
    for criterion in ("magnitude,recover=false", "auto"):
        data = dataset_from_feeds([{"input": batch} for batch in np.split(calibration, 4)], session.inputs)
        result = optimize(path, pipeline=f"fuse-batchnorm,prune-weights{{criterion={criterion}}}", data=data)
        got = run(result.model, {"input": unseen})[0].argmax(axis=1)
        agreed[criterion] = float((got == want).mean())
    # A thousand images: one answer that another processor's rounding flips is 0.1 %, not the 1 % of a hundred.
    assert agreed["auto"] > 0.95
    assert agreed["auto"] > agreed["magnitude,recover=false"]


def _cifar(path: Any, count: int) -> np.ndarray[Any, Any]:
    """Return float32[count, 3, 32, 32] of the packed JPEG images."""
    packed = np.load(path)
    stream, offset = packed["jpeg"].tobytes(), packed["offset"]
    ends = [*offset[1:], len(stream)]
    pictures = [
        np.asarray(Image.open(BytesIO(stream[offset[i] : ends[i]])).convert("RGB"), np.float32) for i in range(count)
    ]
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    return np.ascontiguousarray(((np.stack(pictures) / 255 - mean) / std).transpose(0, 3, 1, 2))
