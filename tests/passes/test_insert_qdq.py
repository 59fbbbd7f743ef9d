"""Q/DQ pairs: where they stand and must not stand, what is on their grids, and what is put back to float."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import io
from graphopt.driver import Result, optimize
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, constant, nodes
from graphopt.runner import ModelRunner
from graphopt.targets import find
from graphopt.targets.host import host_target
from tests.helpers import codes, model_of, operators, run

RNG = np.random.default_rng(7)
CPU = "cpu-x64"


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return np.asarray(RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:])), np.float32)


WEIGHTS: dict[str, np.ndarray[Any, Any]] = {
    "K": normal(8, 4, 3, 3),
    "k": normal(8),
    "L": normal(8, 8, 1, 1),
    "D": normal(8, 1, 3, 3),
    "T": normal(8, 4, 3),
    "W": normal(16, 12),
    "V": normal(12, 12),
    "F": normal(12, 16),
    "b": normal(12),
    "one": normal(1),
    "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.25, np.float32),
    "flat": np.array([0, -1], np.int64),
    "factors": normal(8, 1, 1),
}
CONV = "Conv <pads = [1, 1, 1, 1]>"


def quantized(body: str, options: str = "placement=all", *, target: str = CPU, opset: int = 17) -> tuple[Model, Result]:
    """Return ``g BODY`` with pairs, calibrated on random numbers, and the result of the run."""
    used = {name: array for name, array in WEIGHTS.items() if name in body.replace(",", " ").replace(")", " ").split()}
    model = model_of(f"g {body}", weights=used, opset=opset)
    return model, optimize(model, pipeline=f"insert-qdq{{{options}}}", data="random", target=find(target))


def the(model: Model, operator: str, index: int = 0) -> Node:
    """Return a node by its operator."""
    return [node for node in nodes(model) if node.op_type == operator][index]


def source(node: Node, index: int = 0) -> Node | None:
    """Return the node that makes an input."""
    value = node.inputs[index]
    return None if value is None else value.producer()


def readers(node: Node) -> list[str]:
    """Return the operators that read a node's output."""
    return [use.node.op_type for use in node.outputs[0].uses()]


def grid_of(node: Node | None) -> tuple[Any, Any]:
    """Return scale and zero point of a Q or DQ node."""
    assert node is not None
    return constant(node.inputs[1]), constant(node.inputs[2]) if len(node.inputs) > 2 else None


@pytest.mark.parametrize("activation", ["Relu(a)", "Clip(a, zero, six)"])
def test_no_pair_stands_between_a_layer_and_its_activation(activation: str) -> None:
    body = f"(float[1, 4, 9, 9] x) => (y) {{ a = {CONV}(x, K, k) r = {activation} y = Conv(r, L) }}"
    model, _ = quantized(body)
    operator = activation.split("(")[0]
    assert readers(the(model, "Conv")) == [operator]
    assert readers(the(model, operator)) == ["QuantizeLinear"]


def test_a_clip_with_computed_bounds_is_no_part_of_the_layer() -> None:
    body = f"(float[1, 4, 9, 9] x, float top) => (y) {{ a = {CONV}(x, K, k) r = Clip(a, zero, top) y = Conv(r, L) }}"
    model, _ = quantized(body)
    assert readers(the(model, "Conv")) == ["QuantizeLinear"]


def test_weights_are_symmetric_for_each_channel_and_the_bias_has_the_products_scale() -> None:
    model, _ = quantized(f"(float[1, 4, 9, 9] x) => (y) {{ y = {CONV}(x, K, k) }}")
    conv = the(model, "Conv")
    data, weights, bias = (source(conv, index) for index in range(3))
    assert weights is not None and bias is not None
    scale, zero = grid_of(weights)
    assert weights.attributes["axis"].value == 0
    assert scale.shape == (8,)
    assert not zero.any()
    integers = constant(weights.inputs[0])
    assert integers is not None and integers.dtype == np.int8
    integers = constant(bias.inputs[0])
    assert integers is not None and integers.dtype == np.int32
    np.testing.assert_allclose(grid_of(bias)[0], grid_of(data)[0] * scale, rtol=1e-6)


