"""Running IR models: inputs for them, and the check that a changed model still computes what the original does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from graphopt.calibration import open_dataset, random_inputs
from graphopt.calibration.sessions import session_of
from graphopt.diagnostics import Diagnostic, DiagnosticSink, Severity
from graphopt.ir import Model
from graphopt.runtime import InputInfo, Session, compare

Feeds = Mapping[str, Any]

DEFAULT_RTOL = 1e-4
"""How far, of an output's scale, a model may be from the original before a numeric check calls it wrong."""


def output_check(reference: Session, feeds: Iterable[Feeds], rtol: float) -> Callable[[Model], None]:
    """Return a check that raises VerifyError, naming the output, when a model differs from ``reference`` on ``feeds``.

    ``rtol`` is the largest difference allowed, relative to the output's scale; other types than floats must be equal.
    """
    batches = list(feeds)

    def check(model: Model) -> None:
        compare(reference, session_of(model), batches, rtol=rtol).check()

    return check


def inputs_for(
    inputs: Sequence[InputInfo],
    data: str | Path | None,
    diagnostics: DiagnosticSink,
    *,
    seed: int = 0,
    batch: int | None = None,
    limit: int | None = None,
    preprocess: Path | None = None,
    bindings: Mapping[str, int] | None = None,
) -> Iterable[Feeds]:
    """Return batches for a model with ``inputs``: those of the data set ``data``, or a random one, with a warning.

    ``batch``, ``limit`` and ``preprocess`` are those of ``open_dataset``; ``bindings`` gives sizes of symbolic axes of
    random inputs. Raises UsageError when the data set does not fit the model.
    """
    if data is not None:
        dataset = open_dataset(data, inputs, batch=batch, limit=limit, preprocess=preprocess)
        for diagnostic in dataset.diagnostics:
            diagnostics.add(diagnostic)
        return dataset
    text = "no data was given: inputs are random numbers, which need not reach all of the model"
    diagnostics.add(Diagnostic(Severity.WARNING, "DATA001", text, hint="give inputs of your own with --data"))
    return [random_inputs(inputs, seed, bindings)]
