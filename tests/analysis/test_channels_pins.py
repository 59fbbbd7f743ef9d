"""What cannot be pruned, and why."""

import numpy as np
import onnx.parser
import pytest

from graphopt import io
from tests.analysis.channel_models import Found, between, find, ints


def test_inputs_and_outputs_of_the_model():
    found = find("g (float[4,6] x) => (float[4,5] y) { y = MatMul(x, w) }", {"w": (6, 5)})

    assert found.units == []
    assert found.why("x", 1) == "an input of the model"
    assert found.why("y", 1) == "an output of the model"
    assert all(pin.node is None for pin in found.channels.pins)


def test_an_activation_that_is_an_output_too():
    found = find(
        "g (float[1,3,4,4] x) => (float[n,c,h,w] y, float[1,6,4,4] a) { a = Conv(x, v) y = Conv(a, w) }",
        {"v": (6, 3, 1, 1), "w": (2, 6, 1, 1)},
    )

    assert found.units == []


def test_a_weight_that_a_caller_may_override():
    found = find(
        "g (float[4,3] x, float[3,6] v) => (float[4,2] y) { a = MatMul(x, v) y = MatMul(a, w) }",
        {"v": (3, 6), "w": (6, 2)},
    )

    assert found.units == []


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("b = Softmax <axis=1> (a)", "Softmax works along it"),
        ("b = LogSoftmax <axis=1> (a)", "LogSoftmax works along it"),
        ("b = Hardmax <axis=1> (a)", "Hardmax works along it"),
        ("b = LpNormalization <axis=1> (a)", "LpNormalization works along it"),
        ("b = CumSum(a, one_axis)", "CumSum works along it"),
        ("b = LRN <size=3> (a)", "LRN looks at neighbouring channels"),
        ("b = MeanVarianceNormalization <axes=[1,2,3]> (a)", "statistics"),
        ("v, i = TopK <axis=1> (a, k) b = Identity(v)", "TopK works along it"),
        ("m = ReduceMean(a, one) b = Mul(a, m)", "hangs on how many there are"),
        ("m = ReduceMax(a, one) b = Mul(a, m)", "hangs on how many there are"),
        ("m = ReduceLogSumExp(a, one) b = Mul(a, m)", "hangs on how many there are"),
        ("m = ArgMax <axis=1> (a) f = Cast <to=1> (m) b = Mul(a, f)", "tells positions along it"),
        ("b = Slice(a, zero, six, one, two)", "in steps"),
        ("b, i = MaxPool <kernel_shape=[1,1]> (a)", "indices of MaxPool"),
        ("b = Resize(a, , scales)", "interpolates along it"),
        ("b = ScatterND(a, where, what)", "what ScatterND does with channels is not known"),
    ],
)
def test_operators_that_need_all_channels(node, why):
    given = {
        "one_axis": np.array(1, np.int64),
        "k": ints(6),
        "zero": ints(0),
        "one": ints(1),
        "two": ints(2),
        "six": ints(6),
        "scales": np.array([1, 2, 1, 1], np.float32),
        "where": np.zeros((1, 1), np.int64),
        "what": (1, 6, 4, 4),
    }
    outputs = 3 if "Slice" in node else 12 if "Resize" in node else 6
    found = between(node, given, outputs=outputs)

    assert found.units == []
    assert any(why in pin.why for pin in found.channels.pins if pin.axis.axis == 1), found.channels.pins


