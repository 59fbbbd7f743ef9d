"""``bench.py split``: what counts as meeting a bar, and that a whole run can be measured."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import io
from graphopt.pipeline import parse
from tests.helpers import model_of

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def module(name: str) -> Any:
    """Import a module of tools/, which is no package."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


bench = module("bench_split")
RECORD = bench.Record(bench.CASES[0], "refit", 70.0, 69.2, 20.0, 0.8, 0.8, 10, 0.9, 0.8, 1.0, 100)


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, True),
        ({"metric": 68.9}, False),
        ({"metric": 71.0}, True),
        ({"metric": None}, False),
        ({"latency": 1.01}, False),
        ({"slowest": 1.0}, False),
        ({"latency": 1.004}, True),
        ({"case": bench.CASES[3], "latency": 0.65, "sqnr": 22.0}, True),
        ({"case": bench.CASES[3], "latency": 0.66, "sqnr": 22.0}, False),
        ({"case": bench.CASES[3], "latency": 0.65, "sqnr": 21.9}, False),
    ],
)
def test_bars(changes: dict[str, Any], met: bool) -> None:
    assert replace(RECORD, **changes).meets_bar is met


@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: f"{case.model} {case.goal}")
@pytest.mark.parametrize("options", sorted(set(bench.VARIANTS.values())))
def test_pipelines_parse(case: Any, options: str) -> None:
    default = next(option.default for option in bench.split.params if option.name == "pipeline")
    assert parse(default.format(goal=case.goal, options=options))


def test_a_run_says_how_many_layers_it_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": (rng.standard_normal((64, 4)) @ rng.standard_normal((4, 64))).astype(np.float32)}
    io.save(
        model_of("agraph (float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }", weights=weights), tmp_path / "a"
    )
    found = bench.run(tmp_path / "a", tmp_path / "b", "split-svd{energy=0.99,speed=any,align=4}", None)
    assert found.split == 1 and found.peak_mb > 0
    assert bench._sqnr(tmp_path / "a", tmp_path / "b", {"x": np.ones((3, 64), np.float32)}) > 60
