"""Whether the input is a model at all: what inference finds contradictory is put to the runtime, whose word counts."""

from __future__ import annotations

from collections import Counter

from graphopt.analysis import Shapes
from graphopt.diagnostics import Diagnostic, Severity
from graphopt.errors import ModelError, TargetError
from graphopt.ir import nodes
from graphopt.ir.infer import infer
from graphopt.numeric import session_of
from graphopt.pipeline import Instrument, Run

_KNOWN_DOMAINS = ("", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft")


class InputCheck(Instrument):
    """Refuses an input that contradicts itself before any pass works on it, and remarks on operators nobody knows."""

    def start(self, run: Run) -> None:
        """Look at the input. Raises ModelError when inference finds a contradiction and the runtime refuses it too."""
        unknown = _unknown_operators(run)
        for operator, count in unknown.items():
            text = f"{count} node{'s' if count > 1 else ''} of it pass through untouched: the operator is not known"
            run.ctx.diagnostics.add(Diagnostic(Severity.REMARK, "MODEL001", text, operator))
        contradiction = run.ctx.get(Shapes).contradiction if run.spec.steps else infer(run.model)[1]
        if contradiction:
            _ask_runtime(run, contradiction, can_run=not unknown)


def _unknown_operators(run: Run) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in nodes(run.model):
        known = node.domain.startswith(_KNOWN_DOMAINS[1:]) or not node.domain
        if not known and node.op_identifier() not in run.model.functions:
            found[f"{node.domain}::{node.op_type}"] += 1
    return found


def _ask_runtime(run: Run, contradiction: str, *, can_run: bool) -> None:
    reason = "the model has operators that the runtime does not know"
    if can_run:
        try:
            session_of(run.model)
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
