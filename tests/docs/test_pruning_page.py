"""docs/pruning.md keeps its word: its command lines parse, and its picture shows what the analysis finds."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.pipeline import parse
from tests.analysis.channel_models import Found
from tests.helpers import model_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pruning.md").read_text()


def module(name: str) -> Any:
    """Import a module of tools/, which is no package."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))


picture = module("draw_group")


@pytest.mark.parametrize("text", re.findall(r"--pipeline '([^']*)'", PAGE))
def test_pipelines_on_the_page_parse(text):
    assert parse(text)


@pytest.mark.parametrize("name", ["prune-structure", "prune-accuracy", "prune-speed"])
def test_each_measured_table_has_its_place(name):
    assert re.search(rf"<!-- {name} -->\n(.*\n)*<!-- /{name} -->\n", PAGE)


def test_the_picture_is_the_one_that_the_tool_draws():
    assert picture.OUTPUT.read_text() == picture.drawing(), "run python tools/draw_group.py"
    assert f"]({picture.OUTPUT.name})" in PAGE


def test_the_groups_in_the_picture_are_those_that_the_analysis_finds():
    shapes = {weight.name: tuple(map(int, weight.shape.split(" x "))) for weight in picture.WEIGHTS}
    model = model_of(
        """g (float[1, 3, 16, 16] x) => (float[1, 128, 16, 16] y) {
            c0 = Conv <pads = [3, 3, 3, 3]> (x, W0, b0) h0 = Relu (c0)
            c1 = Conv <pads = [1, 1, 1, 1]> (h0, W1, b1) h1 = Relu (c1)
            c2 = Conv <pads = [1, 1, 1, 1]> (h1, W2, b2) s = Add (c2, h0) h2 = Relu (s)
            y = Conv <pads = [1, 1, 1, 1]> (h2, W3, b3)
        }""",
        weights={name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        | {f"b{name[1:]}": np.ones(shape[0], np.float32) for name, shape in shapes.items()},
    )
    found = Found(model)
    owners = {"A": found.owner("h0", 1, 0), "B": found.owner("h1", 1, 0), None: None}

    assert None not in (owners["A"], owners["B"])
    assert owners["A"] != owners["B"]
    for weight in picture.WEIGHTS:
        assert found.owner(weight.name, 0, 0) == owners[weight.outputs]
        assert found.owner(f"b{weight.name[1:]}", 0, 0) == owners[weight.outputs]
        assert found.owner(weight.name, 1, 0) == owners[weight.inputs]
    for activation in picture.ACTIVATIONS:
        assert found.owner(activation.name, 1, 0) == owners[activation.group]
