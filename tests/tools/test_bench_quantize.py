"""tools/bench.py quantize: its pure parts, and one small run in which a tool fails."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]


def module(name: str) -> Any:
    """Import a module of tools/, which is no package."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))


bench = module("bench_quantize")
data = module("bench_quantize_data")
tool = module("bench_quantize_tool")
timing = module("bench_time")
memory = module("bench_memory")
worker = module("bench_quantize_worker")
zoo = module("bench_quantize_zoo")


class Numbers:
    """A session whose output is its input times a factor."""

    def __init__(self, factor: float) -> None:
        self.inputs = ()
        self.factor = factor

    def run(self, feeds: dict[str, Any], outputs: Any = None) -> dict[str, Any]:
        return {"y": feeds["x"] * np.float32(self.factor)}


def recorded(factor: float, reference: list[Any] | None = None) -> Any:
    recorder = bench.Recorder(Numbers(factor), reference)
    for value in (1.0, 3.0):
        recorder.run(None, {"x": np.full(4, value, np.float32)})
    return recorder


def test_noise_is_summed_over_all_runs_against_the_kept_reference():
    reference = recorded(1.0).outputs
    assert recorded(1.1, reference).sqnr_db == pytest.approx(20.0, abs=1e-4)  # an error of a tenth everywhere
    assert recorded(1.0, reference).sqnr_db == math.inf
    assert recorded(math.nan, reference).sqnr_db == -math.inf


def test_ctc_merges_repeats_and_drops_blanks():
    classes = [[0, 1, 1, 0, 1, 2, 2, 0], [2, 0, 0, 0, 3, 3, 0, 1]]
    scores = np.eye(4, dtype=np.float32)[classes]
    assert list(data.decode(scores, ["", "a", "b", " "])) == ["aab", "b a"]


def test_lines_repeat_and_calibration_has_none_of_the_test():
    calibration, test = (data.line_texts(seed, data.LINES) for seed in (data.CALIBRATION_SEED, data.TEST_SEED))
    assert test == data.line_texts(data.TEST_SEED, data.LINES)
    assert len(set(test)) == len(test) == data.LINES
    assert not set(calibration) & set(test)


def test_a_line_is_drawn_into_the_recognisers_input():
    lines = [data.render("Amber 12345", np.random.default_rng(7)) for _ in range(2)]
    np.testing.assert_array_equal(*lines)
    line = lines[0]
    assert line.shape == (3, 48, 320) and line.dtype == np.float32
    assert line.min() >= -1.0 and line.max() <= 1.0
    assert line[:, :, :100].std() > 0.2  # ink on paper
    assert not line[:, :, 300:].any()  # padding


def test_samples_are_fed_one_by_one_from_the_file(tmp_path: Path):
    images = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.savez(tmp_path / "c.npz", images=images, ids=np.arange(3))
    (tmp_path / "maps").mkdir()
    feeds = list(worker.feeds(worker.mapped(tmp_path / "c.npz", str(tmp_path / "maps"))))
    assert [int(feed["ids"][0]) for feed in feeds] == [0, 1, 2]
    np.testing.assert_array_equal(np.concatenate([feed["images"] for feed in feeds]), images)


def test_memory_of_started_processes_counts():
    assert memory.anonymous_megabytes() > 10
    assert memory.status_megabytes(Path("/proc/0/status"), "RssAnon:") == 0.0


def test_every_model_is_first_in_turn():
    names = ["a", "b", "c"]
    orders = [timing.rotated(names, index) for index in range(6)]
    assert {order[0] for order in orders} == set(names)
    assert all(sorted(order) == names for order in orders)


def test_turns_give_ratios_to_the_base(tmp_path: Path):
    model = ROOT / "models" / "fashion_cnn.onnx"
    feed = {"images": np.zeros((1, 1, 28, 28), np.float32)}
    ratios = timing.in_turns({"float": model, "twin": model}, feed, "float", timing.Stopwatch(3, 0.0))
    assert ratios["float"] == 1.0 and 0.1 < ratios["twin"] < 10.0


