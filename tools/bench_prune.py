"""``bench.py prune-structure``: what is left of ten architectures when every group of channels loses half of it.

The models are those of ../shared/arch, whose weights are random: only their structure is looked at. Each is to load, to
run and to keep its outputs' shapes; a bar says what may be left of its multiply-accumulates or parameters.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

import graphopt
from graphopt import io
from graphopt.analysis.cost import Cost
from graphopt.errors import GraphOptError
from graphopt.runtime import Session

SHARED = Path(__file__).resolve().parents[2] / "shared" / "arch"
GIGA, MEGA = 1e9, 1e6


@dataclass(frozen=True)
class Bar:
    """What may be left at most: ``gmacs``, products of two computed operands not counted, or million ``parameters``."""

    gmacs: float | None = None
    parameters: float | None = None


BARS = {
    "resnet18": Bar(gmacs=0.49),
    "resnet50": Bar(gmacs=1.07),
    "mobilenet_v2": Bar(gmacs=0.08),
    "vgg16_bn": Bar(gmacs=3.92),
    "densenet121": Bar(gmacs=0.76),
    "shufflenet": Bar(gmacs=0.05),
    "efficientnet_b0": Bar(gmacs=0.12),
    "deeplab_mnv3": Bar(gmacs=0.12),
    "convnext_tiny": Bar(parameters=7.4),
    "vit_b_16": Bar(parameters=24.0),
}


@dataclass
class Record:
    """Cost of one model before and after, whether the result does what is asked, and how long the tool took.

    ``gmacs`` leave out products of two computed operands, ``parameters`` are in millions; ``seconds`` are those of the
    pass; ``failure`` says why numbers are missing.
    """

    model: str
    gmacs: tuple[float, float] | None = None
    parameters: tuple[float, float] | None = None
    loads: bool = False
    runs: bool = False
    shape_kept: bool = False
    seconds: float | None = None
    failure: str | None = None

    @property
    def meets_bar(self) -> bool:
        """Whether the result is sound and as small as its bar asks, numbers rounded as the bar is."""
        bar = BARS[self.model]
        if not self.shape_kept or self.gmacs is None or self.parameters is None:
            return False
        if bar.gmacs is not None:
            return round(self.gmacs[1], 2) <= bar.gmacs
        return bar.parameters is not None and round(self.parameters[1], 1) <= bar.parameters


def measure(name: str, source: bytes, pipeline: str) -> Record:
    """Prune one model and look at what came out."""
    record = Record(name)
    try:
        model = io.load(source)
        before = Cost.measure(model)
        start = time.perf_counter()
        graphopt.optimize(model, pipeline=pipeline)
        record.seconds = time.perf_counter() - start
        after = Cost.measure(model)
        record.gmacs = _gmacs(before), _gmacs(after)
        record.parameters = before.parameters / MEGA, after.parameters / MEGA
        _run(record, source, io.to_proto(model).SerializeToString())
    except GraphOptError as error:
        record.failure = error.message
    return record


def _run(record: Record, before: bytes, after: bytes) -> None:
    """Load and run both and compare the shapes of what comes out."""
    sessions = Session(before), Session(after)
    record.loads = True
    rng = np.random.default_rng(0)
    shapes = {info: [dim for dim in info.shape or () if isinstance(dim, int)] for info in sessions[0].inputs}
    feeds = {info.name: rng.standard_normal(shape).astype(info.dtype) for info, shape in shapes.items()}
    wanted, found = (session.run(feeds) for session in sessions)
    record.runs = True
    record.shape_kept = {k: v.shape for k, v in wanted.items()} == {k: v.shape for k, v in found.items()}


def _gmacs(cost: Cost) -> float:
    return (cost.total_macs - cost.computed) / GIGA


def table(records: list[Record]) -> str:
    """Return a Markdown table, one line a model."""
    lines = [
        "| model | GMACs before | after | M param. before | after | bar | met | loads | runs | shape kept | seconds |",
        "|---|--:|--:|--:|--:|--:|---|---|---|---|--:|",
    ]
    for r in records:
        bar = BARS[r.model]
        limit = f"{bar.gmacs} G" if bar.gmacs is not None else f"{bar.parameters} M"
        numbers = [*(r.gmacs or (None, None)), *(r.parameters or (None, None))]
        cells = ["-" if number is None else f"{number:.3f}" for number in numbers]
        checks = ["yes" if item else "NO" for item in (r.meets_bar, r.loads, r.runs, r.shape_kept)]
        seconds = "-" if r.seconds is None else f"{r.seconds:.1f}"
        note = f" ({r.failure.replace('|', '/')})" if r.failure else ""
        lines.append(f"| {r.model}{note} | {' | '.join([*cells, limit, *checks, seconds])} |")
    return "\n".join(lines)


def materializer() -> Any:
    """Return the function of ../shared/arch that gives an architecture its weights."""
    spec = importlib.util.spec_from_file_location("materialize", SHARED / "materialize.py")
    if spec is None or spec.loader is None or not (SHARED / "materialize.py").is_file():
        raise click.ClickException("skipped: the architectures are in ../shared/arch, which is not here")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.materialize


@click.command("prune-structure")
@click.option("--model", "names", multiple=True, type=click.Choice(tuple(BARS)), help="only these models")
@click.option("--pipeline", default="prune-channels{channels=0.5,criterion=l1,align=0,check=off}", show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="write the numbers here too")
def prune_structure(names: tuple[str, ...], pipeline: str, json_file: Path | None) -> None:
    """Prune half of every group of ten architectures and print what is left of them.

    Raises:
        click.ClickException: ../shared/arch is not there.
    """
    materialize = materializer()
    records = [
        measure(name, materialize(SHARED / f"{name}.onnx").SerializeToString(), pipeline)
        for name in tqdm(names or tuple(BARS), unit="model", disable=None)
    ]
    click.echo(table(records))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(record) for record in records], indent=2) + "\n")
    if not all(record.meets_bar for record in records):
        sys.exit(1)
