"""docs/passes.md is what the passes say of themselves."""

from __future__ import annotations

import runpy
from pathlib import Path

from graphopt.pipeline.registry import PACKAGE, passes

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "docs_passes.py"))


def test_it_is_up_to_date():
    found = (ROOT / "docs" / "passes.md").read_text()
    assert found == TOOL["page"](), "run python tools/docs_passes.py and commit docs/passes.md"


def test_every_pass_is_on_it_with_options_codes_and_an_example():
    text = TOOL["page"]()
    for name, kind in passes().items():
        if kind.__module__.startswith(f"{PACKAGE}."):
            assert f"\n## {name}\n\n{kind.summary()}\n" in text
    assert "| max_growth | int | `1048576` | ≥ 0 | bytes" in text
    assert "| FOLD001 | " in text
    assert "Before:\n\n```text\ny = Relu(x)\nunused = Exp(x)\n```\n\nAfter:" in text


def test_a_plug_in_is_not_on_it(plug_in):
    plug_in("Foreign", "pass")
    assert "foreign" in passes()
    assert "foreign" not in TOOL["page"]()