def test_a_residual_sum_is_computed_with_integers() -> None:
    body = f"(float[1, 4, 9, 9] x) => (y) {{ a = {CONV}(x, K, k) c = Conv(a, L) s = Add(a, c) y = Conv(s, L) }}"
    model, _ = quantized(body)
    total = the(model, "Add")
    assert [getattr(source(total, index), "op_type", None) for index in (0, 1)] == ["DequantizeLinear"] * 2
    assert readers(total) == ["QuantizeLinear"]


def test_a_concatenation_is_computed_with_integers() -> None:
    body = f"""(float[1, 4, 9, 9] x) => (y) {{
        a = {CONV}(x, K, k) c = Conv(a, L) s = Concat <axis = 0> (a, c) y = Conv(s, L) }}"""
    model, _ = quantized(body)
    joined = the(model, "Concat")
    assert [getattr(source(joined, index), "op_type", None) for index in (0, 1)] == ["DequantizeLinear"] * 2
    assert readers(joined) == ["QuantizeLinear"]


def test_pooling_works_on_integers_as_they_are() -> None:
    body = f"""(float[1, 4, 9, 9] x) => (y) {{
        a = {CONV}(x, K, k) p = MaxPool <kernel_shape = [2, 2]> (a) y = Conv(p, L) }}"""
    model, _ = quantized(body)
    pool = the(model, "MaxPool")
    before, after = source(pool), next(iter(pool.outputs[0].uses())).node
    assert after.op_type == "QuantizeLinear"
    assert grid_of(before) == grid_of(after)


def test_what_has_no_integer_kernel_gets_no_pair() -> None:
    body = "(float[5, 16] x) => (y) { a = MatMul(x, W) e = Erf(a) y = MatMul(e, V) }"
    model, _ = quantized(body)
    assert readers(the(model, "MatMul")) == ["Erf"]
    assert readers(the(model, "Erf")) == ["QuantizeLinear"], "the pair belongs to the second product"


RUNS = {
    "a 1-d convolution": "(float[2, 4, 9] x) => (y) { y = Conv(x, T, k) }",
    "a depthwise convolution": f"(float[1, 4, 9, 9] x) => (y) {{ a = {CONV}(x, K) y = Conv <group = 8> (a, D) }}",
    "Gemm with a bias": "(float[5, 16] x) => (y) { y = Gemm(x, W, b) }",
    "Gemm with transposed weights": "(float[5, 16] x) => (y) { y = Gemm <transB = 1> (x, F, b) }",
    "Gemm with one bias for all": "(float[5, 16] x) => (y) { y = Gemm(x, W, one) }",
    "products of batches": "(float[n, 5, 16] x) => (y) { y = MatMul(x, W) }",
    "one weight for two layers": "(float[5, 12] x) => (y) { a = MatMul(x, V) r = Erf(a) y = MatMul(r, V) }",
    "one bias for two layers": "(float[5, 12] x) => (y) { a = Gemm(x, V, b) r = Erf(a) y = Gemm(r, V, b) }",
    "one value for two layers": "(float[5, 16] x) => (y, z) { y = MatMul(x, W) z = Gemm <transB = 1> (x, F) }",
    "an output in the middle": f"(float[1, 4, 9, 9] x) => (r, y) {{ a = {CONV}(x, K, k) r = Relu(a) y = Conv(r, L) }}",
    "an input that is an output": "(float[5, 16] x) => (float[5, 16] x, y) { y = MatMul(x, W) }",
    "a sum of a value and itself": f"(float[1, 4, 9, 9] x) => (y) {{ a = {CONV}(x, K) s = Add(a, a) y = Conv(s, L) }}",
    "odd bounds": f"(float[1, 4, 9, 9] x) => (y) {{ a = {CONV}(x, K) c = Clip(a, low, high) y = Conv(c, L) }}",
    "factors": f"(float[1, 4, 9, 9] x) => (y) {{ a = {CONV}(x, K) m = Mul(a, factors) y = Conv(m, L) }}",
    "a sigmoid gate": f"""(float[1, 4, 9, 9] x) => (y) {{
        a = {CONV}(x, K) s = Sigmoid(a) m = Mul(a, s) y = Conv(m, L) }}""",
    "one value concatenated twice": f"""(float[1, 4, 9, 9] x) => (y) {{
        a = {CONV}(x, K) j = Concat <axis = 0> (a, a) y = Conv(j, L) }}""",
    "pooling before a concatenation": f"""(float[1, 4, 9, 9] x) => (y) {{
        a = {CONV}(x, K) p = MaxPool <kernel_shape = [1, 1]> (a) j = Concat <axis = 0> (a, p) y = Conv(j, L) }}""",
    "a head": f"""(float[n, 4, 9, 9] x) => (y) {{ a = {CONV}(x, K) p = GlobalAveragePool(a) f = Flatten(p)
        l = Reshape(f, flat) y = Softmax(l) }}""",
    "a sum that is read as a float too": f"""(float[1, 4, 9, 9] x) => (y, z) {{
        a = {CONV}(x, K) c = Conv(a, L) s = Add(a, c) y = Conv(s, L) z = Erf(s) }}""",
}