def test_the_last_error_is_the_reason():
    stderr = "Warning: x\nTraceback:\nValueError: no axis 7\n[0m see the log\n"
    assert tool.reason(stderr) == "ValueError: no axis 7"
    assert tool.reason("") == ""


def record(name: str, **facts: Any) -> Any:
    return tool.Record("net", name, **facts)


def test_table_and_summary():
    records = [
        record("float", score=0.9, latency=1.0, bytes=4_000_000),
        record("graphopt", score=0.895, sqnr_db=25.0, latency=0.4, seconds=5.0, peak_mb=100.0, bytes=1_000_000),
        record("ort-percentile", score=0.89, sqnr_db=21.0, latency=0.5, seconds=20.0, peak_mb=1000.0),
        record("onnxsim", score=0.9, sqnr_db=30.0, latency=1.5),
        record("nncf", failure="a|b"),
    ]
    text = bench.table(records, {"net": "top-1"})
    assert "| **net** (top-1) | *float* | 90.0% | - | 1.000 | - | - | 4.00 |" in text
    assert "| graphopt | 89.5% | 25.0 | 0.400 | 5.0 | 100 | 1.00 |" in text
    assert "nncf (a/b) | - | - | - |" in text
    # The best peer in SQNR is slower than float, so it does not count.
    assert text.splitlines()[-1] == (
        "- net: -0.5 points, +4.0 dB against ort-percentile, 0.80 of the latency of ort-percentile, "
        "0.25 of the seconds and 0.10 of the memory of ort-percentile"
    )


def test_reuse_keeps_costs_and_forgets_scores(tmp_path: Path):
    target = tmp_path / "net__nncf.onnx"
    target.write_bytes(b"x")
    settings = bench.Settings(None, 1, 1.0, 1.0, None, True)
    settings.note(record("nncf", score=0.5, latency=0.7, seconds=9.0, peak_mb=3.0, note="n"), target)
    again = record("nncf")
    assert bench.restored(again, target)
    assert (again.seconds, again.peak_mb, again.note, again.score, again.latency) == (9.0, 3.0, "n", None, None)
    target.unlink()
    assert not bench.restored(record("nncf"), target)


def test_zoo_table_names_what_is_slower():
    text = zoo.zoo_table([record("graphopt", sqnr_db=20.0, latency=1.03), tool.Record("b", "graphopt", latency=0.9)])
    assert text.splitlines()[-1] == "- slower than float by more than 2 %: net"


def test_growth_in_percent():
    assert zoo.Growth(200.0, 206.0).render() == "- ten times the inputs: 200 MB -> 206 MB (+3.0 %)"


def test_a_tool_that_is_missing_is_a_line_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = ROOT / "models" / "fashion_cnn.onnx"
    images = {"images": np.random.default_rng(0).standard_normal((4, 1, 28, 28)).astype(np.float32)}

    def score(session: Any, limit: int | None) -> float:
        outputs = session.run(None, images)[0]
        return float(np.mean(outputs.argmax(1) == 0))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    task = data.Task("fashion_cnn", "zeros", lambda: path, lambda: images, score, lambda: images)
    monkeypatch.setattr(bench, "all_tasks", lambda: [task])
    report = tmp_path / "q.json"
    arguments = ["--tool", "nncf", "--tool", "ort-minmax", "--peers-python", sys.executable, "--rounds", "2"]
    done = CliRunner().invoke(bench.quantize, [*arguments, "--json", str(report)])
    assert done.exit_code == 0, done.output
    records = {r["tool"]: r for r in json.loads(report.read_text())["records"]}
    assert "nncf" in records["nncf"]["failure"] and records["nncf"]["latency"] is None
    assert records["float"]["latency"] == 1.0
    static = records["ort-minmax"]
    assert static["failure"] is None, static["failure"]
    assert static["sqnr_db"] > 10 and static["latency"] > 0 and static["seconds"] > 0 and static["peak_mb"] > 10


def test_an_unknown_model_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "all_tasks", list)
    done = CliRunner().invoke(bench.quantize, ["--model", "resnet_9000"])
    assert done.exit_code == 2 and "no model named resnet_9000" in done.output
