"""Rockchip's RKNN: what rknn-toolkit2 builds of a model, its table of layers and cycles, and its simulator's numbers.

The toolkit needs an environment of its own, for its pins conflict: ``graphopt toolchains --install rknn`` makes one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from graphopt.backend.environments import python_of
from graphopt.backend.job import Job, Outcome, agreement_gate
from graphopt.backend.qdq import dequantizes, quantizes
from graphopt.backend.report import CheckReport, Gate, NodeVerdict, Place
from graphopt.backend.toolchain import Answer, Toolchain, ask

_ROW = re.compile(
    r"\] (?P<id>\d+) +(?P<op>\S+) +(?P<dtype>\S+) +(?P<place>NPU|CPU|GPU) +\S+ +\S+ +"
    r"(?P<ddr>\d+)/(?P<npu>\d+)/(?P<total>\d+) +(?P<traffic>[\d.]+) +(?P<name>\S.*)"
)
_TYPES = {"INT8": "int8", "UINT8": "uint8", "INT16": "int16", "FLOAT16": "float16", "FLOAT": "float32"}
_TYPES |= {"INT32": "int32", "INT64": "int64", "BOOL": "bool"}
_ENDS = frozenset({"InputOperator", "OutputOperator"})
_MOVED = frozenset({"Reshape", "exDataConvert", "Transpose", "Identity"})
"""Layers that rearrange what the model's ends hold: they need no multiplications, and the CPU does them on the way."""
_FUSIONS = {
    "fuse_matmul_softmax_matmul_to_sdpa": {"MatMul", "Softmax"},
    "fuse_exmatmul_add_mul_exsoftmax13_exmatmul_to_sdpa": {"MatMul", "Softmax"},
    "fuse_concat_conv": {"Concat", "Conv"},
}
"""Fusions of the toolkit that are of no use with pairs, and the operators they are made of.

The layer of attention that the first two make ends the compiler with SIGSEGV, convolutions of the third are in float.
"""


@dataclass(frozen=True, slots=True)
class Layer:
    """A row of the toolkit's table: the layer, its type, where it runs, and its cycles."""

    op: str
    dtype: str
    place: str
    cycles: int
    ddr_cycles: int
    npu_cycles: int
    traffic_kb: float
    name: str


def toolchain() -> Toolchain:
    """Return the toolkit as it is installed on this machine."""
    return Toolchain(
        title="rknn-toolkit2",
        worker="rockchip",
        package="rknn",
        install="graphopt toolchains --install rknn (an environment of its own, some 6 GB; Linux on x86-64 or Arm)",
        python=python_of("rknn"),
    )


def check(job: Job) -> CheckReport:
    """Ask whether it builds, what runs where, and whether the simulator's numbers are right.

    Raises TargetError when the toolkit is missing, crashes or does not finish.
    """
    outcome = Outcome()
    names, sources, destinations = job.save_inputs()
    request = request_of(job)
    request.update(names=names, inputs=sources, outputs=destinations)
    tool = toolchain()
    answer = ask(tool, request, job.folder, time_limit=job.time_limit)
    outcome.versions = answer.values["versions"]
    stage = answer.values["stage"]
    if stage not in ("", "run"):
        outcome.gates.append(Gate("builds", False, f"{stage}: {_cause(answer)}"))
        return job.report(tool.title, outcome)
    outcome.gates.append(Gate("builds", True, f"in {answer.values['seconds']['build']:.1f} s{_settings(request)}"))
    layers = list(table(answer.log))
    outcome.nodes = _verdicts(job, layers)
    outcome.cost = cost(layers)
    outcome.gates += [_placement(layers, outcome.nodes), _integers(job, layers)]
    if stage:
        outcome.gates.append(Gate("agreement", False, f"it does not run on the simulator: {_cause(answer)}"))
    elif job.batches:
        ordered = [value.name or "" for value in job.model.graph.outputs]
        gate, outcome.agreement = agreement_gate(job, job.load_outputs(ordered, destinations))
        outcome.gates.append(gate)
    return job.report(tool.title, outcome)


def request_of(job: Job, *, export: Path | None = None) -> dict[str, Any]:
    """Return what the worker is asked about the job's model."""
    return {
        "model": str(job.path),
        "platform": job.target.options["platform"],
        "disable_rules": _useless(job),
        "export": "" if export is None else str(export),
        "names": [],
        "inputs": [],
        "outputs": [],
    }


