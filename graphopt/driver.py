"""The main job from file to file: load, run a pipeline, save, report. The command line and the public API share it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphopt import io
from graphopt.diagnostics import DiagnosticSink
from graphopt.ir import Model
from graphopt.pipeline import Instrument, Pipeline, Run, load_preset, parse, run_pipeline
from graphopt.runtime import evaluate
from graphopt.targets import Target
from graphopt.version import __version__


@dataclass(frozen=True)
class Result:
    """What :func:`optimize` returns: the model, where it was written, and the run with its records and rewrites."""

    model: Model
    run: Run
    output: Path | None = None
    diagnostics: DiagnosticSink = field(default_factory=DiagnosticSink)


def optimize(
    model: Model | str | Path | bytes,
    *,
    output: str | Path | None = None,
    preset: str = "lossless",
    pipeline: Pipeline | str | None = None,
    target: Target | None = None,
    instruments: Sequence[Instrument] = (),
    seed: int = 0,
    stop_after: int | None = None,
    fuel: Mapping[str, int] | None = None,
) -> Result:
    """Run a pipeline over a model and write the result to ``output`` when given.

    ``model`` is a path, serialized bytes or a loaded model, which is then changed in place. ``pipeline`` (its text or a
    Pipeline) wins over ``preset``. Raises GraphOptError; then nothing was written.
    """
    chosen = parse(pipeline) if isinstance(pipeline, str) else pipeline
    chosen = chosen if chosen is not None else load_preset(preset)
    loaded = model if isinstance(model, Model) else io.load(model)
    sink = DiagnosticSink()
    run = run_pipeline(
        loaded,
        chosen,
        evaluate,
        instruments=instruments,
        diagnostics=sink,
        target=target,
        seed=seed,
        stop_after=stop_after,
        fuel=dict(fuel or {}),
    )
    if output is None:
        return Result(loaded, run, None, sink)
    path = Path(output)
    io.save(loaded, path, provenance=_provenance(chosen, model))
    return Result(loaded, run, path, sink)


def _provenance(pipeline: Pipeline, source: Model | str | Path | bytes) -> dict[str, str]:
    """Return what goes into the metadata of the output: version, canonical pipeline and the input's hash."""
    facts = {"graphopt.version": __version__, "graphopt.pipeline": str(pipeline)}
    if isinstance(source, bytes):
        facts["graphopt.input_sha256"] = hashlib.sha256(source).hexdigest()
    elif isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            facts["graphopt.input_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return facts
