"""What a pass is: options, context and the changes it reports."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from graphopt.analysis.manager import Analysis, AnalysisManager, Evaluate
from graphopt.analysis.statistics import Request, Statistics
from graphopt.diagnostics import Diagnostic, DiagnosticSink, Severity
from graphopt.errors import PassError, UsageError
from graphopt.ir import Editor, Model, Node, Value
from graphopt.ir.extract import extract
from graphopt.ir.query import describe, place
from graphopt.pipeline.runner import Runner
from graphopt.targets import HOST, Target, find

A = TypeVar("A", bound=Analysis)
SurgeonRunner = Callable[[Model, str, bool], Model]
"""Runs a GraphSurgeon function on a model: (model, ``module:callable``, clean up afterwards) -> the changed model."""
OptionValue = bool | int | float | str


class Changes(Counter[str]):
    """Counters of what a pass did, for example ``Changes(folded=3)``; falsy when nothing changed."""

    def __bool__(self) -> bool:
        return any(self.values())

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.items() if count) or "no change"


def option(
    default: Any,
    help_text: str,
    *,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    choices: Sequence[str] | Sequence[int] | None = None,
) -> Any:
    """Declare an option of a pass: its default, its help and its bounds. The field's annotation gives its type."""
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    metadata = {"help": help_text, "bounds": {k: v for k, v in bounds.items() if v is not None}, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Rewrite:
    """One rewrite that a pass made: for the log, for fuel and for bisection."""

    index: int
    pass_name: str
    node: str
    what: str


@dataclass
class PassContext:
    """What a pass may use besides the model. Passes keep no state of their own.

    ``edit`` writes, ``get`` asks for an analysis, ``evaluate`` computes constants, ``rng`` is seeded for this run,
    ``statistics`` asks for what calibration data tells, ``runner`` runs whole models on that data.
    ``notes`` collects what passes have to say for the report, by the pass's name, as plain values.
    """

    edit: Editor
    analyses: AnalysisManager
    diagnostics: DiagnosticSink
    evaluator: Evaluate
    surgeon: SurgeonRunner | None = None
    target: Target | None = None
    runner: Runner | None = None
    seed: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    pass_name: str = ""
    rewrites: list[Rewrite] = field(default_factory=list)
    fuel: Callable[[Rewrite], bool] | None = None
    _statistics: tuple[int, Statistics] | None = None

    def get(self, analysis: type[A], *, fresh: bool = False) -> A:
        """Return an analysis; ``fresh`` asks for all that can be known of the model as it is now."""
        return self.analyses.get(analysis, fresh=fresh)

    def evaluate(self, values: Sequence[Value]) -> list[np.ndarray[Any, Any]]:
        """Compute values that depend on constants only, all in one run. Raises ModelError when they cannot be run."""
        model, feeds, names = extract(self.edit.model, values)
        return self.evaluator(model, feeds, names)

    def statistics(self, requests: Sequence[Request]) -> Statistics:
        """Return the statistics asked for of the model as it is now, running it over the calibration data if needed.

        Raises UsageError when there is no calibration data.
        """
        if self.runner is None or not self.runner.has_data:
            raise UsageError(f"the pass {self.pass_name} needs calibration data", hint="give a data set with --data")
        revision, known = self._statistics or (-1, Statistics())
        if revision != self.edit.revision:
            known = Statistics()
        missing = [request for request in dict.fromkeys(requests) if request not in known]
        if missing:
            known = known.merge(self.runner.collect(self.edit.model, missing))
            self._statistics = (self.edit.revision, known)
        return known

    @property
    def host_or_target(self) -> Target:
        """The target that the user named, or else this machine's CPU."""
        return self.target or find(HOST)

    def nodes(self, *operators: str) -> list[Node]:
        """Return the nodes with these operators, nested graphs included, as a snapshot in a stable order."""
        return self.edit.nodes(*operators)

    @property
    def rng(self) -> np.random.Generator:
        """A generator seeded by the run's seed and the pass's name."""
        return np.random.default_rng([self.seed, *self.pass_name.encode()])

    def may_rewrite(self, node: Node | Value, what: str) -> bool:
        """Ask, right before a rewrite, whether it may be made, and log it. False means: leave this node as it is."""
        name = node.name or (describe(node) if isinstance(node, Node) else "")
        rewrite = Rewrite(len(self.rewrites), self.pass_name, name, what)
        if self.fuel is not None and not self.fuel(rewrite):
            return False
        self.rewrites.append(rewrite)
        return True

    def missed(self, code: str, node: Node | Value | None, why: str, hint: str | None = None) -> None:
        """Say that a rewrite a user might expect was not made, and why."""
        self._say(Severity.REMARK, code, node, why, hint)

    def warn(self, code: str, node: Node | Value | None, what: str, hint: str | None = None) -> None:
        """Say that something needs the user's attention."""
        self._say(Severity.WARNING, code, node, what, hint)

    def fail(self, message: str, node: Node, hint: str | None = None) -> PassError:
        """Return an error that names the pass and the node, to be raised."""
        return PassError(f"{self.pass_name}: {message}", where=place(node), hint=hint)

    def _say(self, severity: Severity, code: str, node: Node | Value | None, text: str, hint: str | None) -> None:
        name = None if node is None else node.name
        if not name and isinstance(node, Node):
            name = next((value.name for value in node.outputs if value.name), None)
        self.diagnostics.add(Diagnostic(severity, code, text, name, hint, self.pass_name))


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A rewrite of the model. Subclasses are frozen dataclasses whose fields (see :func:`option`) are the options.

    The first line of the docstring is the help text. ``needs`` names analyses that are refused before anything runs
    when they cannot be had; ``preserves`` names those that stay right even when the pass changed something,
    ``refines`` those that stay right although more could be found out now.
    ``free_options`` names a field of type ``tuple[tuple[str, int], ...]`` for options whose names the user chooses.
    """

    name: ClassVar[str]
    lossless: ClassVar[bool] = True
    needs: ClassVar[tuple[type[Any], ...]] = ()
    preserves: ClassVar[tuple[type[Any], ...]] = ()
    refines: ClassVar[tuple[type[Any], ...]] = ()
    free_options: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            check_option(self.name, item, getattr(self, item.name))

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Rewrite ``model`` in place through ``ctx.edit`` and report what changed."""
        raise NotImplementedError(f"pass {self.name} has no run method")

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    def options(self) -> dict[str, OptionValue]:
        """Return the options that differ from their defaults."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return values | dict(values.pop(self.free_options or "", ()))

    def __str__(self) -> str:
        parts = [f"{format_option(key)}={format_option(value)}" for key, value in self.options().items()]
        return f"{self.name}{{{','.join(parts)}}}" if parts else self.name


def check_option(pass_name: str, item: dataclasses.Field[Any], value: Any) -> None:
    """Raise UsageError when ``value`` is outside the bounds or choices of an option."""
    where = f"{pass_name}{{{item.name}={value}}}"
    choices = item.metadata.get("choices")
    if choices is not None and value not in choices:
        raise UsageError(f"{item.name} must be one of {', '.join(map(str, choices))}", where=where)
    tests: dict[str, tuple[str, Callable[[float], bool]]] = {
        "gt": ("above", lambda bound: value > bound),
        "ge": ("at least", lambda bound: value >= bound),
        "lt": ("below", lambda bound: value < bound),
        "le": ("at most", lambda bound: value <= bound),
    }
    for key, bound in item.metadata.get("bounds", {}).items():
        words, holds = tests[key]
        if not holds(bound):
            raise UsageError(f"{item.name} must be {words} {bound}", where=where)


def format_option(value: OptionValue) -> str:
    """Return an option's value as the pipeline text has it: bare where it can be, quoted otherwise."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if value and all(char.isalnum() or char in "_-./:*@" for char in value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
