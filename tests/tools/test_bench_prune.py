"""tools/bench.py prune-structure: what a record says of a result, and one model measured."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.helpers import shared

ROOT = Path(__file__).resolve().parents[2]


def module(name: str) -> Any:
    """Import a module of tools/, which is no package."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))


bench = module("bench_prune")


def record(model: str, **facts: Any) -> Any:
    sound = {"gmacs": (1.8, 0.4), "parameters": (11.7, 3.0), "loads": True, "runs": True, "shape_kept": True}
    return bench.Record(model, **(sound | facts))


def test_numbers_are_rounded_as_their_bar_is():
    assert record("resnet18", gmacs=(1.8, 0.494)).meets_bar
    assert not record("resnet18", gmacs=(1.8, 0.496)).meets_bar
    assert record("convnext_tiny", parameters=(28.6, 7.44)).meets_bar
    assert not record("convnext_tiny", parameters=(28.6, 7.46)).meets_bar


@pytest.mark.parametrize("missing", [{"shape_kept": False}, {"gmacs": None}])
def test_a_result_that_is_not_sound_meets_no_bar(missing):
    assert not record("resnet18", **missing).meets_bar


def test_a_model_that_fails_is_in_the_table_with_the_reason():
    found = bench.measure("resnet18", b"no model", "prune-channels")

    assert found.failure
    assert "NO" in bench.table([found])
    assert found.failure.replace("|", "/") in bench.table([found])


def test_one_model_from_the_command_line(tmp_path):
    shared("arch", "shufflenet.onnx")

    done = CliRunner().invoke(bench.prune_structure, ["--model", "shufflenet", "--json", str(tmp_path / "out.json")])

    assert done.exit_code == 0, done.output
    assert "| shufflenet | 0.073 |" in done.output
    assert (tmp_path / "out.json").is_file()


def test_a_bar_that_is_not_met_is_an_exit_code():
    shared("arch", "shufflenet.onnx")

    done = CliRunner().invoke(
        bench.prune_structure, ["--model", "shufflenet", "--pipeline", "prune-channels{channels=1.0}"]
    )

    assert done.exit_code == 1
