"""What several commands share: options, choosing a pipeline, JSON, diagnostics, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from graphopt import targets
from graphopt.diagnostics import Diagnostic, DiagnosticSink, Severity, render_text
from graphopt.errors import UsageError
from graphopt.pipeline import Changes, Fixpoint, Instrument, Pass, Pipeline, Run, load_config, load_preset, parse
from graphopt.pipeline.registry import nearest
from graphopt.pipeline.spec import Step, make
from graphopt.targets import Target

F = TypeVar("F", bound=Callable[..., Any])


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator that adds several options, listed in that order by ``--help``."""

    def add(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return add


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of what is random."
)

pipeline_options = options(
    click.option(
        "--preset", metavar="NAME", help="A pipeline that graphopt ships (see `graphopt presets`).  [default: lossless]"
    ),
    click.option("--pipeline", metavar="TEXT", help="A pipeline as text: 'fold-constants,fixpoint(remove-dead)'."),
    click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="A pipeline as TOML."),
    click.option(
        "--set", "settings", multiple=True, metavar="PASS.OPTION=VALUE", help="Set an option of a pass in it."
    ),
    click.option("--target", metavar="NAME", help="Where the model is to run (see `graphopt targets`)."),
)

data_options = options(
    click.option("--data", metavar="DATA", help="Inputs: a .npz, .npy, folder, or package.module:callable."),
    click.option("--batch", type=click.IntRange(min=1), help="Samples a batch."),
    click.option("--limit", type=click.IntRange(min=1), help="Use so many samples at most."),
    click.option("--preprocess", type=click.Path(path_type=Path), metavar="FILE", help="TOML for a folder of images."),
    click.option("--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a symbolic axis."),
)


def chosen_pipeline(
    preset: str | None, pipeline: str | None, config: Path | None, settings: Sequence[str] = ()
) -> Pipeline:
    """Return the pipeline that the options name, ``lossless`` when none does, with ``settings`` applied.

    Raises UsageError when more than one names a pipeline, or one does not make sense.
    """
    given = [
        f"--{name}"
        for name, value in (("preset", preset), ("pipeline", pipeline), ("config", config))
        if value is not None
    ]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} each name a pipeline; give one of them")
    if pipeline is not None:
        spec = parse(pipeline)
    else:
        spec = load_config(config) if config is not None else load_preset(preset or "lossless")
    for setting in settings:
        spec = _with_setting(spec, setting)
    return spec


def _with_setting(spec: Pipeline, setting: str) -> Pipeline:
    place, equals, value = setting.partition("=")
    name, dot, key = place.partition(".")
    # Names of passes and of options may have dots in them: a pass of the pipeline wins.
    for item in spec.passes():
        if place.startswith(f"{item.name}."):
            name, key = item.name, place.removeprefix(f"{item.name}.")
    if not equals or not dot or not name or not key:
        raise UsageError("expected PASS.OPTION=VALUE", where=f"--set {setting}")
    require_pass(spec, name, f"--set {setting}")
    return Pipeline(tuple(_changed(step, name, key, value) for step in spec.steps))


def _changed(step: Step, name: str, key: str, value: str) -> Step:
    if isinstance(step, Fixpoint):
        return Fixpoint(tuple(_changed(inner, name, key, value) for inner in step.steps), step.max)
    return make(name, {**step.options(), key: value}) if step.name == name else step


def require_pass(spec: Pipeline, name: str, where: str) -> None:
    """Raise UsageError when no step of the pipeline has that name."""
    known = list(dict.fromkeys(item.name for item in spec.passes()))
    if name not in known:
        hint = nearest(name, known, f"its passes are: {', '.join(known) or 'none'}")
        raise UsageError(f"the pipeline has no pass {name!r}", where=where, hint=hint)


def chosen_target(name: str | None) -> Target | None:
    """Return the target of that name. Raises UsageError when there is none."""
    return None if name is None else targets.find(name)


def numbers(pairs: Iterable[str], option: str) -> dict[str, int]:
    """Return ``NAME=NUMBER`` arguments as a mapping. Raises UsageError."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.rpartition("=")
        if not equals or not name or not value.isdecimal():
            raise UsageError("expected NAME=NUMBER", where=f"{option} {pair}")
        found[name] = int(value)
    return found


def print_json(value: Mapping[str, Any]) -> None:
    """Write one JSON object to stdout."""
    click.echo(json.dumps(value, indent=2))


def print_diagnostics(diagnostics: Iterable[Diagnostic], *, remarks: bool = False) -> None:
    """Write warnings to stderr, and remarks too when asked for."""
    sink = DiagnosticSink()
    for diagnostic in diagnostics:
        sink.add(diagnostic)
    text = render_text(sink.at_least(Severity.REMARK if remarks else Severity.WARNING), limit=10**9 if remarks else 5)
    if text:
        click.echo(text, err=True)


class Progress(Instrument):
    """Shows on a terminal which pass is under way; the bar is gone when the run is over."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, run: Run) -> None:
        """Open the bar."""
        from tqdm import tqdm

        self._bar = tqdm(bar_format="{desc} [{elapsed}]", leave=False, file=sys.stderr)

    def before_pass(self, run: Run, item: Pass) -> None:
        """Name the pass."""
        self._bar.set_description_str(f"{run.step}: {item.name}")

    def after_pass(self, run: Run, item: Pass, changes: Changes) -> None:
        """Count it."""
        self._bar.update()

    def failed(self, run: Run, item: Pass, error: Exception) -> None:
        """Close the bar, so that the message stands alone."""
        self._bar.close()

    def finish(self, run: Run) -> None:
        """Close the bar."""
        self._bar.close()


class CalibrationBar:
    """Shows on a terminal how far the calibration data has been gone through; called after each batch."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int | None) -> None:
        """Move the bar."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc="calibration", unit="batch", leave=False, file=sys.stderr)
        if done < self._bar.n:
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def progress() -> list[Instrument]:
    """Return a progress bar when stderr is a terminal, nothing otherwise."""
    return [Progress()] if sys.stderr.isatty() else []
