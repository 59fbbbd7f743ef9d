"""``graphopt show`` and ``graphopt diff``: what models hold."""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path
from typing import Any

import click

from graphopt import io
from graphopt.analysis import Cost
from graphopt.cli.channels import channel_facts, channel_text
from graphopt.cli.common import json_option, numbers, print_diagnostics, print_json
from graphopt.io.importer import DIAGNOSTICS
from graphopt.ir import Model, Value, nodes, shape_of
from graphopt.ir.text import dump
from graphopt.pipeline.instruments import measure

weights_option = click.option(
    "--weights",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="Write out tensors of up to so many elements.",
)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--text", is_flag=True, help="Print the whole model as text.")
@click.option("--stats", is_flag=True, help="Print nodes and MACs of each operator.")
@click.option("--channels", is_flag=True, help="Print which channels can be pruned together, and why others cannot.")
@click.option(
    "--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a symbolic axis of the inputs, for MACs."
)
@weights_option
@json_option
def show(
    model: Path, text: bool, stats: bool, channels: bool, dims: tuple[str, ...], weights: int, as_json: bool
) -> None:
    """Tell what a model holds."""
    loaded = io.load(model)
    print_diagnostics(loaded.meta.get(DIAGNOSTICS, ()))
    if text:
        click.echo(dump(loaded, weights=weights), nl=False)
        return
    if channels:
        found = channel_facts(loaded)
        if as_json:
            print_json({"path": str(model), **found})
        else:
            click.echo(channel_text(found))
        return
    facts = _facts(loaded, numbers(dims, "--dim"))
    if as_json:
        print_json({"path": str(model), **facts})
        return
    click.echo(_summary(facts, stats=stats))


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--context", type=click.IntRange(min=0), default=3, show_default=True, help="Lines around each difference."
)
@weights_option
def diff(a: Path, b: Path, context: int, weights: int) -> int:
    """Compare two models line by line, as text.

    Weights count by their hash. Exit code 0: the same; 1: different.
    """
    old, new = (dump(io.load(path), weights=weights).splitlines() for path in (a, b))
    lines = list(difflib.unified_diff(old, new, str(a), str(b), n=context, lineterm=""))
    if lines:
        click.echo("\n".join(lines))
    return 1 if lines else 0


def _facts(model: Model, bindings: dict[str, int]) -> dict[str, Any]:
    cost = Cost.measure(model, bindings)
    macs: Counter[str] = Counter()
    for node, count in cost.macs.items():
        macs[node.op_type] += count
    operators = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in nodes(model))
    return {
        "ir_version": model.ir_version,
        "producer": " ".join(part for part in (model.producer_name, model.producer_version) if part) or None,
        "opsets": {domain or "ai.onnx": version for domain, version in sorted(model.opset_imports.items())},
        "inputs": [_value(value) for value in model.graph.inputs if not value.is_initializer()],
        "outputs": [_value(value) for value in model.graph.outputs],
        "functions": [":".join(part for part in key if part) for key in model.functions],
        "metadata": dict(model.metadata_props),
        "statistics": measure(model, bindings).to_json(),
        "macs_by_operator": dict(macs.most_common()),
        "dimensions_taken_as_1": list(cost.assumed),
        "operators": dict(operators.most_common()),
    }


def _value(value: Value) -> dict[str, Any]:
    shape = shape_of(value)
    return {
        "name": value.name,
        "type": value.dtype.name.lower() if value.dtype is not None else str(value.type or "?"),
        "shape": None if shape is None else list(shape),
    }


def _summary(facts: dict[str, Any], *, stats: bool) -> str:
    size = facts["statistics"]
    lines = [f"ONNX IR {facts['ir_version']}, " + ", ".join(f"{d} {v}" for d, v in facts["opsets"].items())]
    if facts["producer"]:
        lines.append(f"producer    {facts['producer']}")
    for kind in ("inputs", "outputs"):
        for index, value in enumerate(facts[kind]):
            lines.append(f"{'' if index else kind:<11} {_typed(value)}")
    if facts["functions"]:
        lines.append(f"functions   {', '.join(facts['functions'])}")
    lines.append(f"nodes       {size['nodes']:,}")
    lines.append(f"parameters  {size['parameters']:,} ({size['bytes']:,} bytes)")
    unknown = f" and {size['macs_unknown']} nodes of unknown shape" if size["macs_unknown"] else ""
    assumed = facts["dimensions_taken_as_1"]
    taken = f" ({', '.join(f'{dim}=1' for dim in assumed)})" if assumed else ""
    lines.append(f"MACs        {size['macs']:,}{unknown}{taken}")
    if stats:
        lines.append(f"{'operator':<32} {'nodes':>8} {'MACs':>16}")
        for name, count in facts["operators"].items():
            lines.append(f"{name:<32} {count:>8} {facts['macs_by_operator'].get(name, ''):>16}")
        return "\n".join(lines)
    histogram = ", ".join(f"{name} {count}" for name, count in facts["operators"].items())
    lines.append(f"operators   {histogram or 'none'}")
    return "\n".join(lines)


def _typed(value: dict[str, Any]) -> str:
    shape = value["shape"]
    dims = "" if shape is None else "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"
    return f"{value['name']}: {value['type']}{dims}"
