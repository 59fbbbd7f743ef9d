"""Run one simplifier on one model in this process and print what it took, as one line of JSON.

usage: bench_worker.py TOOL INPUT OUTPUT

It runs in the environment that holds the tool (see peers.py), so it imports nothing but that tool. The time goes from
the file on disk to the saved file; libraries are imported before the clock starts, also those that a tool would import
on first use. Memory is the peak resident set of the process.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

Job = Callable[[str, str], None]


def prepare_graphopt() -> Job:
    import graphopt
    from graphopt.targets import HOST, find

    own = [module.name for module in pkgutil.walk_packages(graphopt.__path__, "graphopt.")]
    for module in ("onnx_ir", "onnxruntime", *own):
        if not module.endswith("__main__"):
            importlib.import_module(module)

    def job(source: str, target: str) -> None:
        graphopt.optimize(source, output=target, preset="lossless", target=find(HOST))

    return job


def prepare_onnxsim() -> Job:
    import onnx
    import onnxsim

    def job(source: str, target: str) -> None:
        model, _ = onnxsim.simplify(onnx.load(source))
        onnx.save(model, target)

    return job


def prepare_onnxslim() -> Job:
    import onnxslim

    for module in ("colorama", "onnxruntime"):
        importlib.import_module(module)

    def job(source: str, target: str) -> None:
        onnxslim.slim(source, target)

    return job


def prepare_onnxoptimizer() -> Job:
    import onnx
    import onnxoptimizer

    def job(source: str, target: str) -> None:
        onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)

    return job


def prepare_onnxscript() -> Job:
    import onnx
    import onnxscript.optimizer

    def job(source: str, target: str) -> None:
        onnx.save(onnxscript.optimizer.optimize(onnx.load(source)), target)

    return job


def prepare_ort_basic() -> Job:
    import onnxruntime

    def job(source: str, target: str) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = target
        options.log_severity_level = 3
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return job


# tool name -> (how to prepare it, the package whose version is reported)
TOOLS: dict[str, tuple[Callable[[], Job], str]] = {
    "graphopt": (prepare_graphopt, "graphopt"),
    "onnxsim": (prepare_onnxsim, "onnxsim"),
    "onnxslim": (prepare_onnxslim, "onnxslim"),
    "onnxoptimizer": (prepare_onnxoptimizer, "onnxoptimizer"),
    "onnxscript": (prepare_onnxscript, "onnxscript"),
    "ort-basic": (prepare_ort_basic, "onnxruntime"),
}


def peak_megabytes() -> float:
    # On Linux ru_maxrss also counts the parent's memory as it was when this process was started; VmHWM does not.
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def main() -> None:
    tool, source, target = sys.argv[1:]
    prepare, package = TOOLS[tool]
    job = prepare()
    start = time.perf_counter()
    job(source, target)
    seconds = time.perf_counter() - start
    record = {"seconds": seconds, "peak_mb": peak_megabytes(), "version": metadata.version(package)}
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
