"""What one quantizer did to one model, and running it in a process of its own."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("bench_quantize_worker.py")


@dataclass
class Record:
    """What one tool did to one model.

    ``score`` is the share of test inputs that is right; ``sqnr_db`` goes over all outputs on all test inputs, against
    the float model's. ``latency`` is the median, over rounds in which all models take turns, of the time over that of
    the float model in the same round. ``seconds`` go from file to file without imports; ``peak_mb`` is the largest
    anonymous memory of the process. ``note`` says what the tool needed done, ``failure`` why numbers are missing.
    """

    model: str
    tool: str
    version: str | None = None
    score: float | None = None
    sqnr_db: float | None = None
    latency: float | None = None
    seconds: float | None = None
    peak_mb: float | None = None
    bytes: int | None = None
    note: str | None = None
    failure: str | None = None


def run_tool(
    record: Record, python: Path, source: Path, calibration: Path, target: Path, *, timeout: float, memory: float
) -> None:
    """Run the tool in a process of its own and note its time and memory, or why it failed."""
    files = [str(source), str(calibration), str(target)]
    command = [str(python), str(WORKER), record.tool, *files, str(memory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        record.failure = f"no result in {timeout:g} s"
        return
    if done.returncode or not target.is_file():
        record.failure = f"exit code {done.returncode}: {reason(done.stderr)}"
        return
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    record.version, record.note = answer["version"], answer["note"]
    record.seconds, record.peak_mb = answer["seconds"], answer["peak_mb"]
    record.bytes = target.stat().st_size + sum(
        f.stat().st_size for f in target.parent.glob(f"{target.name}.*") if f.suffix != ".json"
    )


def reason(stderr: str) -> str:
    """Return the line of a tool's complaints that says most: the last one that names an error."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or [""]
    named = [line for line in lines if "Error" in line or line.startswith("graphopt:")]
    return (named or lines)[-1][:160]
