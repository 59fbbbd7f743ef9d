"""The instrument that writes the IR as text, between passes, to numbered files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from graphopt.errors import UsageError
from graphopt.ir.text import dump
from graphopt.pipeline.base import Changes, Pass
from graphopt.pipeline.manager import Instrument, Run
from graphopt.pipeline.registry import nearest

ALL = "all"


class Dump(Instrument):
    """Writes ``folder/NNN-before-PASS.txt`` and ``folder/NNN-after-PASS.txt``, NNN the position in the run.

    ``before`` and ``after`` hold names of passes, or ``"all"``, which leaves out the passes that changed nothing.
    ``weights`` is how many elements of a tensor are written out (see ``ir.text.dump``).
    """

    def __init__(self, folder: Path, *, before: Sequence[str] = (), after: Sequence[str] = (), weights: int = 16):
        self._folder = folder
        self._before = frozenset(before)
        self._after = frozenset(after)
        self._weights = weights
        self._revision: int | None = None

    def start(self, run: Run) -> None:
        """Make the folder. Raises UsageError when that fails, or for a pass that the pipeline does not have."""
        known = [item.name for item in run.spec.passes()]
        for name in sorted((self._before | self._after) - {ALL, *known}):
            hint = nearest(name, known, f"its passes are: {', '.join(dict.fromkeys(known)) or 'none'}")
            raise UsageError(f"the pipeline has no pass {name!r} to dump the model before or after", hint=hint)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder for dumps: {error.strerror}", where=str(self._folder)) from error

    def before_pass(self, run: Run, item: Pass) -> None:
        """Write the model when asked for."""
        changed = run.ctx.edit.revision != self._revision
        if item.name in self._before or (ALL in self._before and changed):
            self._revision = run.ctx.edit.revision
            self._write(run, f"{run.step:03}-before-{item.name}.txt")

    def after_pass(self, run: Run, item: Pass, changes: Changes) -> None:
        """Write the model when asked for."""
        if item.name in self._after or (ALL in self._after and changes):
            self._write(run, f"{len(run.records):03}-after-{item.name}.txt")

    def _write(self, run: Run, name: str) -> None:
        path = self._folder / name
        try:
            path.write_text(dump(run.model, weights=self._weights), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write the dump: {error.strerror}", where=str(path)) from error
