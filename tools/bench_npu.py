"""``bench.py npu``: what the vendors' toolchains say of graphopt's models, of plain Q/DQ models and of float16.

Each network is quantized for each target, checked by the target's own toolchain, and, where it has a task, scored on
the simulator. For comparison there is the float model, which NPUs compute in float16, and what onnxruntime's own helper
for QNN makes of it. A record a line is kept in a file, so that a run that was cut off goes on where it was.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from bench_npu_models import NpuModel, npu_models, open_dims, random_inputs
from bench_npu_plain import plain_qdq
from bench_npu_simulator import rows_of, score_on
from tqdm import tqdm

import graphopt
from graphopt import targets
from graphopt.backend import check_qnn
from graphopt.backend.report import CheckReport
from graphopt.backend.toolchain import ask
from graphopt.checking import Numbers, check, compile_model
from graphopt.errors import GraphOptError
from graphopt.pipeline import load_preset, parse
from graphopt.targets import Target

FLOAT, PLAIN, OURS = "float16", "plain", "graphopt"
VARIANTS = (FLOAT, PLAIN, OURS)
SMALL_MEMORY = "1"
"""MB of on-chip memory that spilled bytes are counted with: with all 8 of them, few networks spill at all."""
WIDE = frozenset({onnx.TensorProto.UINT16, onnx.TensorProto.INT16})


@dataclass
class NpuRecord:
    """What was measured of one network, made one way, on one target."""

    model: str
    target: str
    variant: str
    passed: bool | None = None
    gates: dict[str, bool | None] = field(default_factory=dict)
    failed: str = ""
    sqnr_db: float | None = None
    cpu_db: float | None = None
    metric: float | None = None
    float_metric: float | None = None
    cycles: int | None = None
    spilled: int | None = None
    identical: bool | None = None
    wide_share: float | None = None
    seconds: float | None = None
    error: str = ""


@click.command()
@click.option("--target", "names", multiple=True, help="Targets.  [default: qnn-htp, rknn, openvino-cpu]")
@click.option("--model", "chosen", multiple=True, help="Networks by name.  [default: all]")
@click.option("--variant", "variants", multiple=True, type=click.Choice(VARIANTS), help="[default: all]")
@click.option("--samples", type=int, default=16, show_default=True, help="Inputs that outputs are compared on.")
@click.option("--limit", type=int, default=200, show_default=True, help="Test inputs scored on the simulator, 0 none.")
@click.option("--time-limit", type=float, default=3600.0, show_default=True, help="Seconds for one run of a toolchain.")
@click.option("--pipeline", help="What makes graphopt's variant.  [default: the preset int8]")
@click.option("--keep", type=click.Path(path_type=Path), help="A folder of models: those in it are not made anew.")
@click.option("--records", type=click.Path(path_type=Path), help="A file of records: read first, and added to.")
def npu(names: tuple[str, ...], chosen: tuple[str, ...], variants: tuple[str, ...], **given: Any) -> None:
    """Check every network on the NPUs' own toolchains, next to plain Q/DQ and float16."""
    if given["keep"] is not None:
        given["keep"].mkdir(parents=True, exist_ok=True)
    wanted = [targets.find(name) for name in names or ("qnn-htp", "rknn", "openvino-cpu")]
    models = [model for model in npu_models() if not chosen or model.name in chosen]
    records = _read(given["records"])
    done = {(record.model, record.target, record.variant) for record in records}
    work = [
        (model, target, variant)
        for model in models
        for target in wanted
        for variant in variants or VARIANTS
        if (model.name, target.label, variant) not in done and _belongs(model, target, variant)
    ]
    for model, target, variant in tqdm(work, unit="check", disable=None):
        with tempfile.TemporaryDirectory(prefix="graphopt-bench-") as folder:
            record = measure(model, target, variant, Path(folder), given)
        records.append(record)
        if given["records"] is not None:
            with Path(given["records"]).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
    click.echo(render(records))


def _belongs(model: NpuModel, target: Target, variant: str) -> bool:
    if target.toolchain == "rknn":
        return model.convolutional
    return target.toolchain != "openvino" or variant == OURS


def measure(model: NpuModel, target: Target, variant: str, folder: Path, given: Mapping[str, Any]) -> NpuRecord:
    """Make the network one way and check it; what goes wrong lands in the record."""
    record = NpuRecord(model.name, target.label, variant)
    started = time.perf_counter()
    try:
        source = model.path()
        dims = open_dims(source, model.dims)
        # An open batch is 1.
        fixed = folder / "fixed.onnx"
        graphopt.optimize(source, output=fixed, pipeline=fixing(dims, model.settings))
        made = (given["keep"] or folder) / f"{model.name}-{target.name}-{variant}.onnx"
        if not made.is_file():
            make(variant, model, target, fixed, made, given["pipeline"])
            record.seconds = time.perf_counter() - started
        record.wide_share = wide_share(made)
        data = folder / "samples.npz"
        count = max(given["samples"], model.least)
        np.savez(data, **samples_of(model, fixed, count))  # pyright: ignore[reportArgumentType]
        numbers = Numbers(reference=fixed, data=data, samples=count)
        report = check(made, target=target, numbers=numbers, time_limit=given["time_limit"])
        take(record, report)
        if target.toolchain == "qnn":
            record.spilled = spilled_bytes(made, target, folder, given["time_limit"])
            if variant == OURS:
                record.identical = compile_model(
                    made, target=target, output=folder / "made.onnx", time_limit=given["time_limit"]
                ).identical
            if model.score is not None and given["limit"]:
                found = score_on(made, fixed, target, model.score, given["limit"], folder, given["time_limit"])
                record.metric, record.float_metric = found
    except (GraphOptError, OSError, ValueError, RuntimeError) as error:
        record.error = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return record


