"""Q/DQ pairs on every edge: which operators get them, one type a kernel, and conversions where types meet."""

from dataclasses import replace

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.calibration import dataset_from_feeds
from graphopt.driver import optimize
from graphopt.errors import UsageError
from graphopt.ir import Editor, constant
from graphopt.quantization.placement import place
from graphopt.quantization.types import Types
from graphopt.runtime import Session
from graphopt.targets import find
from tests.helpers import clone, model_of, operators, run

HTP = find("qnn-htp")
FACTS = HTP.quantization
BODY = """g (float[1,2,4,4] x) => (float[1,4] y) {
    [conv] a = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu(a)
    [swish] s = HardSwish(r)
    [cat] c = Concat <axis = 1> (s, r)
    [pool] p = GlobalAveragePool(c)
    f = Flatten(p)
    [last] g = MatMul(f, v)
    [shift] y = Add(g, b)
}"""
RNG = np.random.default_rng(5)
WEIGHTS = {
    "w": RNG.standard_normal((2, 2, 3, 3)).astype(np.float32),
    "v": RNG.standard_normal((4, 4)).astype(np.float32),
    "b": RNG.standard_normal(4).astype(np.float32),
}
ATTENTION = """g (float[1,4,8] x) => (float[1,4,8] y) {
    [key] k = MatMul(x, w)
    t = Transpose <perm = [0, 2, 1]> (k)
    [scores] s = MatMul(x, t)
    [soft] p = Softmax(s)
    [mix] m = MatMul(p, x)
    [norm] y = LayerNormalization(m, gain, shift)
}"""
ATTENTION_WEIGHTS = {
    "w": RNG.standard_normal((8, 8)).astype(np.float32),
    "gain": np.linspace(0.5, 1.5, 8).astype(np.float32),
    "shift": np.linspace(-1, 1, 8).astype(np.float32),
}


def network():
    return inferred(model_of(BODY, weights=WEIGHTS, opset=20))


def inferred(model):
    AnalysisManager(Editor(model)).get(Shapes)
    return model


def attention(opset=20):
    return model_of(ATTENTION, weights=ATTENTION_WEIGHTS, opset=opset)


