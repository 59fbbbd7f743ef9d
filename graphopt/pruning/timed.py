"""Whether cuts pay on this machine: the network before and after them, timed in turns.

Fewer multiply-accumulates are not always less time. A network that is not faster gets back the cuts whose layers take
as long as before; with a budget of latency, the share that stays is corrected until the time itself has met it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from graphopt.analysis import AnalysisManager
from graphopt.analysis.channels import Channels, Group
from graphopt.ir import Editor, Model, Node
from graphopt.ir.copies import numbered_copy
from graphopt.pruning.choose import Removed
from graphopt.pruning.rewire import remove
from graphopt.pruning.selection import OutOfReachError
from graphopt.quantization.measured import Timer

SMALLEST = 2_000_000
"""Networks of fewer multiply-accumulates are not timed: what they take is the runtime's own doing."""

_CHOICES = 4
"""Choices that are timed, at most."""

_TURNS = 6
"""Turns of the two networks, at least."""

_TIMES = 3
"""Times that the turns are taken, where the first did not show that the cut is faster."""

_PROFILES = 2
"""Profiles of each network, in turns, when layers are compared: the faster counts."""

_PAYS = 0.98
"""Layers that take more than this share of their time before have gained no more than noise."""

_NEAR = 0.05
"""A budget of latency need not be met more closely than this share of it."""

Choose = Callable[[float, frozenset[int]], Removed]
"""Returns what goes when the share that stays is multiplied by a factor and no unit of some groups, by index, may go.

Raises OutOfReachError.
"""


@dataclass(frozen=True)
class Unpaid:
    """A group, by index, that keeps its units, and the seconds of its layers with the cut and before it."""

    group: int
    after: float
    before: float


@dataclass(frozen=True)
class Timed:
    """What goes in the end, its latency over that of the network before any cut, and the cuts that were put back.

    ``removed`` is empty when no choice was faster; ``ratio`` is that of the fastest then.
    """

    removed: Removed
    ratio: float
    unpaid: tuple[Unpaid, ...] = ()


@dataclass(frozen=True)
class Trials:
    """Times cuts of ``model`` against ``reference``, the network before any cut.

    ``channels`` is the analysis that found the ``groups`` in ``model``. ``goal`` is the latency ratio to be met, None
    where any below 1 will do. ``each``: a cut has to make its own layers faster, too.
    """

    model: Model
    reference: Model
    channels: type[Channels]
    groups: Iterable[Group]
    timer: Timer
    goal: float | None = None
    each: bool = False

    def run(self, removed: Removed, again: Choose) -> Timed:
        """Time ``removed``, and what ``again`` chooses instead until that is fast enough; return the best of them."""
        unpaid: dict[int, Unpaid] = {}
        factor, tried = 1.0, list[Timed]()
        while removed:
            cut = self._cut(removed)
            ratio = self._ratio(cut)
            slower = self._unpaid(removed, cut) if self.each or ratio >= 1.0 else []
            tried.append(Timed(removed, ratio, tuple(unpaid.values())))
            unpaid.update((each.group, each) for each in slower)
            if not slower:
                if self.goal is None or self._is_near(ratio) or ratio >= 1.0:
                    break
                factor *= self.goal / ratio
            if len(tried) == _CHOICES:
                break
            try:
                removed = again(factor, frozenset(unpaid))
            except OutOfReachError:
                break
        best = self._best(tried)
        return best if best.ratio < 1.0 else Timed({}, best.ratio, tuple(unpaid.values()))

    def _is_near(self, ratio: float) -> bool:
        return self.goal is not None and self.goal * (1 - _NEAR) <= ratio <= self.goal

    def _best(self, tried: list[Timed]) -> Timed:
        """Return the last that is faster or, under a budget, the slowest that meets it; if none does, the fastest."""
        met = [each for each in tried if each.ratio <= (self.goal or 1.0) and each.ratio < 1.0]
        if not met:
            return min(tried, key=lambda each: each.ratio)
        return met[-1] if self.goal is None else max(met, key=lambda each: each.ratio)

    def _cut(self, removed: Removed) -> Model:
        copy = numbered_copy(self.model)
        editor = Editor(copy)
        remove(copy, editor, AnalysisManager(editor).get(self.channels), removed)
        return copy

    def _ratio(self, cut: Model) -> float:
        """Return the latency ratio; other work on the machine must not decide, so it is measured several times.

        A cut is slower when it is so every time. Against a budget it counts by the median.
        """
        found: list[float] = []
        while len(found) < _TIMES:
            found.append(self.timer.latency_ratio(self.reference, cut, rounds=_TURNS))
            if self.goal is None and found[-1] < 1.0:
                return found[-1]
        return min(found) if self.goal is None else median(found)

    def _unpaid(self, removed: Removed, cut: Model) -> list[Unpaid]:
        """Return the cuts whose layers are not faster than in the network as it is now."""
        whole = numbered_copy(self.model)
        before, after = dict[str, float](), dict[str, float]()
        for _ in range(_PROFILES):
            for model, known in ((whole, before), (cut, after)):
                for name, seconds in self.timer.node_seconds(model).items():
                    known[name] = min(seconds, known.get(name, seconds))
        names = {node: f"node/{index}" for index, node in enumerate(self.model.graph)}
        found = []
        for group in self.groups:
            own = [names[node] for node in _layers(group) if node in names] if group.index in removed else []
            was, now = (sum(known.get(name, 0.0) for name in own) for known in (before, after))
            if was and now > _PAYS * was:
                found.append(Unpaid(group.index, now, was))
        return found


def seconds_of(model: Model, timer: Timer) -> tuple[Mapping[Node, float], float]:
    """Return the seconds of the nodes of the main graph, those fused into another left out, and of the network."""
    found = timer.node_seconds(numbered_copy(model))
    known = {node: found.get(f"node/{index}", 0.0) for index, node in enumerate(model.graph)}
    return {node: seconds for node, seconds in known.items() if seconds}, sum(found.values())


def _layers(group: Group) -> list[Node]:
    """Return the nodes whose weights shrink with the group."""
    return list(dict.fromkeys(use.node for use in (*group.writers, *group.readers)))
