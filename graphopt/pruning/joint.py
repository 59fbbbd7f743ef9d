"""Layers one behind another fit together, by small steps along the gradient.

The layer that reads what is left of a group has the best weights for that, but what is left is what the layer before it
gave anyway. With a Relu in between nothing can be solved for; a hundred steps of Adam (Kingma and Ba 2015, algorithm 1)
on what comes out of both, compared with the original network's, change what is given to what can be used. That is
block reconstruction (BRECQ, Li et al. 2021, section 3.2) of a block that lost channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.patches import positions
from graphopt.ir.query import shape_of, static_shape
from graphopt.pruning.chain import Bounds, Floats, Link, Stage, Through, forward, gradients
from graphopt.pruning.jobs import data_of
from graphopt.pruning.stored import Stored

_STEPS, _ROOM, _LOOK = 120, 60, 30
"""Steps; with room for fewer than these nothing is tried; how many tell whether what is held out gains by more."""

_RATE = 0.02
"""The length of the first step, as a share of the weights' root mean square; the last ones are shorter."""

_POSITIONS = 8192
"""Positions of the output that a step sees at least, where there are so many."""

_WORK = 5e10
"""Multiply-accumulates that may be spent on one chain."""

_FIRST, _SECOND, _LEAST = 0.9, 0.99, 1e-20
"""How much of the gradient's moments stays from one step to the next; the least root of the second one."""

Place = tuple[int, int]
"""A batch, and the place of a sample in it."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a chain reads, what is added behind it and what it is to give, for each batch; some are ``held`` out.

    Samples lie along the first axis.
    """

    parts: tuple[Stored, Stored, Stored]
    held: Sequence[bool]

    def alike(self) -> bool:
        """Tell whether all samples are of one size."""
        return all(len({part.shape(number)[1:] for number in range(len(self.held))}) == 1 for part in self.parts)

    def fitting(self) -> list[Place]:
        """Return the samples that may be fit to."""
        numbers = [number for number, held in enumerate(self.held) if not held]
        return [(number, place) for number in numbers for place in range(self.parts[0].shape(number)[0])]

    def take(self, places: Sequence[Place]) -> tuple[Floats, Floats, Floats]:
        """Return the samples at ``places``, which are sorted, side by side."""
        chosen: dict[int, list[int]] = {}
        for number, place in places:
            chosen.setdefault(number, []).append(place)
        data, added, wanted = (
            np.concatenate([part.rows(number, at) for number, at in chosen.items()]) for part in self.parts
        )
        return data, added, wanted

    def apart(self) -> Iterator[tuple[Floats, Floats, Floats]]:
        """Yield what is held out, a batch at a time."""
        for number, held in enumerate(self.held):
            if held:
                data, added, wanted = (part.read(number) for part in self.parts)
                yield data, added, wanted


@dataclass(frozen=True, eq=False)
class Aim:
    """How outputs, channels along ``axis``, become results: times ``scale`` plus ``shift`` [O], plus what is added.

    Beyond ``bounds`` nobody can tell results apart.
    """

    scale: Floats
    shift: Floats
    bounds: Bounds
    axis: int

    def wrong(self, out: Floats, added: Floats, wanted: Floats) -> tuple[Floats, Floats]:
        """Return what the results are off by, and the gradient of half its square by the outputs."""
        shape = [1] * out.ndim
        shape[self.axis] = -1
        scale = self.scale.reshape(shape)
        found = out * scale + self.shift.reshape(shape) + added
        low, high = self.bounds
        error = np.clip(found, low, high) - np.clip(wanted, low, high)
        return error, error * ((found > low) & (found < high)) * scale


