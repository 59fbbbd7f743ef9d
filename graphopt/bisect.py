"""Finds the pass, and in it the single rewrite, at which a pipeline breaks a model.

The model is read anew for every probe. First the number of pass executions is searched by halves, then the number of
rewrites that the pass found may make, through its fuel.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphopt import io
from graphopt.driver import optimize
from graphopt.errors import GraphOptError, UsageError
from graphopt.ir import Model, nodes
from graphopt.ir.query import around
from graphopt.ir.text import dump
from graphopt.pipeline import Instrument, Pipeline, Rewrite, Run
from graphopt.targets import Target

Check = Callable[[Model], str | None]
"""Looks at the model a pipeline left and says what is wrong with it, ``None`` when nothing is."""

_DIFF_LINES = 80


@dataclass(frozen=True)
class Finding:
    """Where a pipeline breaks a model.

    ``step`` is the pass execution, counted from 1 as ``--stop-after`` does, and ``pass_text`` its pass. ``rewrite`` is
    the rewrite of that pass at fault and ``fuel`` its number, counted over all executions of the pass up to here as
    ``--fuel`` does; both are ``None`` when the pass fails before or without a rewrite. ``problem`` is what went wrong,
    ``diff`` the IR before and after the rewrite as a line diff (the IR around the node when there is no model after
    it), and ``probes`` the number of runs that the search took.
    """

    step: int
    pass_text: str
    problem: str
    rewrite: Rewrite | None
    fuel: int | None
    diff: str
    probes: int

    def render(self) -> str:
        """Return the finding as text."""
        lines = [f"step {self.step}: {self.pass_text}"]
        if self.rewrite is not None:
            name = self.rewrite.pass_name
            lines.append(f"rewrite {self.fuel} of {name}: {self.rewrite.what}, at {self.rewrite.node!r}")
            lines.append(f"  without it: --stop-after {self.step} --fuel {name}={(self.fuel or 1) - 1}")
            lines.append(f"  with it:    --stop-after {self.step} --fuel {name}={self.fuel}")
        else:
            lines.append("no single rewrite is at fault: the pass fails before its first one, or without logging any")
        lines.append("problem:")
        lines += [f"  {line}" for line in self.problem.splitlines()]
        if self.diff:
            lines += ["IR:", *(f"  {line}" for line in self.diff.splitlines())]
        lines.append(f"{self.probes} runs")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Probe:
    """One run up to a point: how far it came, and what was wrong with what it left."""

    run: Run
    problem: str | None
    crashed: bool

    @property
    def executed(self) -> int:
        """The number of pass executions, one that failed included."""
        return self.run.current_step

    def rewrites_of(self, name: str) -> list[Rewrite]:
        return [rewrite for rewrite in self.run.ctx.rewrites if rewrite.pass_name == name]


class _Capture(Instrument):
    """Keeps the run, which an error would take along."""

    run: Run | None = None

    def start(self, run: Run) -> None:
        self.run = run


@dataclass
class _Search:
    source: str | Path | bytes
    pipeline: Pipeline
    check: Check | None
    target: Target | None
    seed: int
    progress: Callable[[str], None]
    probes: int = 0

    def probe(self, stop_after: int | None = None, fuel: Mapping[str, int] | None = None) -> _Probe:
        """Run the pipeline on the model as it is in its file, and look at what it left."""
        self.probes += 1
        capture = _Capture()
        model = io.load(self.source)
        try:
            optimize(
                model,
                pipeline=self.pipeline,
                instruments=[capture],
                target=self.target,
                seed=self.seed,
                stop_after=stop_after,
                fuel=fuel,
            )
        except GraphOptError as error:
            if capture.run is None or not capture.run.spec.steps:
                raise
            return self._said(_Probe(capture.run, str(error), True), stop_after, fuel)
        if capture.run is None:
            raise UsageError("the run was not started")
        problem = None if self.check is None else self.check(model)
        return self._said(_Probe(capture.run, problem, False), stop_after, fuel)

    def _said(self, probe: _Probe, stop_after: int | None, fuel: Mapping[str, int] | None) -> _Probe:
        limits = [f"step {stop_after}"] if stop_after is not None else ["whole pipeline"]
        limits += [f"{name} fuel {left}" for name, left in (fuel or {}).items()]
        self.progress(f"{', '.join(limits)}: {'bad' if probe.problem is not None else 'good'}")
        return probe


def bisect(
    source: str | Path | bytes,
    pipeline: Pipeline,
    *,
    check: Check | None = None,
    target: Target | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Finding:
    """Find where ``pipeline`` breaks the model in ``source`` (a path or the bytes of a file).

    Broken means: an error is raised, or ``check`` finds something. The search takes for granted that a model once
    broken stays so. ``progress`` is told the outcome of every run. Raises UsageError when the whole pipeline leaves
    nothing to complain about, or the input itself is complained about; ModelError when the input cannot be read.
    """
    search = _Search(source, pipeline, check, target, seed, progress)
    whole = search.probe()
    if whole.problem is None:
        raise UsageError(
            "the pipeline does not break this model", hint="see --data, --rtol and --check for what counts"
        )
    start = search.probe(stop_after=0)
    if start.problem is not None:
        raise UsageError(f"the model is broken before the first pass: {start.problem}")
    step, bad = _first_bad(0, whole.executed, lambda n: search.probe(stop_after=n), whole)
    return _find_rewrite(search, step, bad)


def _first_bad(good: int, bad: int, probe: Callable[[int], _Probe], worst: _Probe) -> tuple[int, _Probe]:
    """Return the smallest number at which ``probe`` finds a problem, knowing that ``good`` has none and ``bad`` has."""
    found = worst
    while bad - good > 1:
        middle = (good + bad) // 2
        outcome = probe(middle)
        if outcome.problem is None:
            good = middle
        else:
            bad, found = middle, outcome
    return bad, found


def _find_rewrite(search: _Search, step: int, bad: _Probe) -> Finding:
    # The run that was found bad may be one that went on beyond the step; what is compared ends with it.
    bad = bad if bad.executed == step else search.probe(stop_after=step)
    text, name = str(bad.run.current), bad.run.ctx.pass_name
    good = search.probe(stop_after=step - 1)
    before, after = len(good.rewrites_of(name)), len(bad.rewrites_of(name))
    if after == before or search.probe(stop_after=step, fuel={name: before}).problem is not None:
        difference = "" if bad.crashed else _differences(good.run.model, bad.run.model)
        return Finding(step, text, bad.problem or "", None, None, difference, search.probes)
    fuel, found = _first_bad(before, after, lambda left: search.probe(stop_after=step, fuel={name: left}), bad)
    without = search.probe(stop_after=step, fuel={name: fuel - 1})
    rewrite = found.rewrites_of(name)[fuel - 1]
    difference = _surroundings(without.run.model, rewrite) if found.crashed else ""
    difference = difference or _differences(without.run.model, found.run.model)
    return Finding(step, text, found.problem or "", rewrite, fuel, difference, search.probes)


def _differences(before: Model, after: Model) -> str:
    """Return what the dumps of two models differ in, as a unified diff with two lines around each difference."""
    old, new = dump(before).splitlines(), dump(after).splitlines()
    lines = list(difflib.unified_diff(old, new, "before", "after", n=2, lineterm=""))
    if len(lines) > _DIFF_LINES:
        lines = [*lines[:_DIFF_LINES], f"... {len(lines) - _DIFF_LINES} more lines"]
    return "\n".join(lines)


def _surroundings(model: Model, rewrite: Rewrite) -> str:
    """Return the IR around the node of a rewrite, as it is before it; empty when no node has that name."""
    return next((around(node, 3) for node in nodes(model) if node.name and node.name == rewrite.node), "")
