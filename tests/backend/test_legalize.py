"""What is done to a model before a pipeline because of its target, and what is said of what is left."""

import numpy as np
import pytest

from graphopt.backend.legalize import refused, steps
from graphopt.driver import optimize
from graphopt.errors import UsageError
from graphopt.targets import find
from tests.helpers import model_of, operators

GELU = """g (float[N,4] x) => (float[N,4] y) {
    a = Div(x, root) b = Erf(a) c = Add(b, one) d = Mul(x, c) y = Mul(d, half) }"""
NUMBERS = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}


def gelu():
    return model_of(GELU, weights={name: np.array(number) for name, number in NUMBERS.items()}, opset=17)


def test_a_cpu_asks_for_nothing():
    model = gelu()

    assert steps(model, find("cpu-x64")) == []
    assert refused(model, find("cpu-x64")) == []


def test_a_decomposed_gelu_becomes_the_operator_that_the_npu_has():
    model = gelu()
    assert [found.rule.op for found in refused(model, find("qnn-htp"))] == ["Erf"]

    result = optimize(model, preset="none", target=find("qnn-htp"), dims={"N": 2})

    assert operators(model) == {"Gelu": 1}
    assert "LEGAL001" not in {d.code for d in result.diagnostics}


def test_what_has_no_cure_is_said_with_the_vendors_reason():
    model = model_of("g (float[2] x) => (float[2] y) { [alone] y = Erf(x) }", opset=20)

    result = optimize(model, preset="none", target=find("qnn-htp"))

    said = next(d for d in result.diagnostics if d.code == "LEGAL001")
    assert said.node == "alone" and "not supported by QNN EP" in said.message and said.hint


@pytest.mark.parametrize(("mode", "wrong"), [("floor", True), ("round_prefer_floor", False)])
def test_a_rule_may_hang_on_attributes_and_on_their_defaults(mode, wrong):
    body = f'g (float[1,1,2,2] x) => (float[1,1,4,4] y) {{ y = Resize <nearest_mode = "{mode}"> (x, , s) }}'
    model = model_of(body, weights={"s": np.array([1, 1, 2, 2], np.float32)})

    assert [found.rule.wrong for found in refused(model, find("qnn-htp"))] == [True] * wrong


def test_a_first_axis_becomes_one_and_that_is_said():
    model = gelu()
    result = optimize(model, preset="none", target=find("qnn-htp"))

    assert list(model.graph.inputs[0].shape) == [1, 4]
    assert "LEGAL002" in {d.code for d in result.diagnostics}


def test_other_open_sizes_have_to_be_given():
    body = "g (float[N,T] x) => (float[N,T] y) { y = Relu(x) }"

    with pytest.raises(UsageError, match="T is open") as caught:
        optimize(model_of(body), preset="none", target=find("qnn-htp"))
    assert caught.value.hint == "--dim T=SIZE"

    model = model_of(body)
    optimize(model, preset="none", target=find("qnn-htp"), dims={"T": 7})
    assert list(model.graph.inputs[0].shape) == [1, 7]


def test_an_opset_that_is_too_new_is_converted_down():
    model = model_of("g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }", opset=21)

    optimize(model, preset="none", target=find("rknn"))

    assert model.opset_imports[""] == 19


def test_products_with_weights_become_convolutions_where_the_compiler_hangs_on_them():
    weights = {"w": np.ones((4, 4), np.float32)}
    model = model_of("g (float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }", weights=weights)

    optimize(model, preset="none", target=find("rknn"))

    assert "Conv" in operators(model) and "MatMul" not in operators(model)
    both = model_of("g (float[4,4] x) => (float[4,4] y) { y = MatMul(x, x) }")
    assert refused(both, find("rknn")) == []


@pytest.mark.parametrize(("name", "opset", "target"), [("GroupNormalization", 18, "qnn-htp"), ("Gelu", 20, "rknn")])
def test_what_the_opset_asked_for_does_not_have_is_written_out_first(name, opset, target):
    settings, more = ("<num_groups = 2>", ", w, w") if name == "GroupNormalization" else ("", "")
    body = f"g (float[1,4,3] x) => (float[1,4,3] y) {{ y = {name} {settings} (x{more}) }}"
    model = model_of(body, opset=opset, weights={"w": np.ones(2, np.float32)} if more else {})

    optimize(model, preset="none", target=find(target))

    assert name not in operators(model)
    assert model.opset_imports[""] == {"qnn-htp": 20, "rknn": 19}[target]


def refusals(body, *, opset=20, **options):
    return [
        (found.node.op_type, found.rule) for found in refused(model_of(body, opset=opset, **options), find("qnn-htp"))
    ]


