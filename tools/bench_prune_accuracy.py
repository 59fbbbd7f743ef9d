"""``bench.py prune-accuracy``: what pruning costs two networks in accuracy, with the default options and 1,024 inputs.

Calibration inputs have no labels and none of them is tested on: the first 1,024 training images of CIFAR-10, and crops
of 100 photos and their mirror images. The data and the metrics are those of ../shared.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
from PIL import Image

import graphopt
from graphopt.analysis import AnalysisManager, Shapes
from graphopt.analysis.cost import Cost
from graphopt.calibration import random_inputs
from graphopt.ir import Editor
from graphopt.runtime import Session, bench

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
INPUTS = 1024


@dataclass(frozen=True)
class Case:
    """A model, the fraction of its multiply-accumulates that stays, and the largest drop in points."""

    model: str
    task: str
    macs: float
    bar: float


CASES = (
    Case("cifar10_resnet20", "cifar10", 0.7, 1.2),
    Case("cifar10_resnet20", "cifar10", 0.5, 5.0),
    Case("efficientnet_lite0", "imagenet", 0.9, 3.5),
    Case("efficientnet_lite0", "imagenet", 0.8, 9.0),
)


@dataclass(frozen=True)
class Record:
    """Metrics in percent of the float model, the pruned one, and the same without recovery; ``drop`` in points.

    ``ratio`` is the latency on one thread over the float model's; ``seconds`` and ``peak`` [MB] are those of pruning.
    """

    case: Case
    exact: float
    pruned: float
    bare: float
    gmacs: float
    parameters: float
    kept: float
    ratio: float
    seconds: float
    peak: int

    @property
    def drop(self) -> float:
        return self.exact - self.pruned


def _metrics() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shared_metrics", SHARED / "metrics.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def calibration(task: str, count: int = INPUTS) -> np.ndarray[Any, Any]:
    """Return the calibration inputs of a task, float32[count, 3, H, W]; what comes from one photo lies together."""
    metrics = _metrics()
    if task == "cifar10":
        images, _ = metrics.cifar_images(metrics.DATA / "cifar10_train4096.npz", count)
        return np.asarray(metrics.cifar(images))
    rng = np.random.default_rng(0)
    photos = [index for index in range(1000) if index % 10 == 7]
    counts = np.diff(np.linspace(0, count, len(photos) + 1).round().astype(int))
    found = [
        _crops(metrics.DATA / "imagenet_1000" / f"{i:04d}.jpg", n, rng) for i, n in zip(photos, counts, strict=True)
    ]
    return np.concatenate(found)


def _crops(path: Path, count: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return crops of a photo, the middle first, each with its mirror image."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
    height, width = pixels.shape[:2]
    corners = [((height - 224) // 2, (width - 224) // 2)]
    while 2 * len(corners) < count:
        corners.append((int(rng.integers(0, height - 223)), int(rng.integers(0, width - 223))))
    crops = [(pixels[top : top + 224, left : left + 224] - 127) / 128 for top, left in corners]
    both = [turned for crop in crops for turned in (crop, crop[:, ::-1])]
    return np.stack(both[:count]).transpose(0, 3, 1, 2)


def measure(case: Case, samples: np.ndarray[Any, Any], pipeline: str) -> Record:
    """Prune with and without recovery and score both; runs in a process of its own, for the peak memory."""
    before = SHARED / "models" / f"{case.model}.onnx"
    with tempfile.TemporaryDirectory() as folder:
        data, after, bare = (Path(folder) / name for name in ("data.npz", "pruned.onnx", "bare.onnx"))
        name = Session(before).inputs[0].name
        np.savez(data, **{name: samples})  # pyright: ignore[reportArgumentType]
        del samples
        started = time.perf_counter()
        graphopt.optimize(before, output=after, pipeline=pipeline.format(macs=case.macs, recover="true"), data=data)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        graphopt.optimize(before, output=bare, pipeline=pipeline.format(macs=case.macs, recover="false"), data=data)
        costs = [_cost(path) for path in (before, after)]
        score = getattr(_metrics(), case.task)
        exact, pruned, without = (100 * float(score(_session(path), None)) for path in (before, after, bare))
        first, second = Session(before), Session(after)
        ratio = bench(first, second, random_inputs(first.inputs, seed=0)).ratio
    return Record(
        case,
        exact=exact,
        pruned=pruned,
        bare=without,
        gmacs=costs[1].total_macs / 1e9,
        parameters=costs[1].parameters / 1e6,
        kept=costs[1].total_macs / costs[0].total_macs,
        ratio=ratio.median if ratio is not None else float("nan"),
        seconds=seconds,
        peak=peak,
    )


def _cost(path: Path) -> Cost:
    # An export may compute its shapes: with those unfolded, sizes behind them are not known.
    model = graphopt.optimize(path, preset="lossless").model
    AnalysisManager(Editor(model)).get(Shapes)
    return Cost.measure(model)


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@click.command("prune-accuracy")
@click.option("--model", "models", multiple=True, help="Only this model; may be given several times.")
@click.option(
    "--pipeline",
    default="fold-constants,fuse-batchnorm,prune-channels{{macs={macs},recover={recover}}}",
    show_default=True,
    help="{macs} and {recover} are filled in.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def prune_accuracy(models: tuple[str, ...], pipeline: str, json_file: Path | None) -> None:
    """Measure accuracy, cost and latency of two networks pruned with the default options; exit code 1 below a bar."""
    if not (SHARED / "metrics.py").is_file():
        click.echo("skipped: there is no ../shared", err=True)
        return
    cases = [case for case in CASES if not models or case.model in models]
    records = []
    click.echo(
        "model                macs    float  pruned    bare    drop   bar   GMACs  params  latency  seconds  peak MB"
    )
    for case in cases:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            records.append(pool.submit(measure, case, calibration(case.task), pipeline).result())
        click.echo(_line(records[-1]))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(record) | {"drop": record.drop} for record in records], indent=2))
    if any(record.drop > record.case.bar for record in records):
        sys.exit(1)


def _line(record: Record) -> str:
    case = record.case
    verdict = "" if record.drop <= case.bar else "  below the bar"
    return (
        f"{case.model:20} {record.kept:5.3f}  {record.exact:6.2f}  {record.pruned:6.2f}  {record.bare:6.2f}  "
        f"{record.drop:6.2f}  {case.bar:4.1f}  {record.gmacs:6.3f}  {record.parameters:6.2f}  {record.ratio:7.2f}  "
        f"{record.seconds:7.0f}  {record.peak:7}{verdict}"
    )
