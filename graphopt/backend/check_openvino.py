"""OpenVINO: which kernels it chooses, read off the execution graph of the compiled model.

The provider for onnxruntime hides that graph, and finds no device on a machine without Intel hardware. So the model is
compiled by OpenVINO itself, and the provider is asked as well where it finds a device.
"""

from __future__ import annotations

from typing import Any

from graphopt.backend.job import Job, Outcome, agreement_gate
from graphopt.backend.layers import integer_gate, verdicts
from graphopt.backend.report import CheckReport, Gate
from graphopt.backend.toolchain import NotInstalledError, Toolchain, ask
from graphopt.errors import TargetError

_INSTALL = "pip install 'graphopt[openvino]'"
OPENVINO = Toolchain(title="OpenVINO", worker="openvino", package="openvino", install=_INSTALL)
PROVIDER = Toolchain(title="OpenVINO's provider", worker="ort", package="onnxruntime_ep_openvino", install=_INSTALL)

_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8", "i8": "int8", "i32": "int32"}
_NO_DEVICE = "finds no device"


def check(job: Job) -> CheckReport:
    """Ask whether it compiles, runs its quantized layers in integers, and gives the right numbers.

    Raises TargetError when OpenVINO is missing, crashes or does not finish.
    """
    outcome = Outcome()
    names, sources, destinations = job.save_inputs()
    request = {
        "model": str(job.path),
        "device": job.target.options.get("device", "CPU"),
        "names": names,
        "inputs": sources,
        "outputs": destinations,
    }
    answer = ask(OPENVINO, request, job.folder, time_limit=job.time_limit)
    values = answer.values
    outcome.versions = values["versions"]
    if values["stage"] == "open":
        outcome.gates.append(Gate("opens", False, _first(values["error"])))
        return job.report(OPENVINO.title, outcome)
    outcome.gates.append(Gate("opens", True, f"in {values['seconds']['open']:.1f} s"))
    outcome.gates.append(_provider(job))
    outcome.nodes = verdicts(job.model, _kernel_types(job, values["kernels"]), job.findings)
    outcome.gates.append(integer_gate(job.model, outcome.nodes))
    if values["stage"] == "run":
        outcome.gates.append(Gate("agreement", False, f"it does not run: {_first(values['error'])}"))
    elif job.batches:
        # OpenVINO names outputs after the model's, in the model's order.
        ordered = [value.name or "" for value in job.model.graph.outputs]
        gate, outcome.agreement = agreement_gate(job, job.load_outputs(ordered, destinations))
        outcome.gates.append(gate)
    return job.report(OPENVINO.title, outcome)


def _kernel_types(job: Job, kernels: list[dict[str, str]]) -> dict[str, str]:
    """Return what the kernel of each node reads. A kernel names all nodes that it does the work of."""
    own = {node.name: node.name or "" for node in job.model.graph}
    # Where two layers bear one name, OpenVINO calls them after what they write.
    for node in job.model.graph:
        for value in node.outputs:
            own.setdefault(value.name, node.name or "")
    found: dict[str, str] = {}
    for kernel in kernels:
        if kernel["type"] in ("Const", "Input", "Output", "Reorder"):
            continue
        for part in kernel["names"].split(","):
            name = own.get(part.removesuffix("/WithoutBiases"))
            if name is not None:
                found[name] = _TYPES.get(kernel["precision"], kernel["precision"])
    return found


def _provider(job: Job) -> Gate:
    """Open the model in onnxruntime as well, the CPU forbidden, where the provider is there and finds a device."""
    request: dict[str, Any] = {
        "package": PROVIDER.package,
        "provider": "OpenVINOExecutionProvider",
        "library": "",
        "model": str(job.path),
        "options": {},
        "config": {"session.disable_cpu_ep_fallback": "1", "session.record_ep_graph_assignment_info": "1"},
        "names": [],
        "inputs": [],
        "outputs": [],
        "compile": "",
    }
    try:
        answer = ask(PROVIDER, request, job.folder, time_limit=job.time_limit)
    except NotInstalledError as error:
        return Gate("provider", None, error.message)
    except TargetError as error:
        return Gate("provider", False, error.message)
    if not answer.values["error"]:
        return Gate("provider", True, "onnxruntime's provider takes the whole model, without the CPU's")
    if _NO_DEVICE in answer.values["error"]:
        return Gate("provider", None, answer.values["error"])
    return Gate("provider", False, _first(answer.values["error"]))


def _first(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[0][:300] if lines else ""