def fixing(dims: Mapping[str, int], settings: Mapping[str, int]) -> str:
    """Return the pipeline that gives sizes to open dimensions and values to inputs that are settings."""
    chosen = {"fix-shapes": dims, "fix-inputs": settings}
    return ",".join(
        f"{name}{{{','.join(f'{key}={value}' for key, value in values.items())}}}"
        for name, values in chosen.items()
        if values
    )


def make(
    variant: str, model: NpuModel, target: Target, source: Path, output: Path, pipeline: str | None = None
) -> None:
    """Write ``source`` as ``variant`` for ``target``. Raises GraphOptError, ValueError where the helper fails."""
    if variant == PLAIN:
        plain_qdq(source, model.calibration(), output)
        return
    ours = load_preset("int8") if pipeline is None else parse(pipeline)
    spec = parse("lift-constants,fold-constants") if variant == FLOAT else ours
    graphopt.optimize(source, output=output, pipeline=spec, target=target, data=model.calibration())


def samples_of(model: NpuModel, fixed: Path, count: int) -> dict[str, Any]:
    """Return inputs that the model was not calibrated on: of its test set, made for it, else random ones."""
    if model.score is not None:
        return rows_of(model.score, fixed, count)
    if model.samples is not None:
        return model.samples(count)
    return random_inputs(fixed, {}, count, seed=1)


def take(record: NpuRecord, report: CheckReport) -> None:
    """Note what a check found."""
    record.passed = report.passed
    record.gates = {gate.name: gate.passed for gate in report.gates}
    record.failed = "; ".join(f"{gate.name}: {gate.detail}" for gate in report.gates if gate.passed is False)[:300]
    near = [(a.target_db, a.cpu_db) for a in report.agreement if a.target_db is not None and a.cpu_db is not None]
    if near:
        record.sqnr_db, record.cpu_db = min(near)
    record.cycles = report.cost.get("cycles")


def spilled_bytes(path: Path, target: Target, folder: Path, time_limit: float) -> int | None:
    """Return how many bytes the HTP's compiler has to move out of a small on-chip memory, None where it refuses."""
    compiled = folder / "spill_ctx.onnx"
    request = check_qnn.request_of(
        path.resolve(),
        target.options,
        compile_to=compiled,
        provider_options={"vtcm_mb": SMALL_MEMORY, "enable_htp_spill_fill_buffer": "1"},
    )
    answer = ask(check_qnn.QNN, request, folder, time_limit=time_limit)
    if answer.values["error"] or not compiled.is_file():
        return None
    nodes = [node for node in onnx.load(compiled).graph.node if node.op_type == "EPContext"]
    sizes = [attribute.i for node in nodes for attribute in node.attribute if attribute.name == "max_size"]
    return sum(sizes) if sizes else None


def wide_share(path: Path) -> float | None:
    """Return the share of pairs on activations that have 16 bits, None without any."""
    proto = onnx.load(path, load_external_data=False)
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    found = [
        kinds.get(node.input[2]) in WIDE if len(node.input) > 2 else False
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear"
    ]
    return sum(found) / len(found) if found else None


def _read(path: Path | None) -> list[NpuRecord]:
    if path is None or not path.is_file():
        return []
    return [NpuRecord(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]


def render(records: list[NpuRecord]) -> str:
    """Return a Markdown table for each target."""
    parts = []
    for target in dict.fromkeys(record.target for record in records):
        rows = [record for record in records if record.target == target]
        parts.append(f"### {target}\n\n" + "\n".join([_HEAD, *map(_row, rows)]))
    return "\n\n".join(parts)


_HEAD = (
    "| model | made by | gates | SQNR dB | on CPU | metric | of float | 16 bit | cycles | spilled bytes | reloaded "
    "| seconds |\n"
    "|---|---|---|--:|--:|--:|--:|--:|--:|--:|---|--:|"
)


def _row(record: NpuRecord) -> str:
    if record.error:
        gates = f"error: {record.error}"
    elif record.passed:
        gates = "all"
    else:
        gates = "not " + ", ".join(name for name, passed in record.gates.items() if passed is False)
    cells = [
        record.model,
        record.variant,
        gates.replace("|", "/"),
        _number(record.sqnr_db, ".1f"),
        _number(record.cpu_db, ".1f"),
        _number(record.metric, ".1%"),
        _number(record.float_metric, ".1%"),
        _number(record.wide_share, ".0%"),
        _number(record.cycles, ",d"),
        _number(record.spilled, ",d"),
        {True: "identical", False: "differs", None: "-"}[record.identical],
        _number(record.seconds, ".1f"),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else format(value, form)
