"""What the report and the remarks tell of quantizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any

from graphopt.ir import Value
from graphopt.quantization.insert import Layer
from graphopt.quantization.measured import Kept, Measured
from graphopt.quantization.plan import ValueRange
from graphopt.quantization.types import Types


def why_kept(kept: Kept) -> str:
    """Say why a region stays in float, with its seconds."""
    what = f"it and {len(kept.nodes) - 1} next to it stay in float" if len(kept.nodes) > 1 else "stays in float"
    if kept.integer_seconds > kept.float_seconds:
        return f"{what}: {kept.integer_seconds * 1e3:.3f} ms in integers, {kept.float_seconds * 1e3:.3f} ms in float"
    return f"{what}: converting between integers and floats around them takes more than integers save"


def timings(found: Measured) -> dict[str, Any]:
    """Return the timings for the report, and what ``keep`` is to be for the same choice without timing."""
    regions = [
        {"nodes": [str(node.name) for node in kept.nodes], "integer": kept.integer_seconds, "float": kept.float_seconds}
        for kept in found.kept
    ]
    keep = ",".join(escape(str(node.name)) for kept in found.kept for node in kept.nodes)
    return {"ratio": found.ratio, "ratios": list(found.ratios), "kept": regions, "keep": keep}


def notes(ranges: Mapping[Value, ValueRange], layers: Sequence[Layer], types: Types) -> dict[str, Any]:
    """Return the ranges, the layers' expected errors and how many values have which type, for the report."""
    return {
        "ranges": {
            str(value.name): {"low": found.low, "high": found.high, "error": found.error, "power": found.power}
            for value, found in ranges.items()
        },
        "layers": {
            str(layer.node.name): {"error": layer.error, "power": layer.power, "sqnr": layer.sqnr} for layer in layers
        },
        "types": types.counts(),
    }
