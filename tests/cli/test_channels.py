"""``graphopt show --channels``."""

import json

import numpy as np
import pytest

from graphopt import io
from graphopt.__main__ import run
from tests.helpers import model_of


def saved(folder, model):
    path = folder / "in.onnx"
    io.save(model, path)
    return path


@pytest.fixture
def chain(tmp_path):
    nodes = " ".join(f"s{i + 1} = Conv(s{i}, k{i})" for i in range(3))
    weights = {f"k{i}": np.zeros((6, 6, 3, 3), np.float32) for i in range(3)}
    weights |= {"v": np.zeros((6, 3, 5, 5), np.float32), "w": np.zeros((2, 6, 1, 1), np.float32)}
    body = "g (float[1,3,32,32] x) => (float[n,c,h,p] y) { s0 = Conv(x, v) " + nodes + " y = Conv(s3, w) }"
    return saved(tmp_path, model_of(body, opset=18, weights=weights))


def test_a_line_for_each_group_and_for_each_reason(chain, capsys):
    assert run(["show", str(chain), "--channels"]) == 0
    out = capsys.readouterr().out.splitlines()

    assert out[0] == "4 groups, 24 units that can go one by one"
    assert out[2].split() == ["0", "6", "129", "s0", "->", "s1"]
    assert len([line for line in out if "Conv slides along it" in line]) == 1
    assert any("an output of the model: y[1]" in line for line in out)
    assert len(out) == 2 + 4 + 1 + 3


def test_everything_in_json(chain, capsys):
    assert run(["show", str(chain), "--channels", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert [group["units"] for group in found["groups"]] == [6, 6, 6, 6]
    assert found["groups"][0]["parameters_per_unit"] == 3 * 25 + 6 * 9
    assert found["groups"][0]["writers"] == ["s0"]
    assert {"value": "x", "axis": 1, "size": 3, "why": "an input of the model", "node": None} in found["pinned"]
    assert any(pin["node"] == "s0" and pin["size"] == 28 for pin in found["pinned"])


def test_a_model_with_nothing_to_prune_says_why(tmp_path, capsys):
    body = "g (float[4,6] x, int64[2] to) => (float[a,b] y) { p = MatMul(x, v) y = Reshape(p, to) }"
    path = saved(tmp_path, model_of(body, weights={"v": np.zeros((6, 8), np.float32)}))

    assert run(["show", str(path), "--channels"]) == 0
    out = capsys.readouterr().out

    assert out.startswith("0 groups, 0 units")
    assert "the shape is computed: p[0], p[1]" in out
    assert "hint: the preset lossless" in out
