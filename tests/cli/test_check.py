"""``graphopt check``, ``explain``, ``toolchains`` and ``optimize --compile``: exit codes, messages, JSON."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from graphopt import io, targets
from graphopt.backend import check_qnn, environments
from tests.backend import planted
from tests.helpers import model_of

needs_qnn = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_qnn") is None, reason="needs the extra: pip install 'graphopt[qnn]'"
)


def test_a_check_that_passes_ends_with_0_and_one_that_fails_with_7(tmp_path, graphopt):
    sound = planted.convolutions(tmp_path / "sound.onnx")
    faulty = planted.convolutions(tmp_path / "faulty.onnx", paired=False)

    assert graphopt("check", sound, "--target", "ort-cpu")[0] == 0
    code, out, _ = graphopt("check", faulty, "--target", "ort-cpu")
    assert code == 7
    assert "FAILED  integers: 1 of 2 quantized layers run in float: Conv 'second_conv'" in out


def test_json_holds_all_of_the_report(tmp_path, graphopt):
    path = planted.convolutions(tmp_path / "m.onnx")

    code, out, _ = graphopt("check", path, "--target", "ort-cpu", "--json")

    values = json.loads(out)
    assert (code, values["passed"]) == (0, True)
    assert {gate["name"] for gate in values["gates"]} == {"facts", "opens", "integers", "agreement"}
    assert {node["name"] for node in values["nodes"]} >= {"first_conv", "second_conv"}


def test_an_unknown_chip_is_a_usage_error_that_lists_the_known(tmp_path, graphopt):
    path = planted.convolutions(tmp_path / "m.onnx")

    code, _, err = graphopt("check", path, "--target", "qnn-htp:soc=4711")

    assert code == 2
    assert "soc=4711" in err
    assert "60" in err


def test_a_toolchain_that_is_not_installed_names_the_extra(tmp_path, graphopt, monkeypatch):
    absent = replace(check_qnn.QNN, package="onnxruntime_absent")
    monkeypatch.setattr(check_qnn, "QNN", absent)
    path = planted.convolutions(tmp_path / "m.onnx")

    code, _, err = graphopt("check", path, "--target", "qnn-htp")

    assert code == 6
    assert "no package onnxruntime_absent" in err
    assert "graphopt[qnn]" in err


def test_rknn_without_its_environment_says_how_to_make_it(tmp_path, graphopt, monkeypatch):
    monkeypatch.setenv("GRAPHOPT_RKNN", str(tmp_path / "nowhere"))

    code, _, err = graphopt("check", planted.convolutions(tmp_path / "m.onnx"), "--target", "rknn")

    assert code == 6
    assert "graphopt toolchains --install rknn" in err


def test_a_reference_with_other_outputs_is_a_usage_error(tmp_path, graphopt):
    net = planted.Net()
    other = net.save(tmp_path / "other.onnx", {"x": [1, 3, 16, 16]}, net.add("Relu", ["x"], "z"))

    code, _, err = graphopt(
        "check", planted.convolutions(tmp_path / "m.onnx"), "--target", "ort-cpu", "--reference", other
    )

    assert code == 2
    assert "no output 'z'" in err


def test_toolchains_are_listed_with_how_to_get_them(graphopt, monkeypatch, tmp_path):
    monkeypatch.setenv("GRAPHOPT_RKNN", str(tmp_path / "nowhere"))

    code, out, _ = graphopt("toolchains")

    assert code == 0
    assert "rknn: not installed: graphopt toolchains --install rknn" in out
    assert set(json.loads(graphopt("toolchains", "--json")[1])["toolchains"]) == {"qnn", "openvino", "ort", "rknn"}


def test_an_environment_that_cannot_be_made_says_what_failed(graphopt, monkeypatch, tmp_path):
    recipe = environments.Recipe(("not-a-requirement ==",), (sys.version_info[:2],), "pass")
    monkeypatch.setitem(environments.RECIPES, "rknn", recipe)

    code, _, err = graphopt("toolchains", "--install", "rknn", "--to", tmp_path / "env")

    assert code == 6
    assert "pip install" in err
    assert environments.python_of("rknn") != str(tmp_path / "env")


def test_an_environment_is_not_made_over_other_files(graphopt, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")

    code, _, err = graphopt("toolchains", "--install", "rknn", "--to", tmp_path)

    assert code == 2
    assert "not empty" in err


def test_a_finished_environment_is_found_by_its_variable(monkeypatch, tmp_path):
    recipe = environments.Recipe((), (sys.version_info[:2],), "import json")
    monkeypatch.setitem(environments.RECIPES, "rknn", recipe)
    monkeypatch.setattr(environments, "_run", lambda command, name: fake_venv(tmp_path / "env"))
    monkeypatch.setenv("GRAPHOPT_RKNN", str(tmp_path / "env"))
    assert environments.python_of("rknn") == ""

    environments.install("rknn")

    assert environments.python_of("rknn") == str(tmp_path / "env" / "bin" / "python")


def fake_venv(folder):
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "bin" / "python").touch()


def test_explain_counts_partitions_before_and_after(tmp_path, graphopt):
    faulty = planted.convolutions(tmp_path / "faulty.onnx", paired=False)
    sound = planted.convolutions(tmp_path / "sound.onnx")

    code, out, _ = graphopt("explain", faulty, sound, "--target", "ort-cpu")

    assert code == 0
    assert "breaks: 1 -> 0" in out
    values = json.loads(graphopt("explain", faulty, "--target", "ort-cpu", "--json")[1])
    assert [node["name"] for node in values["model"]["breaks"]] == ["second_conv"]


@pytest.mark.npu
@needs_qnn
def test_explain_names_the_cause_of_a_break_and_its_cure(tmp_path, graphopt):
    path = planted.convolutions(tmp_path / "m.onnx", between=planted.erf)

    _, out, _ = graphopt("explain", path, "--target", "qnn-htp")

    assert "partitions: 3 (2 target, 1 host)" in out
    assert "Erf 'erf_erf' runs on the CPU: Operators of type 'Erf' are not supported by QNN EP." in out
    assert "cure: " in out


@pytest.mark.npu
@needs_qnn
def test_compile_writes_a_context_model_that_computes_the_same(tmp_path, graphopt):
    path = planted.convolutions(tmp_path / "m.onnx")
    output = tmp_path / "out.onnx"

    code, out, _ = graphopt(
        "optimize", path, "-o", output, "--pipeline", "lift-constants", "--target", "qnn-htp:soc=43", "--compile"
    )

    assert code == 0
    assert "are identical" in out
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "m.onnx",
        "out.onnx",
        "out_ctx.onnx",
        "out_ctx_qnn.bin",
    ]


@pytest.mark.npu
@needs_qnn
def test_what_the_compiler_refuses_leaves_nothing_compiled_behind(tmp_path, graphopt):
    path = planted.convolutions(tmp_path / "m.onnx", between=planted.erf)

    code, _, err = graphopt(
        "optimize", path, "-o", tmp_path / "o.onnx", "--pipeline", "lift-constants", "--target", "qnn-htp", "--compile"
    )

    assert code == 6
    assert "refuses" in err
    assert list(tmp_path.glob("*ctx*")) == []


@pytest.mark.parametrize("target", [(), ("--target", "ort-cpu")])
def test_compile_without_a_compiler_is_refused_before_anything_is_done(tmp_path, graphopt, target):
    path = planted.convolutions(tmp_path / "m.onnx")

    code, _, _ = graphopt("optimize", path, "-o", tmp_path / "out.onnx", "--compile", *target)

    assert code == 2
    assert not (tmp_path / "out.onnx").exists()


def test_a_compiled_model_is_told_to_be_one(tmp_path, graphopt):
    body = "g (float[2] x) => (float[2] y) { y = com.microsoft.EPContext <embed_mode = 0, main_context = 1> (x) }"
    io.save(model_of(body, domain="com.microsoft"), tmp_path / "m_ctx.onnx")

    for command in ("check", "explain"):
        code, _, err = graphopt(command, tmp_path / "m_ctx.onnx", "--target", "qnn-htp")

        assert (code, "compiled already" in err) == (2, True)


def test_compile_without_the_toolchain_is_refused_before_anything_is_done(tmp_path, graphopt, monkeypatch):
    monkeypatch.setattr(check_qnn, "QNN", replace(check_qnn.QNN, package="onnxruntime_absent"))
    monkeypatch.setenv("GRAPHOPT_RKNN", str(tmp_path / "nowhere"))
    path = planted.convolutions(tmp_path / "m.onnx")

    for target, cure in (("qnn-htp", "graphopt[qnn]"), ("rknn", "--install rknn")):
        code, _, err = graphopt("optimize", path, "-o", tmp_path / "out.onnx", "--target", target, "--compile")

        assert (code, cure in err) == (6, True)
        assert not (tmp_path / "out.onnx").exists()


@pytest.mark.npu
@needs_qnn
def test_a_float_network_is_compiled_with_the_optimizations_that_a_session_makes(tmp_path, graphopt):
    source = Path(__file__).resolve().parents[2] / "models" / "fashion_cnn.onnx"
    output = tmp_path / "out.onnx"

    code, out, err = graphopt("optimize", source, "-o", output, "--preset", "none", "--target", "qnn-htp", "--compile")

    assert code == 0, err
    assert "are identical" in out


@pytest.mark.npu
@needs_qnn
def test_an_open_batch_is_compiled_for_one_sample(tmp_path, graphopt):
    path = planted.convolutions(tmp_path / "m.onnx", batch="N")

    code, _, err = graphopt(
        "optimize", path, "-o", tmp_path / "o.onnx", "--pipeline", "lift-constants", "--target", "qnn-htp", "--compile"
    )

    assert code == 0
    assert "the dimension N becomes 1" in err
    assert (tmp_path / "o_ctx.onnx").is_file()


def test_every_target_names_a_toolchain_that_there_is():
    from graphopt.backend.check import CHECKERS

    assert {targets.find(name).toolchain for name in targets.names()} <= {*CHECKERS, ""}
