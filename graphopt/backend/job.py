"""What a checker is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.backend.report import Agreement, CheckReport, Gate, NodeVerdict, Partition, Place
from graphopt.backend.toolchain import TIME_LIMIT
from graphopt.diagnostics import Diagnostic, Severity
from graphopt.ir import Model, Node
from graphopt.runtime import differences
from graphopt.targets import Target

Arrays = Mapping[str, NDArray[Any]]

MARGIN_DB = 1.0
"""How far, in dB, an output on the target may be behind the same file's on onnxruntime's CPU."""
ENOUGH_DB = 50.0
"""An output this near to the float model's is near enough, however near it is on the CPU."""
ENOUGH_FLOAT_DB = 30.0
"""The same for a model without Q/DQ pairs, which NPUs compute in float16."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model to check.

    ``path`` is the file that the toolchain reads, which holds ``model``, its types inferred and its nodes named.
    ``batches`` holds inputs, ``expected`` the reference's outputs on them and ``cpu`` the same file's on onnxruntime's
    CPU; all are empty when numbers were not asked for. ``findings`` is what the target's facts say. ``folder`` is for
    what the toolchain writes.
    """

    name: str
    model: Model
    path: Path
    target: Target
    folder: Path
    quantized: bool
    findings: Sequence[Diagnostic] = ()
    batches: Sequence[Arrays] = ()
    expected: Sequence[Arrays] = ()
    cpu: Sequence[Arrays] = ()
    reference: str = ""
    time_limit: float = TIME_LIMIT

    def report(self, toolchain: str, outcome: Outcome) -> CheckReport:
        """Return the report of the check."""
        return CheckReport(
            model=self.name,
            target=self.target.label,
            verified=self.target.verified,
            toolchain=toolchain,
            versions=outcome.versions,
            gates=(facts_gate(self.findings, alone=not self.target.toolchain), *outcome.gates),
            nodes=tuple(outcome.nodes),
            partitions=partitions(self.model, outcome.nodes),
            findings=tuple(self.findings),
            agreement=outcome.agreement,
            reference=self.reference,
            cost=outcome.cost,
            notes=tuple(outcome.notes),
        )

    def save_inputs(self) -> tuple[list[str], list[str], list[str]]:
        """Write the batches to files; the inputs' names, those files, and files for what comes out."""
        names = list(self.batches[0]) if self.batches else []
        sources, destinations = [], []
        for index, feeds in enumerate(self.batches):
            source = self.folder / f"input_{index}.npz"
            np.savez(source, *(feeds[name] for name in names))
            sources.append(str(source))
            destinations.append(str(self.folder / f"output_{index}.npz"))
        return names, sources, destinations

    def load_outputs(self, names: Sequence[str], files: Sequence[str]) -> list[Arrays]:
        """Read the outputs that a worker wrote."""
        found: list[Arrays] = []
        for file in files:
            with np.load(file) as arrays:
                found.append({name: arrays[f"arr_{index}"] for index, name in enumerate(names)})
        return found


@dataclass
class Outcome:
    """What a checker found; it fills this in as it goes."""

    versions: Mapping[str, str] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    nodes: list[NodeVerdict] = field(default_factory=list)
    agreement: tuple[Agreement, ...] = ()
    cost: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def facts_gate(findings: Sequence[Diagnostic], *, alone: bool = False) -> Gate:
    """Return the gate of what is known of the target beforehand.

    What a toolchain may yet take is no failure, unless the facts stand ``alone``.
    """
    wrong = [finding for finding in findings if alone or finding.severity is Severity.ERROR]
    if wrong:
        return Gate("facts", False, f"{wrong[0].node or 'model'}: {wrong[0].message}")
    return Gate("facts", True, "nothing is known to be refused or computed wrongly" if not findings else "see below")


def agreement_gate(job: Job, outputs: Sequence[Arrays]) -> tuple[Gate, tuple[Agreement, ...]]:
    """Compare ``outputs`` of the target with the reference's, next to those of onnxruntime's CPU."""
    found = agreement(job.expected, outputs, job.cpu)
    enough = ENOUGH_DB if job.quantized else ENOUGH_FLOAT_DB
    floats = [(item.target_db, item.cpu_db) for item in found if item.target_db is not None and item.cpu_db is not None]
    if not floats:
        return Gate("agreement", None, "no output holds floats"), found
    reached, yardstick = min(floats, key=lambda pair: pair[0] - min(pair[1] - MARGIN_DB, enough))
    good = reached >= min(yardstick - MARGIN_DB, enough)
    text = f"SQNR {reached:.1f} dB against {job.reference}; the same file on onnxruntime's CPU: {yardstick:.1f} dB"
    return Gate("agreement", good, text), found


def agreement(expected: Sequence[Arrays], target: Sequence[Arrays], cpu: Sequence[Arrays]) -> tuple[Agreement, ...]:
    """Return how near each output of ``target`` and of ``cpu`` comes to ``expected``."""
    near = {item.name: item for item in differences(zip(expected, target, strict=True))}
    same = {item.name: item for item in differences(zip(cpu, target, strict=True))}
    found = []
    for item in differences(zip(expected, cpu, strict=True)):
        other = near[item.name]
        if item.sqnr_db is None or other.sqnr_db is None:
            equal = 1.0 - same[item.name].differing / max(1, same[item.name].elements)
            found.append(Agreement(item.name, None, None, equal))
        else:
            found.append(Agreement(item.name, other.sqnr_db, item.sqnr_db))
    return tuple(found)


def partitions(model: Model, verdicts: Sequence[NodeVerdict]) -> tuple[Partition, ...]:
    """Return what runs in one piece: neighbours of one place, joined as long as no other place lies in between."""
    places = {verdict.name: verdict.place for verdict in verdicts if verdict.place in (Place.TARGET, Place.HOST)}
    level: dict[str, int] = {}
    members: dict[tuple[int, Place], list[str]] = {}
    for node in model.graph:
        name = node.name or ""
        place = places.get(name)
        depth = max((level[before] for before in _producers(node, level)), default=-1)
        if place is None:
            level[name] = depth
            continue
        # Levels of one place are even, of the other odd: a change of place is a step up.
        parity = 0 if place is Place.TARGET else 1
        level[name] = max(depth, 0) + (max(depth, 0) % 2 != parity)
        members.setdefault((level[name], place), []).append(name)
    return tuple(Partition(place, tuple(names)) for (_, place), names in sorted(members.items()))


def _producers(node: Node, level: Mapping[str, int]) -> list[str]:
    found = []
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and (producer.name or "") in level:
            found.append(producer.name or "")
    return found
