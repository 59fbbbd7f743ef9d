"""Qualcomm's HTP simulator: a sound model passes the four gates, and each planted fault is named."""

import importlib.util

import numpy as np
import pytest

from graphopt import targets
from graphopt.backend.report import Place
from graphopt.checking import Numbers, check
from graphopt.errors import TargetError
from tests.backend import planted

pytestmark = [
    pytest.mark.npu,
    pytest.mark.skipif(
        importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs the extra: pip install 'graphopt[qnn]'"
    ),
]


def checked(path, soc="60", **options):
    return check(path, target=targets.find(f"qnn-htp:soc={soc}"), **options)


def gates(report):
    return {gate.name: gate.passed for gate in report.gates}


def codes(report):
    return {finding.code for finding in report.findings}


def test_a_sound_model_passes_every_gate(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx"))

    assert report.passed
    assert gates(report) == dict.fromkeys(("facts", "opens", "placement", "integers", "agreement"), True)
    assert report.findings == ()
    assert [part.place for part in report.partitions] == [Place.TARGET]
    kinds = {node.op: node.dtype for node in report.nodes if node.place is Place.TARGET}
    assert kinds["Conv"] == "uint8"
    assert report.versions["onnxruntime_qnn"]


def test_a_missing_pair_is_named_though_all_is_on_the_npu(tmp_path):
    path = planted.convolutions(tmp_path / "m.onnx", paired=False)

    report = checked(path)

    assert not report.passed
    assert gates(report)["integers"] is False
    assert {node.name: node.dtype for node in report.nodes}["y_hardswish"] == "float32"
    assert any("no Q/DQ pair on 'second'" in node.why for node in report.nodes if node.name == "second_conv")
    assert "CHK006" in codes(report)


def test_asymmetric_weights_for_each_channel_are_named(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx", zero=3))

    assert gates(report)["opens"] is False
    assert "CHK005" in codes(report)
    assert any("refuses Conv2d" in node.why for node in report.nodes if node.name == "second_conv")


def test_a_dynamic_dimension_is_named_with_the_cure_and_the_cure_helps(tmp_path):
    path = planted.convolutions(tmp_path / "m.onnx", batch="N")

    report = checked(path)

    assert not report.passed
    assert gates(report) == {"facts": False, "opens": False, "placement": False, "integers": None, "agreement": None}
    finding = next(finding for finding in report.findings if finding.code == "CHK001")
    assert (finding.node, "--dim N=1" in finding.hint) == ("x", True)
    assert any(node.why == "Cannot get shape" for node in report.nodes)
    assert checked(path, dims={"N": 1}).passed


def test_erf_is_named_in_the_vendors_words(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx", between=planted.erf))

    assert gates(report) == {"facts": True, "opens": False, "placement": False, "integers": True, "agreement": True}
    node = next(node for node in report.nodes if node.op == "Erf")
    assert (node.place, "not supported by QNN EP" in node.why) == (Place.HOST, True)
    assert [part.place for part in report.partitions] == [Place.TARGET, Place.HOST, Place.TARGET]
    assert "CHK003" in codes(report)


def test_a_resize_that_is_taken_and_computed_wrongly_is_named(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx", between=planted.resized))

    assert gates(report) == {"facts": False, "opens": True, "placement": True, "integers": True, "agreement": False}
    assert [(f.code, f.node) for f in report.findings] == [("CHK004", "resized_resize")]


def test_a_product_of_two_unsigned_16_bit_activations_is_named(tmp_path):
    wide = checked(planted.product(tmp_path / "unsigned.onnx", np.uint16))
    signed = checked(planted.product(tmp_path / "signed.onnx", np.int16))

    assert [(f.code, f.node) for f in wide.findings] == [("CHK007", "y_matmul")]
    assert signed.findings == ()
    assert signed.passed
    # The second operand has lost 8 bits, which the numbers show.
    assert gates(wide)["agreement"] is False
    assert wide.agreement[0].target_db < signed.agreement[0].target_db - 10


def test_a_normalization_that_is_rounded_twice_is_named(tmp_path):
    reports = {}
    for kind, step in ((np.uint8, 10 / 256), (np.uint16, 10 / 65536)):
        net, middle = planted.Net(), np.iinfo(kind).max // 2 + 1
        gain = net.constant("gain", np.float32(1 / 128))
        net.constant("gain_q", np.full(64, 128, np.uint8))
        net.constant("gain_zero", np.uint8(0))
        net.add("DequantizeLinear", ["gain_q", gain, "gain_zero"], "factor")
        net.constant("shift_q", net.rng.integers(-9000, 9000, 64).astype(np.int32))
        net.constant("shift_scale", np.float32(1e-4))
        net.add("DequantizeLinear", ["shift_q", "shift_scale"], "shift")
        data = net.pair("x", step, middle, kind, planted.MICROSOFT)
        normal = net.add("LayerNormalization", [data, "factor", "shift"], "y", axis=-1)
        path = net.save(
            tmp_path / f"{kind.__name__}.onnx",
            {"x": [1, 64, 64]},
            net.pair(normal, step, middle, kind, planted.MICROSOFT),
        )
        reports[kind] = checked(path)

    assert [(f.code, f.node) for f in reports[np.uint8].findings] == [("CHK009", "y_layernormalization")]
    assert gates(reports[np.uint8])["agreement"] is False
    assert reports[np.uint16].findings == ()
    assert reports[np.uint16].passed


def test_an_older_chip_refuses_what_a_newer_one_takes(tmp_path):
    net = planted.Net()
    operands = [
        net.pair(name, 4 / 32768, 1 << 15 if name == "x" else 0, kind, planted.MICROSOFT)
        for name, kind in (("x", np.uint16), ("w", np.int16))
    ]
    net.constant("w", np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32))
    final = net.pair(net.add("Conv", operands, "y"), 40 / 32768, 1 << 15, np.uint16, planted.MICROSOFT)
    path = net.save(tmp_path / "m.onnx", {"x": [1, 3, 16, 16]}, final)

    assert gates(checked(path, soc="60"))["opens"] is True
    assert gates(checked(path, soc="36"))["opens"] is False


def test_a_float_model_is_asked_for_no_integers(tmp_path):
    net = planted.Net()
    net.constant("w", net.rng.normal(size=(8, 3, 3, 3)).astype(np.float32))
    path = net.save(tmp_path / "m.onnx", {"x": [1, 3, 16, 16]}, net.add("Conv", ["x", "w"], "y"))

    report = checked(path)

    assert report.passed
    assert gates(report)["integers"] is None


def test_without_numbers_nothing_is_run(tmp_path):
    report = checked(planted.convolutions(tmp_path / "m.onnx"), numbers=None)

    assert report.passed
    assert gates(report)["agreement"] is None


def test_the_reference_can_be_given(tmp_path):
    path = planted.convolutions(tmp_path / "m.onnx")

    report = checked(path, numbers=Numbers(reference=path, samples=1))

    assert report.reference == str(path)
    assert report.agreement[0].cpu_db == float("inf")


def test_a_time_limit_that_is_too_short_is_an_error_of_the_target(tmp_path):
    with pytest.raises(TargetError, match="did not finish") as caught:
        checked(planted.convolutions(tmp_path / "m.onnx", zero=3), time_limit=0.01)

    # What is known beforehand may be the reason, and is told.
    assert "CHK005" in caught.value.context
