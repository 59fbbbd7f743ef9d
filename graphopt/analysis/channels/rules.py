"""What the operators do with channels: dispatch, and what follows from nodes that have no rule."""

from __future__ import annotations

from graphopt.analysis.channels import rules_elements, rules_layers, rules_moves, rules_norms
from graphopt.analysis.channels.ties import Ties
from graphopt.ir import Node
from graphopt.ir.edit import operator_key

_RULES = {**rules_elements.RULES, **rules_layers.RULES, **rules_moves.RULES, **rules_norms.RULES}


def follow(node: Node, ties: Ties) -> None:
    """Write down how the axes of a node's values hang together, and pin those that its operator fixes."""
    key = operator_key(node)
    rule = _RULES.get(key)
    if rule is None:
        ties.close(node, f"what {key} does with channels is not known")
        return
    if any(ties.dims(value) is None for value in (*node.inputs, *node.outputs) if value is not None and value.name):
        ties.close(node, f"not all ranks are known around this {key}")
        return
    ties.close(node, rule(node, ties) or f"{key} needs this axis whole")
