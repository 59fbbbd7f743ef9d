"""tools/bench.py simplify runs on the project's own models, and says so when a tool fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "simplify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_table_and_json(tmp_path: Path):
    report = tmp_path / "bench.json"
    tools = ["--tool", "graphopt", "--tool", "ort-basic", "--tool", "onnxslim"]
    quick = ["--peers-python", sys.executable, "--repeat", "1", "--runs", "3", "--min-seconds", "0"]
    done = run("--model", "fashion_cnn", *tools, *quick, "--json", str(report))
    assert done.returncode == 0, done.stderr
    data = json.loads(report.read_text())
    records = {r["tool"]: r for r in data["records"]}
    for tool in ("graphopt", "ort-basic"):
        r = records[tool]
        assert r["failure"] is None
        assert 0 < r["nodes"] <= data["originals"]["fashion_cnn"]
        assert r["seconds"] > 0 and r["peak_mb"] > 10 and r["latency"] > 0
        assert r["difference"] < 1e-5
    # The tests' own environment has no onnxslim: a tool that fails is a line of the table, not the end of the run.
    assert "onnxslim" in records["onnxslim"]["failure"] and records["onnxslim"]["nodes"] is None
    assert "| | onnxslim (exit code 1" in done.stdout and "| **fashion_cnn** | *original* |" in done.stdout


def test_an_unknown_model_is_named():
    done = run("--model", "resnet_9000")
    assert done.returncode == 2
    assert "no model named resnet_9000" in done.stderr and "silero_vad" in done.stderr
