"""tools/bench.py prune-speed: what its bars say, and each part on something small."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import graphopt
from tests.helpers import shared

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "models" / "fashion_cnn.onnx"
PIPELINE = "prune-channels{macs=RATIO}"


def module(name: str) -> Any:
    """Import a module of tools/, which is no package."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))


bench = module("bench_prune_speed")
memory = module("bench_memory")
synthetic = module("synthetic")
timing = module("bench_time")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A small convolutional network, ready to prune, in a folder of its own."""
    path = tmp_path / "tiny.onnx"
    graphopt.optimize(TINY, preset="lossless", output=path)
    return path


@pytest.mark.parametrize(
    ("model", "asked", "macs", "latency", "met"),
    [
        ("resnet18", 0.5, 0.50, 0.60, True),
        ("resnet18", 0.5, 0.50, 0.62, False),
        ("resnet18", 0.5, 0.40, 0.52, False),
        ("resnet18", 0.75, 0.75, 0.99, True),
        ("shufflenet", 0.5, 0.50, 0.99, True),
        ("shufflenet", 0.5, 0.50, 1.02, False),
        ("shufflenet", 0.5, None, None, False),
    ],
)
def test_half_the_macs_of_four_models_is_nearly_half_the_time_and_nothing_gets_slower(model, asked, macs, latency, met):
    assert bench.Latency(model, asked, macs, latency).meets_bar is met


def test_recovery_has_bars_for_time_and_memory_and_has_to_have_happened():
    def record(**facts: Any) -> Any:
        return bench.Recovered("resnet50", 256, **({"seconds": 200.0, "peak_mb": 2000.0, "refit": 5} | facts))

    assert record().meets_bar
    assert not record(seconds=250.0).meets_bar
    assert not record(peak_mb=3100.0).meets_bar
    assert not record(refit=0).meets_bar


def test_only_real_models_have_a_bar_in_seconds():
    assert not bench.Analysed("vit_b_16", 1000, 10, 2.1, False).meets_bar
    assert bench.Analysed("synthetic", 20_000, 10, 2.1, True).meets_bar


def test_growth_compares_the_time_a_node_takes():
    records = [
        bench.Analysed("vit_b_16", 10, 1, 9.0, False),
        bench.Analysed("large", 4000, 1, 8.0, True),
        bench.Analysed("small", 1000, 1, 1.0, True),
    ]
    assert bench.growth(records) == pytest.approx(2.0)
    assert bench.growth(records[:2]) is None


def test_a_model_is_pruned_and_timed_at_each_ratio(tiny):
    half, much = bench.latencies("tiny", tiny, (0.5, 0.9), PIPELINE, timing.Stopwatch(3, 0.0))

    assert half.macs <= 0.5 < much.macs <= 0.9
    assert 0.05 < half.latency < 10.0


def test_a_ratio_that_cannot_be_reached_is_in_the_table_with_the_reason(tiny):
    (record,) = bench.latencies("tiny", tiny, (0.001,), PIPELINE, timing.Stopwatch(1, 0.0))

    assert "cannot be reached" in record.failure
    assert record.failure in bench.latency_table([record])
    assert "NO" in bench.latency_table([record])


def test_the_analysis_of_a_synthetic_network_finds_its_groups():
    found = bench.analysed("synthetic", synthetic.network(120), is_synthetic=True)

    assert found.groups
    assert found.nodes == 121
    assert found.seconds > 0


def test_recovery_runs_in_a_process_of_its_own(tiny):
    found = bench.recovered("tiny", tiny, 8, PIPELINE, 120.0)

    assert found.failure is None
    assert found.refit
    assert found.macs <= 0.5
    assert found.peak_mb > 10
    assert "| tiny | 8 |" in bench.recovery_table(found)


def test_recovery_that_fails_says_why(tiny):
    found = bench.recovered("tiny", tiny, 8, "prune-channels{macs=2}", 120.0)

    assert found.failure
    assert "macs" in found.failure
    assert not found.meets_bar


def test_the_peak_is_seen_after_what_caused_it_is_gone():
    with memory.PeakMemory() as peak:
        before = memory.anonymous_megabytes()
        held = np.ones(8 << 20)
        time.sleep(0.1)
        del held
    assert peak.megabytes > before + 50


def test_from_the_command_line(tmp_path):
    shared("arch", "shufflenet.onnx")
    options = ["--part", "latency", "--model", "shufflenet", "--rounds", "1", "--json", str(tmp_path / "out.json")]

    done = CliRunner().invoke(bench.prune_speed, options)

    assert "| shufflenet | 0.5 |" in done.output, done.output
    (record,) = json.loads((tmp_path / "out.json").read_text())["latency"]
    assert done.exit_code == (0 if record["latency"] < 1.005 else 1)
