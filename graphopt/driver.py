"""The main job from file to file: load, run a pipeline, save, report. The command line and the public API share it."""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphopt import io
from graphopt.backend.legalize import refused, sizes, steps
from graphopt.calibration import Dataset, dataset_from_feeds, open_dataset, random_inputs
from graphopt.calibration.collect import Progress
from graphopt.calibration.sessions import session_of
from graphopt.diagnostics import Diagnostic, DiagnosticSink, Severity
from graphopt.errors import UsageError
from graphopt.io.importer import DIAGNOSTICS
from graphopt.io.surgeon import run_script
from graphopt.ir import Model
from graphopt.pipeline import Instrument, Pipeline, Run, load_preset, parse, run_pipeline
from graphopt.pipeline.instruments import Statistics, Verify
from graphopt.pipeline.spec import make
from graphopt.report import report, write_report
from graphopt.runner import Metric, ModelRunner
from graphopt.runtime import evaluate
from graphopt.soundness import InputCheck
from graphopt.targets import Target
from graphopt.version import __version__

Source = Model | str | Path | bytes
RANDOM = "random"
"""The name under which made-up calibration data is asked for."""
_RANDOM_SAMPLES = 8


@dataclass(frozen=True)
class Result:
    """What :func:`optimize` returns: the model, where it was written, and the run with its records and rewrites.

    ``source`` is the path of the input, ``None`` when it came from memory, and ``sha256`` its hash, ``None`` when it
    was handed over loaded or nothing was written.
    """

    model: Model
    run: Run
    output: Path | None = None
    diagnostics: DiagnosticSink = field(default_factory=DiagnosticSink)
    source: str | None = None
    sha256: str | None = None

    def report(self, *, rewrites: bool = True) -> dict[str, Any]:
        """Return what the run did as plain values; ``rewrites=False`` leaves out the list of single rewrites."""
        measured = [item for item in self.run.instruments if isinstance(item, Statistics)]
        return report(
            self.run,
            source=self.source,
            sha256=self.sha256,
            output=self.output,
            statistics=measured[0] if measured else None,
            rewrites=rewrites,
        )


@contextmanager
def _cyclic_gc_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector: it would walk the growing model again and again and find nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_cyclic_gc_paused()
def optimize(
    model: Source,
    *,
    output: str | Path | None = None,
    preset: str = "lossless",
    pipeline: Pipeline | str | None = None,
    target: Target | None = None,
    data: Dataset | Callable[[Model], Dataset] | str | Path | None = None,
    metric: Metric | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
    verify: bool = True,
    instruments: Sequence[Instrument] = (),
    diagnostics: DiagnosticSink | None = None,
    report_file: str | Path | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    stop_after: int | None = None,
    fuel: Mapping[str, int] | None = None,
) -> Result:
    """Run a pipeline over a model and write the result to ``output`` when given.

    ``model`` is a path, serialized bytes or a loaded model, which is then changed in place. ``pipeline`` (its text or a
    Pipeline) wins over ``preset``. ``data`` is calibration data, as :func:`open_data` takes it, or
    opened by a function of the loaded model; ``metric`` gets the
    outputs on all batches and tells how good they are (higher is better); ``cache`` is a folder that keeps calibration
    statistics for the next run; ``progress`` is called as the data is gone through. ``verify`` checks the invariants of
    the model after each pass. ``dims`` are the sizes that symbolic dimensions of the inputs get where the target needs
    static shapes. ``stop_after`` bounds the executions of passes, ``fuel`` the rewrites of single passes by
    name. ``report_file`` gets the record of the run as JSON. Raises GraphOptError; then no model was written.
    """
    chosen = parse(pipeline) if isinstance(pipeline, str) else pipeline
    chosen = chosen if chosen is not None else load_preset(preset)
    path = None if output is None else Path(output)
    for target_path in (path, None if report_file is None else Path(report_file)):
        if target_path is not None:
            _check_writable(target_path)
    loaded = model if isinstance(model, Model) else io.load(model)
    sink = diagnostics if diagnostics is not None else DiagnosticSink()
    for diagnostic in loaded.meta.get(DIAGNOSTICS, ()):
        sink.add(diagnostic)
    first = legal_steps(loaded, target, dims or {}, sink)
    chosen = Pipeline((*first.steps, *chosen.steps))
    # The importer has verified what it loaded; a model that was handed over may be anything.
    checks: list[Instrument] = [Verify(at_start=loaded is model)] if verify else []
    dataset = _dataset(loaded, data, sink, seed)
    statistics = None if cache is None else Path(cache)
    exact = target is not None and not target.is_host
    runner = ModelRunner(dataset, metric=metric, cache=statistics, progress=progress, diagnostics=sink, exact=exact)
    with ThreadPoolExecutor(1) as pool:  # hashing releases the interpreter, and large files take a while
        wanted = path is not None or report_file is not None
        hashing = pool.submit(sha256_of, model) if wanted else None
        run = run_pipeline(
            loaded,
            chosen,
            evaluate,
            surgeon=_run_surgeon,
            instruments=[InputCheck(None if isinstance(model, Model) else model), *checks, *instruments],
            diagnostics=sink,
            target=target,
            runner=runner,
            seed=seed,
            stop_after=stop_after,
            fuel=dict(fuel or {}),
        )
        digest = None if hashing is None else hashing.result()
    if target is not None:
        for node in refused(loaded, target):
            sink.add(node.diagnostic(target))
    if path is not None:
        io.save(loaded, path, provenance=_provenance(chosen, digest))
    result = Result(loaded, run, path, sink, str(model) if isinstance(model, str | Path) else None, digest)
    if report_file is not None:
        write_report(result.report(), Path(report_file))
    return result


