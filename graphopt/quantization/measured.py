"""Which regions of a placement are worth their integers: found out by timing kernels, checked by timing whole models.

The float model and a quantized trial are timed kernel by kernel. A minimum cut then divides the nodes between integers
and floats, conversions between the two included; what it puts back to float is tried as a whole, and the fastest of
all trials wins. Kernels cost in company what they do not cost alone (layouts, caches, fusions), so the cut is made
again with the times of the last trial, a few times at most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from graphopt.analysis.partition import Crossing, cheapest_inside
from graphopt.ir import Editor, Model, Node, Value, shape_of
from graphopt.ir.copies import numbered_copy
from graphopt.ir.query import is_constant
from graphopt.quantization.grid import Grid
from graphopt.quantization.insert import Inserter
from graphopt.quantization.layers import LayerMatrix
from graphopt.quantization.placement import Placement, place, read, written
from graphopt.quantization.plan import Choices, quantized_layer
from graphopt.quantization.types import Types
from graphopt.targets import Quantization

_ROUNDS = 3
"""Trials after the first, at most."""
WORTH = 0.98
"""Latency ratios above this are not worth the rounding: they may as well be noise of the measurement."""
_TIE = 0.005
"""Latency ratios closer than this are equal: the trial with more integers is taken."""


class Timer(Protocol):
    """What of a runner is needed here; see :class:`graphopt.pipeline.runner.Runner`."""

    def latency_ratio(self, reference: Model, candidate: Model, *, rounds: int = 20) -> float:
        """Return the median of candidate's seconds over reference's."""
        ...

    def node_seconds(self, model: Model) -> dict[str, float]:
        """Return the seconds of each kernel by the name of the node that it implements."""
        ...


@dataclass(frozen=True)
class Kept:
    """Connected nodes put back to float: the seconds that they take in integers, conversions included, and in float.

    Both are 0 where the nodes follow from others that were put back.
    """

    nodes: tuple[Node, ...]
    integer_seconds: float
    float_seconds: float


@dataclass(frozen=True)
class Measured:
    """The fastest placement, ``None`` when float is faster than any; ``ratios`` are the latencies of all trials over
    float's, in order: the whole placement, then those with regions put back.
    """

    placement: Placement | None
    kept: tuple[Kept, ...]
    ratios: tuple[float, ...]
    ratio: float


@dataclass(frozen=True, eq=False)
class _Trial:
    """A placement written into a copy of the model. ``placed`` are the positions in the graph of its nodes."""

    model: Model
    placed: tuple[int, ...]
    conversions: Mapping[str, tuple[str, str]]
    """For each value with a pair, by name: the names of the pair's nodes."""
    operands: Mapping[int, tuple[str, ...]]
    """For each integer node, by position: the names of the nodes that dequantize its constants."""


@dataclass(frozen=True)
class _Unit:
    """A node that may compute with integers, by position, with the activation that its kernel does too."""

    position: int
    names: tuple[str, ...]
    reads: tuple[str, ...]
    writes: str