@pytest.mark.parametrize("optimize_graph", [False, True])
@pytest.mark.parametrize("title", RUNS)
def test_quantized_models_load_and_run_and_are_close(title: str, optimize_graph: bool) -> None:
    body = RUNS[title]
    used = {name: array for name, array in WEIGHTS.items() if name in body.replace(",", " ").replace(")", " ").split()}
    before = model_of(f"g {body}", weights=used)
    after, _ = quantized(body, target="ort-cpu")
    assert operators(after)["QuantizeLinear"]
    assert [value.name for value in after.graph.outputs] == [value.name for value in before.graph.outputs]
    shape = [2 if not isinstance(dim, int) else dim for dim in before.graph.inputs[0].shape or ()]
    feeds = {"x": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}
    for want, got in zip(run(before, feeds), run(after, feeds, optimize_graph=optimize_graph), strict=True):
        assert got.shape == want.shape
        assert float(((got - want) ** 2).mean()) < 0.005 * float((want**2).mean())


@pytest.mark.parametrize("bias", ["true", "false"])
def test_layers_are_quantized_without_statistics_of_their_inputs_too(bias: str) -> None:
    body = "(float[5, 16] x) => (y) { y = Gemm(x, W, b) }"
    model, result = quantized(body, f"placement=all,rounding=nearest,correct_bias={bias}")
    weights = source(the(model, "Gemm"), 1)
    assert weights is not None and weights.op_type == "DequantizeLinear"
    assert result.run.records[-1].changes["layers"] == 1


def test_a_chosen_layer_stays_in_float() -> None:
    body = "(float[5, 12] x) => (y) { [first] a = MatMul(x, V) r = Erf(a) [second] y = MatMul(r, V) }"
    model, _ = quantized(body, "placement=all,keep=fir*")
    layers = {node.name: node for node in nodes(model) if node.op_type == "MatMul"}
    assert source(layers["first"]) is None
    assert getattr(source(layers["second"]), "op_type", None) == "DequantizeLinear"


def test_a_name_of_no_node_is_refused() -> None:
    with pytest.raises(UsageError, match="no node is called 'fisrt'"):
        quantized("(float[5, 12] x) => (y) { y = MatMul(x, V) }", "placement=all,keep=fisrt")


def test_an_opset_without_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="of these types need opset 13, the model has 12") as refused:
        quantized("(float[5, 12] x) => (y) { y = MatMul(x, V) }", opset=12)
    assert "convert-opset" in str(refused.value.hint)


def test_a_model_without_layers_is_left_alone() -> None:
    model, result = quantized("(float[5, 12] x, float[12, 3] w) => (y) { y = MatMul(x, w) }")
    assert operators(model) == {"MatMul": 1}
    assert "QDQ002" in codes(result)


