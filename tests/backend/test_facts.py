"""What is said of a model before any toolchain is asked: these need no extra."""

import numpy as np
import onnx
import pytest

from graphopt import io, targets
from graphopt.backend.facts import dynamic_axes, findings
from graphopt.backend.qdq import activation_type, integer_type, is_quantized
from graphopt.checking import prepared
from graphopt.diagnostics import Severity
from tests.backend import planted
from tests.helpers import model_of

QNN = targets.find("qnn-htp")


def found(path, target=QNN):
    return findings(io.load(path), target)


def test_a_sound_model_has_no_findings(tmp_path):
    assert found(planted.convolutions(tmp_path / "m.onnx")) == []


@pytest.mark.parametrize(
    ("code", "node", "fault"),
    [
        ("CHK001", "x", {"batch": "N"}),
        ("CHK003", "erf_erf", {"between": planted.erf}),
        ("CHK004", "resized_resize", {"between": planted.resized}),
        ("CHK005", "second_conv", {"zero": 3}),
        ("CHK006", "second_conv", {"paired": False}),
    ],
)
def test_each_fault_is_named_with_its_node(tmp_path, code, node, fault):
    assert (code, node) in {(f.code, f.node) for f in found(planted.convolutions(tmp_path / "m.onnx", **fault))}


def test_a_wide_product_is_named_for_its_type_only(tmp_path):
    assert [f.code for f in found(planted.product(tmp_path / "u.onnx", np.uint16))] == ["CHK007"]
    assert found(planted.product(tmp_path / "s.onnx", np.int16)) == []


def test_what_is_computed_wrongly_is_an_error_and_what_is_refused_a_warning(tmp_path):
    wrong = found(planted.convolutions(tmp_path / "w.onnx", between=planted.resized))
    refused = found(planted.convolutions(tmp_path / "r.onnx", between=planted.erf))

    assert [f.severity for f in wrong] == [Severity.ERROR]
    assert [f.severity for f in refused] == [Severity.WARNING]
    assert "recognize-activations" in refused[0].hint


def test_a_rule_asks_for_attributes_also_where_they_have_their_default():
    def resize(attributes):
        body = f'g (float[1,1,4,4] x) => (float[1,1,8,8] y) {{ y = Resize <mode="nearest"{attributes}> (x, , s) }}'
        return model_of(body, weights={"s": np.float32([1, 1, 2, 2])})

    # The defaults are half_pixel and round_prefer_floor, which is right.
    assert findings(resize(""), QNN) == []
    assert [f.code for f in findings(resize(', nearest_mode="ceil"'), QNN)] == ["CHK004"]


def test_a_newer_opset_than_the_target_reads_is_named():
    model = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=21)

    assert [f.code for f in findings(model, targets.find("rknn"))] == ["CHK002"]


def test_quantized_operators_without_pairs_are_named():
    body = "g (float[2,4] x) => (int32[2,3] y) { q, s, z = DynamicQuantizeLinear(x) y = MatMulInteger(q, w, z) }"
    model = model_of(body, weights={"w": np.ones((4, 3), np.int8)})

    finding = next(f for f in findings(model, QNN) if f.code == "CHK008")
    assert "MatMulInteger" in finding.message
    assert "strip-qdq" in finding.hint


def test_a_float_model_lacks_no_pairs():
    model = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")

    assert findings(model, QNN) == []
    assert not is_quantized(model)


def test_axes_without_a_size_are_listed_by_name_or_number():
    model = model_of("g (float[N,3,?] x, float[2] z) => (float[2] y) { y = Relu(z) }")

    assert dynamic_axes(model) == {"x": ["N", "x.2"]}


def test_types_are_read_off_pairs_of_either_domain(tmp_path):
    model = io.load(planted.product(tmp_path / "m.onnx", np.int16))
    node = next(node for node in model.graph if node.op_type == "MatMul")

    assert activation_type(node) == "int16"
    assert integer_type(node.inputs[0].producer()) == "int16"


def test_a_pair_without_a_zero_point_is_of_unsigned_bytes():
    body = "g (float[2] x) => (float[2] y) { q = QuantizeLinear(x, s) y = DequantizeLinear(q, s) }"
    model = model_of(body, weights={"s": np.float32(0.1)})

    assert integer_type(next(iter(model.graph))) == "uint8"


def test_biases_and_bounds_need_no_pair(tmp_path):
    path = planted.convolutions(tmp_path / "m.onnx")
    proto = onnx.load(path)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(8, np.float32), "bias"))
    next(node for node in proto.graph.node if node.op_type == "Conv").input.append("bias")
    onnx.save(proto, path)

    assert found(path) == []


def test_the_hint_on_open_axes_is_what_fixes_them(tmp_path):
    path = tmp_path / "m.onnx"
    io.save(model_of("g (float[N,3,?] x) => (float[N,3,?] y) { y = Relu(x) }"), path)

    hint = found(path)[0].hint
    dims = dict(pair.split("=") for pair in hint.partition(": ")[2].replace("--dim ", "").split())

    assert checked_facts(path, {name: int(size) for name, size in dims.items()}) == ()


def checked_facts(path, dims):
    with prepared(path, target=QNN, dims=dims) as job:
        return tuple(job.findings)


def test_nodes_get_names_where_they_have_none_or_share_one(tmp_path):
    proto = io.to_proto(model_of("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(a) y = Abs(b) }"))
    for node, name in zip(proto.graph.node, ("same", "same", ""), strict=True):
        node.name = name
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)

    with prepared(path, target=QNN) as job:
        names = [node.name for node in job.model.graph]
        assert [node.name for node in onnx.load(job.path).graph.node] == names

    assert names[0] == "same"
    assert len(set(names)) == 3
    assert all(names)
