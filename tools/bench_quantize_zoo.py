"""``bench.py quantize --zoo``: preset int8 on every model there is; ``--growth``: what ten times the inputs cost it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_models import BenchModel, all_models, arrays
from bench_quantize_data import SHARED, cifar_growth
from bench_quantize_tool import Record, run_tool
from bench_time import Stopwatch, in_turns
from numpy.typing import NDArray
from tqdm import tqdm

import graphopt
from graphopt.errors import GraphOptError
from graphopt.runtime import Session, compare

GRAPHOPT, FLOAT = "graphopt", "float"
CALIBRATION_FEEDS, TEST_FEEDS = 8, 4
# Feeds of the same shape as a model's first one; seeds of calibration and test do not meet.
TEST_SEED = 1000


def random_feeds(model: BenchModel, session: Session, seed: int, count: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield made-up inputs: each draw of the model's first feed with another seed."""
    for index in range(count):
        yield next(iter(arrays(model, session, seed + index)))


def quantize_zoo(
    names: tuple[str, ...], folder: Path, watch: Stopwatch, *, timeout: float, memory: float
) -> list[Record]:
    """Quantize every model with made-up calibration data; compare and time it against its lossless float form."""
    records = []
    for model in tqdm([m for m in all_models() if not names or m.name in names], unit="model", disable=None):
        record = Record(model.name, GRAPHOPT)
        records.append(record)
        target, float_path = folder / f"{model.name}__int8.onnx", folder / f"{model.name}__{FLOAT}.onnx"
        with tempfile.TemporaryDirectory() as data:
            session = Session(model.path())
            for index, feed in enumerate(random_feeds(model, session, 0, CALIBRATION_FEEDS)):
                np.savez(Path(data) / f"{index:03d}.npz", **feed)  # pyright: ignore[reportArgumentType]
            run_tool(record, Path(sys.executable), model.path(), Path(data), target, timeout=timeout, memory=memory)
        if record.failure is None:
            graphopt.optimize(model.path(), output=float_path, preset="lossless")
            measure(record, model, float_path, target, watch)
    return records


def measure(record: Record, model: BenchModel, float_path: Path, target: Path, watch: Stopwatch) -> None:
    """Note the worst output's SQNR on inputs that were not calibrated on, and the latency ratio."""
    try:
        before, after = Session(float_path), Session(target)
        result = compare(before, after, random_feeds(model, before, TEST_SEED, TEST_FEEDS))
        record.sqnr_db = min((o.sqnr_db for o in result.outputs if o.sqnr_db is not None), default=None)
        feed = next(random_feeds(model, before, TEST_SEED, 1))
        record.latency = in_turns({FLOAT: float_path, GRAPHOPT: target}, feed, FLOAT, watch)[GRAPHOPT]
    except GraphOptError as error:
        record.failure = f"its model does not run: {error.message[:160]}"


def zoo_table(records: list[Record]) -> str:
    """Return a Markdown table, one line a model, and what is slower than float by more than 2 %."""
    lines = ["| model | SQNR dB | latency | seconds | peak MB | MB |", "|---|--:|--:|--:|--:|--:|"]
    for r in records:
        size = None if r.bytes is None else r.bytes / 1e6
        numbers = ((r.sqnr_db, ".1f"), (r.latency, ".3f"), (r.seconds, ".1f"), (r.peak_mb, ".0f"), (size, ".2f"))
        cells = ["-" if value is None else format(value, form) for value, form in numbers]
        note = f" ({r.failure.replace('|', '/')})" if r.failure else ""
        lines.append(f"| {r.model}{note} | {' | '.join(cells)} |")
    slower = [r.model for r in records if r.latency is not None and r.latency > 1.02]
    return "\n".join([*lines, "", f"- slower than float by more than 2 %: {', '.join(slower) or 'none'}"])


@dataclass(frozen=True)
class Growth:
    """Peak memory in MB of calibrating on a set of inputs, and on ten times as many."""

    once: float
    tenfold: float

    def render(self) -> str:
        """Return one line."""
        change = 100 * (self.tenfold / self.once - 1)
        return f"- ten times the inputs: {self.once:.0f} MB -> {self.tenfold:.0f} MB ({change:+.1f} %)"


def growth(folder: Path, *, timeout: float, memory: float) -> Growth:
    """Quantize cifar10_resnet20 on its calibration images and on ten times as many.

    Raises:
        click.ClickException: ../shared is not there, or a run failed.
    """
    source = SHARED / "models" / "cifar10_resnet20.onnx"
    if not source.is_file():
        raise click.ClickException("skipped: --growth calibrates on images of ../shared, which is not here")
    peaks = []
    for index, feed in enumerate(cifar_growth()):
        record = Record(source.stem, GRAPHOPT)
        calibration = folder / f"growth{index}.npz"
        np.savez(calibration, **feed)  # pyright: ignore[reportArgumentType]
        target = folder / f"growth{index}.onnx"
        run_tool(record, Path(sys.executable), source, calibration, target, timeout=timeout, memory=memory)
        if record.failure is not None or record.peak_mb is None:
            raise click.ClickException(f"on {len(feed['input'])} images: {record.failure}")
        peaks.append(record.peak_mb)
    return Growth(*peaks)
