"""OpenVINO, onnxruntime's CPU and rknn-toolkit2: integer kernels are told from float ones, and causes are named."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest

from graphopt import optimize, targets
from graphopt.backend import check_openvino, check_rknn
from graphopt.backend.environments import python_of
from graphopt.backend.job import MARGIN_DB
from graphopt.backend.report import Place
from graphopt.checking import check
from tests.backend import planted
from tests.helpers import model_of

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs the extra: pip install 'graphopt[openvino]'"
)
needs_rknn = pytest.mark.skipif(not python_of("rknn"), reason="needs `graphopt toolchains --install rknn`")


def checked(path, target, **options):
    return check(path, target=targets.find(target), **options)


def gates(report):
    return {gate.name: gate.passed for gate in report.gates}


@pytest.mark.npu
@needs_openvino
def test_openvino_runs_a_sound_model_in_integer_kernels(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx"), "openvino-cpu")

    assert gates(report)["integers"] is True
    assert {node.op: node.dtype for node in report.nodes}["Conv"] == "uint8"


@pytest.mark.npu
@needs_openvino
def test_openvino_computes_unsigned_weights_in_float_and_the_check_says_so(tmp_path):
    net = planted.Net()
    weights = net.constant("w_q", net.rng.integers(0, 255, (8, 3, 3, 3)).astype(np.uint8))
    grid = [net.constant("w_scale", np.float32(0.005)), net.constant("w_zero", np.uint8(100))]
    net.add("DequantizeLinear", [weights, *grid], "w")
    final = net.pair(net.add("Conv", [net.pair("x", 0.03), "w"], "y"), 0.1)
    path = net.save(tmp_path / "m.onnx", {"x": [1, 3, 16, 16]}, final)

    report = checked(path, "openvino-cpu")

    assert gates(report)["integers"] is False
    conv = next(node for node in report.nodes if node.op == "Conv")
    assert conv.dtype == "float32"
    assert conv.why


def test_onnxruntime_merges_pairs_around_a_layer_and_the_trace_shows_it(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx"), "ort-cpu")

    assert gates(report)["integers"] is True
    assert [node.dtype for node in report.nodes if node.op == "Conv"] == ["uint8", "uint8"]


def test_onnxruntime_leaves_a_layer_without_a_pair_behind_it_in_float(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx", paired=False), "ort-cpu")

    assert gates(report)["integers"] is False
    assert [node.name for node in report.nodes if node.why] == ["second_conv"]


def test_another_machines_target_is_looked_at_by_its_facts_alone(tmp_path):
    other = "cpu-arm64" if targets.find("ort-cpu").name != "cpu-arm64" else "cpu-x64"

    report = checked(planted.convolutions(tmp_path / "m.onnx"), other)

    assert [gate.name for gate in report.gates] == ["facts"]
    assert "only what is known" in report.notes[0]


def test_a_target_without_a_toolchain_is_looked_at_by_its_facts_alone(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx", batch="N"), "coreml")

    assert report.toolchain == ""
    assert [gate.name for gate in report.gates] == ["facts"]
    assert not report.verified
    assert "nothing here was checked on the real thing" in report.render()


def test_facts_that_stand_alone_fail_on_what_is_refused(tmp_path):
    refused = checked(planted.convolutions(tmp_path / "m.onnx", zero=3), "openvino-npu")
    sound = checked(planted.convolutions(tmp_path / "s.onnx"), "openvino-npu")

    assert (refused.passed, sound.passed) == (False, True)
    assert "zero point" in refused.gates[0].detail


@pytest.mark.npu
@needs_openvino
def test_a_provider_that_breaks_fails_its_gate_and_one_that_is_absent_does_not(tmp_path, monkeypatch):
    path = planted.convolutions(tmp_path / "m.onnx")
    monkeypatch.setattr(check_openvino, "PROVIDER", replace(check_openvino.PROVIDER, package="absent_package"))
    absent = gates(checked(path, "openvino-cpu"))["provider"]
    monkeypatch.setattr(check_openvino, "PROVIDER", replace(check_openvino.PROVIDER, package="this"))
    broken = gates(checked(path, "openvino-cpu"))["provider"]

    assert (absent, broken) == (None, False)


@pytest.mark.npu
@needs_rknn
def test_rknn_builds_a_sound_model_and_counts_its_cycles(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx"), "rknn")

    assert report.passed
    assert report.cost["cycles"] > 0
    assert [layer["dtype"] for layer in report.cost["layers"] if layer["name"].startswith("Conv")] == ["int8", "int8"]


@pytest.mark.npu
@pytest.mark.slow
@needs_rknn
def test_rknn_leaves_erf_to_the_cpu_and_what_has_no_pair_in_float(tmp_path):
    on_cpu = checked(planted.convolutions(tmp_path / "e.onnx", between=planted.erf), "rknn")
    in_float = checked(planted.convolutions(tmp_path / "f.onnx", paired=False), "rknn")

    assert gates(on_cpu)["placement"] is False
    assert [node.op for node in on_cpu.nodes if node.place is Place.HOST] == ["Erf"]
    assert gates(in_float)["integers"] is False
    assert "float16" in {node.dtype for node in in_float.nodes}


def quantized_for_rknn(body, weights, folder):
    optimize(
        model_of(body, weights=weights),
        output=folder / "m.onnx",
        pipeline="insert-qdq",
        target=targets.find("rknn"),
        data="random",
    )
    return checked(folder / "m.onnx", "rknn")


ATTENTION = """
g (float[1,3,1,16] x) => (float[1,8,16,4] y) {
   c = Conv<pads=[1,1,1,1]>(x, w)
   q, k, v = Split<axis=1>(c, sizes)
   qh = Reshape(q, heads)
   kh = Reshape(k, heads)
   vh = Reshape(v, heads)
   qt = Transpose<perm=[0,1,3,2]>(qh)
   vt = Transpose<perm=[0,1,3,2]>(vh)
   scores = MatMul(qt, kh)
   p = Softmax<axis=-1>(scores)
   y = MatMul(p, vt)
}
"""
JOINED = """
g (float[1,8,8,8] x) => (float[1,8,8,8] y) {
   a = Conv(x, w)
   r = Relu(a)
   b = Concat<axis=1>(r, x)
   d = Conv(b, u)
   y = Mul(s, d)
}
"""


@pytest.mark.npu
@pytest.mark.slow
@needs_rknn
@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        pytest.param(ATTENTION, {"w": (96, 3, 3, 3)}, id="attention"),
        pytest.param(JOINED, {"w": (8, 8, 1, 1), "u": (8, 16, 1, 1), "s": (1,)}, id="a convolution of joined channels"),
    ],
)
def test_rknn_makes_no_fusions_that_crash_or_leave_integers(tmp_path, body, shapes):
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    if body is ATTENTION:
        weights |= {"sizes": np.array([32, 32, 32]), "heads": np.array([1, 8, 4, 16])}

    report = quantized_for_rknn(body, weights, tmp_path)

    found = gates(report)
    assert (found["builds"], found["placement"], found["integers"]) == (True, True, True)


@pytest.mark.npu
@pytest.mark.slow
@needs_rknn
def test_rknn_computes_a_layer_normalization_in_integers(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"w": (16, 3, 1, 1), "v": (16, 16, 1, 1), "g": (16,), "b": (16,)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    body = """g (float[1,3,14,14] x) => (float[1,16,14,14] y) {
        c = Conv(x, w)
        t = Transpose<perm=[0,2,3,1]>(c)
        l = LayerNormalization<axis=-1, epsilon=1e-5>(t, g, b)
        n = Transpose<perm=[0,3,1,2]>(l)
        y = Conv(n, v)
    }"""

    assert quantized_for_rknn(body, weights, tmp_path).passed


@pytest.mark.npu
@pytest.mark.slow
@needs_rknn
def test_an_opset_that_rknn_does_not_read_fails_the_build_in_its_own_words(tmp_path):
    net = planted.Net()
    path = net.save(tmp_path / "m.onnx", {"x": [1, 3, 8, 8]}, net.add("Relu", ["x"], "y"), opset=21)

    report = checked(path, "rknn")

    assert gates(report) == {"facts": False, "builds": False}
    assert "CHK002" in {finding.code for finding in report.findings}


@pytest.mark.npu
@pytest.mark.slow
@needs_rknn
def test_rknn_rounds_weights_anew_whose_zero_points_are_all_at_the_middle(tmp_path):
    def near(zero):
        net = planted.Net()
        signs = net.rng.choice([-1, 1], (8, 3, 3, 3))
        integers = net.constant("w_q", (61 * signs + zero).astype(np.int8))
        grid = [net.constant("w_s", np.full(8, 0.01, np.float32)), net.constant("w_z", np.full(8, zero, np.int8))]
        net.add("DequantizeLinear", [integers, *grid], "w", axis=0)
        final = net.pair(net.add("Conv", [net.pair("x", 0.03, 127), "w"], "y", pads=[1] * 4), 0.1, 127)
        report = checked(net.save(tmp_path / f"{zero}.onnx", {"x": [1, 3, 16, 16]}, final), "rknn")
        return report.agreement[0].target_db, report.agreement[0].cpu_db

    middle, beside = near(0), near(-1)

    assert beside[0] > beside[1] - 0.5
    assert middle[0] < middle[1] - MARGIN_DB


LOG = "\n".join(
    [
        "D RKNN: [15:34:41.484]     Network Layer Information Table",
        "D RKNN: [15:34:41.484] ID  OpType        DataType Target InputShape OutputShape Cycles(DDR/NPU/Total) RW(KB)",
        "D RKNN: [15:34:41.484] 0   InputOperator INT8     CPU    \\          (1,3,16,16) 0/0/0  0  InputOperator:x",
        "D RKNN: [15:34:41.484] 1   ConvRelu      INT8     NPU    (1,3),(8)  (1,8,16,16) 266/2304/2304 2.5 Conv:a/b c",
        "D RKNN: [15:34:41.484] 2   Erf           FLOAT16  CPU    (1,8)      (1,8,16,16) 0/0/0         4   Erf:erf1",
        "D RKNN: [15:34:41.484] <<<<<<<< end: rknn::RKNNModelRegCmdbuildPass",
        "D RKNN: [15:34:41.485] 1   ConvRelu      INT8     NPU    (1)        (1)         9/9/9         9   Conv:later",
    ]
)


def test_the_table_of_layers_is_read_off_the_log():
    rows = list(check_rknn.table(LOG))

    assert [(row.op, row.dtype, row.place, row.cycles, row.name) for row in rows] == [
        ("InputOperator", "int8", "CPU", 0, "InputOperator:x"),
        ("ConvRelu", "int8", "NPU", 2304, "Conv:a/b c"),
        ("Erf", "float16", "CPU", 0, "Erf:erf1"),
    ]
    assert check_rknn.cost(rows)["cycles of memory"] == 266


def test_a_log_without_a_table_has_no_rows():
    assert list(check_rknn.table("nothing")) == []
