"""Winning back what removed channels cost.

Each layer is refit in turn, on what reaches it in the pruned network, to what the original network had behind it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.patches import placed, unfolded
from graphopt.ir import Editor, Model
from graphopt.pruning.jobs import Job, find_jobs
from graphopt.pruning.matrices import bias_of, has_bias, rows_of, write_rows
from graphopt.pruning.refit import Fit, Moments, fit
from graphopt.pruning.relay import Outputs, Relay, Traces
from graphopt.pruning.route import resting_places

Kept = Mapping[str, Mapping[int, NDArray[np.int64]]]
"""Which positions of each axis of a value stay, for the values (by name) that lose some."""

_SAMPLES = 16
"""Samples that are run at a time."""

_ROUNDS = 2
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
    found = _fitted(job, relay, kept, None)
    for _ in range(_ROUNDS if job.bounds is not None else 0):
        after = _fitted(job, relay, kept, found)
        found = Fit(after.weights, after.bias, after.damping, found.before, after.after)
    return found


def _fitted(job: Job, relay: Relay, kept: Kept, last: Fit | None) -> Fit:
    """Fit the layer; where nobody can tell apart what it gave with ``last``, from what it is to give, it gave right."""
    weights, bias = (rows_of(job.layer), bias_of(job.layer)) if last is None else (last.weights, last.bias)
    groups = job.unfold.groups if job.unfold is not None else 1
    sums = [Moments.zeros(groups, len(weights) // groups, weights.shape[1]) for _ in range(2)]
    result, data = str(job.result.name), str(job.data.name)
    wanted = [(result,), (data, *(str(other.name) for other in job.others))]
    scale = np.where(np.abs(job.scale) < _least(job.scale), 1.0, job.scale)[:, None]
    for number, (target, given) in enumerate(relay.run(wanted)):
        rows, exact, added = _positions(job, target[result], given, kept)
        aims = np.asarray(exact, np.float64)
        added = added + job.shift[:, None]
        if last is not None and job.bounds is not None:
            now = (weights.reshape(groups, -1, weights.shape[1]) @ rows).reshape(aims.shape) + bias[:, None]
            aims = _unseen(aims, scale * now + added, *job.bounds)
        sums[number % _HELD == _HELD - 1].add(rows, (aims - added) / scale)
    return fit(sums[0], sums[1], weights, bias, centred=has_bias(job.layer))


def _unseen(aims: NDArray[Any], now: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Return ``aims``, beyond the bounds replaced by what is there ``now`` if that is beyond the same bound."""
    below = np.where(aims <= low, np.minimum(now, low), aims)
    return np.where(aims >= high, np.maximum(now, high), below)


def _positions(
    job: Job, target: NDArray[Any], given: Outputs, kept: Kept
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return what the layer reads, [G, K, P], what is wanted behind it and what is added there, [O, P] each."""
    for axis, places in kept.get(str(job.result.name), {}).items():
        target = np.take(target, places, axis)
    added = np.zeros_like(target)
    for other in job.others:
        added = added + given[str(other.name)]
    values, unfold = given[str(job.data.name)], job.unfold
    if unfold is not None:
        return unfolded(values, unfold), placed(target, unfold), placed(added, unfold)
    return _rows(values)[None], _rows(target), _rows(added)


def _rows(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T, np.float32)


def _least(scale: NDArray[np.float64]) -> float:
    return 1e-6 * float(np.abs(scale).max(initial=0.0))


def _write(job: Job, found: Fit, edit: Editor) -> None:
    dead = np.abs(job.scale) < _least(job.scale)
    weights, bias = found.weights.copy(), found.bias.copy()
    weights[dead], bias[dead] = rows_of(job.layer)[dead], bias_of(job.layer)[dead]
    write_rows(edit, job.layer, weights, bias)
