"""Functions named as package.module:function."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from graphopt.errors import UsageError
from graphopt.runtime import load_callable


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_module_in_the_working_folder(folder: Path):
    (folder / "go_metrics.py").write_text("class Top:\n    @staticmethod\n    def one(o):\n        return 1.0\n")
    assert load_callable("go_metrics:Top.one")([]) == 1.0
    assert sys.path[0] != str(folder), "the working folder must not stay in front of the libraries"


def test_a_function_may_import_its_neighbours_when_called(folder: Path):
    (folder / "go_late.py").write_text("def f():\n    import go_neighbour\n    return go_neighbour.X\n")
    (folder / "go_neighbour.py").write_text("X = 5\n")
    assert load_callable("go_late:f")() == 5


@pytest.mark.parametrize(
    "spec, message",
    [
        ("metric.py", "expected package.module:function"),
        ("./go_bad.py:f", "expected package.module:function"),
        ("go_absent:f", "no module named 'go_absent'"),
        ("go_absent.inner:f", "no module named 'go_absent'"),
        ("go_good:g", "go_good has no 'g'"),
        ("go_good:x", "'x' is a int, which cannot be called"),
        ("go_broken:f", "importing go_broken failed: ZeroDivisionError"),
        ("go_needs:f", "importing go_needs failed: No module named 'go_nowhere'"),
        ("go_syntax:f", "importing go_syntax failed: SyntaxError"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, spec: str, message: str):
    (folder / "go_good.py").write_text("x = 1\ndef f(): pass\n")
    (folder / "go_broken.py").write_text("1 / 0\n")
    (folder / "go_needs.py").write_text("import go_nowhere\n")
    (folder / "go_syntax.py").write_text("def f(:\n")
    with pytest.raises(UsageError) as caught:
        load_callable(spec)
    assert message in caught.value.message and caught.value.where == spec
