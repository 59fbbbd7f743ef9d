"""The main job from file to file, on the command line and from Python."""

import subprocess
import sys
import time

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import io
from graphopt.__main__ import run
from graphopt.errors import ModelError, UsageError, VerifyError
from tests.helpers import check_equivalent, model_of, operators, shared

BODY = "g (float[N,3] x) => (float[N,4] y) { a = Identity(x) b = MatMul(a, w) y = Relu(b) }"
WEIGHTS = {"w": np.arange(12, dtype=np.float32).reshape(3, 4)}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.onnx"
    io.save(model_of(BODY, weights=WEIGHTS), path)
    return path


def test_a_real_model_gets_smaller_and_stays_equivalent(tmp_path, capsys):
    source = shared("models", "cifar10_resnet20.onnx")
    target = tmp_path / "out.onnx"
    assert (
        run(["optimize", str(source), "-o", str(target), "--pipeline", "fold-constants,fold-shapes,remove-identities"])
        == 0
    )

    before, after = io.load(source), io.load(target)
    assert sum(operators(after).values()) < sum(operators(before).values())
    feeds = {"input": np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)}
    check_equivalent(before, after, feeds)


def test_the_same_command_twice_gives_the_same_bytes(tmp_path, source):
    outputs = []
    for name in ("a.onnx", "b.onnx"):
        command = [sys.executable, "-m", "graphopt", "optimize", str(source), "-o", str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        outputs.append((tmp_path / name).read_bytes())

    assert outputs[0] == outputs[1]


def test_watching_a_run_does_not_change_its_result(tmp_path, source):
    plain, watched = tmp_path / "a.onnx", tmp_path / "b.onnx"
    run(["optimize", str(source), "-o", str(plain), "--no-verify"])
    run(["optimize", str(source), "-o", str(watched), "--check", "--statistics", "--timing", "--dump-after", "all",
         "--dump-dir", str(tmp_path / "dumps"), "--repro", str(tmp_path / "repro")])  # fmt: skip

    assert plain.read_bytes() == watched.read_bytes()


def test_a_model_may_be_written_over_itself(source):
    assert run(["optimize", str(source), "-o", str(source), "--pipeline", "remove-identities"]) == 0

    assert operators(io.load(source)) == {"MatMul": 1, "Relu": 1}


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "model"])
def test_python_takes_paths_bytes_and_models(tmp_path, source, kind):
    given = {
        "path": source,
        "text": str(source),
        "bytes": source.read_bytes(),
        "model": io.load(source),
    }[kind]
    result = graphopt.optimize(given, output=tmp_path / "out.onnx", pipeline="remove-identities")

    assert operators(result.model) == operators(io.load(tmp_path / "out.onnx")) == {"MatMul": 1, "Relu": 1}
    assert (result.sha256 is None) == (kind == "model")
    assert result.report()["rewrite_count"] == 1


def test_a_model_handed_over_is_verified_first(source):
    model = io.load(source)
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)

    with pytest.raises(VerifyError, match="IR008"):
        graphopt.optimize(model, pipeline="")


def test_an_unknown_operator_of_another_domain_passes_through_with_a_remark(tmp_path):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        g (float[2] x) => (float[2] y) { a = Identity(x) b = acme.Wobble <speed = 3> (a) y = Identity(b) }"""
    )
    result = graphopt.optimize(model.SerializeToString(), pipeline="remove-identities")

    assert operators(result.model) == {"Wobble": 1}
    (remark,) = [d for d in result.diagnostics if d.code == "MODEL001"]
    assert remark.node == "acme::Wobble"


def test_an_unknown_operator_of_the_default_domain_passes_through_too():
    result = graphopt.optimize(model_of("g (float[2] x) => (float[2] y) { a = Identity(x) y = Wobble_TRT(a) }"))

    assert operators(result.model)["Wobble_TRT"] == 1
    assert [d.node for d in result.diagnostics if d.code == "MODEL001"] == ["Wobble_TRT"]


def test_an_operator_that_the_model_defines_itself_is_known():
    functions = '<opset_import: ["" : 17], domain: "local"> Twice (a) => (b) { b = Add(a, a) }'
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[2] x) => (float[2] y) {{ y = local.Twice(x) }}
        {functions}"""
    )

    assert list(graphopt.optimize(model.SerializeToString(), pipeline="").diagnostics) == []


def test_a_contradiction_around_an_unknown_operator_is_only_a_remark():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        g (float[2,3] x, float[5,4] w) => (float[a,b] z) { y = MatMul(x, w) z = acme.Wobble(y) }"""
    )
    result = graphopt.optimize(model.SerializeToString(), pipeline="")

    assert [d.code for d in result.diagnostics] == ["MODEL001", "MODEL002"]


def test_a_contradiction_is_a_model_error():
    model = model_of(BODY, weights={"w": np.ones((7, 4), np.float32)})

    with pytest.raises(ModelError, match="contradicts itself"):
        graphopt.optimize(model)


def test_a_wrong_declared_output_shape_is_put_right_with_a_warning():
    result = graphopt.optimize(
        model_of(BODY.replace("float[N,4] y", "float[N,9] y"), weights=WEIGHTS), pipeline="remove-dead"
    )

    assert "SHAPE001" in {d.code for d in result.diagnostics}


def test_nothing_is_read_when_the_output_cannot_be_written(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        graphopt.optimize(tmp_path / "absent.onnx", output=tmp_path / "no" / "out.onnx")


def test_help_answers_at_once():
    command = [sys.executable, "-m", "graphopt", "--help"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    best = 9.0
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        best = min(best, time.perf_counter() - begin)

    assert best < 0.3


def test_help_imports_no_heavy_library():
    code = (
        "import sys, graphopt.__main__ as main; main.run(['--help'])\n"
        "heavy = {'onnx', 'onnx_ir', 'onnxruntime', 'numpy', 'sympy', 'networkx', 'tqdm', 'PIL'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
