"""docs/splitting.md keeps its word: its pipelines parse, and its codes, forms and options are those of the pass."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from graphopt.lowrank.costs import FORMS
from graphopt.passes import split_svd
from graphopt.pipeline import parse

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "splitting.md").read_text()


@pytest.mark.parametrize("text", [*re.findall(r"--pipeline '([^']*)'", PAGE), *re.findall(r"`(\S+\{\S+\}\S*)`", PAGE)])
def test_pipelines_on_the_page_parse(text: str) -> None:
    assert parse(text)


def test_the_page_names_every_form() -> None:
    assert re.findall(r"^\| `(\w+)` \| .* \| .* \| .* \|$", PAGE, re.M) == list(FORMS)


def test_codes_on_the_page_are_those_of_the_pass() -> None:
    assert set(re.findall(r"SPLIT\d{3}", PAGE)) <= set(re.findall(r"SPLIT\d{3}", inspect.getsource(split_svd)))


def test_options_on_the_page_exist() -> None:
    names = {item.name for item in dataclasses.fields(split_svd.SplitSvd)}
    assert set(re.findall(r"`(\w+)=\w+`", PAGE)) <= names
