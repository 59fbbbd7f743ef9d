"""Dead code: nodes that nothing reads, initializers that nothing reads.

Before::

    y = Relu(x)
    unused = Exp(x)

After::

    y = Relu(x)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, graphs
from graphopt.ir.query import is_read
from graphopt.pipeline import Changes, Pass, PassContext


@dataclass(frozen=True, kw_only=True)
class RemoveDead(Pass):
    """Remove nodes and initializers that no output depends on."""

    name: ClassVar[str] = "remove-dead"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Walk each graph backwards, so that a whole dead chain goes in one sweep."""
        changes = Changes()
        for graph in reversed(list(graphs(model))):
            for node in reversed(graph):
                if _is_dead(node) and ctx.may_rewrite(node, "remove a node that nothing reads"):
                    ctx.edit.erase(node)
                    changes["nodes removed"] += 1
        for value in [value for graph in graphs(model) for value in graph.initializers.values()]:
            if not is_read(value) and not value.is_graph_input() and ctx.edit.erase_constant(value):
                changes["initializers removed"] += 1
        return changes


def _is_dead(node: Node) -> bool:
    return not any(is_read(value) for value in node.outputs)
