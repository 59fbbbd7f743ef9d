"""Layers by name: those that an option of a pruning pass names, and those by which messages name a group."""

from __future__ import annotations

from graphopt.analysis.channels import Group
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, nodes
from graphopt.quantization.half import is_named


def called(model: Model, patterns: str, where: str) -> set[Node]:
    """Return the nodes that ``patterns`` name: names or operators, with * and ?, separated by commas.

    Raises UsageError, in ``where``, for a pattern that names no node.
    """
    return {node for pattern in items(patterns) for node in _called(model, pattern, where)}


def fractions(model: Model, text: str, where: str) -> dict[Node, float]:
    """Return the fraction of each node named in ``text``: patterns=fraction, separated by commas, the last one counts.

    Raises UsageError, in ``where``, for what is no such thing and a pattern that names no node.
    """
    found: dict[Node, float] = {}
    for item in items(text):
        pattern, _, number = item.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not pattern or not 0 <= share <= 1:
            raise UsageError(f"{item!r} is not a name, =, and a fraction from 0 to 1", where=where)
        found |= dict.fromkeys(_called(model, pattern.strip(), where), share)
    return found


def anchor(group: Group) -> Node:
    """Return the node by which messages name a group: a layer that produces or reads it."""
    uses = (*group.writers, *group.readers)
    if uses:
        return uses[0].node
    return next(use.node for member in group.members for use in member.axis.value.uses())


def _called(model: Model, pattern: str, where: str) -> list[Node]:
    found = [node for node in nodes(model) if is_named(node, pattern)]
    if not found:
        raise UsageError(
            f"no node and no operator is called {pattern!r}",
            where=where,
            hint="graphopt show MODEL --channels names the layers of each group",
        )
    return found


def items(text: str) -> list[str]:
    """Return what commas separate, without blanks."""
    return [item.strip() for item in text.split(",") if item.strip()]
