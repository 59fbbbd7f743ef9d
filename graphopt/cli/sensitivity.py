"""``graphopt sensitivity``: what quantizing each layer costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt import io
from graphopt.cli.common import (
    CalibrationBar,
    chosen_pipeline,
    chosen_target,
    data_options,
    json_option,
    pipeline_options,
    print_diagnostics,
    print_json,
    progress,
    seed_option,
)
from graphopt.diagnostics import DiagnosticSink
from graphopt.driver import open_data, optimize
from graphopt.errors import UsageError
from graphopt.pipeline import Fixpoint, Pipeline
from graphopt.pipeline.spec import make
from graphopt.runtime import load_callable

_PASS = "insert-qdq"


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@pipeline_options
@data_options
@click.option(
    "--metric", metavar="MODULE:FUNCTION", help="A task metric, measured for each layer: takes the outputs on all data."
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=16, show_default=True, help="Measure on so many samples."
)
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Print the N worst layers only.")
@seed_option
@json_option
def sensitivity(model: Path, **given: Any) -> None:
    """Measure what quantizing each layer costs, the worst first.

    The pipeline runs first; where it has the pass insert-qdq, its options hold. A line says how near the outputs come
    to float's when that layer alone is quantized, with the values that it reads and writes. Nothing is written.
    """
    if given["data"] is None:
        raise UsageError("there is no calibration data", hint="give inputs of your own with --data")
    chosen = chosen_pipeline(given["preset"], given["pipeline"], given["config"], given["settings"])
    diagnostics = DiagnosticSink()
    names = ("seed", "batch", "limit", "preprocess")
    bar = CalibrationBar()
    loaded = io.load(model)
    result = optimize(
        loaded,
        pipeline=_measuring(chosen, given["samples"]),
        target=chosen_target(given["target"]),
        data=open_data(loaded, given["data"], diagnostics, **{name: given[name] for name in names}),
        metric=load_callable(given["metric"]) if given["metric"] else None,
        progress=bar,
        instruments=progress(),
        diagnostics=diagnostics,
        seed=given["seed"],
    )
    bar.close()
    found = result.run.ctx.notes.get(_PASS, {}).get("sensitivity")
    if given["as_json"]:
        print_json({"model": str(model), "sensitivity": found})
        return
    print_diagnostics(diagnostics)
    click.echo("nothing in this model can be quantized" if found is None else _table(found, given["top"]))


def _measuring(spec: Pipeline, samples: int) -> Pipeline:
    """Return the steps of ``spec`` up to insert-qdq, which is added where it has none, and made to measure."""
    options = {"placement": "all", "sensitivity": samples}
    for index, step in enumerate(spec.steps):
        if not isinstance(step, Fixpoint) and step.name == _PASS:
            return Pipeline((*spec.steps[:index], make(_PASS, {**step.options(), **options})))
    return Pipeline((*spec.steps, make(_PASS, options)))


def _table(found: dict[str, Any], top: int | None) -> str:
    with_metric = "metric" in found
    rows: list[tuple[str, ...]] = [
        ("layer", "operator", "SQNR dB", "values", "weights", "MACs", *(["metric"] if with_metric else []))
    ]
    for unit in found["units"][:top]:
        decibels = [_number(unit[name]) for name in ("sqnr", "values_sqnr", "weights_sqnr")]
        metric = [f"{unit['metric']:.6g}"] if with_metric else []
        rows.append((unit["node"], unit["operator"], *decibels, f"{unit['macs']:,}", *metric))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([*names, *numbers]))
    whole = f"all of them: {_number(found['sqnr'])} dB"
    if with_metric:
        whole += f", metric {found['metric']:.6g} -> {found['quantized_metric']:.6g}"
    return "\n".join([*lines, whole])


def _number(decibel: float | None) -> str:
    return "" if decibel is None else f"{decibel:.1f}"
