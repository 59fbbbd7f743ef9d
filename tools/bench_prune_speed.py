"""``bench.py prune-speed``: how fast pruned networks are, and how fast the tool that prunes them is.

Three parts, each on models of ../shared/arch, whose weights are random, after the preset ``lossless``:

latency    pruned to a fraction of the multiply-accumulates: what is left of the time on onnxruntime's CPU provider,
           one thread, whole and pruned model in turns. Not refit, which changes no shape.
analysis   seconds that the groups of channels take to find, also in synthetic networks of growing size.
recovery   seconds and memory of pruning and refitting on random images, in a process of its own.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import synthetic
from bench_prune import BARS, SHARED, materializer
from bench_quantize_tool import reason
from bench_time import Stopwatch, in_turns
from tqdm import tqdm

import graphopt
from graphopt import io
from graphopt.analysis import AnalysisManager
from graphopt.analysis.channels import Channels
from graphopt.analysis.cost import Cost
from graphopt.calibration import random_inputs
from graphopt.errors import GraphOptError
from graphopt.ir import Editor
from graphopt.runtime import Session

WORKER = Path(__file__).with_name("bench_prune_worker.py")
PARTS = ("latency", "analysis", "recovery")
WHOLE, RATIO = "whole", "RATIO"
MODELS, HALF, RATIOS = ("resnet18", "resnet50", "vgg16_bn", "mobilenet_v2"), 0.5, (0.9, 0.75, 0.5, 0.3)
ANALYSED, SIZES, FASTEST_OF = ("densenet121", "vit_b_16"), (5_000, 10_000, 20_000), 3
RECOVERED = "resnet50"

MOST_LATENCY, ABOVE_MACS = 1.0, 0.10
"""Bars for the time of a pruned model over the whole one's: never more, and what it may be above the share of MACs."""
MOST_ANALYSIS = 2.0
"""Bar for the seconds of the analysis."""
MOST_GROWTH = 1.5
"""Bar for the seconds a node in the largest synthetic network over those in the smallest; quadratic would be 4."""
MOST_RECOVERY, MOST_MEMORY = 240.0, 3000.0
"""Bars for seconds and MB of pruning with recovery."""


@dataclass
class Latency:
    """One model at one ratio: what is left of its MACs and of its time, or the ``failure`` that left none of either."""

    model: str
    asked: float
    macs: float | None = None
    latency: float | None = None
    failure: str | None = None

    @property
    def limit(self) -> float:
        """What may be left of the time."""
        held = self.model in MODELS and self.asked == HALF and self.macs is not None
        return min(MOST_LATENCY, self.macs + ABOVE_MACS) if held and self.macs is not None else MOST_LATENCY

    @property
    def meets_bar(self) -> bool:
        """Whether the model is as fast as asked, in the two decimals that the bar is written in."""
        return self.latency is not None and round(self.latency, 2) <= round(self.limit, 2)


@dataclass
class Analysed:
    """Seconds that the analysis of one model takes, the fastest of several runs; ``synthetic``: made to be long."""

    model: str
    nodes: int
    groups: int
    seconds: float
    synthetic: bool

    @property
    def microseconds(self) -> float:
        """Microseconds a node."""
        return 1e6 * self.seconds / self.nodes

    @property
    def meets_bar(self) -> bool:
        """Whether it was fast enough; synthetic networks are held against each other instead, see :func:`growth`."""
        return self.synthetic or self.seconds < MOST_ANALYSIS


@dataclass
class Recovered:
    """Seconds and peak of anonymous memory of one run, layers refit and share of the MACs left, or the ``failure``."""

    model: str
    inputs: int
    seconds: float | None = None
    peak_mb: float | None = None
    macs: float | None = None
    refit: int = 0
    failure: str | None = None

    @property
    def meets_bar(self) -> bool:
        """Whether it was quick and small enough and did refit something."""
        if self.seconds is None or self.peak_mb is None or not self.refit:
            return False
        return self.seconds < MOST_RECOVERY and self.peak_mb < MOST_MEMORY


