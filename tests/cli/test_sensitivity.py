"""``graphopt sensitivity``: the table, the JSON object, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from graphopt import io
from graphopt.__main__ import run
from tests.helpers import model_of

BODY = """g (float[N,8] x) => (float[N,4] y) {
    [wide] a = MatMul(x, W) b = Relu(a) [narrow] c = MatMul(b, V) y = Identity(c)
}"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"W": (8, 16), "V": (16, 4)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    io.save(model_of(BODY, weights=weights), tmp_path / "in.onnx")
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((40, 8)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run(["sensitivity", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.usefixtures("folder")
class TestSensitivity:
    def test_prints_the_layers_with_the_worst_first(self, capsys):
        code, out, err = call(capsys, "in.onnx", "--data", "data.npz")
        lines = out.splitlines()

        assert (code, err) == (0, "")
        assert lines[0].split() == ["layer", "operator", "SQNR", "dB", "values", "weights", "MACs"]
        assert sorted(line.split()[0] for line in lines[1:3]) == ["narrow", "wide"]
        assert float(lines[1].split()[2]) <= float(lines[2].split()[2])
        assert lines[3].startswith("all of them: ")

    def test_prints_one_object_in_json(self, capsys):
        code, out, _ = call(capsys, "in.onnx", "--data", "data.npz", "--json", "--limit", "20", "--samples", "4")
        found = json.loads(out)

        assert code == 0
        assert found["model"] == "in.onnx"
        assert {unit["node"]: unit["macs"] for unit in found["sensitivity"]["units"]} == {"wide": 128, "narrow": 64}

    def test_shows_only_the_worst_when_asked(self, capsys):
        _, out, _ = call(capsys, "in.onnx", "--data", "data.npz", "--top", "1")

        assert len(out.splitlines()) == 3

    def test_adds_the_metric_of_each_layer(self, capsys, folder):
        text = "def rows(outputs):\n    return sum(len(o['y']) for o in outputs)\n"
        (folder / "metric_of_sensitivity.py").write_text(text)

        code, out, _ = call(capsys, "in.onnx", "--data", "data.npz", "--metric", "metric_of_sensitivity:rows")

        assert code == 0
        assert [line.split()[-1] for line in out.splitlines()[:3]] == ["metric", "40", "40"]
        assert out.rstrip().endswith("metric 40 -> 40")

    def test_takes_the_options_of_insert_qdq_in_the_pipeline(self, capsys):
        pipeline = "remove-identities,insert-qdq{keep=wide},remove-dead"

        _, out, _ = call(capsys, "in.onnx", "--data", "data.npz", "--pipeline", pipeline)

        assert "narrow" in out
        assert "wide" not in out

    def test_writes_nothing(self, capsys, folder):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}

        call(capsys, "in.onnx", "--data", "data.npz")

        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_says_when_there_is_nothing_to_quantize(self, capsys, folder):
        io.save(model_of("g (float[N,8] x) => (float[N,8] y) { y = Relu(x) }"), folder / "relu.onnx")

        code, out, _ = call(capsys, "relu.onnx", "--data", "data.npz")

        assert (code, out) == (0, "nothing in this model can be quantized\n")

    def test_refuses_to_go_without_data(self, capsys):
        code, _, err = call(capsys, "in.onnx")

        assert code == 2
        assert "--data" in err
