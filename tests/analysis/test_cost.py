"""The cost of a model, held against counts done by hand."""

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from graphopt import io
from graphopt.analysis import AnalysisManager, Cost
from graphopt.ir import Editor


def cost_of(text, weights=None):
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    for name, shape in (weights or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    manager = AnalysisManager(Editor(io.from_proto(proto)))
    return manager.get(Cost), manager.diagnostics


@pytest.mark.parametrize(
    ("node", "weights", "macs"),
    [
        # 6x6 input, 3x3 kernel, no padding: 4x4 outputs of 8 channels, each 4 * 9 products.
        ("y = Conv(x, w)", {"w": (8, 4, 3, 3)}, 8 * 4 * 4 * 4 * 9),
        ("y = Conv <group=4> (x, w)", {"w": (8, 1, 3, 3)}, 8 * 4 * 4 * 9),
        # Each of the 4 * 6 * 6 inputs meets 8 * 9 weights.
        ("y = ConvTranspose(x, w)", {"w": (4, 8, 3, 3)}, 4 * 6 * 6 * 8 * 9),
        ("y = MatMul(x, w)", {"w": (6, 10)}, 4 * 6 * 6 * 10),
    ],
)
def test_macs_of_one_node(node, weights, macs):
    cost, _ = cost_of(f"g (float[1,4,6,6] x) => (float[a,b,c,d] y) {{ {node} }}", weights)

    assert cost.total_macs == macs
    assert cost.parameters == np.prod(weights["w"])
    assert cost.size == 4 * cost.parameters
    assert cost.computed == 0


@pytest.mark.parametrize("attributes", ["", "<transB=1>"])
def test_macs_of_gemm(attributes):
    weights = {"w": (5, 7) if attributes else (7, 5)}
    cost, _ = cost_of(f"g (float[3,7] x) => (float[a,b] y) {{ y = Gemm {attributes} (x, w) }}", weights)

    assert cost.total_macs == 3 * 5 * 7


def test_macs_of_gemm_with_transposed_data():
    cost, _ = cost_of("g (float[7,3] x) => (float[a,b] y) { y = Gemm <transA=1> (x, w) }", {"w": (7, 5)})

    assert cost.total_macs == 3 * 5 * 7


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_macs_of_a_recurrent_layer(operator, gates):
    text = f"g (float[9,2,5] x) => (float[a,b,c,d] y) {{ y = {operator} <hidden_size=6> (x, w, r) }}"
    cost, _ = cost_of(text, {"w": (1, gates * 6, 5), "r": (1, gates * 6, 6)})

    assert cost.total_macs == 9 * 2 * gates * 6 * (5 + 6)


def test_a_product_of_two_computed_operands_is_counted_apart():
    text = "g (float[2,3,4] x, float[2,4,5] z) => (float[a,b,c] y) { p = MatMul(x, z) y = MatMul(p, w) }"
    cost, _ = cost_of(text, {"w": (5, 6)})

    assert cost.total_macs == 2 * 3 * 4 * 5 + 2 * 3 * 5 * 6
    assert cost.computed == 2 * 3 * 4 * 5


def test_a_constant_that_is_only_added_leaves_a_product_computed():
    text = "g (float[3,7] x, float[7,5] z) => (float[a,b] y) { y = Gemm(x, z, c) }"
    cost, _ = cost_of(text, {"c": (5,)})

    assert cost.computed == cost.total_macs == 3 * 7 * 5


def test_attention_takes_two_products_for_each_pair_of_query_and_key():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[n, 3, 8] q, float[n, 5, 8] k, float[n, 5, 12] v) => (float[a, b, c] y) {
            h = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)
            g = com.microsoft.Gelu(h)
            y = MatMul(g, w)
        }"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros((12, 7), np.float32), "w"))
    cost = Cost.measure(io.from_proto(proto), {"n": 2})

    assert cost.computed == 2 * 3 * 5 * (8 + 12)
    assert cost.total_macs == cost.computed + 2 * 3 * 12 * 7
    assert not cost.unknown


def test_symbolic_dimensions_are_bound_by_name_and_count_as_one_otherwise():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch, 4] x, float[4, 5] w) => (float[batch, 5] y) { y = MatMul(x, w) }"""
    )
    model = io.from_proto(proto)
    manager = AnalysisManager(Editor(model))

    assert manager.get(Cost).total_macs == 20
    assert manager.get(Cost).assumed == ("batch",)
    assert Cost.measure(model, {"batch": 8}).total_macs == 160
    assert Cost.measure(model, {"batch": 8}).assumed == ()


def test_a_node_of_unknown_shape_is_named_and_reported():
    text = "g (float[] s, int64[n] shape) => (float[a, b] y) { t = Expand(s, shape) y = MatMul(t, w) }"
    cost, diagnostics = cost_of(text, {"w": (5, 6)})

    assert cost.total_macs == 0
    assert len(cost.unknown) == 1
    assert [d.code for d in diagnostics] == ["COST001"]


def test_a_dimension_that_no_input_has_is_unknown_rather_than_one():
    text = """g (float[n, 4] x, int64[1] begin) => (float[a, b] y) {
        end = Constant <value = int64[1] {100}> ()
        s = Slice(x, begin, end)
        y = MatMul(s, w)
    }"""
    cost, _ = cost_of(text, {"w": (4, 6)})

    assert (cost.total_macs, len(cost.unknown)) == (0, 1)


def test_shape_arithmetic_that_onnx_cannot_infer_through_is_followed():
    text = """g (float[n, s, 6] x) => (float[a, b, c] y) {
        k = Constant <value = int64 {1}> ()
        zero = Constant <value = int64[1] {0}> ()
        axis = Constant <value = int64[1] {1}> ()
        shape = Shape(x)
        length = Gather(shape, k)
        end = Unsqueeze(length, zero)
        t = Slice(x, zero, end, axis)
        y = MatMul(t, w)
    }"""
    cost, diagnostics = cost_of(text, {"w": (6, 4)})

    assert cost.total_macs == 6 * 4
    assert list(diagnostics) == []


def test_nested_graphs_and_constant_nodes_count():
    text = """g (bool c, float[2,3] x) => (float[a,b] y) {
        y = If (c) <
            then_branch = t () => (float[2,2] p) {
                k = Constant <value = float[3,2] {1,2,3,4,5,6}> ()
                p = MatMul(x, k)
            },
            else_branch = e () => (float[2,4] q) { q = MatMul(x, w) }
        >
    }"""
    cost, _ = cost_of(text, {"w": (3, 4)})

    assert cost.total_macs == 2 * 3 * 2 + 2 * 3 * 4
    assert cost.parameters == 6 + 12


def test_a_tensor_that_two_initializers_share_counts_once():
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x) => (float[a,b] y) { h = Mul(x, v) y = Mul(h, w) }'
    )
    for name in ("v", "w"):
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 3), np.float32), name))
    model = io.from_proto(proto)
    values = model.graph.initializers

    assert Cost.measure(model).parameters == 12
    values["w"].const_value = values["v"].const_value
    assert Cost.measure(model).parameters == 6


def test_string_tensors_count_their_characters():
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (bool c) => (string[n] y) { y = Identity(w) }'
    )
    proto.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.STRING, [2], [b"ab", b"cde"]))
    cost = Cost.measure(io.from_proto(proto))

    assert (cost.parameters, cost.size) == (2, 5)
