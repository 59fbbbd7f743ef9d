"""Instruments that measure a run: the seconds each pass takes, and the size of the model before and after each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from graphopt.analysis import Cost
from graphopt.ir import Model, nodes
from graphopt.pipeline.base import Changes, Pass
from graphopt.pipeline.manager import Instrument, Run


class Timing(Instrument):
    """Seconds by pass, all of its executions together; what is left over is spent in instruments."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.runs: dict[str, int] = {}
        self.total = 0.0
        self._begin = 0.0

    def start(self, run: Run) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def after_pass(self, run: Run, item: Pass, changes: Changes) -> None:
        """Add the time of one execution."""
        record = run.records[-1]
        self.seconds[record.text] = self.seconds.get(record.text, 0.0) + record.seconds
        self.runs[record.text] = self.runs.get(record.text, 0) + 1

    def finish(self, run: Run) -> None:
        """Stop the clock."""
        self.total = time.perf_counter() - self._begin

    def table(self) -> str:
        """Return one line a pass, the slowest first: seconds, share of the run, executions, name."""
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        rows.append(("(instruments)", self.total - sum(self.seconds.values())))
        whole = self.total or 1.0
        lines = [f"{'seconds':>9} {'share':>6} {'runs':>5}  pass"]
        for name, seconds in rows:
            lines.append(f"{seconds:9.4f} {seconds / whole:6.1%} {self.runs.get(name, ''):>5}  {name}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        by_pass = {name: {"seconds": seconds, "runs": self.runs[name]} for name, seconds in self.seconds.items()}
        return {"total": self.total, "passes": by_pass}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The size of a model.

    ``nodes`` are counted in all nested graphs, Constant nodes left out. ``parameters`` and ``bytes`` are those of
    initializers and Constant nodes, ``macs`` the multiply-accumulates of one run with symbolic dimensions as 1, and
    ``macs_unknown`` the number of nodes missing in that sum because their shapes are not known.
    """

    nodes: int
    parameters: int
    bytes: int
    macs: int
    macs_unknown: int

    def to_json(self) -> dict[str, int]:
        """Return plain values."""
        return asdict(self)


def measure(model: Model, bindings: Mapping[str, int] | None = None) -> Snapshot:
    """Return the size of ``model``, symbolic dimensions of its inputs as in ``bindings``; the model stays as it is."""
    cost = Cost.measure(model, bindings)
    count = sum(1 for node in nodes(model) if node.op_type != "Constant" or node.domain)
    return Snapshot(count, cost.parameters, cost.size, cost.total_macs, len(cost.unknown))


class Statistics(Instrument):
    """The size of the model at the ends of the run and, with ``each_pass``, after each pass that changed it."""

    def __init__(self, *, each_pass: bool = False):
        self.before: Snapshot | None = None
        self.after: Snapshot | None = None
        self.steps: list[tuple[int, str, Snapshot]] = []
        self._each_pass = each_pass

    def start(self, run: Run) -> None:
        """Measure the input."""
        self.before = measure(run.model)

    def after_pass(self, run: Run, item: Pass, changes: Changes) -> None:
        """Measure what the pass left."""
        if self._each_pass and changes:
            self.steps.append((len(run.records), str(item), measure(run.model)))

    def finish(self, run: Run) -> None:
        """Measure the result."""
        self.after = measure(run.model)

    def table(self) -> str:
        """Return one line for the input, for each measured pass and for the result."""
        rows = [
            ("", "(input)", self.before),
            *((str(n), text, s) for n, text, s in self.steps),
            ("", "(result)", self.after),
        ]
        lines = [f"{'step':>4} {'nodes':>8} {'parameters':>13} {'bytes':>14} {'MACs':>16}  pass"]
        for step, text, size in rows:
            if size is not None:
                macs = f"{size.macs}{'+?' if size.macs_unknown else ''}"
                lines.append(f"{step:>4} {size.nodes:>8} {size.parameters:>13} {size.bytes:>14} {macs:>16}  {text}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "before": self.before and self.before.to_json(),
            "after": self.after and self.after.to_json(),
            "steps": [{"step": n, "pass": text, **size.to_json()} for n, text, size in self.steps],
        }