def test_layers_in_branches_are_named_as_the_reason() -> None:
    body = """(float[5, 12] x, bool c) => (float[5, 12] y) { y = If (c) <
        then_branch = t () => (float[5, 12] p) { p = MatMul(x, V) },
        else_branch = e () => (float[5, 12] q) { q = Erf(x) }> }"""
    _, result = quantized(body)
    said = [found.message for found in result.diagnostics if found.code == "QDQ002"]
    assert said == ["nothing was quantized: its 1 layers are in branches or loops"]


def test_layers_that_cannot_be_quantized_are_named() -> None:
    _, result = quantized("(float[5, 16] x) => (y) { [scaled] y = Gemm <alpha = 0.5> (x, W) }")
    assert [(found.node, found.code) for found in result.diagnostics if found.code == "QDQ001"] == [
        ("scaled", "QDQ001")
    ]


def test_the_same_run_gives_the_same_bytes() -> None:
    first, second = (io.to_proto(quantized(RUNS["a head"])[0]).SerializeToString() for _ in range(2))
    assert first == second


# Measured placement

CHAIN = """(float[1, 4, 9, 9] x) => (y) {
    [first] a = Conv <pads = [1, 1, 1, 1]> (x, K) [act] r = Relu(a) [second] y = Conv(r, L) }"""


def timed(monkeypatch: pytest.MonkeyPatch, ratio: float, integer: dict[str, float], floats: dict[str, float]) -> None:
    """Make the runner report these seconds by the nodes' operators and places, and this ratio for every trial."""

    def node_seconds(_: ModelRunner, model: Model) -> dict[str, float]:
        quantized_layers = any(node.op_type == "QuantizeLinear" for node in model.graph)
        convs = [str(node.name) for node in model.graph if node.op_type == "Conv"]
        given = integer if quantized_layers else floats
        return {name: given[place] for name, place in zip(convs, ("first", "second"), strict=True)}

    monkeypatch.setattr(ModelRunner, "node_seconds", node_seconds)
    monkeypatch.setattr(ModelRunner, "latency_ratio", lambda *_, **__: ratio)


def test_on_another_machines_target_nothing_is_timed() -> None:
    other = next(name for name in ("cpu-x64", "cpu-arm64") if name != host_target())
    model, result = quantized(CHAIN, "placement=measured", target=other)
    assert operators(model)["QuantizeLinear"] == 3
    assert "QDQ003" in codes(result)


def test_a_model_that_is_slower_in_integers_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 1.25, {"first": 2e-4, "second": 2e-4}, {"first": 1e-4, "second": 1e-4})
    model, result = quantized(CHAIN, "placement=measured", target=host_target())
    assert operators(model) == {"Conv": 2, "Relu": 1}
    (warning,) = [found for found in result.diagnostics if found.code == "QDQ005"]
    assert "1.25" in warning.message


def test_a_layer_that_is_slower_in_integers_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 0.8, {"first": 3e-4, "second": 1e-4}, {"first": 1e-4, "second": 2e-4})
    ratios = iter([0.8, 0.6, 0.6])
    monkeypatch.setattr(ModelRunner, "latency_ratio", lambda *_, **__: next(ratios))
    model, result = quantized(CHAIN, "placement=measured", target=host_target())
    layers = {node.name: node for node in nodes(model) if node.op_type == "Conv"}
    assert source(layers["first"]) is None
    assert getattr(source(layers["second"]), "op_type", None) == "DequantizeLinear"
    (remark,) = [found for found in result.diagnostics if found.code == "QDQ004"]
    assert remark.node == "first"
    assert "0.300 ms in integers, 0.100 ms in float" in remark.message
    assert result.report()["notes"]["insert-qdq"]["placement"]["ratio"] == 0.6
    keep = result.report()["notes"]["insert-qdq"]["placement"]["keep"]
    again, _ = quantized(CHAIN, f'placement=all,keep="{keep}"', target=host_target())
    assert io.to_proto(again).SerializeToString() == io.to_proto(model).SerializeToString(), (
        "the choice can be repeated"
    )


