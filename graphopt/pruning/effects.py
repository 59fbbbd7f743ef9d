"""What the network's outputs lose when units of a group go: measured, while the group's readers make up for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis.channels import Group, Use
from graphopt.analysis.statistics import Gram, Request, Statistics
from graphopt.ir import DataType, Editor, Model, Node, TensorType, Value, constant
from graphopt.ir.interface import InterfaceEditor
from graphopt.ir.query import static_shape
from graphopt.pruning.matrices import WIDEST, bias_of, has_bias, layer_of, rows_of, width_of, write_rows
from graphopt.pruning.refit import subtract_products
from graphopt.pruning.relay import Relay
from graphopt.pruning.route import Stop, resting_places
from graphopt.pruning.saliency import DAMPING, Elimination, Reader, eliminate
from graphopt.pruning.selection import Curve
from graphopt.pruning.stacking import Outputs, Traces
from graphopt.quantization.layers import LayerMatrix

_PART = 16
"""Samples that are run at a time."""

FRACTIONS = (0.25, 0.5, 0.75)
"""What share of a group's units is cut to see what the outputs lose; between these the readers' errors tell."""

_WAVE = 1000 << 20
"""Bytes of Gram matrices that are held at a time."""


Array = NDArray[np.float64]

Changed = Mapping[Node, tuple[Array, Array]]
"""The weights [O, K] and biases [O] that layers of the model get."""


class Runs(Traces, Protocol):
    """What of a runner is needed here; see :class:`graphopt.pipeline.runner.Runner`."""

    def folds(self) -> tuple[Self, Self]:
        """Return one for three quarters of the data, and one for the rest."""
        ...

    def collect(self, model: Model, requests: Sequence[Request]) -> Statistics:
        """Return statistics of one run over all the data."""
        ...


@dataclass(frozen=True, eq=False)
class Ranking:
    """In what order a group's units go, what the outputs lose, and the layers that the group is read by."""

    group: Group
    elimination: Elimination
    curve: Curve


def readers_of(group: Group, statistics: Mapping[Request, Gram]) -> dict[Use, Reader]:
    """Return those readers of the group that have a Gram matrix in ``statistics``."""
    found = {}
    for use in readers_in(group):
        matrix, layer = LayerMatrix.of(use.node), layer_of(use.node)
        gram = statistics.get(matrix.gram())
        if gram is None or layer is None:
            continue
        weights = rows_of(layer).reshape(matrix.groups, -1, matrix.width)
        mean = gram.mean if has_bias(layer) else 0.0 * gram.mean
        centred = gram.second
        subtract_products(centred, mean, mean)
        damping = min(1.0, max(DAMPING, matrix.width / gram.count))
        reader = Reader(weights, centred, mean, columns_of(use, group.units), damping)
        found[use] = replace(reader, weight=1.0 / (reader.power or 1.0))
    return found


def columns_of(use: Use, units: int) -> NDArray[np.int64]:
    """Return which columns of the layer's matrix each unit owns, [units, c]."""
    shape = static_shape(use.member.axis.value) or ()
    kernel = math.prod(shape[2:]) if use.node.op_type == "Conv" else 1
    order = np.argsort(use.member.units, kind="stable")
    places = use.member.positions[order].reshape(units, -1)
    return (places[:, :, None] * kernel + np.arange(kernel)).reshape(units, -1)


