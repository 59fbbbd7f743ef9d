"""Checking a model on its target's own toolchain: what to run it on, and what to hold the outputs against."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphopt import io
from graphopt.backend.check import run_check
from graphopt.backend.compile import Compiled, compile_beside, require_compiler
from graphopt.backend.facts import dynamic_axes, findings
from graphopt.backend.job import Job
from graphopt.backend.qdq import is_quantized
from graphopt.backend.report import CheckReport
from graphopt.backend.toolchain import TIME_LIMIT
from graphopt.calibration import open_dataset, random_inputs
from graphopt.calibration.sessions import session_of
from graphopt.driver import RANDOM, optimize
from graphopt.errors import UsageError
from graphopt.ir import Model, nodes
from graphopt.ir.names import name_nodes
from graphopt.pipeline import Pipeline
from graphopt.pipeline.spec import make
from graphopt.runtime import Session
from graphopt.targets import Target

SAMPLES = 4
"""How many batches are run unless the user says otherwise: simulators take seconds for each."""


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What a model is run on, and compared with.

    ``reference`` is the float model; without one, a quantized model is compared with itself without its Q/DQ pairs.
    ``data`` is what ``open_dataset`` takes; without it, the inputs are random.
    """

    reference: Path | None = None
    data: str | Path | None = None
    samples: int = SAMPLES
    preprocess: Path | None = None
    seed: int = 0


def check(
    model: Model | str | Path | bytes,
    *,
    target: Target,
    numbers: Numbers | None = Numbers(),
    dims: Mapping[str, int] | None = None,
    time_limit: float = TIME_LIMIT,
) -> CheckReport:
    """Check ``model`` on the toolchain of ``target`` and return what was found.

    ``numbers`` says what outputs are compared on, ``None`` that they are not. ``dims`` gives sizes of symbolic axes by
    name. ``time_limit`` is in seconds, for each run of the toolchain. Raises UsageError and ModelError for what is
    given, TargetError when the toolchain is not installed, crashes or does not finish.
    """
    with prepared(model, target=target, numbers=numbers, dims=dims, time_limit=time_limit) as job:
        return run_check(job)


def compile_model(
    model: str | Path, *, target: Target, output: Path | None = None, time_limit: float = TIME_LIMIT
) -> Compiled:
    """Compile ``model`` with the toolchain of ``target`` and put the result beside it, or beside ``output``.

    What is written is loaded again before and, where the simulator runs it, compared. Raises what ``compile_beside``
    raises.
    """
    require_compiler(target.toolchain, target.label)
    with prepared(model, target=target, numbers=Numbers(samples=2), time_limit=time_limit) as job:
        if not job.batches:
            raise UsageError(
                "a model is compiled for fixed shapes",
                where=f"inputs {', '.join(dynamic_axes(job.model))}",
                hint="add fix-shapes to the pipeline: fix-shapes{batch=1}",
            )
        return compile_beside(job, output or Path(model))


@contextmanager
def prepared(
    model: Model | str | Path | bytes,
    *,
    target: Target,
    numbers: Numbers | None = None,
    dims: Mapping[str, int] | None = None,
    time_limit: float = TIME_LIMIT,
) -> Iterator[Job]:
    """Make ready what a checker needs; the files in it last as long as the context."""
    loaded = model if isinstance(model, Model) else io.load(model)
    source = Path(model) if isinstance(model, str | Path) else None
    if any(node.op_type == "EPContext" for node in nodes(loaded)):
        hint = "check the model that it was compiled from; `--compile` has loaded and compared it"
        raise UsageError("it is compiled already, and holds no operators", where=str(source or "model"), hint=hint)
    if dims:
        optimize(loaded, pipeline=Pipeline((make("fix-shapes", dict(dims)),)))
    changed = bool(name_nodes(loaded)) or bool(dims) or source is None
    with tempfile.TemporaryDirectory(prefix="graphopt-check-") as name:
        folder = Path(name)
        path = source if source is not None and not changed else folder / "model.onnx"
        if changed:
            io.save(loaded, path)
        known = findings(loaded, target)
        job = Job(
            name=str(source or "model"),
            model=loaded,
            path=path.resolve(),
            target=target,
            folder=folder,
            quantized=is_quantized(loaded),
            findings=known,
            time_limit=time_limit,
        )
        dynamic = target.static_shapes and bool(dynamic_axes(loaded))
        yield job if numbers is None or dynamic or not target.toolchain else _with_numbers(job, numbers)


def _with_numbers(job: Job, numbers: Numbers) -> Job:
    session = session_of(job.model)  # without optimizations: what the file says, to the letter
    batches = _batches(session, numbers)
    cpu = [session.run(feeds) for feeds in batches]
    if numbers.reference is not None:
        reference, named = Session(numbers.reference, optimize=False), f"{numbers.reference}"
    elif job.quantized:
        floats = io.from_proto(io.to_proto(job.model))
        optimize(floats, pipeline="strip-qdq")
        reference, named = session_of(floats), "itself without Q/DQ pairs"
    else:
        return replace(job, batches=batches, cpu=cpu, expected=cpu, reference="itself on onnxruntime's CPU")
    expected = [reference.run({k: v for k, v in feeds.items() if k in reference.accepts}) for feeds in batches]
    _require_same(cpu[0], expected[0], named)
    return replace(job, batches=batches, cpu=cpu, expected=expected, reference=named)


def _batches(session: Session, numbers: Numbers) -> Sequence[Mapping[str, Any]]:
    if numbers.data is None or numbers.data == RANDOM:
        return [random_inputs(session.inputs, numbers.seed + index) for index in range(numbers.samples)]
    dataset = open_dataset(numbers.data, session.inputs, limit=numbers.samples, preprocess=numbers.preprocess)
    return list(dataset)


def _require_same(outputs: Mapping[str, Any], expected: Mapping[str, Any], reference: str) -> None:
    for name, array in expected.items():
        if name not in outputs:
            raise UsageError(f"the model has no output {name!r}, which the reference has", where=reference)
        if outputs[name].shape != array.shape:
            shapes = f"{list(array.shape)} in the reference and {list(outputs[name].shape)} in the model"
            raise UsageError(f"output {name!r} is of shape {shapes}", where=reference)