def test_nodes_without_names_can_be_timed() -> None:
    body = "(float[5, 12] x) => (y) { a = MatMul(x, V) r = Erf(a) y = MatMul(r, V) }"
    model = model_of(f"g {body}", weights={"V": WEIGHTS["V"]})
    for node in nodes(model):
        node.name = None
    result = optimize(model, pipeline="insert-qdq", data="random", target=find(host_target()))
    assert "placement" in result.report()["notes"]["insert-qdq"]
    assert ("QuantizeLinear" in operators(model)) != ("QDQ005" in codes(result))


PADDED = """(float[1,4,8,8] x) => (float[1,16,8,8] y) {{
  a = {conv} (x, K)
  c = Relu(a)
  p = Pad {mode} (c, wider{fill})
  e = Conv(p, M)
  y = Add(e, p)
}}"""


@pytest.mark.parametrize(
    ("mode", "fill", "filled"), [("", "", True), ("", ", zero", True), ("<mode = 'edge'>", "", False)]
)
def test_a_pad_between_integers_is_written_on_them_and_fills_in_the_zero_point(mode, fill, filled, monkeypatch):
    monkeypatch.setitem(WEIGHTS, "wider", np.array([0, 4, 0, 0, 0, 4, 0, 0], np.int64))
    monkeypatch.setitem(WEIGHTS, "M", normal(16, 16, 1, 1))
    body = PADDED.format(conv=CONV, mode=mode.replace("'", '"'), fill=fill)
    model, _ = quantized(body)

    pad = the(model, "Pad")
    assert pad.outputs[0].dtype is not None and pad.outputs[0].dtype.name == "UINT8"
    assert (len(pad.inputs) == 3) is filled
    x = RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)
    used = {name: array for name, array in WEIGHTS.items() if name in body.replace(",", " ").replace(")", " ").split()}
    (exact,), (found,) = run(model_of(f"g {body}", weights=used), {"x": x}), run(model, {"x": x})
    assert np.abs(exact - found).max() < 0.05 * np.abs(exact).max()


def test_a_pad_with_another_number_than_zero_stays_in_float(monkeypatch):
    monkeypatch.setitem(WEIGHTS, "wider", np.array([0, 4, 0, 0, 0, 4, 0, 0], np.int64))
    monkeypatch.setitem(WEIGHTS, "M", normal(16, 16, 1, 1))
    body = PADDED.format(conv=CONV, mode="", fill=", six")
    model, _ = quantized(body)

    assert the(model, "Pad").outputs[0].dtype.name == "FLOAT"


@pytest.mark.parametrize("named", [True, False])
def test_a_bias_behind_a_product_is_merged_for_a_named_target_that_has_the_operator(named: bool) -> None:
    before = model_of("g (float[2,16] x) => (y) { m = MatMul(x, W) y = Add(b, m) }", weights=WEIGHTS, opset=17)
    after = model_of("g (float[2,16] x) => (y) { m = MatMul(x, W) y = Add(b, m) }", weights=WEIGHTS, opset=17)
    for model, target in ((before, None), (after, find("ort-cpu") if named else None)):
        optimize(model, pipeline="insert-qdq{placement=all}", data="random", target=target)

    assert operators(after)["MatMulIntegerToFloat"] == named
    assert operators(after)["Add"] == (not named)
    x = RNG.standard_normal((2, 16)).astype(np.float32)
    (expected,), (found,) = run(before, {"x": x}), run(after, {"x": x})
    np.testing.assert_allclose(expected, found, atol=1e-6)


def test_int4_weights_are_refused_where_the_opset_has_no_such_tensors() -> None:
    with pytest.raises(UsageError, match="opset 21, the model has 17") as error:
        quantized("(float[2,16] x) => (y) { y = MatMul(x, W) }", "weight_bits=4,placement=all")
    assert "convert-opset{version=21}" in str(error.value.hint)
