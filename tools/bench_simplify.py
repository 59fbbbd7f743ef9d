"""``bench.py simplify``: graphopt's lossless preset against other simplifiers, one process for each tool and model.

graphopt is given the target ort-cpu, onnxruntime on this machine's CPU, because that is where the bench measures.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import onnx
from bench_models import BenchModel, all_models, arrays
from bench_worker import TOOLS
from peers import python_of
from tqdm import tqdm

from graphopt.errors import GraphOptError, VerifyError
from graphopt.runtime import Session, bench, compare

WORKER = Path(__file__).with_name("bench_worker.py")
GRAPHOPT = "graphopt"


@dataclass
class Record:
    """What one tool did to one model.

    ``nodes`` counts all subgraphs and functions but no Constant; ``seconds`` go from file to file without imports;
    ``difference`` is the largest absolute difference over both feeds divided by the output's scale, the worst output;
    ``latency`` is the median of after/before over alternating runs, ``latency_min`` the ratio of the fastest runs.
    ``new_domains`` are operator domains that the tool brought in, which ties the model to one runtime;
    ``failure`` says why numbers are missing.
    """

    model: str
    tool: str
    version: str | None = None
    nodes: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    difference: float | None = None
    latency: float | None = None
    latency_min: float | None = None
    new_domains: tuple[str, ...] = ()
    failure: str | None = None


def nodes_of(path: Path) -> list[onnx.NodeProto]:
    """Return all nodes of a model file: those of subgraphs and functions included, Constant left out."""
    model = onnx.load(str(path), load_external_data=False)
    tops = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return [node for node in _walk(tops) if node.op_type != "Constant"]


def _walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            bodies = [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs
            for body in bodies:
                yield from _walk(body.node)


def run_tool(record: Record, source: Path, target: Path, python: Path, *, timeout: float, repeat: int) -> None:
    """Run the tool in processes of its own and note its fastest time and largest memory, or why it failed."""
    command = [str(python), str(WORKER), record.tool, str(source), str(target)]
    seconds: list[float] = []
    peaks: list[float] = []
    for _ in range(repeat):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            record.failure = f"no result in {timeout:g} s"
            return
        if done.returncode or not target.is_file():
            lines = done.stderr.strip().splitlines() or [""]
            record.failure = f"exit code {done.returncode}: {lines[-1][:160]}"
            return
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        record.version = answer["version"]
        seconds.append(answer["seconds"])
        peaks.append(answer["peak_mb"])
    record.seconds, record.peak_mb = min(seconds), max(peaks)
    after = nodes_of(target)
    record.nodes = len(after)
    record.new_domains = tuple(sorted({n.domain for n in after} - {n.domain for n in nodes_of(source)} - {"ai.onnx"}))
    record.bytes = target.stat().st_size + sum(f.stat().st_size for f in target.parent.glob(f"{target.name}.*"))


def run_models(record: Record, model: BenchModel, source: Path, target: Path, *, runs: int, min_seconds: float) -> None:
    """Compare the simplified model with the original: outputs on both feeds, and time in turns on the first."""
    try:
        before, after = Session(source), Session(target)
        feeds = list(arrays(model, before))
        result = compare(before, after, feeds)
        record.difference = max(
            (o.max_rel_to_scale if not o.nonfinite and o.max_rel_to_scale is not None else float(o.differing > 0))
            for o in result.outputs
        )
        if runs:
            timing = bench(before, after, feeds[0], runs=runs, min_seconds=min_seconds)
            if timing.b is not None and timing.ratio is not None:
                record.latency = timing.ratio.median
                record.latency_min = timing.b.min / timing.a.min
    except GraphOptError as error:
        kind = "is wrong" if isinstance(error, VerifyError) else "does not run"
        place = "" if isinstance(error, VerifyError) or not error.where else f"{error.where.rpartition('.onnx: ')[2]}: "
        record.failure = f"its model {kind}: {place}{error.message[:160]}"


def table(records: list[Record], originals: dict[str, int]) -> str:
    """Return a Markdown table, one line for each model and tool, and a summary."""
    head = "| model | tool | nodes | seconds | peak MB | max diff / scale | latency | latency (min) |"
    lines = [head, "|---|---|--:|--:|--:|--:|--:|--:|"]
    for name, count in originals.items():
        lines.append(f"| **{name}** | *original* | {count} | | | | | |")
        for r in (r for r in records if r.model == name):
            cells = (
                _cell(r.nodes, "d"),
                _cell(r.seconds, ".3f"),
                _cell(r.peak_mb, ".0f"),
                _cell(r.difference, ".1e"),
                _cell(r.latency, ".3f"),
                _cell(r.latency_min, ".3f"),
            )
            note = f" ({r.failure.replace('|', '/')})" if r.failure else _domains(r)
            lines.append(f"| | {r.tool}{note} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_summary(records)])


def _domains(record: Record) -> str:
    return f" (brings in {', '.join(record.new_domains)})" if record.new_domains else ""


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _summary(records: list[Record]) -> list[str]:
    """Say where graphopt stands: nodes against the best peer whose model is right, seconds against two of them."""
    by_model: dict[str, dict[str, Record]] = {}
    for r in records:
        by_model.setdefault(r.model, {})[r.tool] = r
    lines = []
    for name, tools in by_model.items():
        ours = tools.get(GRAPHOPT)
        peers = [r for r in tools.values() if r.tool != GRAPHOPT and r.nodes and not r.failure]
        if ours is None or ours.nodes is None or not peers:
            continue
        best = min(peers, key=lambda r: r.nodes or 0)
        if best.nodes is not None and ours.nodes > best.nodes:
            lines.append(f"- {name}: graphopt leaves {ours.nodes} nodes, {best.tool} {best.nodes}{_domains(best)}")
    for peer in ("onnxsim", "onnxslim"):
        ratios = {
            name: tools[GRAPHOPT].seconds / tools[peer].seconds
            for name, tools in by_model.items()
            if tools.get(GRAPHOPT) and tools.get(peer) and tools[GRAPHOPT].seconds and tools[peer].seconds
        }
        if ratios:
            worst = max(ratios, key=lambda name: ratios[name])
            lines.append(
                f"- seconds of graphopt over {peer}: median {median(ratios.values()):.2f}, "
                f"worst {ratios[worst]:.2f} ({worst})"
            )
    return lines


def _machine() -> dict[str, Any]:
    return {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}


@click.command(help=__doc__)
@click.option("--model", "names", multiple=True, help="only this model (can be repeated)")
@click.option("--tool", "tools", multiple=True, type=click.Choice(list(TOOLS)), help="only this tool (can be repeated)")
@click.option("--runs", default=20, show_default=True, help="alternating runs for the latency ratio; 0: none")
@click.option("--min-seconds", default=1.0, show_default=True, help="alternate for at least as long")
@click.option("--repeat", default=3, show_default=True, help="processes for each tool and model; the fastest counts")
@click.option("--timeout", default=300.0, show_default=True, help="seconds one process may take")
@click.option("--peers-python", type=click.Path(exists=True, path_type=Path), help="an interpreter that has the peers")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="keep the simplified models here")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="write all numbers here too")
def simplify(
    names: tuple[str, ...],
    tools: tuple[str, ...],
    runs: int,
    min_seconds: float,
    repeat: int,
    timeout: float,
    peers_python: Path | None,
    keep: Path | None,
    json_path: Path | None,
) -> None:
    models = [m for m in all_models() if not names or m.name in names]
    if unknown := set(names) - {m.name for m in models}:
        raise click.UsageError(f"no model named {min(unknown)}; there are {', '.join(m.name for m in all_models())}")
    chosen = tools or tuple(TOOLS)
    peers = peers_python or (python_of("simplifiers") if set(chosen) - {GRAPHOPT} else Path(sys.executable))
    records: list[Record] = []
    originals: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for model in tqdm(models, unit="model", disable=None):
            source = model.path()
            originals[model.name] = len(nodes_of(source))
            for tool in chosen:
                record = Record(model.name, tool)
                target = folder / f"{model.name}__{tool}.onnx"
                target.unlink(missing_ok=True)
                python = Path(sys.executable) if tool == GRAPHOPT else peers
                run_tool(record, source, target, python, timeout=timeout, repeat=repeat)
                if record.nodes is not None:
                    run_models(record, model, source, target, runs=runs, min_seconds=min_seconds)
                records.append(record)
            if json_path is not None:
                # After every model, so that a run that is broken off leaves what it has measured.
                report = {"machine": _machine(), "originals": originals, "records": [asdict(r) for r in records]}
                json_path.write_text(json.dumps(report, indent=1) + "\n")
    click.echo(table(records, originals))
