"""CONTRIBUTING.md keeps its word: its example pass works as printed, and the files that it names are there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt.pipeline import parse
from graphopt.pipeline.registry import PACKAGE, lookup
from tests.golden import check_case, read_cases
from tests.helpers import model_of, operators, optimized, run
from tests.plug_ins import install_plug_in

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", TEXT, re.DOTALL))
WRITTEN_BY_THE_READER = {"passes/remove_abs.py", "tests/passes/remove_abs.case", "tests/passes/test_remove_abs.py"}


@pytest.fixture
def example(tmp_path, plug_in):
    """Install the example pass; ``plug_in`` has put the folder on the path and cleans the registry up."""
    folder = tmp_path / "plug_ins"
    return install_plug_in(folder, "remove_abs", "RemoveAbs", EXAMPLES["remove_abs.py"])


def test_the_cases_of_the_example_hold(tmp_path, example):
    file = tmp_path / "remove_abs.case"
    file.write_text(EXAMPLES["remove_abs.case"])
    cases = read_cases(file)[1]
    assert len(cases) == 4
    for case in cases:
        check_case(case)


def test_the_example_is_a_pass_like_any_other(example):
    kind = lookup("remove-abs")
    assert kind.summary() == "Remove Abs behind operators whose results are never negative."
    assert str(parse("remove-abs{relu=true}")) == "remove-abs{relu=true}"


def test_the_example_keeps_nan_and_outputs(example):
    before = model_of("g (float[4] x) => (float[4] a, float[4] y) { a = Exp(x) y = Abs(a) }")
    after, _ = optimized(before, "remove-abs")
    feeds = {"x": np.array([np.nan, np.inf, -np.inf, -0.0], np.float32)}
    for want, got in zip(run(before, feeds), run(after, feeds), strict=True):
        np.testing.assert_array_equal(got, want)
    assert operators(after)["Exp"] == 1


def test_the_example_keeps_the_style(example):
    pytest.importorskip("ruff", reason="ruff is not installed: pip install -e '.[dev]'")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--no-cache", example],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_files_it_names_are_there():
    names = set(re.findall(r"`((?:passes|graphopt|tests|tools|docs|\.ci)/[\w./*-]*)`", TEXT)) - WRITTEN_BY_THE_READER
    names |= {name for command in re.findall(r"^(?:pytest|python) (\S+\.py)", TEXT, re.MULTILINE) for name in [command]}
    assert len(names) > 15
    missing = [name for name in sorted(names) if not list(ROOT.glob(name.rstrip("/")))]
    assert not missing


def test_the_entry_point_group_is_the_real_one():
    assert f'[project.entry-points."{PACKAGE}"]' in TEXT
