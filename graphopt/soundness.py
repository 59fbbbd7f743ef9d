"""Whether the input is a model at all: what inference finds contradictory is put to the runtime, whose word counts."""

from __future__ import annotations

from pathlib import Path

from graphopt.analysis import Shapes
from graphopt.calibration.sessions import session_of
from graphopt.diagnostics import Diagnostic, Severity
from graphopt.errors import ModelError, TargetError
from graphopt.ir import opset
from graphopt.ir.infer import infer
from graphopt.ir.schema import schema
from graphopt.pipeline import Changes, Instrument, Pass, Run
from graphopt.runtime import Session

_RUNTIME_DOMAIN = "com.microsoft"


class InputCheck(Instrument):
    """Refuses an input that contradicts itself, and remarks on operators nobody knows.

    For a ``source`` that can be opened again, types are inferred when a pass first asks for them, by when the model is
    smaller; the runtime is asked about the source, since a pass may have brought to light what nobody ever runs.
    """

    def __init__(self, source: str | Path | bytes | None = None) -> None:
        self._source = source
        self._can_run = True
        self._done = False

    def start(self, run: Run) -> None:
        """Remark on unknown operators."""
        unknown = _unknown_operators(run)
        self._can_run = not unknown
        for operator, count in unknown.items():
            text = f"{count} node{'s' if count > 1 else ''} of it pass through untouched: the operator is not known"
            run.ctx.diagnostics.add(Diagnostic(Severity.REMARK, "MODEL001", text, operator))
        if self._source is None:
            self._look(run)

    def after_pass(self, run: Run, item: Pass, changes: Changes) -> None:
        """Look at what inference found, once. Raises ModelError when it is a contradiction the runtime refuses too."""
        shapes = None if self._done else run.ctx.analyses.at_hand(Shapes)
        if shapes is not None:
            self._check(run, shapes.contradiction)

    def finish(self, run: Run) -> None:
        """Infer where no pass asked for it. Raises ModelError as above."""
        if not self._done:
            self._look(run)

    def _look(self, run: Run) -> None:
        # Shapes puts right what the file declares wrongly, which a pipeline without passes must not do.
        self._check(run, run.ctx.get(Shapes).contradiction if run.spec.steps else infer(run.model)[1])

    def _check(self, run: Run, contradiction: str) -> None:
        self._done = True
        if contradiction:
            _ask_runtime(run, contradiction, self._source, can_run=self._can_run)


def _unknown_operators(run: Run) -> dict[str, int]:
    """Return how many nodes there are of each operator that neither ONNX, nor the runtime, nor the model defines.

    Exporters put operators of other runtimes into ONNX's own domain too.
    """
    found = {}
    for operator in run.ctx.edit.operators():
        nodes = run.ctx.nodes(operator)
        domain, name = nodes[0].domain, nodes[0].op_type
        by_model = nodes[0].op_identifier() in run.model.functions
        known = by_model or domain.startswith(_RUNTIME_DOMAIN)
        if not known and schema(domain, name, opset(run.model, domain)) is None:
            found[operator] = len(nodes)
    return found


def _ask_runtime(run: Run, contradiction: str, source: str | Path | bytes | None, *, can_run: bool) -> None:
    reason = "the model has operators that the runtime does not know"
    if can_run:
        try:
            session_of(run.model) if source is None else Session(source, optimize=False)
            reason = "the runtime accepts it"
        except TargetError as error:
            reason = f"the runtime could not tell: {error.message}"
        except ModelError as error:
            raise ModelError(
                f"the model contradicts itself: {error.message}",
                where=error.where,
                context=contradiction,
                hint="the runtime refuses this model too; export it again",
            ) from error
    text = f"type inference finds a contradiction, yet {reason}: {_first_line(contradiction)}"
    run.ctx.diagnostics.add(Diagnostic(Severity.REMARK, "MODEL002", text))


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
