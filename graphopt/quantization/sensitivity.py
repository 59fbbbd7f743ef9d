"""How much the rounding of each value and each layer's weights costs at the outputs of a model.

Noise is the squared error of an output over its square, summed over samples, one number for each output of floats. One
copy of the model has a switch for every value's rounding, so that all are measured in one session. Rounding errors are
small and independent, so the noise of several of them is about the sum of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.cost import Cost
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, Value
from graphopt.quantization.insert import Layer
from graphopt.quantization.placement import Placement, read, writes
from graphopt.quantization.trial import Outputs, Plan, Runs, Trial
from graphopt.targets import Quantization

Noise = NDArray[np.float64]
"""Squared error over square, one number for each output of floats; inf where the result is not finite."""

_MINOR = 0.1
"""Weights that make no more than this part of all noise together are not measured one by one."""


@dataclass(frozen=True, eq=False)
class Source:
    """What adds noise: a value's grid, or the rounded weights of a layer (``value`` is None).

    ``holders`` are the integer nodes that need it: the noise is gone when none of them computes with integers.
    """

    value: Value | None
    holders: tuple[Node, ...]
    noise: Noise


@dataclass(frozen=True, eq=False)
class Unit:
    """An integer node and what it would cost alone, everything else in float.

    ``noise`` is the sum over the values that it reads and, where its kernel writes integers, writes (``values``), and
    its ``weights``. ``metric`` is the task metric then, None without one; ``macs`` are its multiply-accumulates.
    """

    node: Node
    values: Noise
    weights: Noise
    macs: int
    metric: float | None = None

    @property
    def noise(self) -> Noise:
        """All its noise."""
        return self.values + self.weights

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what adds no noise has None for its SQNR."""
        parts = {"sqnr": self.noise, "values_sqnr": self.values, "weights_sqnr": self.weights}
        numbers = {name: plain(decibel(noise)) for name, noise in parts.items()}
        found = {
            "node": self.node.name or self.node.outputs[0].name,
            "operator": self.node.op_type,
            **numbers,
            "macs": self.macs,
        }
        return found if self.metric is None else {**found, "metric": self.metric}


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """What each source of noise costs; ``total`` is the noise of the model with the whole plan written into it.

    ``metric`` is the task metric of the float model, ``total_metric`` that of the quantized one, None without a metric.
    """

    outputs: tuple[str, ...]
    total: Noise
    sources: tuple[Source, ...]
    units: tuple[Unit, ...]
    metric: float | None = None
    total_metric: float | None = None

    @property
    def worst_first(self) -> list[Unit]:
        """The units, the one with most noise first."""
        return sorted(self.units, key=lambda unit: -float(unit.noise.max()))

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the units with the worst first."""
        metrics = {} if self.metric is None else {"metric": self.metric, "quantized_metric": self.total_metric}
        return {
            "sqnr": plain(decibel(self.total)),
            **metrics,
            "units": [unit.to_json() for unit in self.worst_first],
        }


def measure(
    model: Model, facts: Quantization, plan: Plan, runs: Runs, *, limit: int = 16, metrics: bool = False
) -> Sensitivity:
    """Measure what ``plan`` costs ``model`` on at most ``limit`` samples.

    ``metrics`` asks for the task metric too, where there is one; it is computed on all the data, for each unit again.
    Raises UsageError when no output of the model is a tensor of floats.
    """
    whole = Trial(model, facts).quantize(plan)
    names, total = noise_of(model, whole, runs, limit=limit)
    exact = runs.metric(model) if metrics else None
    coarse = None if exact is None else runs.metric(whole)
    sources = _value_sources(model, facts, plan, runs, limit)
    sources += [
        Source(None, (layer.node,), noise)
        for layer, noise in zip(plan.layers, _weight_noises(model, facts, plan, runs, limit, total), strict=True)
    ]
    macs = Cost.measure(model).macs
    units = []
    for node in units_of(plan.placement, facts):
        mine = [source for source in sources if node in source.holders]
        values = sum((source.noise for source in mine if source.value is not None), np.zeros(len(names)))
        weights = sum((source.noise for source in mine if source.value is None), np.zeros(len(names)))
        trial = None if exact is None else Trial(model, facts).quantize(alone(plan, node, facts))
        metric = None if trial is None else runs.metric(trial)
        units.append(Unit(node, values, weights, macs.get(node, 0), metric))
    return Sensitivity(names, total, tuple(sources), tuple(units), exact, coarse)


def units_of(placement: Placement, facts: Quantization) -> list[Node]:
    """Return the integer nodes that compute; those that only move data follow from them."""
    return [node for node in placement.nodes if node.op_type not in facts.moves]


def alone(plan: Plan, node: Node, facts: Quantization) -> Plan:
    """Return the part of ``plan`` that has only ``node`` compute with integers."""
    values = plan.placement.values
    made = frozenset(writes(node, facts)) & plan.placement.made
    own = {value: values[value] for value in [*read(node, facts), *made]}
    return plan.within(Placement((node,), own, made))


def noise_of(reference: Model, model: Model, runs: Runs, *, limit: int | None = None) -> tuple[tuple[str, ...], Noise]:
    """Return the names of the float outputs and the noise of ``model``'s against ``reference``'s.

    Raises UsageError when there is no float output.
    """
    sums = _Sums(1)
    for exact, coarse in zip(runs.outputs(reference, limit=limit), runs.outputs(model, limit=limit), strict=True):
        sums.add(0, exact, coarse)
    return sums.names, sums.noises()[0]


def decibel(noise: Noise) -> float:
    """Return the SQNR in dB of the worst output, inf without noise."""
    worst = float(noise.max())
    return math.inf if worst == 0 else -10 * math.log10(worst) if math.isfinite(worst) else -math.inf


def plain(number: float) -> float | None:
    """Return a number that JSON has: rounded to thousandths, None for what is not finite."""
    return round(number, 3) if math.isfinite(number) else None


def _value_sources(model: Model, facts: Quantization, plan: Plan, runs: Runs, limit: int) -> list[Source]:
    trial = Trial(model, facts)
    held = [(value, nodes, reader) for value in plan.roots for nodes, reader in _holders(plan.placement, value, facts)]
    names = [trial.switch_value(plan, value, reader) for value, _, reader in held]
    off: Outputs = {name: np.zeros((), np.bool_) for name in names}
    settings = [off, *({**off, name: np.ones((), np.bool_)} for name in names)]
    noises = _switched(trial.copy, settings, runs, limit)
    return [Source(value, nodes, noise) for (value, nodes, _), noise in zip(held, noises, strict=True)]


def _holders(placement: Placement, value: Value, facts: Quantization) -> list[tuple[tuple[Node, ...], Node | None]]:
    """Return the groups of nodes that need the grid of ``value``, for each the one node that sees it, None for all.

    Whoever reads a value that integer nodes make reads rounded numbers. Any other value is rounded for each of its
    readers apart, unless nodes that move data hand it on.
    """
    nodes = [
        node
        for node in units_of(placement, facts)
        if any(
            placement.values[seen] is value
            for seen in [*read(node, facts), *(set(writes(node, facts)) & placement.made)]
        )
    ]
    direct = [node for node in placement.nodes if value in read(node, facts)]
    if value in placement.made or any(node.op_type in facts.moves for node in direct):
        return [(tuple(nodes), None)]
    return [((node,), node) for node in direct]


def _weight_noises(
    model: Model, facts: Quantization, plan: Plan, runs: Runs, limit: int, total: Noise
) -> Sequence[Noise]:
    """Return the noise of each layer's weights, estimated from the layers' own errors where all are small."""
    if not plan.layers:
        return []
    together = noise_of(model, Trial(model, facts).round_weights(plan.layers), runs, limit=limit)[1]
    errors = [_relative_error(layer) for layer in plan.layers]
    whole = sum(errors)
    if all(layer.power for layer in plan.layers) and whole > 0 and (together <= _MINOR * total).all():
        return [together * (error / whole) for error in errors]
    trial = Trial(model, facts)
    pairs = trial.feed_weights(plan.layers)
    off = {name: array for exact, _ in pairs for name, array in exact.items()}
    return _switched(trial.copy, [off, *({**off, **coarse} for _, coarse in pairs)], runs, limit)


def _relative_error(layer: Layer) -> float:
    return layer.error / layer.power if layer.power else 0.0


def _switched(model: Model, settings: Sequence[Outputs], runs: Runs, limit: int) -> list[Noise]:
    """Return the noise of each setting against the first."""
    sums = _Sums(len(settings) - 1)
    exact: Outputs = {}
    for index, outputs in runs.variants(model, settings, limit=limit):
        if index == 0:
            exact = outputs
        else:
            sums.add(index - 1, exact, outputs)
    return sums.noises()


class _Sums:
    """Squares of the float outputs and of their errors, summed over batches, for ``count`` settings."""

    def __init__(self, count: int) -> None:
        self.names: tuple[str, ...] = ()
        self._power: NDArray[np.float64] | None = None
        self._error: NDArray[np.float64] = np.zeros((count, 0))
        self._count = count

    def add(self, setting: int, exact: Outputs, coarse: Outputs) -> None:
        """Add one batch; elements that are not finite in ``exact`` do not count."""
        if self._power is None:
            self.names = tuple(name for name, array in exact.items() if _is_float(array))
            if not self.names:
                raise UsageError("the model has no output of floats, so no noise can be measured")
            self._power = np.zeros((self._count, len(self.names)))
            self._error = np.zeros((self._count, len(self.names)))
        for index, name in enumerate(self.names):
            power, error = _squares(exact[name], coarse[name])
            self._power[setting, index] += power
            self._error[setting, index] += error

    def noises(self) -> list[Noise]:
        """Return the noise of each setting."""
        if self._power is None:
            raise UsageError("there is no calibration data", hint="give inputs of your own with --data")
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = np.where(self._error == 0, 0.0, self._error / self._power)
        return list(np.nan_to_num(noise, nan=np.inf, posinf=np.inf))


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"


def _squares(exact: NDArray[Any], coarse: NDArray[Any]) -> tuple[float, float]:
    """Return the sums of squares of ``exact`` and of its difference from ``coarse``."""
    finite = np.isfinite(exact)
    wanted = np.where(finite, exact, 0).astype(np.float64, copy=False)
    power = float(np.vdot(wanted, wanted))
    if exact.shape != coarse.shape:
        return power, math.inf
    difference = np.where(finite, coarse, 0) - wanted
    error = float(np.vdot(difference, difference))
    return power, error if math.isfinite(error) else math.inf