def legal_steps(model: Model, target: Target | None, dims: Mapping[str, int], sink: DiagnosticSink) -> Pipeline:
    """Give ``model`` the static shapes that ``target`` needs; return what has to run before the user's pipeline.

    Raises UsageError for dimensions whose size nobody gave.
    """
    if target is None:
        return Pipeline(())
    if not target.verified:
        sink.add(unverified(target))
    found: list[Diagnostic] = []
    fixed = sizes(model, target, dims, found) if target.static_shapes else {}
    for diagnostic in found:
        sink.add(diagnostic)
    if fixed:
        run_pipeline(model, Pipeline((make("fix-shapes", dict(fixed)),)), evaluate, diagnostics=sink, target=target)
    return Pipeline(tuple(step for text in steps(model, target) for step in parse(text).steps))


def unverified(target: Target) -> Diagnostic:
    """Return the warning that nothing stated of ``target`` was tried on the real thing."""
    text = f"the facts about the target {target.name} are not verified: {target.source}"
    return Diagnostic(Severity.WARNING, "TARGET001", text, hint="run the result on the device before relying on it")


def _dataset(
    model: Model, data: Dataset | Callable[[Model], Dataset] | str | Path | None, sink: DiagnosticSink, seed: int
) -> Dataset | None:
    if data is None or isinstance(data, Dataset):
        return data
    dataset = open_data(model, data, sink, seed=seed) if isinstance(data, str | Path) else data(model)
    for diagnostic in dataset.diagnostics:
        sink.add(diagnostic)
    return dataset


def open_data(
    model: Model,
    source: str | Path,
    diagnostics: DiagnosticSink,
    *,
    seed: int = 0,
    batch: int | None = None,
    limit: int | None = None,
    preprocess: Path | None = None,
) -> Dataset:
    """Open calibration data for ``model``: whatever ``open_dataset`` takes, or ``random`` for made-up numbers.

    ``random`` gives ``limit`` (else 8) seeded inputs, and a warning: ranges of made-up numbers are not those of real
    ones. Raises UsageError when the data does not exist or does not fit the model.
    """
    inputs = session_of(model).inputs
    if str(source) != RANDOM:
        return open_dataset(source, inputs, batch=batch, limit=limit, preprocess=preprocess)
    text = "calibration on random numbers was asked for: the ranges found are not those of real inputs"
    diagnostics.add(Diagnostic(Severity.WARNING, "DATA006", text, hint="give inputs of your own with --data"))
    feeds = [random_inputs(inputs, seed + index) for index in range(limit or _RANDOM_SAMPLES)]
    return dataset_from_feeds(feeds, inputs)


def _run_surgeon(model: Model, function: str, cleanup: bool) -> Model:
    return run_script(model, function, cleanup=cleanup)


def _check_writable(path: Path) -> None:
    """Refuse, before the work is done, a path that the result could not be written to. Raises UsageError."""
    if path.is_dir():
        raise UsageError("this is a folder; name a file in it", where=str(path))
    folder = path.parent
    if not folder.is_dir():
        raise UsageError("its folder does not exist", where=str(path), hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError("its folder is not writable", where=str(path))


def sha256_of(source: Source) -> str | None:
    """Return the hex sha256 of an input, ``None`` for a loaded model, whose file may be long gone."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, Model):
        return None
    with Path(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _provenance(pipeline: Pipeline, digest: str | None) -> dict[str, str]:
    """Return what goes into the metadata of the output: version, canonical pipeline and the input's hash."""
    facts = {"graphopt.version": __version__, "graphopt.pipeline": str(pipeline)}
    return facts if digest is None else {**facts, "graphopt.input_sha256": digest}
