"""onnxruntime's own CPU kernels: which pairs it merged into integer kernels, read off a trace of one run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from graphopt.backend.job import Job, Outcome, agreement_gate
from graphopt.backend.layers import integer_gate, verdicts
from graphopt.backend.report import CheckReport, Gate
from graphopt.errors import ModelError
from graphopt.runtime import Session

_TITLE = "onnxruntime"
_TYPES = {"float": "float32", "double": "float64"}
_SUFFIX = re.compile(r"(_token_\d+|_quant|/duplicated|_\d+)+$")


def check(job: Job) -> CheckReport:
    """Ask whether it opens and whether its quantized layers run in integer kernels.

    On another machine than the target's, only what is known of the target is held against the model.
    """
    outcome = Outcome()
    if not job.target.is_host:
        outcome.notes.append(f"this machine is not a {job.target.name}: only what is known of it was looked at")
        return job.report(_TITLE, outcome)
    try:
        session = Session(job.path, profile=job.folder / "trace")
    except ModelError as error:
        outcome.gates.append(Gate("opens", False, error.message))
        return job.report(_TITLE, outcome)
    outcome.gates.append(Gate("opens", True, "on one thread"))
    if not job.batches:
        outcome.gates.append(Gate("integers", None, "the kernels show in a run only, and no inputs were asked for"))
        return job.report(_TITLE, outcome)
    outputs = [session.run(feeds) for feeds in job.batches]
    types = _kernel_types(session.end_profiling(), [node.name or "" for node in job.model.graph])
    outcome.nodes = verdicts(job.model, types, job.findings)
    outcome.gates.append(integer_gate(job.model, outcome.nodes))
    gate, outcome.agreement = agreement_gate(job, outputs)
    outcome.gates.append(gate)
    return job.report(_TITLE, outcome)


def _kernel_types(trace: Path, names: Iterable[str]) -> dict[str, str]:
    """Return what the kernel of each node reads first; a kernel is called after the node it began as."""
    known = set(names)
    found: dict[str, str] = {}
    for event in json.loads(trace.read_text(encoding="utf-8")):
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        kernel = event["name"].removesuffix("_kernel_time")
        name = _owner(kernel, known)
        read = [next(iter(entry)) for entry in event["args"]["input_type_shape"] if entry]
        if name and read:
            found[name] = _TYPES.get(str(read[0]), str(read[0]))
    return found


def _owner(kernel: str, known: set[str]) -> str:
    for name in (kernel, _SUFFIX.sub("", kernel)):
        if name in known:
            return name
    # Fusions hang their own name on the node's: conv/MatMulAddFusion.
    head = kernel
    while "/" in head:
        head = head.rpartition("/")[0]
        if head in known:
            return head
    return ""
