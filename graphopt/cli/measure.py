"""``graphopt compare`` and ``graphopt bench``: how far two models are apart, and how fast they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from graphopt.cli.common import data_options, json_option, numbers, print_diagnostics, print_json, seed_option
from graphopt.diagnostics import DiagnosticSink
from graphopt.errors import VerifyError
from graphopt.numeric import inputs_for
from graphopt.runtime import Session, load_callable
from graphopt.runtime import bench as run_bench
from graphopt.runtime import compare as run_compare

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Threads inside one operator, 0 for all.",
)


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@data_options
@click.option(
    "--metric", metavar="MODULE:FUNCTION", help="A task metric: takes the outputs on all batches, returns a number."
)
@click.option(
    "--rtol", type=click.FloatRange(min=0), help="Fail above this difference, relative to the output's scale."
)
@click.option("--max-abs", type=click.FloatRange(min=0), help="Fail above this absolute difference.")
@threads_option
@seed_option
@json_option
def compare(a: Path, b: Path, **given: Any) -> int:
    """Run two models on the same inputs and compare their outputs.

    A is the reference. Exit code 5: an output is out of the tolerance given by --rtol and --max-abs (their sum, when
    both are given).
    """
    first, second = (Session(path, threads=given["threads"]) for path in (a, b))
    diagnostics = DiagnosticSink()
    bounded = given["rtol"] is not None or given["max_abs"] is not None
    result = run_compare(
        first,
        second,
        _batches(first, given, diagnostics),
        metric=load_callable(given["metric"]) if given["metric"] else None,
        rtol=(given["rtol"] or 0.0) if bounded else None,
        atol=given["max_abs"] or 0.0,
    )
    print_diagnostics(diagnostics)
    if given["as_json"]:
        print_json(result.to_json())
    else:
        click.echo(result.render())
    if not result.failures:
        return 0
    click.echo(f"graphopt: out of tolerance: {', '.join(result.failures)}", err=True)
    return VerifyError.exit_code


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path), required=False)
@data_options
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True, help="Runs of each at least.")
@click.option("--warmup", type=click.IntRange(min=0), default=3, show_default=True, help="Runs that do not count.")
@click.option("--min-seconds", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Go on for so long.")
@threads_option
@seed_option
@json_option
def bench(a: Path, b: Path | None, **given: Any) -> None:
    """Time a model, or two in turns, on the first batch of the data.

    The ratio is b's time over a's, run by run: below 1, b is faster.
    """
    settings = {"session.force_spinning_stop": "1"}  # idle threads of one model are not to slow down the other
    first = Session(a, threads=given["threads"], config=settings)
    second = None if b is None else Session(b, threads=given["threads"], config=settings)
    diagnostics = DiagnosticSink()
    feeds = next(iter(_batches(first, given, diagnostics)))
    print_diagnostics(diagnostics)
    result = run_bench(
        first,
        second,
        feeds,
        runs=given["runs"],
        warmup=given["warmup"],
        threads=given["threads"],
        min_seconds=given["min_seconds"],
    )
    if given["as_json"]:
        print_json(result.to_json())
    else:
        click.echo(result.render())


def _batches(session: Session, given: dict[str, Any], diagnostics: DiagnosticSink) -> Any:
    return inputs_for(
        session.inputs,
        given["data"],
        diagnostics,
        seed=given["seed"],
        batch=given["batch"],
        limit=given["limit"],
        preprocess=given["preprocess"],
        bindings=numbers(given["dims"], "--dim"),
    )
