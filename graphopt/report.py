"""The record of a run as plain values, for ``--report`` and ``--json``."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graphopt.errors import UsageError
from graphopt.pipeline import Run
from graphopt.pipeline.instruments import Statistics
from graphopt.version import __version__


def report(
    run: Run,
    *,
    source: str | None = None,
    sha256: str | None = None,
    output: Path | None = None,
    statistics: Statistics | None = None,
    rewrites: bool = True,
) -> dict[str, Any]:
    """Return what a run did: its pipeline, passes, rewrites, diagnostics and, when measured, the sizes of the model.

    ``source`` and ``sha256`` tell the input, ``output`` where the result was written. ``rewrites=False`` leaves out
    the list of single rewrites, which is long, and keeps their number.
    """
    ctx = run.ctx
    facts: dict[str, Any] = {
        "graphopt": __version__,
        "pipeline": str(run.spec),
        "input": {"path": source, "sha256": sha256},
        "output": None if output is None else str(output),
        "target": ctx.target.label if ctx.target else None,
        "target_verified": ctx.target.verified if ctx.target else None,
        "seed": ctx.seed,
        "seconds": sum(record.seconds for record in run.records),
        "passes": [
            {
                "step": record.index,
                "pass": record.text,
                "changes": dict(record.changes),
                "rewrites": record.rewrites,
                "seconds": record.seconds,
            }
            for record in run.records
        ],
        "rewrite_count": len(ctx.rewrites),
        "rewrites_by_pass": dict(Counter(rewrite.pass_name for rewrite in ctx.rewrites)),
        "statistics": statistics.to_json() if statistics else None,
        "notes": ctx.notes,
        "diagnostics": [asdict(diagnostic) for diagnostic in ctx.diagnostics],
    }
    if rewrites:
        facts["rewrites"] = [asdict(rewrite) for rewrite in ctx.rewrites]
    return facts


def write_report(facts: dict[str, Any], path: Path) -> None:
    """Write ``facts`` as JSON to ``path``, completely or not at all. Raises UsageError when that cannot be done."""
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    try:
        with tempfile.TemporaryDirectory(prefix=".report-", dir=path.parent) as folder:
            staged = Path(folder) / "report.json"
            staged.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(staged, path)
    except OSError as error:
        raise UsageError(f"the report cannot be written: {error.strerror}", where=str(path)) from error