def tune(stages: Sequence[Stage], aim: Aim, seen: Seen) -> float:
    """Change the weights of ``stages`` in place, if that does better on what is held out.

    Return what is left of the squared error there, as a share of what it was: 1.0 where nothing was gained or tried. It
    takes samples of one size.
    """
    places = seen.fitting()
    if len(stages) < 2 or not places or not any(seen.held) or not seen.alike():
        return 1.0
    steps, count = _plan([stage.link for stage in stages], seen.parts[0].shape(0))
    count = min(len(places), count)
    before = _error(stages, aim, seen)
    old = [tensor.copy() for stage in stages for tensor in stage.tensors]
    for step, _ in enumerate(_descent(stages, aim, seen, places, steps, count), 1):
        if step == _LOOK and _error(stages, aim, seen) >= before:
            break
    after = _error(stages, aim, seen)
    if after < before:
        return after / before
    for tensor, was in zip((tensor for stage in stages for tensor in stage.tensors), old, strict=True):
        tensor[...] = was
    return 1.0


def is_worthwhile(chain: Sequence[Link]) -> bool:
    """Tell whether there are several layers, of known sizes, and room for enough steps."""
    shape = shape_of(data_of(chain[0].layer))
    if len(chain) < 2 or shape is None:
        return False
    sizes = [size if isinstance(size, int) else 0 for size in shape]
    return all(sizes[1:]) and _plan(chain, sizes)[0] >= _ROOM


def _plan(chain: Sequence[Link], shape: Sequence[int]) -> tuple[int, int]:
    """Return for how many steps there is room behind what has ``shape``, and of how many samples each is."""
    size, spatial, macs = math.prod(shape[1:-1]), tuple(shape[2:]), 0
    for link in chain:
        if link.unfold is not None:
            spatial = positions(spatial, link.unfold)
            size = math.prod(spatial)
        macs += math.prod(static_shape(link.layer.weight) or ()) * size
    count = -(-_POSITIONS // max(size, 1))
    # A step goes through forwards once, and backwards twice: for the inputs and for the weights.
    return int(min(_STEPS, _WORK / max(3 * macs * count, 1))), count


def _error(stages: Sequence[Stage], aim: Aim, seen: Seen) -> float:
    """Return the squared error of what is held out."""
    total = 0.0
    for data, added, wanted in seen.apart():
        error, _ = aim.wrong(forward(stages, data).out, added, wanted)
        total += float(np.square(error, dtype=np.float64).sum())
    return total


def _descent(
    stages: Sequence[Stage], aim: Aim, seen: Seen, places: Sequence[Place], steps: int, count: int
) -> Iterator[None]:
    """Make ``steps`` steps, of ``count`` samples each, yielding after each."""
    rng = np.random.default_rng(0)
    tensors = [tensor for stage in stages for tensor in stage.tensors]
    lengths = [float(np.sqrt(np.mean(stage.weights**2))) for stage in stages for _ in stage.tensors]
    first, second = ([np.zeros_like(tensor) for tensor in tensors] for _ in range(2))
    order: NDArray[np.int64] = np.zeros(0, np.int64)
    for step in range(1, steps + 1):
        if len(order) < count:
            order = rng.permutation(len(places))
        chosen, order = np.sort(order[:count]), order[count:]
        slopes = _slopes(stages, aim, seen.take([places[index] for index in chosen]))
        rate = _RATE * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        for tensor, slope, mean, square, length in zip(tensors, slopes, first, second, lengths, strict=True):
            mean += (1 - _FIRST) * (slope - mean)
            square += (1 - _SECOND) * (slope**2 - square)
            root = np.maximum(np.sqrt(square / (1 - _SECOND**step)), _LEAST)
            tensor -= np.asarray(rate * length / (1 - _FIRST**step) * mean / root, np.float32)
        yield


def _slopes(stages: Sequence[Stage], aim: Aim, batch: tuple[Floats, Floats, Floats]) -> list[Floats]:
    """Return the gradient of each tensor that may change."""
    data, added, wanted = batch
    through: Through = forward(stages, data)
    _, slope = aim.wrong(through.out, added, wanted)
    found = gradients(stages, through, slope)
    return [part for stage, pair in zip(stages, found, strict=True) for part in pair[: len(stage.tensors)]]
