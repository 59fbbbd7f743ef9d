"""Plans written into copies of a model, whole or in part, to find out what the rounding does to the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from graphopt.ir import DataType, Model, Node, Value, constant
from graphopt.ir.interface import InterfaceEditor
from graphopt.quantization.insert import Grids, Inserter, Layer, stored, use_domain
from graphopt.quantization.layers import BIAS, WEIGHT
from graphopt.quantization.placement import Placement, read
from graphopt.quantization.types import Types
from graphopt.targets import Quantization

Outputs = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Plan:
    """What is written into a model: where, the grids of each value by type, what becomes of the layers' weights, and
    which nodes compute with 16 bits.
    """

    placement: Placement
    grids: Grids
    layers: tuple[Layer, ...]
    wide: frozenset[Node] = frozenset()

    def types(self, facts: Quantization) -> Types:
        """Return the type of each node and value."""
        return Types.of(self.placement, facts, self.wide)

    def within(self, placement: Placement) -> Plan:
        """Return the part of the plan that lies in ``placement``."""
        nodes = set(placement.nodes)
        return replace(self, placement=placement, layers=tuple(layer for layer in self.layers if layer.node in nodes))

    @property
    def roots(self) -> list[Value]:
        """The values that others share the grid of, or nobody; in order."""
        return [value for value, root in self.placement.values.items() if value is root]


class Runs(Protocol):
    """What of a runner is needed here; see :class:`graphopt.pipeline.runner.Runner`."""

    def outputs(self, model: Model, *, limit: int | None = None) -> Iterator[Outputs]:
        """Yield the outputs of ``model`` on each batch of at most ``limit`` samples in all."""
        ...

    def variants(
        self, model: Model, settings: Sequence[Outputs], *, limit: int | None = None
    ) -> Iterator[tuple[int, Outputs]]:
        """Do the same once for each of ``settings``, which feed further inputs; yield the setting's index too."""
        ...

    def metric(self, model: Model) -> float | None:
        """Return the task metric of ``model``, higher is better; ``None`` when the user gave none."""
        ...


@dataclass
class Trial:
    """A copy of ``model`` to write parts of a plan into; what names nodes and values are those of the model."""

    model: Model
    facts: Quantization
    copy: Model = field(init=False)
    edit: InterfaceEditor = field(init=False)

    def __post_init__(self) -> None:
        self.copy = self.model.clone()
        self.copy.meta.update(self.model.meta)
        self.edit = InterfaceEditor(self.copy)
        self._nodes: dict[Node, Node] = {}
        self._values: dict[Value, Value] = {}
        graph, other = self.model.graph, self.copy.graph
        self._values.update(zip(graph.inputs, other.inputs, strict=True))
        for name, value in graph.initializers.items():
            self._values[value] = other.initializers[name]
        for mine, theirs in zip(graph, other, strict=True):
            self._nodes[mine] = theirs
            self._values.update(zip(mine.outputs, theirs.outputs, strict=True))

    def quantize(self, plan: Plan) -> Model:
        """Write all of ``plan``; return the copy."""
        placement, values = plan.placement, self._values
        mapped = Placement(
            tuple(self._nodes[node] for node in placement.nodes),
            {values[value]: values[root] for value, root in placement.values.items()},
            frozenset(values[value] for value in placement.made),
        )
        grids = {
            kind: {values[value]: found[value] for value in placement.values} for kind, found in plan.grids.items()
        }
        layers = [replace(layer, node=self._nodes[layer.node]) for layer in plan.layers]
        types = Types.of(mapped, self.facts, {self._nodes[node] for node in plan.wide})
        Inserter(self.edit, self.facts, mapped, grids, types, lambda node, what: True).run(layers)
        return self.copy

    def round_weights(self, layers: Iterable[Layer]) -> Model:
        """Put the rounded weights and the corrected biases of ``layers`` in place, as floats; return the copy."""
        for layer in layers:
            node = self._nodes[layer.node]
            for index, array in rounded(layer).items():
                self.edit.set_input(node, index, self.edit.constant(array, "rounded"))
        return self.copy

    def switch_value(self, plan: Plan, value: Value, reader: Node | None = None) -> str:
        """Put a switch on the rounding of a value, as ``reader`` or (None) all of its readers in ``plan`` see it.

        Return the name of the bool[] input that turns it on.
        """
        on = self.edit.add_input(f"round {value.name}", DataType.BOOL, [])
        kind, mine = plan.types(self.facts).roots[value], self._values[value]
        grid, domain = plan.grids[kind][value], use_domain(self.edit, kind)
        scale = self.edit.constant(np.asarray(grid.scale, np.float32), "scale")
        zero = self.edit.constant(stored(grid.zero_point, grid.dtype), "zero_point")
        prefix = f"{domain}::" if domain else ""
        chain = [(f"{prefix}{name}", [scale, zero]) for name in ("QuantizeLinear", "DequantizeLinear")]
        readers = [
            (self._nodes[node], index)
            for node in (plan.placement.nodes if reader is None else (reader,))
            for index, operand in enumerate(node.inputs)
            if operand is value and value in read(node, self.facts)
        ]
        self.edit.insert_switch(mine, on, chain, None if value in plan.placement.made else readers)
        return str(on.name)

    def feed_weights(self, layers: Iterable[Layer]) -> list[tuple[Outputs, Outputs]]:
        """Make inputs of the layers' weights and biases; return for each layer the float and the rounded arrays."""
        settings = []
        for layer in layers:
            node = self._nodes[layer.node]
            exact, coarse = Outputs(), Outputs()
            for index, array in rounded(layer).items():
                old = layer.node.inputs[index] if index < len(layer.node.inputs) else None
                value = self.edit.add_input(f"weights of {node.name}", DataType.FLOAT, array.shape)
                self.edit.set_input(node, index, value)
                before = constant(old)
                exact[str(value.name)] = np.zeros_like(array) if before is None else before
                coarse[str(value.name)] = array
            settings.append((exact, coarse))
        return settings


def rounded(layer: Layer) -> dict[int, NDArray[np.float32]]:
    """Return what a layer computes with, as floats, by index of its inputs: weights and, where it has one, bias."""
    found = {WEIGHT: np.asarray(layer.grid.dequantize(layer.integers), np.float32)}
    if layer.bias is not None:
        found[BIAS] = layer.bias.astype(np.float32)
    return found
