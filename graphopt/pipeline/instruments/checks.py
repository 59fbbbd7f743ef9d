"""Instruments that check the model between passes: its invariants, and the numbers it computes."""

from __future__ import annotations

from collections.abc import Callable

from graphopt.errors import VerifyError
from graphopt.ir import Model, verify
from graphopt.pipeline.base import Changes, Pass
from graphopt.pipeline.manager import Instrument, Run


class Verify(Instrument):
    """Checks the invariants of the IR: all of them at the start, after each pass those of the nodes it touched.

    Also holds each pass to its word: one that reports changes has written, and one that reports none has not.
    ``at_start=False`` leaves out the first check, for a model that the importer has just verified.
    """

    def __init__(self, *, at_start: bool = True):
        self._at_start = at_start
        self._revision = 0

    def start(self, run: Run) -> None:
        """Check the whole model. Raises VerifyError."""
        if self._at_start:
            verify(run.model)
        run.ctx.edit.touched.clear()

    def before_pass(self, run: Run, item: Pass) -> None:
        """Remember what the model looked like."""
        self._revision = run.ctx.edit.revision

    def after_pass(self, run: Run, item: Pass, changes: Changes) -> None:
        """Check what the pass touched and what it reported. Raises VerifyError that names the pass."""
        edit = run.ctx.edit
        wrote = edit.revision != self._revision
        if wrote and not changes:
            raise VerifyError("it wrote to the model and reported no change", where=_place(run, item))
        if changes and not wrote:
            raise VerifyError(f"it reported {changes} and wrote nothing to the model", where=_place(run, item))
        if not wrote:
            return
        try:
            verify(run.model, edit.touched)
        except VerifyError as error:
            raise _blamed(error, run, item) from error
        edit.touched.clear()


class NumericCheck(Instrument):
    """Runs the model after each pass that changed it and compares its outputs with the original's.

    ``check`` gets the model and raises VerifyError, naming the output, when it differs; it knows the original, the
    inputs and the tolerance.
    """

    def __init__(self, check: Callable[[Model], None]):
        self._check = check

    def after_pass(self, run: Run, item: Pass, changes: Changes) -> None:
        """Compare. Raises VerifyError that names the pass and the output."""
        if not changes:
            return
        try:
            self._check(run.model)
        except VerifyError as error:
            raise _blamed(error, run, item) from error


def _place(run: Run, item: Pass) -> str:
    return f"pass {item} (step {len(run.records)})"


def _blamed(error: VerifyError, run: Run, item: Pass) -> VerifyError:
    """Return ``error`` with the pass as its place and its own place in front of the message."""
    message = f"{error.where}: {error.message}" if error.where else error.message
    hint = error.hint or "this is a bug in the pass; `graphopt bisect` finds the single rewrite"
    return VerifyError(message, where=_place(run, item), context=error.context, hint=hint)