def _useless(job: Job) -> list[str]:
    operators = {node.op_type for node in job.model.graph}
    return [rule for rule, needed in _FUSIONS.items() if job.quantized and needed <= operators]


def _settings(request: dict[str, Any]) -> str:
    """Say what a user has to give the toolkit to build the model as it was built here."""
    rules = request["disable_rules"]
    return f", by rknn.config(disable_rules={rules})" if rules else ""


def table(log: str) -> Iterator[Layer]:
    """Yield the rows of the table of layers that the toolkit prints."""
    _, found, rest = log.partition("Network Layer Information Table")
    for line in rest.splitlines() if found else []:
        if "RegCmdbuildPass" in line:
            return
        if row := _ROW.search(line):
            yield Layer(
                row["op"],
                _TYPES.get(row["dtype"], row["dtype"].lower()),
                row["place"],
                int(row["total"]),
                int(row["ddr"]),
                int(row["npu"]),
                float(row["traffic"]),
                row["name"].strip(),
            )


def cost(layers: list[Layer]) -> dict[str, Any]:
    """Return the sums of the table, and the table itself."""
    return {
        "cycles": sum(layer.cycles for layer in layers),
        "cycles of memory": sum(layer.ddr_cycles for layer in layers),
        "cycles of the NPU": sum(layer.npu_cycles for layer in layers),
        "traffic in KB": sum(layer.traffic_kb for layer in layers),
        "layers": [asdict(layer) for layer in layers],
    }


def _verdicts(job: Job, layers: list[Layer]) -> list[NodeVerdict]:
    rows = {layer.name.partition(":")[2]: layer for layer in layers if layer.op not in _ENDS}
    known = {finding.node: finding.message for finding in job.findings}
    found = []
    for node in job.model.graph:
        name = node.name or ""
        row = rows.get(name)
        if row is None:
            found.append(NodeVerdict(name, node.op_type, Place.MERGED))
            continue
        place = Place.TARGET if row.place == "NPU" else Place.HOST
        why = ""
        if place is Place.HOST:
            why = known.get(name) or f"the toolkit gives {row.op} to the {row.place}"
        elif job.quantized and row.dtype.startswith("float") and not (quantizes(node) or dequantizes(node)):
            why = known.get(name) or f"computes in {row.dtype}: a Q/DQ pair is missing around it"
        found.append(NodeVerdict(name, node.op_type, place, row.dtype, why))
    return found


def _placement(layers: list[Layer], verdicts: list[NodeVerdict]) -> Gate:
    inner = [layer for layer in layers if layer.op not in _ENDS]
    if not inner:
        return Gate("placement", None, "the toolkit printed no table of layers")
    elsewhere = [layer for layer in inner if layer.place != "NPU" and layer.op not in _MOVED]
    if not elsewhere:
        moved = sum(layer.place != "NPU" for layer in inner)
        text = (
            f"all {len(inner)} layers are on the NPU"
            if not moved
            else f"{moved} of {len(inner)} layers, on the CPU, move data"
        )
        return Gate("placement", True, text)
    first = elsewhere[0]
    why = next((v.why for v in verdicts if v.name == first.name.partition(":")[2]), "")
    text = f"{len(elsewhere)} of {len(inner)} layers run on the CPU: {first.op} {first.name!r}"
    return Gate("placement", False, f"{text}; {why}" if why else text)


def _integers(job: Job, layers: list[Layer]) -> Gate:
    if not job.quantized:
        return Gate("integers", None, "the model holds no Q/DQ pairs: it computes in float")
    inner = [layer for layer in layers if layer.op not in _ENDS]
    floats = [layer for layer in inner if layer.dtype.startswith("float") and layer.op not in _MOVED]
    if not floats:
        return Gate("integers", True, f"none of {len(inner)} layers computes in float")
    return Gate(
        "integers", False, f"{len(floats)} of {len(inner)} layers compute in float: {floats[0].op} {floats[0].name!r}"
    )


def _cause(answer: Answer) -> str:
    """Return what the toolkit says went wrong: the last line of the exception in what it printed."""
    error = answer.values["error"].strip()
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