def test_operators_of_other_domains():
    text = """<ir_version: 8, opset_import: ["" : 18, "com.example" : 1]>
        g (float[4,3] x) => (float[4,2] y) <float[4,6] b> {
            a = MatMul(x, v) b = com.example.Mystery(a) y = MatMul(b, w) }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in {"v": (3, 6), "w": (6, 2)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name))
    found = Found(io.from_proto(proto))

    assert found.units == []
    assert found.why("a", 1) == found.why("b", 1) == "what com.example::Mystery does with channels is not known"


def test_softmax_before_opset_13_takes_all_axes_from_its_own_on():
    body = "g (float[1,3,4,4] x) => (float[n,c,h,w] y) { a = Conv(x, v) b = Softmax <axis=1> (a) y = Conv(b, w) }"
    found = find(body, {"v": (6, 3, 1, 1), "w": (2, 6, 1, 1)}, opset=11)

    assert found.units == []
    assert found.why("b", 3) == "Softmax works along it"


def test_an_axis_of_unknown_size():
    found = find(
        "g (float[4,n] x, float[4,6] z) => (float[4,2] y) { a = MatMul(z, v) b = Add(a, x) y = MatMul(b, w) }",
        {"v": (6, 6), "w": (6, 2)},
    )

    assert found.units == []
    assert "unknown size" in found.why("b", 1)


def test_a_batch_of_unknown_size_is_no_matter():
    found = find(
        "g (float[n,3,h,w] x) => (float[n,c,p,q] y) { a = Conv(x, v) b = Relu(a) y = Conv(b, u) }",
        {"v": (6, 3, 1, 1), "u": (2, 6, 1, 1)},
    )

    assert found.units == [6]


def test_values_that_a_nested_graph_reads():
    found = find(
        """g (float[1,3,4,4] x, bool yes) => (float[n,c,h,w] y) {
            a = Conv(x, v) c = If (yes) <
                then_branch = t () => (float[1,6,4,4] p) { p = Relu(a) },
                else_branch = e () => (float[1,6,4,4] q) { q = Identity(a) }
            > y = Conv(c, w) }""",
        {"v": (6, 3, 1, 1), "w": (2, 6, 1, 1)},
    )

    assert found.units == []
    assert found.why("a", 1) == "read inside a nested graph"
    assert found.why("c", 1) == "what If does with channels is not known"


def test_a_weight_that_a_nested_graph_reads():
    found = find(
        """g (float[4,3] x, bool yes) => (float[4,2] y, float[3,6] z) {
            a = MatMul(x, v) z = If (yes) <
                then_branch = t () => (float[3,6] p) { p = Relu(v) },
                else_branch = e () => (float[3,6] q) { q = Neg(v) }
            > y = MatMul(a, w) }""",
        {"v": (3, 6), "w": (6, 2)},
    )

    assert found.units == []


def test_bounds_and_shapes_that_are_computed_from_data():
    found = find(
        """g (float[1,3,4,4] x, int64[1] many, int64[4] shape) => (float[n,c,h,w] y) {
            a = Conv(x, v) b = Slice(a, zero, many, one) s = Relu(b) r = Reshape(a, shape) y = Add(s, r) }""",
        {"v": (6, 3, 1, 1), "zero": ints(0), "one": ints(1)},
    )

    assert found.units == []
    assert "computed" in found.why("a", 1)


def test_a_size_that_the_model_computes_with():
    found = between("s = Shape(a) c = Gather(s, one) f = Cast <to=1> (c) r = Sqrt(f) b = Div(a, r)", {"one": ints(1)})

    assert found.units == []
    assert found.why("a", 1) == "the model computes with its size"


def test_a_size_that_the_model_computes_with_pins_no_other_axis():
    found = between("s = Shape(a) c = Slice(s, two, three) f = Cast <to=1> (c) r = Sqrt(f) b = Div(a, r)",
                    {"two": ints(2), "three": ints(3)})  # fmt: skip

    assert found.units == [6]
    assert found.why("a", 2) == "the model computes with its size"


def test_a_size_that_a_nested_graph_computes_with():
    found = between(
        """s = Shape(a) yes = Constant <value = bool {1}> () c = If (yes) <
            then_branch = t () => (float[4] p) { p = Cast <to=1> (s) },
            else_branch = e () => (float[4] q) { q = Cast <to=1> (s) }
        > b = Mul(a, c)"""
    )

    assert found.units == []


def test_a_size_that_is_an_output_of_the_model():
    found = find(
        "g (float[4,3] x) => (float[4,2] y, int64[2] s) { a = MatMul(x, v) s = Shape(a) y = MatMul(a, w) }",
        {"v": (3, 6), "w": (6, 2)},
    )

    assert found.units == []


def test_axes_that_a_reshape_mixes():
    """[6, 4] and [8, 3] share no digits."""
    found = find(
        """g (float[1,6] x) => (float[1,3] y) {
            a = MatMul(x, v) c = Reshape(a, one) r = Reshape(c, two) y = MatMul(t, r) }""",
        {"v": (6, 24), "one": ints(6, 4), "two": ints(8, 3), "t": (1, 8)},
    )

    assert found.units == []
    assert found.why("c", 0) == found.why("r", 1) == "Reshape mixes it with others"


def test_a_reshape_that_cuts_across_keeps_the_digit_that_is_free():
    """[4, 6] to [8, 3] shares the digits 4, 2 and 3: columns of three go."""
    found = find(
        """g (float[4,5] x) => (float[8,2] y) {
            a = MatMul(x, v) b = Reshape(a, shape) y = MatMul(b, w) }""",
        {"v": (5, 6), "shape": ints(8, 3), "w": (3, 2)},
    )

    assert found.units == [3]
    assert found.removed_with("w", 0, 1) == {("v", 1): [1, 4], ("a", 1): [1, 4], ("b", 1): [1], ("w", 0): [1]}


def test_pins_name_the_node():
    found = between("b = Softmax <axis=1> (a)")

    assert {pin.node.op_type for pin in found.channels.pins if pin.why == "Softmax works along it"} == {"Softmax"}


def test_broadcasting_as_it_was_before_opset_7():
    """The vector lies along axis 1 there, and would be taken for one along axis 3."""
    found = find(
        """g (float[1,3,6,6] x) => (float[n,c,h,w] y) {
            a = Conv(x, v) b = Add <broadcast=1, axis=1> (a, k) y = Conv(b, w) }""",
        {"v": (6, 3, 1, 1), "k": (6,), "w": (2, 6, 1, 1)},
        opset=6,
    )

    assert found.units == []
    assert "before opset 7" in found.why("b", 1)


def test_integers_of_the_data_are_no_sizes():
    """What is computed from an input and a shape together is data."""
    found = find(
        """g (float[4,3] x, int64[2] p) => (float[4,2] y, int64[4] z) {
            a = MatMul(x, v) s = Shape(a) z = Concat <axis=0> (p, s) y = MatMul(a, w) }""",
        {"v": (3, 6), "w": (6, 2)},
    )

    assert found.units == []
    assert found.why("a", 1) == "the model computes with its size"
