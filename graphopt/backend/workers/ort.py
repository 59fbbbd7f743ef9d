"""Worker: opens a model in onnxruntime with a vendor's execution provider, says where its nodes are, and runs it.

A script of its own, run in a process of its own: it imports nothing of graphopt. The request holds:

- ``package``, ``provider`` and ``library``: the package of the provider, its name, and the attribute of the package
  that holds the path of one more library (``backend_path``), or "";
- ``model``, ``options`` (of the provider), ``config`` (of the session);
- ``names`` of the inputs, ``inputs``: files that hold an array for each, one file a batch, and ``outputs``: where to
  write what comes out;
- ``compile``: where to write the model compiled ahead of time, or "".

The answer holds ``versions``, ``error`` (what the runtime said, or ""), ``stage`` (what failed), ``assignment``
(a list of {provider, nodes}, a node being [name, domain, operator]), ``outputs`` (their names) and ``seconds``.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(asked: str, answered: str) -> None:
    """Read the request, work, and write the answer in one piece."""
    request = json.loads(Path(asked).read_text(encoding="utf-8"))
    try:
        answer = work(request)
    except ModuleNotFoundError as error:
        answer = {"missing": error.name}
    part = Path(f"{answered}.part")
    part.write_text(json.dumps(answer), encoding="utf-8")
    os.replace(part, answered)


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the request asks for, as far as it goes."""
    import numpy as np
    import onnxruntime as ort

    plugin = importlib.import_module(request["package"])
    answer: dict[str, Any] = {
        "versions": {"onnxruntime": ort.__version__, request["package"]: getattr(plugin, "__version__", "")},
        "error": "",
        "stage": "",
        "assignment": [],
        "seconds": {},
    }
    started = time.perf_counter()
    try:
        answer["stage"] = "register"
        options = session_options(ort, plugin, request)
        if options is None:
            answer["error"] = f"{request['provider']} finds no device on this machine"
            return answer
        answer["stage"] = "compile" if request["compile"] else "open"
        if request["compile"]:
            # Left out, nothing is optimized, and the program computes something else than a session of the model does.
            level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
            compiler = ort.ModelCompiler(options, request["model"], graph_optimization_level=level)
            compiler.compile_to_file(request["compile"])
            answer["seconds"]["compile"] = time.perf_counter() - started
            return {**answer, "stage": ""}
        # Without enable_fallback=0 a provider that fails is replaced by the CPU and a message printed.
        session = ort.InferenceSession(request["model"], options, enable_fallback=0)
        answer["seconds"]["open"] = time.perf_counter() - started
        answer["assignment"] = [
            {"provider": part.ep_name, "nodes": [[node.name, node.domain, node.op_type] for node in part.get_nodes()]}
            for part in session.get_provider_graph_assignment_info()
        ]
        answer["stage"] = "run"
        started = time.perf_counter()
        answer["outputs"] = [output.name for output in session.get_outputs()]
        for source, destination in zip(request["inputs"], request["outputs"], strict=True):
            with np.load(source) as arrays:
                feeds = {name: arrays[f"arr_{index}"] for index, name in enumerate(request["names"])}
            values: list[Any] = list(session.run(answer["outputs"], feeds))
            np.savez(destination, *values)
        answer["seconds"]["run"] = time.perf_counter() - started
    # The providers raise whatever they like, and the caller wants to know what.
    except Exception as error:  # noqa: BLE001 - the vendor's code may raise anything, and the answer says what
        answer["error"] = f"{type(error).__name__}: {error}"
        return answer
    return {**answer, "stage": ""}


def session_options(ort: Any, plugin: Any, request: dict[str, Any]) -> Any:
    """Return the options of a session on the provider, ``None`` when it finds no device."""
    ort.register_execution_provider_library(request["provider"], plugin.get_library_path())
    devices = [device for device in ort.get_ep_devices() if device.ep_name == request["provider"]]
    if not devices:
        return None
    options = ort.SessionOptions()
    options.log_severity_level = 0
    for key, value in request["config"].items():
        options.add_session_config_entry(key, value)
    settings = dict(request["options"])
    if request["library"]:
        settings["backend_path"] = getattr(plugin, request["library"])()
    options.add_provider_for_devices(devices, settings)
    return options


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
