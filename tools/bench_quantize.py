"""``bench.py quantize``: graphopt's preset int8 against other quantizers, one process for each tool and model.

All tools get the same float model and the same calibration inputs. Every result is scored on other inputs in this
process; then all results of a model and its float form (preset lossless) are timed in turns, on one thread. AMD Quark
and AIMET are not run: they install PyTorch and take long.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from bench_quantize_data import Arrays, Task, all_tasks
from bench_quantize_tool import Record, run_tool
from bench_quantize_worker import TOOLS
from bench_quantize_zoo import growth, quantize_zoo, zoo_table
from bench_time import Stopwatch, in_turns
from numpy.typing import NDArray
from peers import python_of
from tqdm import tqdm

import graphopt
from graphopt.errors import GraphOptError
from graphopt.runtime import Session

GRAPHOPT, FLOAT = "graphopt", "float"
FOR_TRANSFORMERS = {"ort-dynamic", "nncf-transformer"}
HEAVIEST = "ort-percentile"
ENVIRONMENTS = {"nncf": "nncf", "nncf-transformer": "nncf", "onnxsim": "simplifiers"}
OPTIONAL = "AMD Quark and AIMET are not run: they install PyTorch and take long"


class Recorder:
    """A session for the metrics that also sums up how far its outputs are from a reference's, or keeps them as one."""

    def __init__(self, session: Session, reference: list[NDArray[Any]] | None = None) -> None:
        self.outputs: list[NDArray[Any]] = []
        self._session = session
        self._reference = reference
        self._runs = 0
        self._signal = self._noise = 0.0

    def get_inputs(self) -> list[Any]:
        """Return names and shapes of the inputs."""
        return list(self._session.inputs)

    def run(self, names: list[str] | None, feeds: Arrays) -> list[NDArray[Any]]:
        """Run once; the first output is compared."""
        outputs = list(self._session.run(feeds, names).values())
        first = outputs[0]
        if self._reference is None:
            self.outputs.append(first)
        else:
            expected = self._reference[self._runs].astype(np.float64)
            self._signal += float(np.vdot(expected, expected))
            self._noise += float(np.square(first - expected).sum())
            self._runs += 1
        return outputs

    @property
    def sqnr_db(self) -> float:
        """Ten times the logarithm of the power of the reference over that of the difference."""
        return decibel(self._signal, self._noise)


def decibel(signal: float, noise: float) -> float:
    """Return the ratio of two powers in dB; no number at all counts as infinitely bad."""
    if math.isnan(noise) or not signal:
        return -math.inf
    return math.inf if noise == 0.0 else 10.0 * math.log10(signal / noise)


def score(record: Record, task: Task, path: Path, limit: int | None, reference: list[NDArray[Any]] | None) -> Recorder:
    """Run a model over the test inputs and note what came out. Raises GraphOptError when it does not run."""
    recorder = Recorder(Session(path), reference)
    record.score = task.score(recorder, limit)
    if reference is not None:
        record.sqnr_db = recorder.sqnr_db
    return recorder


def run_task(task: Task, tools: tuple[str, ...], folder: Path, settings: Settings) -> list[Record]:
    """Quantize one model with all tools, score the results, and time them in turns."""
    source, calibration = task.model(), task.calibration()
    float_path = folder / f"{task.name}__{FLOAT}.onnx"
    graphopt.optimize(source, output=float_path, preset="lossless")
    original = Record(task.name, FLOAT, bytes=source.stat().st_size, latency=1.0)
    reference = score(original, task, source, settings.limit, None).outputs
    records, runnable = [original], {FLOAT: float_path}
    for tool in tqdm(tools, desc=task.name, unit="tool", disable=None, leave=False):
        if tool in FOR_TRANSFORMERS and not task.transformer:
            continue
        record = Record(task.name, tool)
        records.append(record)
        target = folder / f"{task.name}__{tool}.onnx"
        if not (settings.reuse and restored(record, target)):
            target.unlink(missing_ok=True)
            python = interpreter(tool, settings.peers_python)
            run_tool(
                record, python, source, calibration, target, timeout=settings.timeout, memory=settings.memory_limit
            )
        if record.failure is None:
            try:
                score(record, task, target, settings.limit, reference)
                runnable[tool] = target
            except GraphOptError as error:
                record.failure = f"its model does not run: {error.message[:160]}"
        settings.note(record, target)
    ratios = in_turns(runnable, task.sample(), FLOAT, Stopwatch(settings.rounds))
    for record in records:
        record.latency = ratios.get(record.tool)
    return records


@dataclass(frozen=True)
class Settings:
    """Options of the command that hold for all models."""

    limit: int | None
    rounds: int
    timeout: float
    memory_limit: float
    peers_python: Path | None
    reuse: bool

    def note(self, record: Record, target: Path) -> None:
        """Leave what is known of a model beside it, for ``--reuse`` and for whoever waits for a long run."""
        target.with_suffix(".bench.json").write_text(json.dumps(asdict(record)) + "\n")


def restored(record: Record, target: Path) -> bool:
    """Fill the record from what an earlier run left; False when there is nothing."""
    path = target.with_suffix(".bench.json")
    if not path.is_file():
        return False
    before = Record(**json.loads(path.read_text()))
    if before.failure is None and not target.is_file():
        return False
    vars(record).update(vars(replace(before, score=None, sqnr_db=None, latency=None)))
    return True


def interpreter(tool: str, peers_python: Path | None) -> Path:
    """Return the python that has the tool."""
    if tool == GRAPHOPT:
        return Path(sys.executable)
    return peers_python or python_of(ENVIRONMENTS.get(tool, "ort"))


