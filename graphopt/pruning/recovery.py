"""Winning back what removed channels cost.

Each layer is refit in turn, on what reaches it in the pruned network, to what the original network had behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis import AnalysisManager, Shapes
from graphopt.analysis.patches import placed
from graphopt.analysis.statistics import Gram, Unfold
from graphopt.ir import Editor, Model, Node, Value
from graphopt.ir.query import shape_of
from graphopt.pruning.chain import Link, Stage, chain_of
from graphopt.pruning.jobs import Declined, Job, data_of, find_jobs
from graphopt.pruning.joint import Aim, Seen, is_worthwhile, tune
from graphopt.pruning.matrices import bias_of, rows_of, write_rows
from graphopt.pruning.reference import Reference, Wanted
from graphopt.pruning.refit import Fit
from graphopt.pruning.refitting import BLOCK, HELD, Refitting, UnfitError, is_held, least_scale, rows_along
from graphopt.pruning.relay import Relay
from graphopt.pruning.route import resting_places
from graphopt.pruning.stacking import Traces, can_stack
from graphopt.pruning.stored import Stored

Staying = Mapping[int, NDArray[np.int64]]
"""Which positions of each axis of a value stay."""

Kept = Mapping[str, Staying]
"""Which stay of the values, by name, that lose some."""

Writer = Callable[[Job, Fit, Gram], None]
"""Writes what was fit of a layer, given the Gram matrix of what it reads, and may split the layer thereby."""

_SAMPLES = 8
"""Samples that are run at a time."""

_ROWS, _DENSEST = 1 << 18, 256
"""Positions that a convolution is fit to, over all samples and of each; neighbouring ones tell little more."""

_PLENTY, _SPARSEST = 16, 32
"""Positions for each weight of an output, and of each sample, that do where there is much to fit to."""

_BYTES, _WORK = 1 << 28, 2e10
"""Bytes that a layer reads and gives, and multiply-accumulates of a Gram matrix, from which on that is much."""


@dataclass(frozen=True)
class Refit:
    """What became of one layer: its error on samples held out, before and after, as shares of its output's power.

    ``left`` of that is what fitting it together with the layers before it left.
    """

    node: str
    damping: float
    before: float
    after: float
    left: float = 1.0


def recover(
    original: Model,
    pruned: Model,
    edit: Editor,
    kept: Kept,
    runner: Traces,
    *,
    declined: Declined | None = None,
    starts: frozenset[str] = frozenset(),
    write: Writer | None = None,
) -> list[Refit]:
    """Refit the layers of ``pruned``, through ``edit``, so that it gives what ``original`` gives.

    ``declined`` is told of layers that are left as they are. ``starts`` names outputs of layers to refit although these
    read what they did. ``write`` is called in the place of writing a layer's weights.

    Nodes and values of both that correspond have the same names. Raises GraphOptError.
    """
    # Without sizes there is no telling where to rest, and each layer's inputs are computed from the very first.
    AnalysisManager(Editor(original)).get(Shapes)
    jobs = find_jobs(pruned, frozenset(kept), declined, starts)
    together = _together(runner.samples)
    values = {value.name: value for node in original.graph for value in node.outputs}
    plans = [_Plan.of(job, values[job.result.name], kept, runner.samples, alone=write is not None) for job in jobs]
    stops = resting_places(pruned, [plan.first for plan in plans])
    reports = []
    with ExitStack() as opened:
        stacks = together > 1 and can_stack(original, runner) and can_stack(pruned, runner)
        relay = opened.enter_context(Relay(runner, pruned, together, stacks=stacks))
        other = opened.enter_context(Relay(runner, original, together, stacks=stacks))
        wanted = [wanted for plan in plans for wanted in plan.wanted]
        reference = opened.enter_context(Reference(other, original, wanted, together))
        scratch = opened.enter_context(closing(Stored())), opened.enter_context(closing(Stored()))
        for job, plan, stop in zip(jobs, plans, stops, strict=True):
            if stop is not None:
                relay.move(stop)
            refitting = Refitting(job, relay, reference.of(plan.wanted[0]), plan.unfold)
            try:
                found = _alive(job, refitting.run(scratch[0]))
            except UnfitError as error:
                if declined is not None:
                    declined(job.layer.node, str(error))
                continue
            if write is None:
                write_rows(edit, job.layer, found.weights, found.bias)
            else:
                write(job, found, refitting.gram)
            left = 1.0
            if plan.chain:
                left = _fit_jointly(job, plan.chain, relay, reference.of(plan.wanted[-1]), edit, scratch)
            reports.append(Refit(job.layer.node.name or "", found.damping, found.before, found.after, left))
    return reports


def _fit_jointly(
    job: Job, chain: Sequence[Link], relay: Relay, aims: Stored, edit: Editor, scratch: tuple[Stored, Stored]
) -> float:
    """Fit the layers of a chain together and return what that leaves of the error; ``scratch`` holds what was seen."""
    data = str(data_of(chain[0].layer).name)
    of_data, of_added = scratch
    for part in scratch:
        part.clear()
    held = list[bool]()
    for number, given in relay.run((data, *(str(other.name) for other in job.others))):
        added = sum((given[str(other.name)] for other in job.others), np.zeros(aims.shape(number), np.float32))
        for part, array in ((of_data, given[data]), (of_added, added)):
            part.write(number, np.asarray(array, np.float32))
        held.append(is_held(number))
    stages = [Stage.of(link) for link in chain]
    axis = -1 if chain[-1].unfold is None else 1
    aim = Aim(job.scale.astype(np.float32), job.shift.astype(np.float32), chain[-1].bounds, axis)
    left = tune(stages, aim, Seen((of_data, of_added, aims), held))
    for stage in stages if left < 1 else ():
        weights, bias = stage.weights.astype(np.float64), stage.bias.astype(np.float64)
        write_rows(edit, stage.link.layer, weights, bias)
    return left


@dataclass(frozen=True)
class _Size:
    """What a layer reads and gives for ``samples``: ``bytes`` in all, and ``positions`` of each."""

    samples: int
    bytes: int
    positions: int

    @classmethod
    def of(cls, job: Job, samples: int | None) -> _Size | None:
        """Return the size, None where it is not known."""
        shapes = [shape_of(value) or (None,) for value in (job.data, job.result)]
        if samples is None or not all(isinstance(size, int) for shape in shapes for size in shape[1:]):
            return None
        read, given = (math.prod(size for size in shape[1:] if isinstance(size, int)) for shape in shapes)
        return cls(samples, 4 * samples * (read + given), given // len(rows_of(job.layer)))


@dataclass(frozen=True, eq=False)
class _Plan:
    """How a layer is fit: to patches as by ``unfold``, together with the ``chain`` before it if there is one.

    ``wanted`` is what it is to give, where the patches lie, and for a chain everywhere.
    """

    job: Job
    unfold: Unfold | None
    chain: Sequence[Link]
    wanted: Sequence[Wanted]

    @classmethod
    def of(cls, job: Job, result: Value, kept: Kept, samples: int | None, *, alone: bool) -> _Plan:
        """Plan for ``samples``; ``result`` is the original network's. ``alone``: without a chain."""
        size = _Size.of(job, samples)
        most = min(_DENSEST, max(16, _ROWS // (samples or _ROWS // _DENSEST)))
        unfold = None if job.unfold is None else replace(job.unfold, most=_positions_of(job, size, most))
        chain = [] if alone or (size is not None and size.bytes >= _BYTES) else chain_of(job, kept)
        stays = kept.get(str(job.result.name), {})
        keeping = [partial(_rows_of, stays=stays, unfold=unfold)]
        if chain and is_worthwhile(chain):
            keeping.append(partial(_staying, stays=stays))
        else:
            chain = []
        return cls(job, unfold, chain, [Wanted(result, job.layer.node, keep) for keep in keeping])

    @property
    def first(self) -> Node:
        """The node from which on the pruned network is run."""
        return self.chain[0].node if self.chain else self.job.layer.node


def _rows_of(values: NDArray[Any], stays: Staying, unfold: Unfold | None) -> NDArray[np.float32]:
    """Return [O, P] of a result of the original network: what the pruned one has of it, where patches lie."""
    if unfold is None:
        return rows_along(_staying(values, stays))
    # Places are thinned before channels are taken: that leaves far less.
    return placed(values, unfold)[stays.get(1, slice(None))]


def _staying(values: NDArray[Any], stays: Staying) -> NDArray[np.float32]:
    for axis, places in stays.items():
        values = np.take(values, places, axis)
    return np.asarray(values, np.float32)


def _positions_of(job: Job, size: _Size | None, most: int) -> int:
    """Return to how many positions of a sample a convolution is fit, ``most`` at most: fewer where that is much."""
    if size is None:
        return most
    width = int(rows_of(job.layer).shape[1])
    work = 0.5 * size.samples * min(most, size.positions) * width**2
    if size.bytes < _BYTES and work < _WORK:
        return most
    return min(most, max(_SPARSEST, -(-_PLENTY * width // size.samples)))


def _together(samples: int | None) -> int:
    """Return how many samples are run at a time: of few, so few that a block of batches can be held out."""
    return _SAMPLES if samples is None else min(_SAMPLES, max(1, samples // (HELD * BLOCK)))


def _alive(job: Job, found: Fit) -> Fit:
    """Return the fit with the old weights of outputs that a normalisation multiplies by zero."""
    dead = np.abs(job.scale) < least_scale(job.scale)
    weights, bias = found.weights.copy(), found.bias.copy()
    weights[dead], bias[dead] = rows_of(job.layer)[dead], bias_of(job.layer)[dead]
    return replace(found, weights=weights, bias=bias)