def test_one_rule_of_a_file_may_name_several_operators():
    found = refusals("g (float[2] x) => (float[2] y) { a = Hardmax(x) y = Shrink(a) }")

    assert [(name, rule.why) for name, rule in found] == [
        ("Hardmax", "Operators of type Hardmax are not supported by QNN EP"),
        ("Shrink", "Operators of type Shrink are not supported by QNN EP"),
    ]


@pytest.mark.parametrize(("source", "wrong"), [("x", True), ("z", False)])
def test_a_rule_may_ask_what_the_result_meets(source, wrong):
    body = f"""g (float[2] x, float[2] z) => (float[2] y) {{
        h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul({source}, h) }}"""

    # HardSwish written out is computed wrongly; the gate of a squeeze-and-excite block is not.
    assert [rule.wrong for _, rule in refusals(body)] == [True] * wrong


@pytest.mark.parametrize("count", [2, 3])
def test_a_rule_may_ask_for_a_number_of_operands(count):
    quantized = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
    body = f"g (float[2] x) => (float[2] y) {{ {quantized} y = Max({', '.join(['d'] * count)}) }}"

    found = refusals(body, weights={"s": np.float32(0.1), "z": np.uint8(128)})

    assert [name for name, _ in found] == ["Max"] * (count > 2)


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_the_type_of_a_rule_is_that_of_activations_in_either_domain(domain):
    q, d = f"{domain}QuantizeLinear", f"{domain}DequantizeLinear"
    body = f"g (float[2] x) => (float[2] y) {{ q = {q}(x, s, z) d = {d}(q, s, z) y = Log(d) }}"
    weights = {"s": np.float32(0.1), "z": np.uint16(3)}

    found = refusals(body, opset=21, weights=weights, domain="com.microsoft")

    assert [(name, rule.wrong) for name, rule in found] == [("Log", True)]


def test_tensors_of_more_axes_than_the_target_has_are_named_and_moved_away_where_they_can_be():
    split, windows = np.array([2, 2, 4, 2, 4, 6]), np.array([8, 16, 6])
    body = """g (float[2,8,8,6] x) => (float[8,16,6] y) {
        r = Reshape(x, split) t = Transpose <perm = [0, 1, 3, 2, 4, 5]> (r) y = Reshape(t, windows) }"""
    model = model_of(body, weights={"split": split, "windows": windows})
    stays = model_of("g (float[1,2,1,2,1,2] x) => (float[1,2,1,2,1,2] y) { y = Relu(x) }", opset=20)

    optimize(model, preset="none", target=find("qnn-htp"))
    result = optimize(stays, preset="none", target=find("qnn-htp"))

    assert max(len(value.shape) for node in model.graph for value in node.outputs) <= 5
    assert [said.node for said in result.diagnostics if said.code == "LEGAL001"] == ["y"]


def test_a_tail_for_the_cpu_is_named_with_the_pass_that_cuts_it_off():
    body = """g (float[1,6,4] boxes, float[1,1,6] s) => (int64[?,3] y) {
        p = Sigmoid(s) y = NonMaxSuppression(boxes, p) }"""
    model = model_of(body)

    result = optimize(model, preset="none", target=find("qnn-htp"))
    cut = optimize(model_of(body), pipeline="split-at{nodes=NonMaxSuppression}", target=find("qnn-htp"))

    said = next(d for d in result.diagnostics if d.code == "LEGAL001")
    assert "NonMaxSuppression are not supported by QNN EP" in said.message and "split-at" in str(said.hint)
    assert "LEGAL001" not in {d.code for d in cut.diagnostics}


def test_a_rule_may_hang_on_the_numbers_of_a_constant_input():
    def slices(step):
        numbers = {"s": [0], "e": [8], "a": [2], "k": [step]}
        weights = {name: np.array(number, np.int64) for name, number in numbers.items()}
        return model_of("g (float[1,2,8,8] x) => (float[1,2,h,8] y) { y = Slice(x, s, e, a, k) }", weights=weights)

    assert [found.rule.cure for found in refused(slices(2), find("rknn"))] == ["slice-to-pool"]
    assert refused(slices(1), find("rknn")) == []

    model = slices(2)
    optimize(model, preset="none", target=find("rknn"))
    assert operators(model) == {"AveragePool": 1}


def test_a_rule_may_hang_on_who_reads_the_result():
    def padded(reader):
        weights = {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "w": np.ones((2, 2, 3, 3), np.float32)}
        return model_of(f"g (float[1,2,8,8] x) => (float[1,2,h,w] y) {{ q = Pad(x, p) {reader} }}", weights=weights)

    assert [found.rule.cure for found in refused(padded("y = Conv(q, w)"), find("rknn"))] == ["fuse-pad"]
    assert refused(padded("y = Relu(q)"), find("rknn")) == []

    model = padded("y = Conv(q, w)")
    optimize(model, preset="none", target=find("rknn"))
    assert operators(model) == {"Conv": 1}