def latencies(name: str, whole: Path, ratios: Iterable[float], pipeline: str, watch: Stopwatch) -> list[Latency]:
    """Prune the model in file ``whole`` to each ratio of its MACs and time all of them in turns."""
    records = [Latency(name, ratio) for ratio in ratios]
    before = Cost.measure(io.load(whole)).total_macs
    files = {WHOLE: whole}
    for record in records:
        path = whole.with_suffix(f".{record.asked}.onnx")
        try:
            result = graphopt.optimize(whole, output=path, pipeline=pipeline.replace(RATIO, str(record.asked)))
            record.macs = Cost.measure(result.model).total_macs / before
            files[str(record.asked)] = path
        except GraphOptError as error:
            record.failure = error.message
    found = in_turns(files, random_inputs(Session(whole).inputs, seed=0), WHOLE, watch)
    for record in records:
        record.latency = found.get(str(record.asked))
    return records


def analysed(name: str, model: onnx.ModelProto, *, is_synthetic: bool = False) -> Analysed:
    """Find the groups of a model several times over, each time in one that nothing is known of yet."""
    seconds = []
    for _ in range(FASTEST_OF):
        manager = AnalysisManager(Editor(io.from_proto(model)))
        gc.collect()
        gc.disable()
        try:
            start = time.perf_counter()
            channels = manager.get(Channels)
            seconds.append(time.perf_counter() - start)
        finally:
            gc.enable()
    return Analysed(name, len(model.graph.node), len(channels.groups), min(seconds), is_synthetic)


def growth(records: Sequence[Analysed]) -> float | None:
    """Return the time a node takes in the largest synthetic network over that in the smallest."""
    grown = sorted((record for record in records if record.synthetic), key=lambda record: record.nodes)
    return grown[-1].microseconds / grown[0].microseconds if len(grown) > 1 else None


