"""Quantize one model with one tool in this process and print what it took, as one line of JSON.

usage: bench_quantize_worker.py TOOL INPUT CALIBRATION OUTPUT [MEMORY_LIMIT_GB]

CALIBRATION is an .npz file of samples; graphopt also takes a folder of .npz files, each a batch.

It runs in the environment that holds the tool (see peers.py), so it imports nothing but that tool, numpy and
bench_memory.py beside it. The time goes from the float file on disk to the saved quantized one, with whatever
preparation the tool's manual asks for; libraries are imported before the clock starts. Calibration inputs are mapped
from disk and fed one by one, so that the memory noted is the tool's own: the largest sum of anonymous memory of this
process and its children.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from bench_memory import PeakMemory, high_water_megabytes

Samples = dict[str, Any]
# (float model, calibration file, its mapped arrays, output) -> a remark for the table, or nothing
Job = Callable[[Path, Path, Samples, Path], str | None]

# Per-channel QuantizeLinear exists since opset 13; without raising the opset, what the tools write does not load.
PER_CHANNEL_OPSET, RAISED_OPSET = 13, 17
RAISED = "opset raised by hand"


def mapped(calibration: Path, folder: str) -> Samples:
    """Return the arrays of an .npz file as memory maps of copies in ``folder``."""
    with zipfile.ZipFile(calibration) as archive:
        archive.extractall(folder)
    return {path.stem: np.load(path, mmap_mode="r") for path in sorted(Path(folder).glob("*.npy"))}


def feeds(samples: Samples) -> Iterator[Samples]:
    """Yield one input at a time, with a batch axis of one."""
    for index in range(len(next(iter(samples.values())))):
        yield {name: np.array(array[index : index + 1]) for name, array in samples.items()}


def raised(source: Path, folder: str) -> tuple[Path, str | None]:
    """Return a model whose operator set has per-channel quantization: the same file when it is new enough."""
    import onnx
    from onnx import version_converter

    model = onnx.load(str(source))
    version = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if version >= PER_CHANNEL_OPSET:
        return source, None
    path = Path(folder) / "raised.onnx"
    onnx.save(version_converter.convert_version(model, RAISED_OPSET), str(path))
    return path, RAISED


def prepared(source: Path, folder: str) -> tuple[Path, str | None]:
    """Return what onnxruntime's preparation for quantization makes of a model, and a remark."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, note = raised(source, folder)
    path = Path(folder) / "prepared.onnx"
    try:
        quant_pre_process(str(source), str(path))
    except Exception:  # noqa: BLE001 (its symbolic shape inference gives up with a bare Exception)
        quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
        note = "; ".join(filter(None, [note, "no symbolic shapes"]))
    return path, note


def prepare_graphopt() -> Job:
    import graphopt

    own = [module.name for module in pkgutil.walk_packages(graphopt.__path__, "graphopt.")]
    for module in ("onnx_ir", "onnxruntime", *own):
        if not module.endswith("__main__"):
            importlib.import_module(module)
    run = importlib.import_module("graphopt.__main__").run

    def job(source: Path, calibration: Path, samples: Samples, target: Path) -> None:
        del samples
        arguments = ["optimize", str(source), "-o", str(target), "--preset", "int8", "--target", "ort-cpu"]
        arguments += ["--data", str(calibration)]
        # Statistics kept from an earlier run would make this one look fast.
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            code = run([*arguments, "--report", f"{target}.report.json"])
        if code:
            raise SystemExit(code)

    return job


def prepare_ort(method: str) -> Callable[[], Job]:
    def prepare() -> Job:
        from onnxruntime import quantization

        class Reader(quantization.CalibrationDataReader):
            def __init__(self, samples: Samples) -> None:
                self.feeds = feeds(samples)

            def get_next(self) -> Samples | None:
                return next(self.feeds, None)

        def job(source: Path, calibration: Path, samples: Samples, target: Path) -> str | None:
            del calibration
            with tempfile.TemporaryDirectory() as folder:
                path, note = prepared(source, folder)
                quantization.quantize_static(
                    str(path),
                    str(target),
                    Reader(samples),
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    calibrate_method=quantization.CalibrationMethod[method],
                )
            return note

        return job

    return prepare


def prepare_ort_dynamic() -> Job:
    from onnxruntime import quantization

    def job(source: Path, calibration: Path, samples: Samples, target: Path) -> None:
        del calibration, samples
        quantization.quantize_dynamic(str(source), str(target))

    return job


def prepare_nncf(kind: str | None = None) -> Callable[[], Job]:
    def prepare() -> Job:
        import nncf
        import nncf.onnx
        import onnx

        model_type = None if kind is None else nncf.ModelType[kind]

        def job(source: Path, calibration: Path, samples: Samples, target: Path) -> str | None:
            del calibration
            with tempfile.TemporaryDirectory() as folder:
                # Unprepared, it leaves BatchNormalization beside Conv, and the result is slower than float.
                path, note = prepared(source, folder)
                model = onnx.load(str(path))
            inputs = list(range(len(next(iter(samples.values())))))
            dataset = nncf.Dataset(inputs, lambda i: {k: np.array(v[i : i + 1]) for k, v in samples.items()})
            onnx.save(nncf.quantize(model, dataset, model_type=model_type), str(target))
            return note

        return job

    return prepare


def prepare_onnxsim() -> Job:
    import onnx
    import onnxsim

    def job(source: Path, calibration: Path, samples: Samples, target: Path) -> str | None:
        del calibration
        with tempfile.TemporaryDirectory() as folder:
            source, note = raised(source, folder)
            model, _ = onnxsim.simplify(onnx.load(str(source)))
        onnx.save(onnxsim.quantize_static(model, list(feeds(samples))), str(target))
        return note

    return job


# tool -> (how to prepare it, the package whose version is reported)
TOOLS: dict[str, tuple[Callable[[], Job], str]] = {
    "graphopt": (prepare_graphopt, "graphopt"),
    "ort-minmax": (prepare_ort("MinMax"), "onnxruntime"),
    "ort-percentile": (prepare_ort("Percentile"), "onnxruntime"),
    "ort-entropy": (prepare_ort("Entropy"), "onnxruntime"),
    "ort-dynamic": (prepare_ort_dynamic, "onnxruntime"),
    "nncf": (prepare_nncf(), "nncf"),
    "nncf-transformer": (prepare_nncf("TRANSFORMER"), "nncf"),
    "onnxsim": (prepare_onnxsim, "onnxsim"),
}


def main() -> None:
    tool, source, calibration, target = sys.argv[1:5]
    if len(sys.argv) > 5:
        limit = int(float(sys.argv[5]) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    prepare, package = TOOLS[tool]
    job = prepare()
    with tempfile.TemporaryDirectory() as folder:
        samples = mapped(Path(calibration), folder) if Path(calibration).is_file() else {}
        with PeakMemory() as peak:
            start = time.perf_counter()
            note = job(Path(source), Path(calibration), samples, Path(target))
            seconds = time.perf_counter() - start
    record = {
        "seconds": seconds,
        "peak_mb": peak.megabytes,
        "maxrss_mb": high_water_megabytes(),
        "version": metadata.version(package),
        "note": note,
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
