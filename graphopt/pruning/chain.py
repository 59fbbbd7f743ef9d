"""Layers one behind another as arrays: what comes out of the last, and the gradients of that by their weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.patches import folded, positions, unfolded
from graphopt.analysis.statistics import Unfold
from graphopt.ir import Node
from graphopt.ir import linear as layers
from graphopt.ir.query import sole_use
from graphopt.pruning.jobs import Job, clipping, data_of, refittable, unfold_of_layer
from graphopt.pruning.matrices import bias_of, has_bias, layer_of, rows_of

Floats = NDArray[np.float32]
Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Link:
    """A layer, how a convolution reads [N, C, *spatial] (None: a layer reads the last axis), what its outputs pass."""

    node: Node
    unfold: Unfold | None
    bounds: Bounds

    @property
    def layer(self) -> layers.Linear:
        """The layer as it is now: it may have been given a bias since."""
        layer = layer_of(self.node)
        assert layer is not None
        return layer


def chain_of(job: Job, shrunk: Collection[str]) -> list[Link]:
    """Return the job's layer and those before it that all it reads comes from, the first one first.

    Between two of them lies a Relu or a Clip, and a value that lost channels (named in ``shrunk``). Alone where one of
    them is grouped.
    """
    links = [Link(job.layer.node, _whole(job.layer), job.bounds or (-np.inf, np.inf))]
    data = job.data
    while data.name in shrunk and sole_use(data) is not None and (between := data.producer()) is not None:
        before, bounds = between.inputs[0] if between.inputs else None, clipping(between)
        if before is None or bounds is None or sole_use(before) is None:
            break
        behind = layers.linear_behind(before)
        layer = None if behind is None else refittable(behind.node, lambda node, why: None)
        if layer is None or layer.output is not before:
            break
        unfold, data = _whole(layer), data_of(layer)
        if (unfold is None) != (links[0].unfold is None):
            break
        links.insert(0, Link(layer.node, unfold, bounds))
    return links[-1:] if any(_is_odd(link.unfold) for link in links) else links


def _is_odd(unfold: Unfold | None) -> bool:
    """Tell whether gradients take too long for what they bring (groups), or have no rule here (pads that crop)."""
    return unfold is not None and (unfold.groups > 1 or min(unfold.pads) < 0)


def _whole(layer: layers.Linear) -> Unfold | None:
    unfold = unfold_of_layer(layer)
    return None if unfold is None else replace(unfold, most=0)


@dataclass(frozen=True, eq=False)
class Stage:
    """A link with copies of its weights [O, K] and its bias [O], which change."""

    link: Link
    weights: Floats
    bias: Floats

    @classmethod
    def of(cls, link: Link) -> Stage:
        """Return the link with its weights as they are now."""
        return cls(link, rows_of(link.layer).astype(np.float32), bias_of(link.layer).astype(np.float32))

    @property
    def tensors(self) -> tuple[Floats, ...]:
        """What may change: no bias where there cannot be one."""
        return (self.weights, self.bias) if has_bias(self.link.layer) else (self.weights,)


@dataclass(frozen=True, eq=False)
class Through:
    """One way through: what came ``out`` [N, O, *spatial] or [..., O], and of each stage patches and outputs."""

    out: Floats
    rows: list[Floats]
    given: list[Floats]


def forward(stages: Sequence[Stage], data: Floats) -> Through:
    """Run the stages; the bounds of the last one are left to the caller."""
    all_rows, given = list[Floats](), list[Floats]()
    for stage in stages:
        if given:
            data = np.clip(given[-1], *stages[len(given) - 1].link.bounds)
        rows = _rows(data, stage.link.unfold)
        found = (stage.weights.reshape(len(rows), -1, rows.shape[1]) @ rows).reshape(len(stage.bias), -1)
        found += stage.bias[:, None]
        all_rows.append(rows)
        given.append(_maps(found, data.shape, stage.link.unfold))
    return Through(given[-1], all_rows, given)


def gradients(stages: Sequence[Stage], seen: Through, slope: Floats) -> list[tuple[Floats, Floats]]:
    """Return the gradients by each stage's weights and bias, ``slope`` being that by what came out."""
    found: list[tuple[Floats, Floats]] = []
    for index in reversed(range(len(stages))):
        stage, rows = stages[index], seen.rows[index]
        flat = _flat(slope, stage.link.unfold).reshape(len(rows), -1, rows.shape[2])
        found.append(((flat @ rows.swapaxes(1, 2)).reshape(stage.weights.shape), flat.sum(axis=2).reshape(-1)))
        if index:
            back = stage.weights.reshape(len(rows), -1, rows.shape[1]).swapaxes(1, 2) @ flat
            given, (low, high) = seen.given[index - 1], stages[index - 1].link.bounds
            slope = _unrolled(back, given.shape, stage.link.unfold) * ((given > low) & (given < high))
    return found[::-1]


def _rows(data: Floats, unfold: Unfold | None) -> Floats:
    return _flat(data, None)[None] if unfold is None else unfolded(data, unfold)


def _flat(values: Floats, unfold: Unfold | None) -> Floats:
    """Return [O, P] of what a layer gives."""
    if unfold is None:
        return np.ascontiguousarray(values.reshape(-1, values.shape[-1]).T)
    return np.ascontiguousarray(values.swapaxes(0, 1)).reshape(values.shape[1], -1)


def _maps(found: Floats, shape: tuple[int, ...], unfold: Unfold | None) -> Floats:
    """Return [O, P] as the output of a layer that reads ``shape``."""
    if unfold is None:
        return np.ascontiguousarray(found.T).reshape(*shape[:-1], len(found))
    turned: NDArray[Any] = found.reshape(len(found), shape[0], *positions(shape[2:], unfold))
    return np.ascontiguousarray(turned.swapaxes(0, 1))


def _unrolled(rows: Floats, shape: tuple[int, ...], unfold: Unfold | None) -> Floats:
    return np.ascontiguousarray(rows[0].T).reshape(shape) if unfold is None else folded(rows, shape, unfold)
