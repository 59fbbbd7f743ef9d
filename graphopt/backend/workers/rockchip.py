"""Worker: builds a model with rknn-toolkit2, exports it, and runs it on the simulator.

A script of its own, run in the environment of the toolkit: it imports nothing of graphopt. The request holds ``model``,
``platform``, ``disable_rules`` (fusions that are not to be made), ``export`` (where to write the .rknn file, or ""),
``names`` of the inputs, ``inputs`` (files that hold an array for each, one file a batch) and ``outputs`` (where to
write what comes out). The answer holds ``versions``, ``error``, ``stage`` (what failed) and ``seconds``. The table of
layers is in what the toolkit prints.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_IMAGE_RANK = 4


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

    toolkit = importlib.import_module("rknn.api").RKNN

    answer: dict[str, Any] = {"versions": {"rknn-toolkit2": importlib.metadata.version("rknn-toolkit2")}, "seconds": {}}
    started = time.perf_counter()
    try:
        builder = toolkit(verbose=True)
        answer["stage"] = "load"
        builder.config(target_platform=request["platform"], disable_rules=request["disable_rules"])
        if builder.load_onnx(model=request["model"]) != 0:
            return {**answer, "error": "load_onnx failed"}
        answer["stage"] = "build"
        if builder.build(do_quantization=False) != 0:
            return {**answer, "error": "build failed"}
        answer["seconds"]["build"] = time.perf_counter() - started
        if request["export"]:
            answer["stage"] = "export"
            if builder.export_rknn(request["export"]) != 0:
                return {**answer, "error": "export_rknn failed"}
            if toolkit().load_rknn(request["export"]) != 0:
                return {**answer, "error": "what was exported cannot be loaded again"}
        answer["stage"] = "run"
        if request["inputs"] and builder.init_runtime(target=None) != 0:
            return {**answer, "error": "init_runtime failed"}
        started = time.perf_counter()
        for source, destination in zip(request["inputs"], request["outputs"], strict=True):
            with np.load(source) as arrays:
                feeds = [arrays[f"arr_{index}"] for index in range(len(request["names"]))]
            formats = ["nchw" if array.ndim == _IMAGE_RANK else None for array in feeds]
            found = builder.inference(inputs=feeds, data_format=formats if any(formats) else None)
            if found is None:
                return {**answer, "error": "inference failed"}
            np.savez(destination, *found)
        answer["seconds"]["run"] = time.perf_counter() - started
    # The toolkit raises whatever it likes, and the caller wants to know what.
    except Exception as error:  # noqa: BLE001 - the vendor's code may raise anything, and the answer says what
        return {**answer, "error": f"{type(error).__name__}: {error}"}
    return {**answer, "error": "", "stage": ""}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