def table(records: list[Record], metrics: Mapping[str, str]) -> str:
    """Return a Markdown table, one line for each model and tool, and a summary."""
    lines = [
        "| model | tool | metric | SQNR dB | latency | seconds | peak MB | MB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for r in records:
        name = f"**{r.model}** ({metrics[r.model]})" if r.tool == FLOAT else ""
        remark = r.failure or r.note
        note = f" ({remark.replace('|', '/')})" if remark else ""
        cells = (
            _cell(r.score, ".1%"),
            _cell(r.sqnr_db, ".1f"),
            _cell(r.latency, ".3f"),
            _cell(r.seconds, ".1f"),
            _cell(r.peak_mb, ".0f"),
            _cell(None if r.bytes is None else r.bytes / 1e6, ".2f"),
        )
        lines.append(f"| {name} | {'*float*' if r.tool == FLOAT else r.tool}{note} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *summary(records)])


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def summary(records: list[Record]) -> list[str]:
    """Say where graphopt stands: against float, against the best peer faster than float, against the heaviest."""
    lines = []
    for model in dict.fromkeys(r.model for r in records):
        tools = {r.tool: r for r in records if r.model == model}
        ours = tools.get(GRAPHOPT)
        if ours is None or ours.score is None or ours.sqnr_db is None or ours.latency is None:
            continue
        parts = []
        if (original := tools.get(FLOAT)) is not None and original.score is not None:
            parts.append(f"{100 * (ours.score - original.score):+.1f} points")
        peers = [r for r in tools.values() if r.tool not in (GRAPHOPT, FLOAT) and r.latency is not None]
        if fast := [r for r in peers if r.latency is not None and r.latency < 1.0 and r.sqnr_db is not None]:
            best = max(fast, key=lambda r: r.sqnr_db or -math.inf)
            quickest = min(fast, key=lambda r: r.latency or math.inf)
            parts.append(f"{ours.sqnr_db - (best.sqnr_db or 0.0):+.1f} dB against {best.tool}")
            parts.append(f"{ours.latency / (quickest.latency or 1.0):.2f} of the latency of {quickest.tool}")
        heavy = tools.get(HEAVIEST)
        if heavy is not None and heavy.seconds and heavy.peak_mb and ours.seconds and ours.peak_mb:
            cost = f"{ours.seconds / heavy.seconds:.2f} of the seconds and {ours.peak_mb / heavy.peak_mb:.2f}"
            parts.append(f"{cost} of the memory of {HEAVIEST}")
        lines.append(f"- {model}: {', '.join(parts)}")
    return lines


def machine() -> dict[str, Any]:
    """Return what numbers depend on."""
    return {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}


@click.command(help=__doc__)
@click.option("--model", "names", multiple=True, help="only this model (can be repeated)")
@click.option("--tool", "tools", multiple=True, type=click.Choice(list(TOOLS)), help="only this tool (can be repeated)")
@click.option("--limit", type=click.IntRange(1), help="so many test inputs, for a quick look")
@click.option("--rounds", default=30, show_default=True, type=click.IntRange(1), help="turns for the latency ratios")
@click.option("--timeout", default=900.0, show_default=True, help="seconds one process may take")
@click.option("--memory-limit", default=16.0, show_default=True, help="GB one process may take")
@click.option("--peers-python", type=click.Path(exists=True, path_type=Path), help="an interpreter that has the peers")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="keep the quantized models here")
@click.option("--reuse", is_flag=True, help="take what --keep has from an earlier run; scores and latency are new")
@click.option("--zoo", is_flag=True, help="instead: graphopt on every model, calibrated on made-up inputs")
@click.option("--growth", "grow", is_flag=True, help="instead: graphopt's memory on ten times the inputs")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="write all numbers here too")
def quantize(
    names: tuple[str, ...],
    tools: tuple[str, ...],
    limit: int | None,
    rounds: int,
    timeout: float,
    memory_limit: float,
    peers_python: Path | None,
    keep: Path | None,
    reuse: bool,
    zoo: bool,
    grow: bool,
    json_path: Path | None,
) -> None:
    settings = Settings(limit, rounds, timeout, memory_limit, peers_python, reuse)
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if grow:
            click.echo(growth(folder, timeout=timeout, memory=memory_limit).render())
        elif zoo:
            records = quantize_zoo(names, folder, Stopwatch(rounds), timeout=timeout, memory=memory_limit)
            write(json_path, records)
            click.echo(zoo_table(records))
        else:
            against_peers(chosen_tasks(names), tools or tuple(TOOLS), folder, settings, json_path)


def chosen_tasks(names: tuple[str, ...]) -> list[Task]:
    """Return the tasks of those names; all without names. Raises click.UsageError for a name that there is not."""
    every = all_tasks()
    if unknown := set(names) - {t.name for t in every}:
        raise click.UsageError(f"no model named {min(unknown)}; there are {', '.join(t.name for t in every)}")
    return [t for t in every if not names or t.name in names]


def against_peers(
    tasks: list[Task], tools: tuple[str, ...], folder: Path, settings: Settings, json_path: Path | None
) -> None:
    """Print the table of all models and tools."""
    records: list[Record] = []
    for task in tasks:
        records += run_task(task, tools, folder, settings)
        # After every model, so that a run that is broken off leaves what it has measured.
        write(json_path, records)
    click.echo(table(records, {t.name: t.metric for t in tasks}))
    click.echo(f"- {OPTIONAL}")


def write(path: Path | None, records: list[Record]) -> None:
    """Write all numbers as JSON, when a path was given."""
    if path is not None:
        report = {"machine": machine(), "skipped": OPTIONAL, "records": [asdict(r) for r in records]}
        path.write_text(json.dumps(report, indent=1) + "\n")
