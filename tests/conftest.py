"""Options of the test suite, and what tests of several packages share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from graphopt.__main__ import run
from graphopt.pipeline import registry
from tests.plug_ins import install_plug_in

# The same examples on every machine, and no failure because a machine was busy.
settings.register_profile("graphopt", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("graphopt")

_PLUG_IN = """
from dataclasses import dataclass
from typing import ClassVar

from graphopt import Changes, Pass
from graphopt.ir import attr, nodes


@dataclass(frozen=True, kw_only=True)
class {kind}(Pass):
    \"""A pass of a test.\"""

    name: ClassVar[str] = "{name}"

    def run(self, model, ctx):
        {statement}
        return Changes({changes})
"""


@pytest.fixture
def graphopt(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command inside this process, which is much faster than starting one; exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the expected parts of the .case files")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--update-golden") and config.getoption("numprocesses", None):
        raise pytest.UsageError("--update-golden rewrites files one case at a time: run it without -n")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether expected texts are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Return a function that installs a pass as a plug-in: ``plug_in("Half", "ctx.edit.erase(...)")`` is ``half``."""
    folder = tmp_path / "plug_ins"
    monkeypatch.syspath_prepend(str(folder))

    def install(kind: str, statement: str, changes: str = "changed=1") -> Path:
        text = _PLUG_IN.format(kind=kind, name=kind.lower(), statement=statement, changes=changes)
        return install_plug_in(folder, f"plug_in_{kind.lower()}", kind, text)

    yield install
    # The next test must not see the plug-in in what the registry remembers.
    registry.passes.cache_clear()
