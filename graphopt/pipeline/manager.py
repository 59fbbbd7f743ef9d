"""Runs a pipeline over a model. Timing, dumps, verification and the like are instruments, none of its business."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from graphopt.analysis.manager import AnalysisManager, Evaluate
from graphopt.diagnostics import DiagnosticSink
from graphopt.errors import GraphOptError, PassError, UsageError
from graphopt.ir import Editor, Model
from graphopt.pipeline.base import Changes, Pass, PassContext, Rewrite, SurgeonRunner
from graphopt.pipeline.runner import Runner
from graphopt.pipeline.spec import Fixpoint, Pipeline, Step
from graphopt.targets import Target


class Instrument:
    """Hooks around a run. Each does nothing by default; ``after_pass`` runs for passes that changed nothing too."""

    def start(self, run: Run) -> None:
        """Before the first pass."""

    def before_pass(self, run: Run, item: Pass) -> None:
        """Before each pass."""

    def after_pass(self, run: Run, item: Pass, changes: Changes) -> None:
        """After each pass that succeeded."""

    def failed(self, run: Run, item: Pass, error: GraphOptError) -> None:
        """After a pass, or an instrument behind it, raised; the error is raised again afterwards."""

    def finish(self, run: Run) -> None:
        """After the last pass."""


@dataclass(frozen=True)
class PassRecord:
    """One execution of a pass: its position in the run, text, what it changed, in how many rewrites and seconds."""

    index: int
    text: str
    changes: Changes
    seconds: float
    rewrites: int = 0


@dataclass
class Run:
    """One run of a pipeline over one model: its context and what has happened so far.

    ``current`` is the pass under way, or the last one, and ``current_step`` its position, from 1.
    """

    model: Model
    spec: Pipeline
    ctx: PassContext
    instruments: Sequence[Instrument] = ()
    records: list[PassRecord] = field(default_factory=list)
    stop_after: int | None = None
    current: Pass | None = None
    current_step: int = 0
    _clean: dict[Pass, int] = field(default_factory=dict)
    _rest: list[tuple[Step, ...]] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The number of the pass execution that is under way, from 1 (what ``--stop-after`` counts)."""
        return len(self.records) + 1

    @property
    def stopped(self) -> bool:
        """Whether ``stop_after`` executions have been made."""
        return self.stop_after is not None and len(self.records) >= self.stop_after

    def execute(self) -> None:
        """Run every step. Raises GraphOptError; a crash inside a pass becomes a PassError that names the pass."""
        for instrument in self.instruments:
            instrument.start(self)
        self._sequence(self.spec.steps)
        for instrument in self.instruments:
            instrument.finish(self)

    def remaining(self, item: Pass) -> Pipeline:
        """Return the pipeline from ``item``, the pass under way, on."""
        return Pipeline((item, *(step for steps in reversed(self._rest) for step in steps)))

    def _sequence(self, steps: tuple[Step, ...], then: tuple[Step, ...] = ()) -> bool:
        """Run ``steps`` in turn, knowing what follows each; tell whether one changed anything."""
        changed = False
        for index, step in enumerate(steps):
            self._rest.append((*steps[index + 1 :], *then))
            changed = self._step(step) or changed
            self._rest.pop()
        return changed

    def _step(self, step: Step) -> bool:
        if isinstance(step, Fixpoint):
            return self._fixpoint(step)
        return self._pass(step)

    def _fixpoint(self, group: Fixpoint) -> bool:
        changed = False
        for left in reversed(range(group.max)):
            again = (Fixpoint(group.steps, left),) if left else ()
            if not self._sequence(group.steps, again):
                return changed
            changed = True
        return changed

    def _pass(self, item: Pass) -> bool:
        if self.stopped or self._clean.get(item) == self.ctx.edit.revision:
            return False
        self.ctx.pass_name = item.name
        self.current, self.current_step = item, self.step
        rewrites = len(self.ctx.rewrites)
        for instrument in self.instruments:
            instrument.before_pass(self, item)
        try:
            changes, seconds = self._run(item)
            record = PassRecord(self.step, str(item), changes, seconds, len(self.ctx.rewrites) - rewrites)
            self.records.append(record)
            for instrument in self.instruments:
                instrument.after_pass(self, item, changes)
        except GraphOptError as error:
            for instrument in self.instruments:
                instrument.failed(self, item, error)
            raise
        return bool(changes)

    def _run(self, item: Pass) -> tuple[Changes, float]:
        revision = self.ctx.edit.revision
        begin = time.perf_counter()
        try:
            changes = item.run(self.model, self.ctx)
        except GraphOptError:
            raise
        except Exception as error:  # a bug in a pass must name the pass, whatever it raised
            raise PassError(f"{type(error).__name__}: {error}", where=f"pass {item}") from error
        if changes:
            self.ctx.analyses.drop(item.preserves, item.refines)
        elif self.ctx.edit.revision == revision:
            self._clean[item] = revision
        return changes, time.perf_counter() - begin


def check_needs(spec: Pipeline, *, has_data: bool) -> None:
    """Refuse, before anything runs, a pipeline whose passes need an analysis that cannot be had."""
    for item in spec.passes():
        for need in item.needs:
            if getattr(need, "wants_data", False) and not has_data:
                raise UsageError(f"the pass {item.name} needs calibration data", hint="give a data set with --data")


def run_pipeline(
    model: Model,
    spec: Pipeline,
    evaluator: Evaluate,
    *,
    surgeon: SurgeonRunner | None = None,
    instruments: Sequence[Instrument] = (),
    diagnostics: DiagnosticSink | None = None,
    target: Target | None = None,
    runner: Runner | None = None,
    seed: int = 0,
    stop_after: int | None = None,
    fuel: dict[str, int] | None = None,
) -> Run:
    """Run ``spec`` over ``model`` in place and return the run with its records, rewrites and diagnostics.

    ``stop_after`` bounds the number of pass executions and ``fuel`` the number of rewrites of a pass, by its name.
    ``surgeon`` runs a GraphSurgeon function for the pass of that name, ``runner`` runs models on the calibration data.
    Raises GraphOptError.
    """
    check_needs(spec, has_data=runner is not None and runner.has_data)
    sink = diagnostics if diagnostics is not None else DiagnosticSink()
    editor = Editor(model)
    ctx = PassContext(editor, AnalysisManager(editor, sink), sink, evaluator, surgeon, target, runner, seed)
    if fuel:
        ctx.fuel = Fuel(dict(fuel))
    run = Run(model, spec, ctx, instruments, stop_after=stop_after)
    run.execute()
    return run


@dataclass
class Fuel:
    """Lets each named pass make so many rewrites and no more."""

    left: dict[str, int]

    def __call__(self, rewrite: Rewrite) -> bool:
        """Tell whether ``rewrite`` may be made, and use up one unit if so."""
        left = self.left.get(rewrite.pass_name)
        if left is None:
            return True
        if left <= 0:
            return False
        self.left[rewrite.pass_name] = left - 1
        return True
