"""Symbolic sizes of every value, followed through the arithmetic that exporters write around Shape.

ONNX's inference names a size it does not know anew wherever it appears. Here ``Reshape(x, Concat(Gather(Shape(x), 0),
-1))`` is known to keep the first dimension of ``x``, and so is everything behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from graphopt.analysis import element_rules, size_rules
from graphopt.analysis.manager import AnalysisManager
from graphopt.analysis.shapes import Shapes
from graphopt.analysis.size_facts import FOLLOWED, Elements, SizeFacts, Sizes
from graphopt.analysis.symbolic import Expr
from graphopt.ir import DataType, Model, Node, Value, graphs
from graphopt.ir.edit import operator_key

_LARGEST = {DataType.INT64: (1 << 63) - 1, DataType.INT32: (1 << 31) - 1, DataType.BOOL: 1}


@dataclass(frozen=True)
class ShapeValues:
    """Dimensions of values, and elements of small integer tensors, as :class:`~graphopt.analysis.symbolic.Expr`."""

    facts: SizeFacts

    @classmethod
    def compute(cls, model: Model, manager: AnalysisManager) -> Self:
        """Follow sizes through every graph, outer before inner, on top of what Shapes found."""
        manager.get(Shapes, fresh=True)
        facts = SizeFacts()
        for graph in graphs(model):
            for value in graph.inputs:
                facts.declare(value)
            for node in graph:
                if node.inputs and node.op_identifier() not in model.functions:
                    follow(node, facts)
        return cls(facts)

    def sizes(self, value: Value | None) -> Sizes | None:
        """Return the dimensions of ``value``, ``None`` when not even its rank is known."""
        return self.facts.sizes(value)

    def elements(self, value: Value | None) -> Elements | None:
        """Return the elements of a scalar or vector of integers or truth values, ``None`` when nothing is known."""
        return self.facts.elements(value)


def follow(node: Node, facts: SizeFacts) -> None:
    """Add to ``facts`` what they tell of the outputs of ``node``, which is no call of a function."""
    operator = operator_key(node)
    size_rule = size_rules.RULES.get(operator)
    sizes = size_rule(node, facts) if size_rule is not None else None
    if sizes is not None:
        facts.put_sizes(node.outputs[0], sizes)
    element_rule = element_rules.RULES.get(operator)
    # A vector of floats has no elements that matter here, and one of unknown type has no known meaning.
    if element_rule is None or node.outputs[0].dtype not in FOLLOWED:
        return
    found = element_rule(node, facts)
    for value, elements in zip(node.outputs, found or (), strict=False):
        limit = _LARGEST.get(value.dtype, 1) if value.dtype is not None else 1
        items = tuple(item if _fits(item, limit) else None for item in elements.items)
        facts.put_elements(value, Elements(items, elements.rank))


def _fits(item: Expr | None, limit: int) -> bool:
    """Tell whether a number is one that the tensor can hold; arithmetic wraps around where it is not."""
    return item is not None and (item.value is None or -limit - 1 <= item.value <= limit)