def quantized(model, options="", target=HTP):
    shape = list(model.graph.inputs[0].shape)
    feeds = [{"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)} for seed in range(16)]
    from graphopt import io

    data = dataset_from_feeds(feeds, Session(io.to_proto(model).SerializeToString()).inputs)
    result = optimize(model, pipeline=f"insert-qdq{{{options}}}" if options else "insert-qdq", data=data, target=target)
    return result, feeds


def sqnr(before, after, feeds):
    wanted = np.stack([run(before, feed)[0] for feed in feeds]).astype(np.float64)
    got = np.stack([run(after, feed)[0] for feed in feeds])
    return 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum())


def reads_floats(model):
    """Return the names of nodes that read or write a float that no pair is on, Relu behind Conv aside."""
    found = []
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for value in node.inputs[:2]:
            producer = value.producer()
            fused = node.op_type == "Relu" and producer is not None and producer.op_type == "Conv"
            integers = value.dtype is not None and value.dtype.name.startswith("INT")
            if not fused and not integers and (producer is None or producer.op_type != "DequantizeLinear"):
                found.append(node.name)
    return found


def test_every_edge_has_a_pair_except_where_a_kernel_does_two():
    model = network()
    before = clone(model)
    _, feeds = quantized(model)

    assert reads_floats(model) == []
    assert not any(use.node.op_type == "QuantizeLinear" for use in model.graph.node("conv").outputs[0].uses())
    assert sqnr(before, model, feeds) > 25


def test_what_only_a_concat_reads_shares_its_grid():
    placement = place(network(), FACTS)
    values = {value.name: root.name for value, root in placement.values.items()}

    assert values["s"] == "c"
    assert values["r"] == "r", "another node reads it too"


def test_a_node_that_the_target_has_no_kernel_for_is_said():
    body = "g (float[2] x) => (float[2] y) { a = Relu(x) [alone] b = Erf(a) y = Relu(b) }"
    model = inferred(model_of(body, opset=20))
    said = []

    place(model, FACTS, declined=lambda node, why: said.append((node.name, why)))

    assert said == [("alone", "the target has no integer kernel for Erf of this form")]


@pytest.mark.parametrize(("opset", "domain"), [(20, "com.microsoft"), (21, "")])
def test_16_bits_are_written_in_the_domain_that_knows_them(opset, domain):
    model = attention(opset)
    before = clone(model)
    _, feeds = quantized(model, "activation_bits=16")

    wide = [n for n in model.graph if n.op_type == "QuantizeLinear"]
    assert {n.domain for n in wide} == {domain}
    assert reads_floats(model) == []
    assert sqnr(before, model, feeds) > 35


def test_both_operands_of_a_product_are_symmetric_in_16_bits():
    model = attention()
    quantized(model, "activation_bits=16")

    for name in ("scores", "mix"):
        node = model.graph.node(name)
        for value in node.inputs:
            zero = constant(value.producer().inputs[2])
            assert zero.dtype == np.int16 and zero == 0


def test_a_factor_of_a_normalization_has_its_zero_in_the_middle_in_16_bits():
    model = attention()
    quantized(model, "activation_bits=16")

    node = model.graph.node("norm")
    assert constant(node.inputs[1].producer().inputs[2]) == 32768
    assert constant(node.inputs[2].producer().inputs[0]).dtype == np.int32


def test_where_types_meet_a_second_pair_converts():
    model = network()
    placement = place(model, FACTS)
    wide = {model.graph.node("swish")}
    types = Types.of(placement, FACTS, wide)
    by_name = {node.name: kind for node, kind in types.nodes.items()}

    assert by_name["conv"] == by_name["pool"] == "uint8"
    assert by_name["swish"] == by_name["cat"] == "uint16", "what writes to one grid has one type"


def test_a_bound_widens_some_nodes_and_each_kernel_has_one_type():
    model = attention()
    before = clone(model)
    floor = sqnr(before, quantized_copy(before), quantized(clone(before))[1])
    result, feeds = quantized(model, f"min_sqnr={floor + 3:.1f}")

    kinds = result.run.ctx.notes["insert-qdq"]["types"]
    assert len(kinds) > 1
    assert sqnr(before, model, feeds) >= floor + 3
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.op_type in FACTS.moves:
            continue
        read = {_kind(value) for value in node.inputs if value.producer() is not None and not _is_weight(value)}
        written = {constant(use.node.inputs[2]).dtype for use in node.outputs[0].uses()}
        assert len(read | written) == 1, node.name


def quantized_copy(model):
    copy = clone(model)
    quantized(copy)
    return copy


def _kind(value):
    return constant(value.producer().inputs[2]).dtype


def _is_weight(value):
    return value.producer().inputs[0].producer() is None


def test_named_nodes_get_16_bits():
    model = network()
    result, _ = quantized(model, "wide=pool")

    kinds = result.run.ctx.notes["insert-qdq"]["types"]
    assert kinds["uint16"] == 1 and kinds["uint8"] > 1
    written = next(use.node for use in model.graph.node("pool").outputs[0].uses())
    assert constant(written.inputs[2]).dtype == np.uint16


def test_a_normalization_with_a_bias_gets_16_bits_where_8_are_rounded_twice():
    model, without = attention(), attention()
    Editor(without).set_input(without.graph.node("norm"), 2, None)
    result, _ = quantized(model)
    quantized(without)

    def kind(graph):
        return constant(graph.node("norm").inputs[0].producer().inputs[2]).dtype

    assert kind(model.graph) == np.uint16
    assert kind(without.graph) == np.uint8
    said = [item for item in result.diagnostics if item.code == "QDQ011"]
    assert [item.node for item in said] == ["norm"]


def test_16_bits_are_refused_where_the_target_has_none():
    with pytest.raises(UsageError, match="no type of 16 bits"):
        quantized(network(), "activation_bits=16", target=find("rknn"))


def test_scales_are_powers_of_two_and_one_a_tensor_where_the_target_wants_them():
    model = network()
    quantized(model, target=find("vitisai-xint8"))

    scales = [constant(n.inputs[1]) for n in model.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(scale.size == 1 and np.log2(scale) == np.rint(np.log2(scale)) for scale in scales)
    zeros = [constant(n.inputs[2]) for n in model.graph if n.op_type == "QuantizeLinear"]
    assert all(zero.dtype == np.int8 and zero == 0 for zero in zeros)


def test_biases_stay_in_float_where_the_target_wants_that():
    body = "g (float[1,2,4,4] x) => (float[1,2,2,2] y) { [conv] y = Conv(x, w, b) }"
    weights = {"w": WEIGHTS["w"], "b": np.ones(2, np.float32)}
    model = model_of(body, weights=weights)
    quantized(model, target=find("tensorrt"))

    assert model.graph.node("conv").inputs[2].producer() is None
    assert operators(model)["DequantizeLinear"] >= 2


def test_types_are_those_of_eight_bits_when_nothing_is_wide():
    placement = place(network(), FACTS)

    assert set(Types.of(placement, replace(FACTS, wide_activations="")).roots.values()) == {"uint8"}
