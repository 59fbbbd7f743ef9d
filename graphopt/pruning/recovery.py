"""Winning back what removed channels cost: each layer is refit in turn, on what reaches it in the pruned network, to what
the original network had behind it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.patches import placed, unfolded
from graphopt.ir import Editor, Model, constant
from graphopt.ir import linear as layers
from graphopt.pruning.jobs import Job, find_jobs
from graphopt.pruning.refit import Fit, Moments, fit
from graphopt.pruning.relay import Outputs, Relay, Traces
from graphopt.pruning.route import resting_places

Kept = Mapping[str, Mapping[int, NDArray[np.int64]]]
"""Which positions of each axis of a value stay, for the values (by name) that lose some."""

_SAMPLES = 16
"""Samples that are run at a time."""

_HELD = 4
"""One batch in so many is held out to choose the damping."""


@dataclass(frozen=True)
class Refit:
    """What became of one layer: its error on samples held out, before and after, as shares of its output's power."""

    node: str
    damping: float
    before: float
    after: float


def recover(
    original: Model,
    pruned: Model,
    edit: Editor,
    kept: Kept,
    runner: Traces,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Refit]:
    """Refit the layers of ``pruned``, through ``edit``, so that it gives what ``original`` gives.

    Nodes and values of both that correspond have the same names. Raises GraphOptError.
    """
    jobs = find_jobs(pruned, frozenset(kept))
    stops = resting_places(pruned, [job.layer.node for job in jobs], frozenset(_names(original)))
    reports = []
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        relay = Relay(runner, (original, pruned), Path(folder), _SAMPLES)
        for index, job in enumerate(jobs):
            if stops[index] is not None:
                relay.move(stops[index] or ())
            found = _refit(job, relay, kept)
            _write(job, found, edit)
            reports.append(Refit(job.layer.node.name or "", found.damping, found.before, found.after))
            if progress is not None:
                progress(index + 1, len(jobs))
    return reports


def _names(model: Model) -> Iterator[str]:
    yield from (value.name for value in model.graph.inputs if value.name)
    yield from (value.name for node in model.graph for value in node.outputs if value.name)


def _refit(job: Job, relay: Relay, kept: Kept) -> Fit:
    weights, bias = rows_of(job.layer), bias_of(job.layer)
    groups = job.unfold.groups if job.unfold is not None else 1
    sums = [Moments.zeros(groups, len(weights) // groups, weights.shape[1]) for _ in range(2)]
    result, data = str(job.result.name), str(job.data.name)
    wanted = [(result,), (data, *(str(other.name) for other in job.others))]
    for number, (target, given) in enumerate(relay.run(wanted)):
        rows, aims = _positions(job, target[result], given, kept)
        sums[number % _HELD == _HELD - 1].add(rows, aims)
    return fit(sums[0], sums[1], weights, bias, centred=layers.can_hold(job.layer, bias))


def _positions(
    job: Job, target: NDArray[Any], given: Outputs, kept: Kept
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what the layer reads, [G, K, P], and what it is to give there, [O, P]."""
    for axis, places in kept.get(str(job.result.name), {}).items():
        target = np.take(target, places, axis)
    for other in job.others:
        target = target - given[str(other.name)]
    values = given[str(job.data.name)]
    unfold = job.unfold
    if unfold is not None:
        rows, aims = unfolded(values, unfold), placed(target, unfold)
    else:
        rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T, np.float32)[None]
        aims = np.ascontiguousarray(target.reshape(-1, target.shape[-1]).T, np.float32)
    scale = np.where(np.abs(job.scale) < _least(job.scale), 1.0, job.scale)
    return rows, np.asarray((aims - job.shift[:, None]) / scale[:, None], np.float32)


def _least(scale: NDArray[np.float64]) -> float:
    return 1e-6 * float(np.abs(scale).max(initial=0.0))


def rows_of(layer: layers.Linear) -> NDArray[np.float64]:
    """Return the layer's weights as float64[O, K]."""
    array = constant(layer.weight)
    assert array is not None
    wide = array.astype(np.float64)
    turned = wide if layer.node.op_type == "Conv" or _is_transposed(layer) else wide.T
    return turned.reshape(len(turned), -1)


def _is_transposed(layer: layers.Linear) -> bool:
    attribute = layer.node.attributes.get("transB")
    return layer.node.op_type == "Gemm" and attribute is not None and bool(attribute.value)


def bias_of(layer: layers.Linear) -> NDArray[np.float64]:
    """Return the layer's bias as float64[O], zeros where it has none."""
    array = constant(layer.bias) if layer.bias is not None else None
    flat = np.zeros(1) if array is None else array.astype(np.float64).reshape(-1)
    beta = layer.node.attributes.get("beta") if layer.node.op_type == "Gemm" else None
    factor = 1.0 if beta is None else float(beta.value)
    return np.broadcast_to(flat * factor, (layer.channels,)).copy()


def _write(job: Job, found: Fit, edit: Editor) -> None:
    old = constant(job.layer.weight)
    assert old is not None
    dead = np.abs(job.scale) < _least(job.scale)
    weights, bias = found.weights.copy(), found.bias.copy()
    weights[dead], bias[dead] = rows_of(job.layer)[dead], bias_of(job.layer)[dead]
    turned = job.layer.node.op_type == "Conv" or _is_transposed(job.layer)
    shaped = weights.reshape(old.shape) if turned else weights.T.reshape(old.shape)
    keeps_bias = layers.can_hold(job.layer, bias)
    layers.write(
        edit, job.layer, np.ascontiguousarray(shaped, old.dtype), bias.astype(old.dtype) if keeps_bias else None
    )
