"""Qualcomm's HTP: what onnxruntime's QNN execution provider makes of a model, on the simulator that comes with it.

A session that opens says little: nodes may run on the CPU, and on the NPU in floats. So there are four gates: the
session opens with the CPU forbidden, every node is assigned to the NPU, the graph handed to the compiler has no floats
but at its ends, and the numbers are as good as those of onnxruntime's CPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.backend.job import Job, Outcome, agreement_gate
from graphopt.backend.report import CheckReport, Gate, NodeVerdict, Place
from graphopt.backend.toolchain import Answer, Toolchain, ask
from graphopt.ir import Node

QNN = Toolchain(
    title="Qualcomm's QNN",
    worker="ort",
    package="onnxruntime_qnn",
    install="pip install 'graphopt[qnn]' (Linux on x86-64 and Windows only)",
)

_PROVIDER = "QNNExecutionProvider"
_STRICT = {"session.disable_cpu_ep_fallback": "1"}
_ASSIGNMENT = {"session.record_ep_graph_assignment_info": "1"}
_TYPES = {
    0x0008: "int8", 0x0016: "int16", 0x0032: "int32", 0x0064: "int64",
    0x0108: "uint8", 0x0116: "uint16", 0x0132: "uint32", 0x0164: "uint64",
    0x0216: "float16", 0x0232: "float32", 0x0264: "float64", 0x0508: "bool",
    0x0304: "int4", 0x0308: "int8", 0x0316: "int16", 0x0332: "int32",
    0x0404: "uint4", 0x0408: "uint8", 0x0416: "uint16", 0x0432: "uint32",
}  # fmt: skip
"""QNN's numbers of data types; its fixed-point ones are integers with a scale."""
_BETWEEN = frozenset({"Quantize", "Dequantize", "Cast", "Convert"})
"""What stands between integers and floats, and has to know both."""


@dataclass(frozen=True, slots=True)
class QnnNode:
    """A node of the graph that was handed to the compiler: name, QNN's operator, and types of its tensors."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def in_float(self) -> bool:
        """Whether it computes with floats."""
        return self.op not in _BETWEEN and any(kind.startswith("float") for kind in (*self.inputs, *self.outputs))


def check(job: Job) -> CheckReport:
    """Ask the four gates. Raises TargetError when the toolchain is missing, crashes or does not finish."""
    outcome = Outcome()
    names, sources, destinations = job.save_inputs()
    answer = _ask(job, strict=True, inputs=(names, sources, destinations))
    outcome.versions = answer.values["versions"]
    opened = answer.values["stage"] in ("", "run")
    if opened:
        outcome.gates.append(Gate("opens", True, f"without the CPU, in {answer.values['seconds']['open']:.1f} s"))
    else:
        outcome.gates.append(Gate("opens", False, _short(answer.values["error"])))
        answer = _ask(job, strict=False, inputs=(names, sources, destinations))
    graph = list(dumped_graph(job.folder))
    outcome.nodes = _verdicts(job, answer, graph)
    outcome.gates.append(_placement(answer, outcome.nodes))
    outcome.gates.append(_integers(job, answer, graph, outcome.nodes))
    if answer.values["stage"] == "run":
        outcome.gates.append(Gate("agreement", False, f"it does not run: {_short(answer.values['error'])}"))
    elif answer.values["stage"] or not job.batches:
        outcome.gates.append(Gate("agreement", None, "not asked" if not job.batches else "it does not run"))
    else:
        gate, outcome.agreement = agreement_gate(job, job.load_outputs(answer.values["outputs"], destinations))
        outcome.gates.append(gate)
    return job.report(QNN.title, outcome)


def request_of(
    model: Path,
    options: Mapping[str, str],
    *,
    strict: bool = True,
    compile_to: Path | None = None,
    provider_options: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what the worker is asked; ``options`` are those of the target."""
    return {
        "package": QNN.package,
        "provider": _PROVIDER,
        "library": "get_qnn_htp_path",
        "model": str(model),
        "options": {
            # Without a chip the simulator computes float32, which no chip does.
            "soc_model": options["soc"],
            "offload_graph_io_quantization": "0",
            **(provider_options or {}),
        },
        "config": {**(_STRICT if strict else {}), **_ASSIGNMENT, **(config or {})},
        "names": [],
        "inputs": [],
        "outputs": [],
        "compile": "" if compile_to is None else str(compile_to),
    }


def dumped_graph(folder: Path) -> Iterator[QnnNode]:
    """Yield the nodes of the graphs that the provider wrote into ``folder``."""
    for file in sorted(folder.glob("dump/*.json")):
        content = json.loads(file.read_text(encoding="utf-8", errors="replace"))
        if "graph" not in content:
            continue
        tensors = content["graph"]["tensors"]
        for name, node in content["graph"]["nodes"].items():
            sides = [
                tuple(_TYPES.get(tensors[tensor]["data_type"], "") for tensor in node[side] if tensor in tensors)
                for side in ("input_names", "output_names")
            ]
            yield QnnNode(name, node["type"], sides[0], sides[1])


