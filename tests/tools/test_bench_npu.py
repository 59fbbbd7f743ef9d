"""tools/bench.py npu: its pure parts; no toolchain is asked."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from graphopt.runtime import Session
from tests.backend import planted

ROOT = Path(__file__).resolve().parents[2]


def module(name: str) -> Any:
    """Import a module of tools/, which is no package."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))


bench = module("bench_npu")
models = module("bench_npu_models")
simulator = module("bench_npu_simulator")


@pytest.fixture
def doubling(tmp_path):
    """A network of batch 1 whose output is its input twice."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", ends[:1], ends[1:])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def score(session, limit):
    """Feed four rows in two batches, as metrics do, and return the sum of what comes out."""
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)[:limit]
    batches = [rows[start : start + 3] for start in range(0, len(rows), 3)]
    return float(sum(session.run(None, {"x": batch})[0].sum() for batch in batches))


def test_a_metric_is_recorded_row_by_row_and_played_back(doubling):
    session = Session(doubling)
    recorder = simulator.Recorder(session)

    assert score(recorder, None) == 2 * 28
    assert [row["x"].shape for row in recorder.rows] == [(1, 2)] * 4
    player = simulator.Player(session, [[np.full((1, 2), index, np.float32)] for index in range(4)])
    assert score(player, None) == 2 * (0 + 1 + 2 + 3)


def test_samples_are_the_first_test_inputs(doubling):
    np.testing.assert_array_equal(simulator.rows_of(score, doubling, 3)["x"], np.arange(6).reshape(3, 2))


def test_open_dimensions_get_their_size_by_name_or_place(tmp_path):
    path = planted.convolutions(tmp_path / "m.onnx", batch="N")

    assert models.open_dims(path, {}) == {"N": 1}
    assert models.open_dims(path, {"x.0": 4}) == {"N": 4}
    assert models.random_inputs(path, {}, 3)["x"].shape == (3, 3, 16, 16)


def test_inputs_that_are_settings_become_constants(tmp_path):
    path = planted.convolutions(tmp_path / "m.onnx", batch="N")

    assert models.random_inputs(path, {}, 3, besides=["x"]) == {}
    assert bench.fixing({"N": 1, "x.1": 2}, {"sr": 16000}) == "fix-shapes{N=1,x.1=2},fix-inputs{sr=16000}"
    assert bench.fixing({}, {}) == ""


def test_pairs_of_16_bits_are_counted(tmp_path):
    assert bench.wide_share(planted.product(tmp_path / "w.onnx", np.uint16)) == 1.0
    assert bench.wide_share(planted.convolutions(tmp_path / "n.onnx")) == 0.0


def test_records_survive_a_run_that_was_cut_off(tmp_path):
    record = bench.NpuRecord("m", "qnn-htp:soc=60", "graphopt", passed=True, sqnr_db=23.4, metric=0.87, cycles=1200)
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps(asdict(record)) + "\n")

    assert bench._read(file) == [record]
    assert bench._read(tmp_path / "none.jsonl") == []


def test_the_table_tells_gates_that_failed_and_errors():
    passed = bench.NpuRecord("a", "rknn", "graphopt", passed=True, sqnr_db=float("inf"), cycles=1200)
    failed = bench.NpuRecord("b", "rknn", "plain", passed=False, gates={"opens": True, "integers": False})
    broken = bench.NpuRecord("c", "rknn", "plain", error="it | crashed")

    text = bench.render([passed, failed, broken])

    assert "| a | graphopt | all | inf | - | - | - | - | 1,200 | - | - |" in text
    assert "| b | plain | not integers |" in text
    assert "| c | plain | error: it / crashed |" in text


def test_what_goes_wrong_with_a_network_is_a_row_of_the_table(tmp_path):
    def absent():
        raise OSError("no such file")

    network = models.NpuModel("absent", absent, absent)
    target = bench.targets.find("qnn-htp")

    record = bench.measure(network, target, "graphopt", tmp_path, {"samples": 1, "limit": 0, "time_limit": 60})

    assert record.error == "no such file"
    assert record.passed is None
