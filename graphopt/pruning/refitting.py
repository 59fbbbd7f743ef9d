"""One layer of a pruned network refit, on what reaches it there, to what the original network had behind it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from graphopt.ahead import ahead
from graphopt.analysis.patches import placed, unfolded
from graphopt.analysis.statistics import Gram, Unfold
from graphopt.pruning.jobs import Job
from graphopt.pruning.matrices import bias_of, has_bias, rows_of
from graphopt.pruning.refit import Fit, Moments, fit, products
from graphopt.pruning.relay import Relay
from graphopt.pruning.stacking import Outputs
from graphopt.pruning.stored import Stored

_ROUNDS = 4
"""How often at most a layer before a Relu or a Clip is fit again, now that it is known what these cut off."""

_ENOUGH = 0.99
"""Share of the error left at which another round is not worth it."""

_PART = 1 << 22
"""Numbers that are added up at a time."""

HELD, BLOCK = 4, 4
"""Of so many blocks, of so many batches, one is held out to choose the damping."""

_LARGEST = 1e15
"""Numbers up to this can be squared and added up in float32."""

_RESIZED = "what it reads is not as large as in the network before"

_Seen = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
"""What a layer reads, [G, K, P], what is wanted behind it and what is added there, [O, P] each."""


class UnfitError(Exception):
    """A layer cannot be refit to what it reads and is to give; the message says why."""


class Refitting:
    """Fits the layer of ``job`` in the model of ``relay`` to ``aims``: of each batch [O, P], behind its patches.

    ``unfold`` is how a convolution reads, thinned, None for other layers.
    """

    def __init__(self, job: Job, relay: Relay, aims: Stored, unfold: Unfold | None) -> None:
        self._job = job
        self._relay = relay
        self._aims = aims
        self._unfold = unfold
        scale = np.where(np.abs(job.scale) < least_scale(job.scale), 1.0, job.scale)
        self._scale, self._shift = scale[:, None].astype(np.float32), job.shift[:, None].astype(np.float32)
        layer = job.layer
        self._weights, self._bias, self._centred = rows_of(layer), bias_of(layer), has_bias(layer)
        groups = unfold.groups if unfold is not None else 1
        sizes = (groups, len(self._weights) // groups, self._weights.shape[1])
        self._fitting, self._held = Moments.zeros(*sizes), Moments.zeros(*sizes)

    @property
    def gram(self) -> Gram:
        """The Gram matrix of what the layer was seen to read."""
        seen = self._fitting + self._held
        return Gram(seen.inputs, seen.input_sum, seen.count)

    def run(self, scratch: Stored) -> Fit:
        """Return the fit; where nobody can tell apart what the layer gives from what it is to give, it is right.

        What the first round saw lies in ``scratch`` for the next. Raises UnfitError and GraphOptError.
        """
        held = self._first(scratch)
        if not self._fitting.count + self._held.count:
            raise UnfitError("none of the data reaches it")
        found = fit(self._fitting, self._held, self._weights, self._bias, centred=self._centred)
        for _ in range(_ROUNDS if self._job.bounds is not None else 0):
            after = self._next(scratch, held, found)
            found = Fit(after.weights, after.bias, after.damping, found.before, after.after)
            if after.after > _ENOUGH * after.before:
                break
        return found

    def _first(self, scratch: Stored) -> list[bool]:
        """Add up what is seen; return whether each part of it, by its number in ``scratch``, is held out."""
        scratch.clear()
        every = list[bool]()
        # Parts are worked on side by side: more threads than cores would wait for each other.
        with threadpool_limits(1, "blas"):
            for held, seen, found in ahead(self._summed, self._parts()):
                self._sums(held).include(found)
                if self._job.bounds is not None:
                    scratch.write(len(every), np.concatenate([part.reshape(-1, part.shape[-1]) for part in seen]))
                every.append(held)
        return every

    def _next(self, scratch: Stored, held: list[bool], last: Fit) -> Fit:
        """Fit again, now that it is known what the bounds cut off of what the layer fit last gives."""
        self._fitting.forget_targets()
        self._held.forget_targets()
        with threadpool_limits(1, "blas"):
            numbers = range(len(held))
            for number, found in zip(numbers, ahead(partial(self._again, scratch, last), numbers), strict=True):
                self._sums(held[number]).include(found)
        damping = last.damping or None
        return fit(self._fitting, self._held, last.weights, last.bias, centred=self._centred, damping=damping)

    def _sums(self, held: bool) -> Moments:
        return self._held if held else self._fitting

    def _parts(self) -> Iterator[tuple[bool, list[_Seen]]]:
        """Yield what is seen in large parts, and whether they are held out: much at a time is fast."""
        waiting: dict[bool, list[_Seen]] = {False: [], True: []}
        names = (str(self._job.data.name), *(str(other.name) for other in self._job.others))
        for number, seen in ahead(self._placed, self._relay.run(names)):
            if not seen[1].size:
                continue
            parts = waiting[is_held(number)]
            parts.append(seen)
            if sum(array.size for part in parts for array in part) >= _PART:
                yield is_held(number), parts
                waiting[is_held(number)] = []
        yield from ((held, parts) for held, parts in waiting.items() if parts)

    def _placed(self, batch: tuple[int, Outputs]) -> tuple[int, _Seen]:
        number, given = batch
        values, unfold = given[str(self._job.data.name)], self._unfold
        others = [given[str(other.name)] for other in self._job.others]
        if unfold is None:
            rows, laid = rows_along(values)[None], [rows_along(array) for array in others]
        else:
            rows, laid = unfolded(values, unfold), [placed(array, unfold) for array in others]
        wanted = self._aims.read(number)
        if rows.shape[2] != wanted.shape[1] or any(array.shape != wanted.shape for array in laid):
            raise UnfitError(_RESIZED)
        return number, (rows, wanted, sum(laid, np.zeros_like(wanted)))

    def _summed(self, part: tuple[bool, list[_Seen]]) -> tuple[bool, _Seen, Moments]:
        held, several = part
        rows, wanted, added = (np.concatenate(arrays, axis=-1) for arrays in zip(*several, strict=True))
        for array in (rows, wanted, added):
            if not (array.min(initial=0.0) >= -_LARGEST and array.max(initial=0.0) <= _LARGEST):
                raise UnfitError("what it reads or is to give is not finite for all of the data")
        return held, (rows, wanted, added), products(rows, (wanted - added - self._shift) / self._scale)

    def _again(self, scratch: Stored, last: Fit, number: int) -> Moments:
        """Return the sums of a part, what the bounds cut off replaced by what is there: nobody can tell it apart."""
        assert self._job.bounds is not None
        outputs = len(self._weights)
        flat, aims, added = np.split(scratch.read(number), [-2 * outputs, -outputs])
        rows = flat.reshape(len(self._fitting.inputs), -1, flat.shape[1])
        weights = last.weights.astype(np.float32).reshape(len(rows), -1, rows.shape[1])
        now = (weights @ rows).reshape(aims.shape) + last.bias[:, None].astype(np.float32)
        offset = added + self._shift
        aims = _unseen(aims, self._scale * now + offset, *self._job.bounds)
        return products(rows, (aims - offset) / self._scale, again=True)


def is_held(number: int) -> bool:
    """Tell whether the batch of that number is held out."""
    return number // BLOCK % HELD == HELD - 1


def least_scale(scale: NDArray[np.float64]) -> float:
    """Return what a normalisation has to multiply an output by for that to matter."""
    return 1e-6 * float(np.abs(scale).max(initial=0.0))


def rows_along(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return ``values`` [..., K] as [K, P]."""
    return np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T, np.float32)


def _unseen(aims: NDArray[Any], now: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """Return ``aims``, beyond the bounds replaced by what is there ``now`` if that is beyond the same bound."""
    below = np.where(aims <= low, np.minimum(now, low), aims)
    return np.where(aims >= high, np.maximum(now, high), below)