def reasons(log: str) -> dict[str, str]:
    """Return why the provider refused nodes, by name, in its own words."""
    found: dict[str, str] = {}
    for block in re.finditer(r"Validation FAILED for \d+ nodes in OrtNodeUnit \(([^)]*)\) :\n((?:\t.*\n)+)", log):
        told = re.search(r"REASON : (.*)", block[2])
        text = told[1].strip() if told else f"{block[1]} was refused"
        for name in re.findall(r"Node name: (.*) Node index: \d+", block[2]):
            found.setdefault(_own_name(name), _tidy(text))
    for name, kind, code in re.findall(
        r"backendValidateOpConfig\(\) failed for node `([^`]*)` of type `([^`]*)` with error code (\d+)", log
    ):
        text = f"the HTP refuses {kind} with these types (error code {code})"
        own = _own_name(re.sub(r"_\d+$", "", name) if _own_name(name) not in found else name)
        found[own] = f"{text}: {found[own]}" if own in found else text
    return found


def _ask(job: Job, *, strict: bool, inputs: tuple[list[str], list[str], list[str]]) -> Answer:
    dump = job.folder / "dump"
    dump.mkdir(exist_ok=True)
    for file in dump.iterdir():
        file.unlink()
    wanted = {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": str(dump)}
    request = request_of(job.path, job.target.options, strict=strict, provider_options=wanted)
    request.update(zip(("names", "inputs", "outputs"), inputs, strict=True))
    return ask(QNN, request, job.folder, time_limit=job.time_limit)


def _verdicts(job: Job, answer: Answer, graph: list[QnnNode]) -> list[NodeVerdict]:
    providers = {
        _own_name(name): part["provider"] for part in answer.values["assignment"] for name, _, _ in part["nodes"]
    }
    types = {_own_name(node.name): node for node in graph}
    refused = reasons(answer.log)
    known = {finding.node: finding.message for finding in job.findings}
    verdicts = []
    for node in job.model.graph:
        name = node.name or ""
        provider, qnn, why = providers.get(name), types.get(name), ""
        if provider == _PROVIDER:
            place = Place.TARGET
        elif provider is not None or name in refused:
            place = Place.HOST if answer.values["assignment"] else Place.UNKNOWN
            why = refused.get(name) or known.get(name) or "the provider did not take it"
        else:
            place = Place.MERGED if answer.values["assignment"] else Place.UNKNOWN
        dtype = (qnn.outputs[0] if qnn is not None and qnn.outputs else "") if place is Place.TARGET else ""
        if place is Place.TARGET and job.quantized and qnn is not None and qnn.in_float:
            why = known.get(name) or "computes in float: a Q/DQ pair is missing around it"
        verdicts.append(NodeVerdict(name, _operator(node), place, dtype, why))
    return verdicts


def _placement(answer: Answer, verdicts: list[NodeVerdict]) -> Gate:
    parts = answer.values["assignment"]
    if not parts:
        causes = [f"{v.op} {v.name!r}: {v.why}" for v in verdicts if v.why]
        return Gate("placement", False, causes[0] if causes else "the session did not open")
    counted = [(part["provider"], node) for part in parts for node in part["nodes"]]
    elsewhere = [node for provider, node in counted if provider != _PROVIDER]
    if not elsewhere:
        return Gate("placement", True, f"all {len(counted)} nodes are on the NPU")
    host = [v for v in verdicts if v.place is Place.HOST]
    # The pairs around a refused node stay with it; the node itself is what to name.
    first = next((v for v in host if not v.is_pair), host[0] if host else None)
    cause = f"; {first.op} {first.name!r}: {first.why}" if first is not None else ""
    return Gate("placement", False, f"{len(elsewhere)} of {len(counted)} nodes run on the CPU{cause}")


def _integers(job: Job, answer: Answer, graph: list[QnnNode], verdicts: list[NodeVerdict]) -> Gate:
    if not job.quantized:
        return Gate("integers", None, "the model holds no Q/DQ pairs: it computes in float")
    if not graph:
        return Gate("integers", False if answer.values["stage"] else None, "there is no graph for the NPU to look at")
    floats = [node for node in graph if node.in_float]
    if not floats:
        return Gate("integers", True, f"none of {len(graph)} nodes computes in float")
    named = {v.name: v for v in verdicts}
    cause = next((named[_own_name(node.name)].why for node in floats if _own_name(node.name) in named), "")
    text = f"{len(floats)} of {len(graph)} nodes compute in float: {floats[0].op} {_own_name(floats[0].name)!r}"
    return Gate("integers", False, f"{text}; {cause}" if cause else text)


def _operator(node: Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _own_name(name: str) -> str:
    """Return the name that a node had in the model, before the provider changed the layout or copied it."""
    return re.sub(r"(_token_\d+|/duplicated(_\d+)?)+$", "", name)


def _short(error: str) -> str:
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", error)
    return text.splitlines()[0][:300] if text else ""


def _tidy(reason: str) -> str:
    """Put the blank between the provider's sentences, and its quotes into ours."""
    return re.sub(r"\.(?=[A-Z])", ". ", reason.replace("`", "'"))