def waves(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield the groups in bundles whose readers' Gram matrices fit into memory together."""
    bundle: list[Group] = []
    size, seen = 0, set[Node]()
    for group in groups:
        nodes = {use.node for use in readers_in(group)} - seen
        further = sum(LayerMatrix.of(node).width ** 2 * 8 * LayerMatrix.of(node).groups for node in nodes)
        if bundle and size + further > _WAVE:
            yield bundle
            bundle, size, seen = [], 0, set()
        bundle.append(group)
        size, seen = size + further, seen | nodes
    if bundle:
        yield bundle


class Effects:
    """Measures what cuts do to the outputs of ``model``, that of ``relay``, which has not moved yet.

    Outputs of floats tell, and where there is none those of other numbers.
    """

    def __init__(self, model: Model, relay: Relay) -> None:
        self._model = model
        self._outputs = _telling(model.graph.outputs)
        self._relay = relay
        runs = relay.run(self._outputs)
        self._exact = [{name: np.array(array) for name, array in found.items()} for _, found in runs]
        self._power = {name: _variance([item[name] for item in self._exact]) for name in self._outputs}

    @property
    def can_tell(self) -> bool:
        """Whether the model has an output of numbers."""
        return bool(self._outputs)

    def rest(self, stop: Stop) -> None:
        """Run everything from here on from ``stop``."""
        self._relay.move(stop)

    def losses(self, cuts: Sequence[Changed]) -> list[float]:
        """Return for each of ``cuts`` the error of the outputs, as a share of their variance.

        A cut gives layers, the same in all of them, other weights and biases.
        """
        copy, settings = _opened(self._model, cuts)
        total = {name: np.zeros(len(settings)) for name in self._outputs}
        for place, (batch, found) in enumerate(self._relay.run(self._outputs, copy, settings)):
            place %= len(settings)
            for name in self._outputs:
                total[name][place] += _squared_error(found[name], self._exact[batch][name], self._power[name])
        count = {name: sum(item[name].size for item in self._exact) for name in self._outputs}
        shares = [total[name] / max(count[name], 1) / (self._power[name] or 1.0) for name in self._outputs]
        return [float(loss) for loss in np.mean(shares, axis=0)]


def _opened(model: Model, cuts: Sequence[Changed]) -> tuple[Model, list[Outputs]]:
    """Return ``model`` with the weights and biases that change as inputs, and what these get with each of ``cuts``."""
    copy = model.clone()
    edit = InterfaceEditor(copy)
    by_output = {node.outputs[0].name: node for node in copy.graph if node.outputs}
    settings: list[Outputs] = [{} for _ in cuts]
    for node in cuts[0]:
        same = by_output[node.outputs[0].name]
        weights: list[Value] = []
        for changed, setting in zip(cuts, settings, strict=True):
            weights = _with(edit, same, *changed[node])
            setting.update({f"{value.name}/Given": np.asarray(constant(value)) for value in weights})
        for value in weights:
            assert value.dtype is not None
            given = edit.add_input(f"{value.name}/Given", value.dtype, static_shape(value))
            edit.replace_uses(value, given)
    return copy, settings


def _with(edit: Editor, node: Node, weights: Array, bias: Array) -> list[Value]:
    """Write the layer's weights and bias, and return the constants that hold them now."""
    layer = layer_of(node)
    assert layer is not None
    write_rows(edit, layer, weights, bias)
    written = layer_of(node)
    assert written is not None
    return [written.weight] if written.bias is None or not has_bias(layer) else [written.weight, written.bias]


def _telling(outputs: Sequence[Value]) -> tuple[str, ...]:
    numbers = [v for v in outputs if isinstance(v.type, TensorType) and v.dtype not in (None, DataType.STRING)]
    floats = [value for value in numbers if value.dtype is not None and value.dtype.is_floating_point()]
    return tuple(str(value.name) for value in floats or numbers)


def _variance(arrays: Sequence[NDArray[np.generic]]) -> float:
    every = np.concatenate([array.ravel() for array in arrays]).astype(np.float64)
    finite = every[np.isfinite(every)]
    return float(np.var(finite)) if finite.size else 0.0


def _squared_error(found: NDArray[np.generic], exact: NDArray[np.generic], power: float) -> float:
    """Return the sum over all finite elements; one that is not finite any more, or not there, counts ``power``."""
    wanted = np.asarray(exact, np.float64)
    if found.shape != wanted.shape:
        return power * wanted.size
    finite = np.isfinite(wanted)
    error = np.asarray(found, np.float64)[finite] - wanted[finite]
    lost = ~np.isfinite(error)
    return float((error[~lost] ** 2).sum() + power * np.count_nonzero(lost))


def rank(model: Model, groups: Sequence[Group], runner: Runs, *, samples: int) -> list[Ranking]:
    """Order the units of each group, and measure on ``samples`` samples what the outputs of ``model`` lose by cuts.

    Units are ordered by one part of the data and cuts measured on another: a layer of many weights that few samples
    reach makes up for anything on those. Groups without a reader that has a Gram matrix are left out. Raises
    GraphOptError.
    """
    found: dict[int, Ranking] = {}
    place = {node: index for index, node in enumerate(model.graph)}
    in_order = sorted((group for group in groups if readers_in(group)), key=lambda group: _first(group, place))
    starts = [min((use.node for use in readers_in(group)), key=place.__getitem__) for group in in_order]
    stops = dict(zip((group.index for group in in_order), resting_places(model, starts), strict=True))
    fitting, held = runner.folds()
    with Relay(held, model, min(_PART, -(-samples // 2)), samples) as relay:
        effects = Effects(model, relay)
        for bundle in waves(in_order):
            requests = dict.fromkeys(LayerMatrix.of(use.node).gram() for group in bundle for use in readers_in(group))
            statistics = fitting.collect(model, list(requests))
            for group in bundle:
                stop = stops[group.index]
                if stop is not None:
                    effects.rest(stop)
                order = _order(group, statistics)
                if order is not None:
                    found[group.index] = _ranked(group, order, effects)
            # Else there would be those of two waves while the next are collected.
            del statistics
    return [found[group.index] for group in groups if group.index in found]


def readers_in(group: Group) -> list[Use]:
    """Return the group's readers whose Gram matrix can be had."""
    return [use for use in group.readers if _has_gram(use.node)]


def _has_gram(node: Node) -> bool:
    layer = layer_of(node)
    if layer is None or width_of(layer) > WIDEST:
        return False
    try:
        LayerMatrix.of(node).gram()
    except ValueError:
        return False
    return True


def _first(group: Group, place: Mapping[Node, int]) -> int:
    return min(place[use.node] for use in readers_in(group))


@dataclass(frozen=True, eq=False)
class _Order:
    """In what order units go, and what readers are once so many of ``cuts`` are gone."""

    elimination: Elimination
    cuts: Sequence[int]
    changed: Sequence[Changed]


def _order(group: Group, statistics: Mapping[Request, Gram]) -> _Order | None:
    """Return the order of the group's units, None where no reader has a Gram matrix."""
    readers = readers_of(group, statistics)
    if not readers:
        return None
    cuts = sorted({count for share in FRACTIONS if 0 < (count := round(share * group.units)) < group.units} or {1})
    elimination, weights = eliminate(list(readers.values()), cuts=cuts)
    pairs = [zip(readers.items(), weights[count], strict=True) for count in cuts]
    changed = [{use.node: _changed(use.node, reader, left) for (use, reader), left in cut} for cut in pairs]
    return _Order(elimination, cuts, changed)


def _ranked(group: Group, order: _Order, effects: Effects) -> Ranking:
    errors = order.elimination.errors
    counts, ratios = np.arange(len(errors)), []
    if effects.can_tell:
        found = zip(effects.losses(order.changed), order.cuts, strict=True)
        ratios = [loss / (errors[cut] or 1.0) for loss, cut in found]
    scale = np.interp(counts, order.cuts, ratios) if ratios else 1.0
    losses = np.maximum.accumulate(errors * scale)
    return Ranking(group, order.elimination, Curve(group.index, counts, losses))


def _changed(node: Node, reader: Reader, weights: NDArray[np.float64]) -> tuple[Array, Array]:
    """Return ``weights`` as rows, and the bias that goes with them: outputs keep their means."""
    layer = layer_of(node)
    assert layer is not None
    moved = ((reader.weights - weights) @ reader.mean[:, :, None]).reshape(-1)
    return weights.reshape(-1, weights.shape[-1]), bias_of(layer) + moved
