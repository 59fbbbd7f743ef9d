"""Winning back what removed channels cost.

Each layer is refit in turn, on what reaches it in the pruned network, to what the original network had behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from graphopt.analysis import AnalysisManager, Shapes
from graphopt.analysis.patches import placed, unfolded
from graphopt.analysis.statistics import Gram
from graphopt.ir import Editor, Model, Node
from graphopt.ir.query import shape_of
from graphopt.pruning.chain import Link, Stage, chain_of
from graphopt.pruning.jobs import Declined, Job, data_of, find_jobs
from graphopt.pruning.joint import Aim, Seen, is_worthwhile, tune
from graphopt.pruning.matrices import bias_of, has_bias, rows_of, write_rows
from graphopt.pruning.refit import Fit, Moments, fit
from graphopt.pruning.relay import Relay
from graphopt.pruning.route import resting_places
from graphopt.pruning.stacking import Outputs, Traces
from graphopt.pruning.stored import Stored

Kept = Mapping[str, Mapping[int, NDArray[np.int64]]]
"""Which positions of each axis of a value stay, for the values (by name) that lose some."""

Writer = Callable[[Job, Fit, Gram], None]
"""Writes what was fit of a layer, given the Gram matrix of what it reads, and may split the layer thereby."""

_SAMPLES = 16
"""Samples that are run at a time."""

_ROUNDS = 4
"""How often at most a layer before a Relu or a Clip is fit again, now that it is known what these cut off."""

_ENOUGH = 0.99
"""Share of the error left at which another round is not worth it."""

_ROWS, _DENSEST = 1 << 18, 256
"""Positions that a convolution is fit to, over all samples and of each; neighbouring ones tell little more."""

_PART = 1 << 22
"""Numbers that are added up at a time."""

_PLENTY, _SPARSEST = 16, 32
"""Positions for each weight of an output, and of each sample, that do where there is much to fit to."""

_BYTES, _WORK = 1 << 28, 2e10
"""Bytes that a layer reads and gives, and multiply-accumulates of a Gram matrix, from which on that is much."""

_HELD, _BLOCK = 4, 4
"""Of so many blocks, of so many batches, one is held out to choose the damping."""


_LARGEST = 1e15
"""Numbers up to this can be squared and added up in float32."""

_RESIZED = "what it reads is not as large as in the network before"


class _UnfitError(Exception):
    """A layer cannot be refit to what it reads and is to give; the message says why."""


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
    most = min(_DENSEST, max(16, _ROWS // (runner.samples or _ROWS // _DENSEST)))
    sizes = [_Size.of(job, runner.samples) for job in jobs]
    chains = [_chain(job, size, kept) if write is None else [] for job, size in zip(jobs, sizes, strict=True)]
    stops = resting_places((original, pruned), _starts(jobs, chains))
    reports = []
    with Relay(runner, (original, pruned), _together(runner.samples)) as relay, ExitStack() as open_files:
        scratch = tuple(open_files.enter_context(closing(Stored())) for _ in range(3))
        for index, job in enumerate(jobs):
            stop = stops[index]
            if stop is not None:
                relay.move(stop)
            # What the original gives there does not hang on how this layer is fit.
            following = next((later[0] for later in stops[index + 1 :] if later is not None), ())
            refitting = _Refitting(job, relay, kept, _positions_of(job, sizes[index], most), following)
            try:
                found = _alive(job, refitting.run(scratch[0]))
            except _UnfitError as error:
                if declined is not None:
                    declined(job.layer.node, str(error))
                continue
            if write is None:
                write_rows(edit, job.layer, found.weights, found.bias)
            else:
                write(job, found, refitting.gram)
            left = _fit_jointly(job, chains[index], relay, kept, edit, scratch) if chains[index] else 1.0
            reports.append(Refit(job.layer.node.name or "", found.damping, found.before, found.after, left))
    return reports


def _starts(jobs: Sequence[Job], chains: Sequence[Sequence[Link]]) -> list[Node]:
    """Return from which node on each job needs the networks: chains, their first layer."""
    first: dict[Node, Node] = {}
    for chain in reversed(chains):
        first.update((link.node, chain[0].node) for link in chain if link.node not in first)
    return [first.get(job.layer.node, job.layer.node) for job in jobs]


def _fit_jointly(
    job: Job, chain: Sequence[Link], relay: Relay, kept: Kept, edit: Editor, parts: tuple[Stored, ...]
) -> float:
    """Fit the layers of a chain together and return what that leaves of the error; ``parts`` hold what was seen."""
    result, data = str(job.result.name), str(data_of(chain[0].layer).name)
    wanted = [(result,), (data, *(str(other.name) for other in job.others))]
    of_data, of_added, of_aims = parts
    for part in parts:
        part.clear()
    held = list[bool]()
    for number, (target, given) in relay.run(wanted):
        aims = target[result]
        for axis, places in kept.get(result, {}).items():
            aims = np.take(aims, places, axis)
        added = sum((given[str(other.name)] for other in job.others), np.zeros_like(aims))
        for part, array in ((of_data, given[data]), (of_added, added), (of_aims, aims)):
            part.write(number, np.asarray(array, np.float32))
        held.append(_is_held(number))
    stages = [Stage.of(link) for link in chain]
    axis = -1 if chain[-1].unfold is None else 1
    aim = Aim(job.scale.astype(np.float32), job.shift.astype(np.float32), chain[-1].bounds, axis)
    left = tune(stages, aim, Seen((of_data, of_added, of_aims), held))
    for stage in stages if left < 1 else ():
        weights, bias = stage.weights.astype(np.float64), stage.bias.astype(np.float64)
        write_rows(edit, stage.link.layer, weights, bias)
    return left


def _is_held(number: int) -> bool:
    return number // _BLOCK % _HELD == _HELD - 1


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


def _chain(job: Job, size: _Size | None, kept: Kept) -> list[Link]:
    """Return the layers to fit together with this one, none where that is not worth while."""
    if size is not None and size.bytes >= _BYTES:
        return []
    chain = chain_of(job, kept)
    return chain if is_worthwhile(chain) else []


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
    return _SAMPLES if samples is None else min(_SAMPLES, max(1, samples // (_HELD * _BLOCK)))


_Seen = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""What a layer reads, [G, K, P], what is wanted behind it and what is added there, [O, P] each."""


