"""What a check found, as values: gates, where each node runs, the partitions, and what is wrong and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from graphopt.diagnostics import Diagnostic, Severity, render_text
from graphopt.errors import CheckError


class Place(StrEnum):
    """Where a node runs: on the target, on the host's CPU instead, nowhere of its own, or nobody said."""

    TARGET = "target"
    HOST = "host"
    MERGED = "merged"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class NodeVerdict:
    """Where a node of the model runs, what it computes in (numpy's names, "" unknown), and why not as it should."""

    name: str
    op: str
    place: Place
    dtype: str = ""
    why: str = ""

    @property
    def is_pair(self) -> bool:
        """Whether it is a QuantizeLinear or DequantizeLinear, of ONNX or of onnxruntime."""
        return self.op.rpartition(".")[2] in ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True)
class Gate:
    """A condition and whether it holds; ``passed`` is None where it was not asked, and ``detail`` says why."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Partition:
    """Nodes that run in one piece, by name, in the order of the model."""

    place: Place
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near an output comes to the float model's, in dB: on the target, and of the same file on onnxruntime's CPU.

    ``None`` stands for outputs that hold no floats; ``equal`` is then the share of equal elements.
    """

    output: str
    target_db: float | None
    cpu_db: float | None
    equal: float | None = None


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What a toolchain says of a model, and the static findings.

    ``target`` is the target's label, ``verified`` whether its facts were checked on the real thing, ``reference`` what
    the numbers were compared with, ``cost`` numbers of the toolchain's own (cycles, bytes).
    """

    model: str
    target: str
    verified: bool
    toolchain: str
    versions: Mapping[str, str] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    nodes: tuple[NodeVerdict, ...] = ()
    partitions: tuple[Partition, ...] = ()
    findings: tuple[Diagnostic, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    reference: str = ""
    cost: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every gate that was asked holds, at least one was, and no finding is an error."""
        asked = [gate.passed for gate in self.gates if gate.passed is not None]
        return bool(asked) and all(asked) and not self.errors

    @property
    def errors(self) -> list[Diagnostic]:
        """The findings that make the model unfit by themselves."""
        return [finding for finding in self.findings if finding.severity is Severity.ERROR]

    def require(self) -> None:
        """Raise CheckError, with what failed, unless the check passed."""
        if self.passed:
            return
        failed = [f"{gate.name}: {gate.detail}" for gate in self.gates if gate.passed is False]
        lines = [*failed, *(str(finding) for finding in self.findings)]
        raise CheckError(f"{self.target} does not take it as it should", where=self.model, context="\n".join(lines))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; numbers that JSON lacks become strings."""
        return {
            "model": self.model,
            "target": self.target,
            "verified": self.verified,
            "toolchain": self.toolchain,
            "versions": dict(self.versions),
            "passed": self.passed,
            "gates": [asdict(gate) for gate in self.gates],
            "findings": [asdict(finding) for finding in self.findings],
            "agreement": [{key: _number(value) for key, value in asdict(item).items()} for item in self.agreement],
            "reference": self.reference,
            "cost": dict(self.cost),
            "partitions": [asdict(part) for part in self.partitions],
            "nodes": [asdict(node) for node in self.nodes],
            "notes": list(self.notes),
        }

    def render(self) -> str:
        """Return the report as text."""
        lines = [f"{self.model} on {self.target}: {'passed' if self.passed else 'FAILED'}"]
        if not self.verified:
            lines.append("the facts of this target come from documents: nothing here was checked on the real thing")
        if self.versions:
            lines.append(", ".join(f"{name} {version}".strip() for name, version in self.versions.items()))
        lines += [f"  {_MARKS[gate.passed]:<7} {gate.name}: {gate.detail}" for gate in self.gates]
        lines += [f"  {line}" for line in self._numbers()]
        if self.nodes:
            lines.append(f"nodes: {summary(self.nodes)}; partitions: {parts(self.partitions)}")
        lines += [f"  {breaks}" for breaks in broken(self.nodes)]
        lines += [f"{name}: {value}" for name, value in self.cost.items() if not isinstance(value, list | dict)]
        if self.findings:
            lines.append(render_text(self.findings))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _numbers(self) -> list[str]:
        lines = []
        for item in self.agreement:
            if item.target_db is not None and item.cpu_db is not None:
                lines.append(f"{item.output}: {item.target_db:.1f} dB, on onnxruntime's CPU {item.cpu_db:.1f} dB")
            else:
                lines.append(f"{item.output}: {item.equal or 0:.2%} of the elements as on onnxruntime's CPU")
        return lines


_MARKS = {True: "ok", False: "FAILED", None: "-"}


def summary(nodes: Iterable[NodeVerdict]) -> str:
    """Return how many nodes run where and in which type: ``target uint8 30, host float32 2``."""
    counts = Counter((node.place, node.dtype) for node in nodes)
    order = list(Place)
    ranked = sorted(counts.items(), key=lambda item: (order.index(item[0][0]), -item[1], item[0][1]))
    return ", ".join(f"{place} {dtype + ' ' if dtype else ''}{count}" for (place, dtype), count in ranked)


def parts(partitions: Iterable[Partition]) -> str:
    """Return how many partitions there are of each place: ``1 (target)`` or ``3 (2 target, 1 host)``."""
    counts = Counter(part.place for part in partitions)
    if len(counts) == 1:
        place, count = next(iter(counts.items()))
        return f"{count} ({place})"
    inner = ", ".join(f"{counts[place]} {place}" for place in Place if counts[place])
    return f"{sum(counts.values())} ({inner})" if inner else "none"


def broken(nodes: Iterable[NodeVerdict], limit: int = 20) -> list[str]:
    """Return a line for each reason why nodes do not run as they should, ``limit`` at most and the rest as a count."""
    alike: dict[str, list[NodeVerdict]] = {}
    for node in nodes:
        if node.why:
            alike.setdefault(f"{node.place}{f' {node.dtype}' if node.dtype else ''}: {node.why}", []).append(node)
    lines = [f"{titled(found[0])}: {why}{others(found)}" for why, found in alike.items()]
    rest = len(lines) - limit
    return lines if rest <= 0 else [*lines[:limit], f"... and {rest} more reasons"]


def titled(node: NodeVerdict) -> str:
    """Return a node's operator and name."""
    return f"{node.op} {node.name!r}"


def others(alike: Sequence[NodeVerdict], shown: int = 3) -> str:
    """Return the second of nodes that share a reason and those behind it, in brackets, "" where there is one only."""
    if len(alike) < 2:
        return ""
    rest = [titled(node) for node in alike[1 : shown + 1]] + ["..."] * (len(alike) > shown + 1)
    return f" (and {len(alike) - 1} more: {', '.join(rest)})"


def _number(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
