"""``graphopt optimize``: the main job."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from graphopt.backend.compile import require_compiler
from graphopt.calibration import Dataset
from graphopt.checking import compile_model
from graphopt.cli.common import (
    CalibrationBar,
    chosen_pipeline,
    chosen_target,
    data_options,
    json_option,
    numbers,
    options,
    pipeline_options,
    print_diagnostics,
    print_json,
    progress,
    require_pass,
    seed_option,
)
from graphopt.diagnostics import Diagnostic, DiagnosticSink, Severity
from graphopt.driver import RANDOM, Result, open_data
from graphopt.driver import optimize as run_optimize
from graphopt.errors import UsageError
from graphopt.ir import Model
from graphopt.numeric import DEFAULT_RTOL, Feeds, inputs_for, output_check
from graphopt.pipeline import Instrument, Pipeline
from graphopt.pipeline.instruments import Dump, NumericCheck, Reproducer, Snapshot, Statistics, Timing
from graphopt.runner import ModelRunner
from graphopt.runtime import Session, load_callable

_TOP = 6

run_options = options(
    click.option("--stop-after", type=click.IntRange(min=0), metavar="N", help="Stop after N executions of passes."),
    click.option("--fuel", multiple=True, metavar="PASS=N", help="Let a pass make N rewrites and no more."),
    click.option("--verify/--no-verify", default=True, show_default=True, help="Check the IR after each pass."),
    click.option("--check", is_flag=True, help="Run the model after each pass that changed it, against the original."),
    click.option("--rtol", type=float, default=DEFAULT_RTOL, show_default=True, help="What --check lets pass."),
)
calibration_options = options(
    click.option("--metric", metavar="MODULE:FUNCTION", help="The task metric: takes all outputs, higher is better."),
    click.option(
        "--cache", type=click.Path(path_type=Path), metavar="DIR", help="Keep calibration statistics for the next run."
    ),
)
watch_options = options(
    click.option("--timing", is_flag=True, help="Print the seconds of each pass."),
    click.option("--statistics", is_flag=True, help="Print the size of the model after each pass."),
    click.option("--remarks", is_flag=True, help="Print what was not done, and why."),
    click.option(
        "--report", type=click.Path(path_type=Path), metavar="FILE", help="Write the record of the run as JSON."
    ),
    click.option("--dump-before", multiple=True, metavar="PASS", help="Dump the IR before a pass, or before 'all'."),
    click.option("--dump-after", multiple=True, metavar="PASS", help="Dump the IR after a pass, or after 'all'."),
    click.option(
        "--dump-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where dumps go.  [default: OUT.dump]"
    ),
    click.option(
        "--repro", type=click.Path(path_type=Path), metavar="DIR", help="When a pass fails, write what replays it."
    ),
)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="OUT", help="The file to write."
)
@pipeline_options
@run_options
@data_options
@calibration_options
@watch_options
@click.option("--compile", "compiled", is_flag=True, help="Compile the result for the target, beside OUT.")
@seed_option
@json_option
def optimize(model: Path, output: Path, **given: Any) -> None:
    """Run a pipeline over a model and write the result.

    The output is written completely or not at all. Exit codes: 2 wrong usage, 3 model that cannot be read, 4 failed
    pass, 5 failed verification, 6 target.
    """
    spec = chosen_pipeline(given["preset"], given["pipeline"], given["config"], given["settings"])
    fuel = numbers(given["fuel"], "--fuel")
    for name in fuel:
        require_pass(spec, name, f"--fuel {name}={fuel[name]}")
    target = chosen_target(given["target"])
    if given["compiled"]:
        if target is None:
            raise UsageError("--compile needs a --target")
        require_compiler(target.toolchain, target.label)
    diagnostics = DiagnosticSink()
    timing, statistics = Timing(), Statistics(each_pass=given["statistics"])
    bar = CalibrationBar()
    result = run_optimize(
        model,
        output=output,
        pipeline=spec,
        target=target,
        data=_opener(given, diagnostics),
        metric=load_callable(given["metric"]) if given["metric"] else None,
        cache=given["cache"],
        progress=bar,
        verify=given["verify"],
        instruments=[*progress(), timing, statistics, *_instruments(model, output, given, spec, diagnostics)],
        diagnostics=diagnostics,
        report_file=given["report"],
        dims=numbers(given["dims"], "--dim"),
        seed=given["seed"],
        stop_after=given["stop_after"],
        fuel=fuel,
    )
    bar.close()
    compiled = compile_model(output, target=target) if given["compiled"] and target is not None else None
    _note_unused(result, given, diagnostics)
    if given["as_json"]:
        extra = {} if compiled is None else {"compiled": compiled.to_json()}
        print_json({**result.report(rewrites=False), "timing": timing.to_json(), **extra})
        return
    print_diagnostics(diagnostics, remarks=given["remarks"])
    _print_summary(result, statistics, all_shown=given["remarks"])
    if compiled is not None:
        click.echo(f"compiled: {', '.join(map(str, compiled.files))}: {compiled.detail}")
    for table in ([timing.table()] if given["timing"] else []) + ([statistics.table()] if given["statistics"] else []):
        click.echo(f"\n{table}")


def _instruments(
    model: Path, output: Path, given: dict[str, Any], spec: Pipeline, diagnostics: DiagnosticSink
) -> list[Instrument]:
    found: list[Instrument] = []
    if given["dump_before"] or given["dump_after"]:
        folder = given["dump_dir"] or output.with_name(f"{output.name}.dump")
        found.append(Dump(folder, before=given["dump_before"], after=given["dump_after"]))
    feeds: list[Feeds] = []
    if given["check"]:
        session = Session(model, optimize=False)
        feeds = _inputs(session, given, diagnostics)
        found.append(NumericCheck(output_check(session, feeds, given["rtol"])))
    if given["repro"] is not None:
        found.append(Reproducer(given["repro"], inputs=feeds, rtol=given["rtol"]))
    return found


def _opener(given: dict[str, Any], diagnostics: DiagnosticSink) -> Callable[[Model], Dataset] | None:
    """Return what opens the calibration data that the options name, once the model is loaded."""
    if given["data"] is None:
        return None
    names = ("seed", "batch", "limit", "preprocess")
    return partial(open_data, source=given["data"], diagnostics=diagnostics, **{name: given[name] for name in names})


def _note_unused(result: Result, given: dict[str, Any], diagnostics: DiagnosticSink) -> None:
    runner = result.run.ctx.runner
    used = isinstance(runner, ModelRunner) and runner.used
    if given["data"] is None or given["check"] or used:
        return
    text = "no pass of the pipeline used the data"
    diagnostics.add(Diagnostic(Severity.WARNING, "DATA007", text, hint="--check compares outputs on it"))


def _inputs(session: Session, given: dict[str, Any], diagnostics: DiagnosticSink) -> list[Feeds]:
    return list(
        inputs_for(
            session.inputs,
            None if given["data"] == RANDOM else given["data"],
            diagnostics,
            seed=given["seed"],
            batch=given["batch"],
            limit=given["limit"],
            preprocess=given["preprocess"],
            bindings=numbers(given["dims"], "--dim"),
        )
    )


def _print_summary(result: Result, statistics: Statistics, *, all_shown: bool) -> None:
    click.echo(f"{result.source} -> {result.output}")
    if statistics.before is not None and statistics.after is not None:
        click.echo(_sizes(statistics.before, statistics.after))
    rewrites: dict[str, int] = {}
    for record in result.run.records:
        rewrites[record.text] = rewrites.get(record.text, 0) + record.rewrites
    top = sorted(((count, text) for text, count in rewrites.items() if count), key=lambda row: -row[0])
    seconds = sum(record.seconds for record in result.run.records)
    total = sum(rewrites.values())
    click.echo(f"rewrites: {total}; executions of passes: {len(result.run.records)}, {seconds:.2f} s")
    for count, text in top[:_TOP]:
        click.echo(f"{count:12}  {text}")
    if len(top) > _TOP:
        click.echo(f"{sum(count for count, _ in top[_TOP:]):12}  by {len(top) - _TOP} more")
    remarks = len(result.diagnostics) - len(result.diagnostics.at_least(Severity.WARNING))
    if remarks and not all_shown:
        click.echo(f"remarks on what was not done: {remarks} (--remarks shows them)")


def _sizes(before: Snapshot, after: Snapshot) -> str:
    rows = [
        ("nodes", before.nodes, after.nodes),
        ("parameters", before.parameters, after.parameters),
        ("bytes", before.bytes, after.bytes),
    ]
    if not before.macs_unknown and not after.macs_unknown:
        rows.append(("MACs", before.macs, after.macs))
    lines = [f"{name:<10} {old:>14,} -> {new:>14,}  {_change(old, new)}" for name, old, new in rows]
    if before.macs_unknown or after.macs_unknown:
        known = (
            f"{after.macs:,}" if not after.macs_unknown else f"{after.macs:,} and {after.macs_unknown} nodes unknown"
        )
        lines.append(f"{'MACs':<10} {'?' if before.macs_unknown else f'{before.macs:,}':>14} -> {known:>14}")
    return "\n".join(lines)


def _change(old: int, new: int) -> str:
    return f"({(new - old) / old:+.1%})" if old else ""