def recovered(name: str, whole: Path, count: int, pipeline: str, timeout: float) -> Recovered:
    """Prune the model in file ``whole`` to half its MACs and refit it on ``count`` random inputs."""
    record = Recovered(name, count)
    data, target = whole.with_suffix(".npz"), whole.with_suffix(".recovered.onnx")
    rng = np.random.default_rng(0)
    np.savez(
        data,
        **{info.name: rng.standard_normal((count, *info.shape[1:]), np.float32) for info in Session(whole).inputs},
    )
    command = [sys.executable, str(WORKER), str(whole), str(data), str(target), pipeline.replace(RATIO, str(HALF))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        record.failure = f"no result in {timeout:g} s"
        return record
    if done.returncode:
        record.failure = f"exit code {done.returncode}: {reason(done.stderr)}"
        return record
    answer = json.loads(done.stdout.splitlines()[-1])
    record.seconds, record.peak_mb, record.refit = answer["seconds"], answer["peak_mb"], answer["refit"]
    record.macs = answer["macs"] / Cost.measure(io.load(whole)).total_macs
    return record


def latency_table(records: Sequence[Latency]) -> str:
    """Return a Markdown table, one line for a model and ratio."""
    lines = ["| model | MACs asked | MACs left | latency | bar | met |", "|---|--:|--:|--:|--:|---|"]
    for r in records:
        note = f" ({r.failure.replace('|', '/')})" if r.failure else ""
        cells = ["-" if number is None else f"{number:.3f}" for number in (r.macs, r.latency)]
        lines.append(f"| {r.model}{note} | {r.asked} | {' | '.join(cells)} | {r.limit:.2f} | {_met(r.meets_bar)} |")
    return "\n".join(lines)


def analysis_table(records: Sequence[Analysed]) -> str:
    """Return a Markdown table, one line a model, and how the time a node takes grows."""
    lines = ["| model | nodes | groups | seconds | µs a node | bar | met |", "|---|--:|--:|--:|--:|--:|---|"]
    for r in records:
        numbers = f"{r.nodes} | {r.groups} | {r.seconds:.2f} | {r.microseconds:.0f}"
        verdict = " | " if r.synthetic else f"{MOST_ANALYSIS:g} s | {_met(r.meets_bar)}"
        lines.append(f"| {r.model} | {numbers} | {verdict} |")
    grown = growth(records)
    if grown is not None:
        text = (
            f"time a node, largest over smallest: {grown:.2f} (bar {MOST_GROWTH:g}, met: {_met(grown <= MOST_GROWTH)})"
        )
        lines += ["", text]
    return "\n".join(lines)


def recovery_table(record: Recovered) -> str:
    """Return a Markdown table of one line."""
    r = record
    note = f" ({r.failure.replace('|', '/')})" if r.failure else ""
    cells = [
        "-" if n is None else f"{n:{form}}" for n, form in ((r.macs, ".3f"), (r.seconds, ".0f"), (r.peak_mb, ".0f"))
    ]
    limit = f"{MOST_RECOVERY:g} s, {MOST_MEMORY:g} MB"
    return "\n".join(
        [
            "| model | inputs | layers refit | MACs left | seconds | peak MB | bar | met |",
            "|---|--:|--:|--:|--:|--:|---|---|",
            f"| {r.model}{note} | {r.inputs} | {r.refit} | {' | '.join(cells)} | {limit} | {_met(r.meets_bar)} |",
        ]
    )


def _met(yes: bool) -> str:
    return "yes" if yes else "NO"


def _lossless(materialize: Any, name: str, folder: Path) -> Path:
    """Write the architecture with random weights, after the preset ``lossless``."""
    path = folder / f"{name}.onnx"
    graphopt.optimize(materialize(SHARED / f"{name}.onnx").SerializeToString(), preset="lossless", output=path)
    return path


def _all_latencies(
    materialize: Any, names: Sequence[str], ratios: Sequence[float], pipeline: str, watch: Stopwatch
) -> list[Latency]:
    records = []
    for name in tqdm(names, unit="model", disable=None):
        with tempfile.TemporaryDirectory() as folder:
            records += latencies(name, _lossless(materialize, name, Path(folder)), ratios, pipeline, watch)
    return records


def _all_analyses(materialize: Any) -> list[Analysed]:
    records = [analysed(name, materialize(SHARED / f"{name}.onnx")) for name in ANALYSED]
    return records + [analysed(f"synthetic, {size}", synthetic.network(size), is_synthetic=True) for size in SIZES]


@click.command("prune-speed")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="only these parts")
@click.option("--model", "names", multiple=True, type=click.Choice(tuple(BARS)), help="only these, for latency")
@click.option("--ratio", "ratios", multiple=True, type=float, help="MACs that stay, for latency; 0.5 unless --all")
@click.option("--all", "every", is_flag=True, help=f"latency of all ten models, at {', '.join(map(str, RATIOS))}")
@click.option("--rounds", default=15, show_default=True, help="turns of each model")
@click.option("--inputs", default=256, show_default=True, help="random inputs that recovery runs on")
@click.option("--timeout", default=1200.0, show_default=True, help="seconds that recovery may take")
@click.option("--pipeline", default=f"prune-channels{{macs={RATIO}}}", show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="write the numbers here too")
def prune_speed(
    parts: tuple[str, ...],
    names: tuple[str, ...],
    ratios: tuple[float, ...],
    every: bool,
    rounds: int,
    inputs: int,
    timeout: float,
    pipeline: str,
    json_file: Path | None,
) -> None:
    """Time pruned models against whole ones, the analysis of channels, and pruning with recovery.

    Raises:
        click.ClickException: ../shared/arch is not there.
    """
    materialize = materializer()
    found: dict[str, list[Any]] = {}
    for part in parts or PARTS:
        if part == "latency":
            models, shares = names or (tuple(BARS) if every else MODELS), ratios or (RATIOS if every else (HALF,))
            found[part] = _all_latencies(materialize, models, shares, pipeline, Stopwatch(rounds))
            click.echo(latency_table(found[part]) + "\n")
        elif part == "analysis":
            found[part] = _all_analyses(materialize)
            click.echo(analysis_table(found[part]) + "\n")
        else:
            with tempfile.TemporaryDirectory() as folder:
                whole = _lossless(materialize, RECOVERED, Path(folder))
                found[part] = [recovered(RECOVERED, whole, inputs, pipeline, timeout)]
            click.echo(recovery_table(found[part][0]))
    if json_file is not None:
        plain = {part: [asdict(record) for record in records] for part, records in found.items()}
        json_file.write_text(json.dumps(plain, indent=2) + "\n")
    grown = growth(found.get("analysis", []))
    if (grown or 0.0) > MOST_GROWTH or not all(record.meets_bar for records in found.values() for record in records):
        sys.exit(1)
