"""Which type each integer node computes in, where some are to have 16 bits.

A kernel reads and writes one type. So the nodes are told apart, not the values: where a node of 8 bits and one of 16
meet, a second Q/DQ pair converts. What only moves data has the type of the value that it moves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from graphopt.ir import Node, Value
from graphopt.quantization.layers import BIAS
from graphopt.quantization.placement import Placement, is_product, read, writes
from graphopt.targets import Quantization


@dataclass(frozen=True, eq=False)
class Types:
    """The type of each integer node, and of the grid of each value that has one of its own; numpy's names."""

    nodes: Mapping[Node, str]
    roots: Mapping[Value, str]

    @classmethod
    def of(cls, placement: Placement, facts: Quantization, wide: Collection[Node] = ()) -> Types:
        """Return the types where the nodes ``wide`` compute with 16 bits and all others with 8."""
        wide = _together(placement, facts, wide)
        nodes = {node: _type_of(node, facts, wide) for node in placement.nodes if node.op_type not in facts.moves}
        roots: dict[Value, str] = {}
        read_as: dict[Value, set[str]] = {}
        for node, kind in nodes.items():
            for value in writes(node, facts):
                if value in placement.made:
                    roots[placement.values[value]] = kind
            for value in read(node, facts):
                read_as.setdefault(placement.values[value], set()).add(kind)
        for root in placement.values.values():
            # What no integer node makes takes the finest type that somebody reads it in.
            kinds = read_as.get(root, set()) & {facts.wide_activations, facts.wide_products}
            roots.setdefault(root, min(kinds, default=facts.activations))
        for node in placement.nodes:
            if node.op_type in facts.moves:
                moved = read(node, facts) or writes(node, facts)
                nodes[node] = roots[placement.values[moved[0]]]
        return cls(nodes, roots)

    def wide_share(self, placement: Placement, facts: Quantization) -> float:
        """Return the part of the Q/DQ pairs that have 16 bits, conversions between types included."""
        kinds = {value: {self.roots[root]} for value, root in placement.values.items()}
        for node, kind in self.nodes.items():
            for value in read(node, facts):
                kinds[value].add(kind)
        pairs = [kind for found in kinds.values() for kind in found]
        return sum(kind != facts.activations for kind in pairs) / max(len(pairs), 1)

    def counts(self) -> dict[str, int]:
        """Return how many values have a grid of each type."""
        return dict(sorted(Counter(self.roots.values()).items()))


def wide_kinds(facts: Quantization) -> list[str]:
    """Return the types of 16 bits that a target has for activations."""
    return sorted({facts.wide_activations, facts.wide_products} - {""}) if facts.wide_activations else []


def too_narrow(placement: Placement, facts: Quantization) -> list[Node]:
    """Return the nodes that the target computes worse with 8 bits than 8 bits allow."""
    return [
        node
        for node in placement.nodes
        if node.op_type in facts.wide_biased and len(node.inputs) > BIAS and node.inputs[BIAS] is not None
    ]


def _together(placement: Placement, facts: Quantization, wide: Collection[Node]) -> set[Node]:
    """Return ``wide`` with all nodes that write to a grid which one of them writes to."""
    makers: dict[Value, list[Node]] = {}
    for node in placement.nodes:
        if node.op_type not in facts.moves:
            for value in writes(node, facts):
                if value in placement.made:
                    makers.setdefault(placement.values[value], []).append(node)
    found = set(wide)
    for group in makers.values():
        if len(group) > 1 and found.intersection(group):
            found.update(group)
    return found


def _type_of(node: Node, facts: Quantization, wide: Collection[Node]) -> str:
    if node not in wide:
        return facts.activations
    return facts.wide_products if facts.wide_products and is_product(node) else facts.wide_activations
