"""Shrinks a model that fails to a minimal one that fails the same way.

Delta debugging: outputs are dropped, ranges of nodes are cut away by halves, then single nodes, nested ones too; then
weights lose their data and the model its notes. A smaller model is kept when the check names the same failure as for
the original. Nothing is random, so the same model, check and version give the same result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graphopt import cuts, io
from graphopt.calibration import random_inputs
from graphopt.calibration.sessions import session_of
from graphopt.cuts import Facts
from graphopt.errors import GraphOptError, ModelError, UsageError
from graphopt.failures import OUT_OF_TIME, Check
from graphopt.ir import Model, nodes, subgraphs

_SMALL = 16
"""Weights of so many elements are read at a glance and stay as they are."""

_LARGE = 1024
"""Weights of more elements make a file large: it is tried to make inputs of them."""


@dataclass(frozen=True)
class Reduction:
    """The outcome: the smallest model found, its failure, and how many models were checked on the way."""

    model: Model
    failure: str
    before: int
    after: int
    probes: int

    def render(self) -> str:
        """Return the outcome in one line."""
        return f"{self.before} -> {self.after} nodes in {self.probes} probes; fails by: {self.failure}"


@dataclass
class _Search:
    model: Model
    check: Check
    path: Path
    failure: str
    facts: Facts
    progress: Callable[[str], None]
    probes: int = 0
    refused: set[tuple[str, int]] = field(default_factory=set)

    def attempt(self, candidate: Model | None, what: str) -> bool:
        """Keep ``candidate`` when it fails as the original does."""
        if candidate is None:
            return False
        try:
            io.save(candidate, self.path)
        except ModelError:
            return False
        self.probes += 1
        if self.check(self.path) != self.failure:
            return False
        self.model = candidate
        self.progress(f"{self.probes} probes, {_count(candidate)} nodes left: {what}")
        return True


def reduce(source: str | Path | bytes, check: Check, *, progress: Callable[[str], None] = lambda _: None) -> Reduction:
    """Return the smallest model found that fails ``check`` the way the one in ``source`` does.

    ``progress`` is told of every step forward. Raises UsageError when the model does not fail, ModelError when it
    cannot be read and the check does not fail on that either.
    """
    model = io.load(source)
    with tempfile.TemporaryDirectory(prefix="graphopt-reduce-") as folder:
        path = Path(folder) / "model.onnx"
        io.save(model, path)
        failure = check(path)
        if failure is None:
            raise UsageError(
                "the check does not fail on this model", hint="a check of your own may look closer: --check"
            )
        facts = Facts.of(model)
        if _can_run(failure):
            facts = Facts(facts.types, cuts.contents_of(model, _run, facts))
        search = _Search(model, check, path, failure, facts, progress, probes=1)
        _shrink(search)
    return Reduction(search.model, failure, _count(model), _count(search.model), search.probes)


def _can_run(failure: str) -> bool:
    """What ends or stops a process of its own would do the same to this one."""
    return failure != OUT_OF_TIME and not failure.startswith(("crash", "signal"))


def _count(model: Model) -> int:
    return sum(1 for _ in nodes(model))


def _run(model: Model) -> dict[str, Any]:
    session = session_of(model)
    try:
        return session.run(random_inputs(session.inputs, 0))
    except GraphOptError as error:
        raise ModelError(error.message, where=error.where) from error


def _shrink(search: _Search) -> None:
    # Notes and functions first: they cost time in every later probe.
    search.attempt(cuts.without_notes(search.model), "notes dropped")
    steps = (_outputs, _ranges, _single_nodes)
    while any(step(search) for step in steps):
        pass
    _weights(search)
    search.attempt(cuts.without_functions(search.model), "functions dropped")


def _outputs(search: _Search) -> bool:
    """Try each output alone, the last first, then do without single ones."""
    count = len(search.model.graph.outputs)
    for index in reversed(range(count)):
        if search.attempt(cuts.keep_outputs(search.model, {index}), "one output kept"):
            return True
    changed = False
    for index in reversed(range(count)):
        kept = set(range(len(search.model.graph.outputs))) - {index}
        changed = search.attempt(cuts.keep_outputs(search.model, kept), "an output dropped") or changed
    return changed


def _ranges(search: _Search) -> bool:
    """Cut ranges of nodes away, half of the graph first, single nodes last; from the end, where less hangs on them."""
    size, changed = max(1, len(search.model.graph) // 2), False
    while size:
        end = len(search.model.graph)
        while end > 0:
            start = max(0, end - size)
            changed = _cut(search, start, end - start) or changed
            end = min(start, len(search.model.graph))
        size //= 2
    return changed


def _cut(search: _Search, start: int, size: int) -> bool:
    what = f"{size} node{'s' if size > 1 else ''} cut away"
    return any(
        search.attempt(cuts.cut(search.model, start, size, search.facts, constants=constants), what)
        for constants in (False, True)
    )


def _single_nodes(search: _Search) -> bool:
    """Bypass nodes, put branches in place of an If, and cut nodes out of nested graphs."""
    changed, number = False, _count(search.model) - 1
    while number >= 0:
        node = list(nodes(search.model))[number]
        tries = [partial(cuts.inline, search.model, number, branch) for branch in range(len(subgraphs(node)))]
        tries += [partial(cut, search.model, number, search.facts) for cut in (cuts.bypass, cuts.cut_nested)]
        changed = any(_if_smaller(search, make()) for make in tries) or changed
        number = min(number, _count(search.model)) - 1
    return changed


def _if_smaller(search: _Search, candidate: Model | None) -> bool:
    smaller = candidate is not None and _count(candidate) < _count(search.model)
    return smaller and search.attempt(candidate, "one node less")


def _weights(search: _Search) -> None:
    """Take the data out of weights: large ones become inputs, others hold ones, or small numbers."""
    _each(search, cuts.weights(search.model, _LARGE), cuts.without_weights, "weights made inputs")
    ones = partial(cuts.with_weights, make=lambda shape: np.ones(shape))
    left = _each(search, cuts.weights(search.model, _SMALL), ones, "weights set to one")
    _each(search, left, partial(cuts.with_weights, make=_small_numbers), "weights set to small numbers")


def _each(
    search: _Search, names: list[str], change: Callable[[Model, list[str]], Model | None], what: str
) -> list[str]:
    """Apply ``change`` to all weights, or to halves of them down to single ones; return those that refuse it."""
    if not names or search.attempt(change(search.model, names), what):
        return []
    if len(names) == 1:
        return names
    middle = len(names) // 2
    return [*_each(search, names[:middle], change, what), *_each(search, names[middle:], change, what)]


def _small_numbers(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return multiples of 1/8 between -1 and 1, the same for the same shape."""
    return np.asarray(np.random.default_rng(0).integers(-8, 9, size=shape) / 8.0)