@dataclass
class _Costs:
    """Seconds: of units on either side, and of converting each value to integers and back."""

    integers: dict[int, float] = field(default_factory=dict)
    floats: dict[int, float] = field(default_factory=dict)
    enter: dict[str, float] = field(default_factory=dict)
    leave: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """Times the placements within ``full`` of ``model``; ``grids`` holds the grid of each of its values.

    Weights are rounded the cheap way in trials: no kernel's time depends on it.
    """

    model: Model
    facts: Quantization
    full: Placement
    grids: Mapping[Value, Grid]
    choices: Choices
    timer: Timer

    def run(self) -> Measured:
        """Return the fastest placement."""
        nodes = list(self.model.graph)
        positions = {node: index for index, node in enumerate(nodes)}
        units = [_unit(node, positions, self.facts) for node in self.full.nodes]
        crossings = _crossings(self.full, units, positions)
        reference = numbered_copy(self.model)
        costs = _Costs()
        floats = self.timer.node_seconds(reference)
        costs.floats = {unit.position: sum(floats.get(name, 0.0) for name in unit.names) for unit in units}
        tried: list[tuple[float, Placement, tuple[Kept, ...]]] = []
        seen = set()
        placement = self.full
        kept: tuple[Kept, ...] = ()
        while placement.nodes and placement.nodes not in seen and len(tried) <= _ROUNDS:
            seen.add(placement.nodes)
            trial = self._trial(placement, positions)
            tried.append((self.timer.latency_ratio(reference, trial.model), placement, kept))
            _learn(costs, units, crossings, trial, self.timer.node_seconds(trial.model), self._sizes())
            inside = cheapest_inside(costs.integers, costs.floats, _priced(crossings, costs))
            outside = [nodes[unit.position] for unit in units if unit.position not in inside]
            placement = place(self.model, self.facts, floats=[*self._never(), *outside])
            kept = _regions(self.full, placement, inside, units, crossings, costs, nodes)
        least = min(ratio for ratio, _, _ in tried)
        ratio, best, back = next(trial for trial in tried if trial[0] <= least + _TIE)
        ratios = tuple(ratio for ratio, _, _ in tried)
        return Measured(best if ratio <= WORTH else None, back, ratios, ratio)

    def ratio_of(self, placement: Placement) -> float:
        """Return the latency of ``placement`` over that of floats."""
        positions = {node: index for index, node in enumerate(self.model.graph)}
        return self.timer.latency_ratio(numbered_copy(self.model), self._trial(placement, positions).model)

    def _never(self) -> list[Node]:
        chosen = set(self.full.nodes)
        return [node for node in self.model.graph if node not in chosen]

    def _sizes(self) -> dict[str, int]:
        """Return the number of elements of each value, sizes that are not known taken for 1."""
        sizes = {}
        for value in self.full.values:
            size = 1
            for dim in shape_of(value) or ():
                size *= dim if isinstance(dim, int) else 1
            sizes[str(value.name)] = size
        return sizes

    def _trial(self, placement: Placement, positions: Mapping[Node, int]) -> _Trial:
        placed = tuple(positions[node] for node in placement.nodes)
        copy = numbered_copy(self.model)
        nodes = list(copy.graph)
        chosen = {nodes[position] for position in placed}
        same = place(copy, self.facts, floats=[node for node in nodes if node not in chosen])
        by_name = {value.name: self.grids[value] for value in placement.values}
        grids = {value: by_name[value.name] for value in same.values}
        names = {value: str(value.name) for value in same.values}  # an output's name goes to what takes its place
        cheap = replace(self.choices, rounding="nearest", weight_ranges="maxabs", bias_correction=False)
        layers = [LayerMatrix.of(node) for node in same.layers]
        rounded = [quantized_layer(layer, None, float(grids[layer.data].scale), cheap) for layer in layers]
        by_type = {self.facts.activations: grids}
        Inserter(Editor(copy), self.facts, same, by_type, Types.of(same, self.facts), lambda node, what: True).run(
            rounded
        )
        operands = {p: _operands(nodes[p]) for p in placed}
        conversions = {name: pair for value, name in names.items() for pair in _pairs(value)}
        return _Trial(copy, placed, conversions, operands)


def _operands(node: Node) -> tuple[str, ...]:
    producers = [value.producer() for value in node.inputs if value is not None]
    return tuple(str(p.name) for p in producers if p is not None and _is_dequantized_constant(p))


def _is_dequantized_constant(node: Node) -> bool:
    return node.op_type == "DequantizeLinear" and node.inputs[0] is not None and is_constant(node.inputs[0])


def _pairs(value: Value) -> Iterator[tuple[str, str]]:
    for quantize in (use.node for use in value.uses() if use.node.op_type == "QuantizeLinear"):
        for use in quantize.outputs[0].uses():
            yield str(quantize.name), str(use.node.name)


def _unit(node: Node, positions: Mapping[Node, int], facts: Quantization) -> _Unit:
    output = written(node, facts)
    last = output.producer()
    both = [node] if last is None or last is node else [node, last]
    reads = tuple(dict.fromkeys(str(value.name) for value in read(node, facts)))
    return _Unit(positions[node], tuple(f"node/{positions[each]}" for each in both), reads, str(output.name))


