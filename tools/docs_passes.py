"""Writes docs/passes.md from the classes of the passes: python tools/docs_passes.py [--check]"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import click

from graphopt.pipeline import Pass
from graphopt.pipeline.base import format_option
from graphopt.pipeline.registry import PACKAGE, passes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "passes.md"
HEAD = """\
# The passes

This page is made from the code: run `python tools/docs_passes.py` after a change, do not edit it.

Options stand in braces behind a pass: `fold-constants{max_growth=4096}`. Codes are those of the remarks and warnings
that a pass may give.

"""
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
_BLANK = "…"


def page() -> str:
    """Return the page as the passes are now; plug-ins from other packages are left out."""
    kinds = [kind for kind in passes().values() if kind.__module__.startswith(f"{PACKAGE}.")]
    lines = ["| pass | lossless | what it does |", "|---|---|---|"]
    lines += [f"| [{k.name}](#{k.name}) | {'yes' if k.lossless else 'no'} | {k.summary()} |" for k in kinds]
    return HEAD + "\n".join([*lines, "", *(_section(kind) for kind in kinds)])


def _section(kind: type[Pass]) -> str:
    module = sys.modules[kind.__module__]
    parts = [f"## {kind.name}", kind.summary(), _markdown(inspect.getdoc(module) or "")]
    own = inspect.cleandoc(kind.__doc__ or "").split("\n\n", 1)[1:]
    parts += [_markdown(text) for text in own]
    if fields := dataclasses.fields(kind):
        rows = ["| option | type | default | bounds | |", "|---|---|---|---|---|", *(_option(kind, f) for f in fields)]
        parts.append("\n".join(rows))
    if codes := _codes(Path(inspect.getfile(kind)).read_text()):
        parts.append("\n".join(["| code | |", "|---|---|", *(f"| {code} | {text} |" for code, text in codes.items())]))
    return "\n\n".join(parts) + "\n"


def _option(kind: type[Pass], item: dataclasses.Field[Any]) -> str:
    bounds = [f"{_SIGNS[key]} {bound:g}" for key, bound in item.metadata["bounds"].items()]
    bounds += map(str, item.metadata["choices"] or ())
    cells = ["any name", "int", ""]
    if item.name != kind.free_options:
        cells = [item.name, str(item.type), f"`{format_option(item.default)}`"]
    return f"| {' | '.join(cells)} | {', '.join(bounds)} | {item.metadata['help']} |"


def _markdown(text: str) -> str:
    """Turn the little reStructuredText of docstrings into Markdown: literal blocks and literals."""
    text = re.sub(r"^(.*\S)::$", r"\1:", text, flags=re.MULTILINE)
    blocks = re.split(r"\n\n((?: {4}.*(?:\n|\Z)|\n(?= {4}))+)", text)
    for index, block in enumerate(blocks):
        literal = index % 2
        blocks[index] = (
            f"\n\n```text\n{inspect.cleandoc(block)}\n```\n" if literal else re.sub(r"``([^`]+)``", r"`\1`", block)
        )
    return "".join(blocks).strip()


def _codes(source: str) -> dict[str, str]:
    """Return the diagnostic codes in a pass's source with their texts, what is filled in left blank."""
    found: dict[str, str] = {}
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        if not (isinstance(call.func, ast.Attribute) and call.func.attr in ("missed", "warn") and len(call.args) >= 3):
            continue
        code = call.args[0]
        if isinstance(code, ast.Constant) and isinstance(code.value, str):
            found.setdefault(code.value, _text(call.args[2]))
    return dict(sorted(found.items()))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return _BLANK


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Write nothing; fail when the page is not up to date.")
def main(check: bool) -> None:
    text = page()
    if check and (not PAGE.exists() or PAGE.read_text() != text):
        sys.exit("docs/passes.md is not up to date: run python tools/docs_passes.py")
    if not check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