class _Refitting:
    """Fits one layer, at no more than ``most`` positions of a sample.

    ``following`` names what of the original the relay will rest on next.
    """

    def __init__(self, job: Job, relay: Relay, kept: Kept, most: int, following: Sequence[str]) -> None:
        self._job = job
        self._relay = relay
        self._following = following
        self._kept = kept.get(str(job.result.name), {})
        self._unfold = None if job.unfold is None else replace(job.unfold, most=most)
        scale = np.where(np.abs(job.scale) < _least(job.scale), 1.0, job.scale)
        self._scale, self._shift = scale[:, None].astype(np.float32), job.shift[:, None].astype(np.float32)
        layer = job.layer
        self._weights, self._bias, self._centred = rows_of(layer), bias_of(layer), has_bias(layer)
        groups = self._unfold.groups if self._unfold is not None else 1
        sizes = (groups, len(self._weights) // groups, self._weights.shape[1])
        self._fitting, self._held = Moments.zeros(*sizes), Moments.zeros(*sizes)
        self._positions = 0

    @property
    def gram(self) -> Gram:
        """The Gram matrix of what the layer was seen to read."""
        seen = self._fitting + self._held
        return Gram(seen.inputs, seen.input_sum, seen.count)

    def run(self, scratch: Stored) -> Fit:
        """Return the fit; where nobody can tell apart what the layer gives from what it is to give, it is right.

        What the first round saw lies in ``scratch`` for the next.
        """
        scratch.clear()
        sums_of: list[Moments] = []
        # The networks run meanwhile: more threads than cores would wait for each other.
        with threadpool_limits(1, "blas"):
            for sums, seen in self._parts():
                if not all(part.min(initial=0.0) >= -_LARGEST and part.max(initial=0.0) <= _LARGEST for part in seen):
                    raise _UnfitError("what it reads or is to give is not finite for all of the data")
                self._add(sums, seen, None)
                if self._job.bounds is not None:
                    scratch.write(len(sums_of), np.concatenate([part.reshape(-1, part.shape[-1]) for part in seen]))
                    sums_of.append(sums)
        if not self._positions:
            raise _UnfitError("none of the data reaches it")
        found = fit(self._fitting, self._held, self._weights, self._bias, centred=self._centred)
        for _ in range(_ROUNDS if sums_of else 0):
            self._fitting.forget_targets()
            self._held.forget_targets()
            for number, sums in enumerate(sums_of):
                self._add(sums, self._again(scratch.read(number)), found)
            after = fit(
                self._fitting,
                self._held,
                found.weights,
                found.bias,
                centred=self._centred,
                damping=found.damping or None,
            )
            found = Fit(after.weights, after.bias, after.damping, found.before, after.after)
            if after.after > _ENOUGH * after.before:
                break
        return found

    def _again(self, stored: NDArray[np.float32]) -> _Seen:
        outputs = len(self._weights)
        rows, wanted, added = np.split(stored, [-2 * outputs, -outputs])
        return rows.reshape(len(self._fitting.inputs), -1, rows.shape[1]), wanted, added

    def _parts(self) -> Iterator[tuple[Moments, _Seen]]:
        """Yield what is seen in large parts, and what each is to be added to: much at a time is fast."""
        waiting: dict[bool, list[_Seen]] = {False: [], True: []}
        for number, seen in self._seen():
            parts = waiting[_is_held(number)]
            parts.append(seen)
            if sum(array.size for part in parts for array in part) >= _PART:
                yield self._held if _is_held(number) else self._fitting, _joined(parts)
                parts.clear()
        for held, parts in waiting.items():
            if parts:
                yield self._held if held else self._fitting, _joined(parts)

    def _seen(self) -> Iterator[tuple[int, _Seen]]:
        """Yield, with each batch's number, what the layer reads, what is wanted behind it and what is added there."""
        result, data = str(self._job.result.name), str(self._job.data.name)
        wanted = [(result,), (data, *(str(other.name) for other in self._job.others))]
        for number, (target, given) in self._relay.run(wanted, ahead=(self._following, ())):
            seen = self._placed(target[result], given)
            self._positions += seen[1].shape[1]
            if seen[1].size:
                yield number, seen

    def _add(self, sums: Moments, seen: _Seen, last: Fit | None) -> None:
        rows, wanted, added = seen
        offset = added + self._shift
        aims: NDArray[Any] = wanted
        if last is not None and self._job.bounds is not None:
            weights = last.weights.astype(np.float32).reshape(len(rows), -1, rows.shape[1])
            now = (weights @ rows).reshape(aims.shape) + last.bias[:, None].astype(np.float32)
            aims = _unseen(aims, self._scale * now + offset, *self._job.bounds)
        sums.add(rows, (aims - offset) / self._scale, again=last is not None)

    def _placed(self, target: NDArray[Any], given: Outputs) -> _Seen:
        sizes = [len(self._kept.get(axis, range(size))) for axis, size in enumerate(target.shape)]
        others = [given[str(other.name)] for other in self._job.others]
        if any(list(other.shape) != sizes for other in others):
            raise _UnfitError(_RESIZED)
        values, unfold = given[str(self._job.data.name)], self._unfold
        if unfold is not None:
            rows, laid = unfolded(values, unfold), [placed(array, unfold) for array in (target, *others)]
            # Places are thinned before channels are taken: that leaves far less.
            laid[0] = laid[0][self._kept.get(1, slice(None))]
        else:
            for axis, places in self._kept.items():
                target = np.take(target, places, axis)
            rows, laid = _rows(values)[None], [_rows(array) for array in (target, *others)]
        wanted, apart = laid[0], sum(laid[1:], np.zeros_like(laid[0]))
        if rows.shape[2] != wanted.shape[1]:
            raise _UnfitError(_RESIZED)
        return rows, wanted, apart


def _joined(parts: list[_Seen]) -> _Seen:
    if len(parts) == 1:
        return parts[0]
    rows, wanted, added = (np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True))
    return rows, wanted, added


def _unseen(aims: NDArray[Any], now: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Return ``aims``, beyond the bounds replaced by what is there ``now`` if that is beyond the same bound."""
    below = np.where(aims <= low, np.minimum(now, low), aims)
    return np.where(aims >= high, np.maximum(now, high), below)


def _rows(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T, np.float32)


def _least(scale: NDArray[np.float64]) -> float:
    return 1e-6 * float(np.abs(scale).max(initial=0.0))


def _alive(job: Job, found: Fit) -> Fit:
    """Return the fit with the old weights of outputs that a normalisation multiplies by zero."""
    dead = np.abs(job.scale) < _least(job.scale)
    weights, bias = found.weights.copy(), found.bias.copy()
    weights[dead], bias[dead] = rows_of(job.layer)[dead], bias_of(job.layer)[dead]
    return replace(found, weights=weights, bias=bias)