def _crossings(full: Placement, units: list[_Unit], positions: Mapping[Node, int]) -> dict[str, Crossing[int]]:
    """Return who writes and reads each value with a pair; whoever computes with floats in any case is ``None``."""
    writers = {unit.writes: unit.position for unit in units}
    result = {}
    for value in full.values:
        name = str(value.name)
        readers: list[int | None] = [unit.position for unit in units if name in unit.reads]
        inside = set(readers)
        others = any(positions.get(use.node) not in inside for use in value.uses())
        if value in full.made and (others or value.is_graph_output()):
            readers.append(None)
        result[name] = Crossing(writers.get(name), tuple(readers), 0.0, 0.0)
    return result


def _learn(
    costs: _Costs,
    units: list[_Unit],
    crossings: Mapping[str, Crossing[int]],
    trial: _Trial,
    seconds: Mapping[str, float],
    sizes: Mapping[str, int],
) -> None:
    """Take over what a trial's kernels took.

    A Q or DQ kernel between integer nodes should have been merged into one of them. Where it was not, its seconds are
    part of what that node costs in integers.
    """
    placed = frozenset(trial.placed)
    enter, leave = dict[str, float](), dict[str, float]()
    extra: dict[int, float] = {}
    for name, (quantize, dequantize) in trial.conversions.items():
        crossing = crossings[name]
        readers = [reader for reader in crossing.readers if reader in placed and reader is not None]
        to, back = seconds.get(quantize, 0.0), seconds.get(dequantize, 0.0)
        if crossing.producer in placed and crossing.producer is not None:
            extra[crossing.producer] = extra.get(crossing.producer, 0.0) + to
        elif to:
            enter[name] = to
        if len(readers) < len(crossing.readers) and back:
            leave[name] = back
        else:
            for reader in readers:
                extra[reader] = extra.get(reader, 0.0) + back / len(readers)
    for unit in units:
        if unit.position in placed:
            own = (*unit.names, *trial.operands[unit.position])
            costs.integers[unit.position] = sum(seconds.get(name, 0.0) for name in own) + extra.get(unit.position, 0.0)
    for known, found in ((costs.enter, enter), (costs.leave, leave)):
        rate = sum(found.values()) / max(sum(sizes[name] for name in found), 1)
        for name in sizes:
            known[name] = found.get(name) or known.get(name) or rate * sizes[name]


def _priced(crossings: Mapping[str, Crossing[int]], costs: _Costs) -> list[Crossing[int]]:
    return [replace(crossing, leave=costs.leave[name], enter=costs.enter[name]) for name, crossing in crossings.items()]


def _regions(
    full: Placement,
    placement: Placement,
    inside: Collection[int],
    units: list[_Unit],
    crossings: Mapping[str, Crossing[int]],
    costs: _Costs,
    nodes: list[Node],
) -> tuple[Kept, ...]:
    """Return the connected regions of ``full`` that are not in ``placement``."""
    placed = set(placement.nodes)
    members = {unit.position: unit for unit in units if nodes[unit.position] not in placed}
    neighbours: dict[int, set[int]] = {position: set() for position in members}
    for crossing in crossings.values():
        ends = [end for end in (crossing.producer, *crossing.readers) if end in members and end is not None]
        for end in ends:
            neighbours[end].update(ends)
    regions = []
    left = dict.fromkeys(members)
    while left:
        found = [next(iter(left))]
        del left[found[0]]
        for position in found:  # grows while it is walked
            near = sorted(neighbours[position] & left.keys())
            found.extend(near)
            for each in near:
                del left[each]
        found.sort()
        cut = [position for position in found if position not in inside]
        converted = sum(_alone(crossing, costs, name, inside, cut) for name, crossing in crossings.items())
        integer = sum(costs.integers[position] for position in cut) + converted
        regions.append(Kept(tuple(nodes[p] for p in found), integer, sum(costs.floats[position] for position in cut)))
    return tuple(regions)


def _alone(crossing: Crossing[int], costs: _Costs, name: str, inside: Collection[int], cut: Collection[int]) -> float:
    """Return the seconds of the conversions of a value that the nodes of ``cut`` alone would need."""
    readers = crossing.readers
    if crossing.producer in cut:
        floats = any(reader not in cut and reader not in inside for reader in readers)
        return costs.leave[name] if floats else 0.0
    if crossing.producer in inside or any(reader in inside for reader in readers):
        return 0.0
    return costs.enter[name] if any(reader in cut for reader in readers) else 0.0
