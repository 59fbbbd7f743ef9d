"""``graphopt bisect`` and ``graphopt replay``: from a failure to its cause."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from graphopt import io
from graphopt.bisect import Check
from graphopt.bisect import bisect as run_bisect
from graphopt.cli.common import (
    chosen_pipeline,
    chosen_target,
    data_options,
    json_option,
    numbers,
    pipeline_options,
    print_diagnostics,
    print_json,
    seed_option,
)
from graphopt.diagnostics import DiagnosticSink
from graphopt.errors import GraphOptError, UsageError, VerifyError
from graphopt.ir import Model
from graphopt.numeric import DEFAULT_RTOL, inputs_for, output_check
from graphopt.replay import replay as run_replay
from graphopt.runtime import Session, is_callable_spec, load_callable

_TAIL = 10


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@pipeline_options
@data_options
@click.option(
    "--rtol", type=click.FloatRange(min=0), default=DEFAULT_RTOL, show_default=True, help="What is near enough."
)
@click.option(
    "--check",
    metavar="CHECK",
    help="Instead of comparing outputs: a command, {} standing for the model's file, that fails on a broken one; "
    "or module:function that takes the file and returns False, or text, for a broken one.",
)
@seed_option
@json_option
def bisect(model: Path, **given: Any) -> None:
    """Find the pass and the rewrite that break a model.

    Broken is a model on which a pass fails, whose outputs differ from the original's by more than --rtol of their
    scale (on --data, or on random inputs), or that --check refuses.
    """
    spec = chosen_pipeline(given["preset"], given["pipeline"], given["config"], given["settings"])
    diagnostics = DiagnosticSink()
    check = _user_check(given["check"]) if given["check"] else _numeric_check(model, given, diagnostics)
    print_diagnostics(diagnostics)
    finding = run_bisect(
        model,
        spec,
        check=check,
        target=chosen_target(given["target"]),
        seed=given["seed"],
        progress=lambda line: click.echo(line, err=True),
    )
    if given["as_json"]:
        print_json(finding.to_json())
    else:
        click.echo(finding.render())


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def replay(folder: Path, as_json: bool) -> int:
    """Run a reproducer that --repro wrote.

    Leaves with the exit code of the failure when it happens again, with 0 when it does not.
    """
    repro, outcome = run_replay(folder)
    failure = outcome if isinstance(outcome, GraphOptError) else None
    if as_json:
        again = None if failure is None else failure.to_json()
        print_json({"pipeline": str(repro.pipeline), "recorded": repro.error, "error": again})
    elif failure is None:
        click.echo(f"{repro.pipeline}\nthe failure did not happen again; it was: {repro.error.get('message')}")
    else:
        click.echo(f"{repro.pipeline}\nit fails again:\n{failure}")
    return 0 if failure is None else failure.exit_code


def _numeric_check(model: Path, given: dict[str, Any], diagnostics: DiagnosticSink) -> Check:
    session = Session(model, optimize=False)
    feeds = inputs_for(
        session.inputs,
        given["data"],
        diagnostics,
        seed=given["seed"],
        batch=given["batch"],
        limit=given["limit"],
        preprocess=given["preprocess"],
        bindings=numbers(given["dims"], "--dim"),
    )
    raise_on_difference = output_check(session, feeds, given["rtol"])

    def check(changed: Model) -> str | None:
        try:
            raise_on_difference(changed)
        except GraphOptError as error:
            return str(error)
        return None

    return check


def _user_check(text: str) -> Check:
    ask = _ask_function(load_callable(text), text) if is_callable_spec(text) else _ask_command(text)

    def check(changed: Model) -> str | None:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            path = Path(folder) / "model.onnx"
            io.save(changed, path)
            return ask(path)

    return check


def _ask_command(text: str) -> Callable[[Path], str | None]:
    words = shlex.split(text)
    if not words:
        raise UsageError("--check names no command")

    def ask(path: Path) -> str | None:
        command = [word.replace("{}", str(path)) for word in words]
        if command == words:
            command.append(str(path))
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise UsageError(f"cannot run the check: {error.strerror}", where=text) from error
        if done.returncode == 0:
            return None
        tail = (done.stdout + done.stderr).strip().splitlines()[-_TAIL:]
        return "\n".join([f"{text!r} leaves with exit code {done.returncode}", *tail])

    return ask


def _ask_function(function: Callable[..., Any], text: str) -> Callable[[Path], str | None]:
    def ask(path: Path) -> str | None:
        try:
            answer = function(path)
        # The function is the user's and may raise anything; an assertion that fails is an answer too.
        except Exception as error:  # noqa: BLE001
            return f"{text} raises {type(error).__name__}: {error}"
        if answer is None or answer is True:
            return None
        if answer is False or isinstance(answer, str):
            return answer or f"{text} returns False"
        raise VerifyError(f"it returned a {type(answer).__name__}; expected True, False, a text or None", where=text)

    return ask
