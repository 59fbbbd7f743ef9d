"""Worker: compiles a model with OpenVINO, says which kernels it chose, and runs it.

A script of its own, run in a process of its own: it imports nothing of graphopt. The request holds ``model``,
``device``, ``names`` of the inputs, ``inputs`` (files that hold an array for each, one file a batch) and ``outputs``
(where to write what comes out). The answer holds ``versions``, ``error``, ``stage`` (what failed), ``kernels`` (a list
of {type, kernel, precision, output, names}), ``outputs`` (their names) and ``seconds``.
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

    openvino = importlib.import_module("openvino")

    answer: dict[str, Any] = {"versions": {"openvino": openvino.__version__}, "error": "", "kernels": [], "seconds": {}}
    started = time.perf_counter()
    try:
        answer["stage"] = "open"
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(request["model"]), request["device"])
        answer["seconds"]["open"] = time.perf_counter() - started
        answer["kernels"] = [kernel(op) for op in compiled.get_runtime_model().get_ordered_ops()]
        answer["stage"] = "run"
        started = time.perf_counter()
        names = [output.get_any_name() for output in compiled.outputs]
        for source, destination in zip(request["inputs"], request["outputs"], strict=True):
            with np.load(source) as arrays:
                feeds = {name: arrays[f"arr_{index}"] for index, name in enumerate(request["names"])}
            found = compiled(feeds)
            np.savez(destination, *(found[output] for output in compiled.outputs))
        answer["outputs"] = names
        answer["seconds"]["run"] = time.perf_counter() - started
    # OpenVINO raises whatever it likes, and the caller wants to know what.
    except Exception as error:  # noqa: BLE001 - the vendor's code may raise anything, and the answer says what
        answer["error"] = f"{type(error).__name__}: {error}"
        return answer
    return {**answer, "stage": ""}


def kernel(op: Any) -> dict[str, Any]:
    """Return what is known of a node of the execution graph."""
    facts = op.get_rt_info()
    wanted = {
        "type": "layerType",
        "kernel": "primitiveType",
        "precision": "runtimePrecision",
        "output": "outputPrecisions",
        "names": "originalLayersNames",
    }
    return {key: facts[name].astype(str) if name in facts else "" for key, name in wanted.items()}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
