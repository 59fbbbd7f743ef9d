"""Branches of If that cannot be taken in a run that succeeds.

A branch whose output has a rank that a later operator must refuse is never taken: LSTM wants three dimensions, so the
branch that gives it five can only fail.
"""

from __future__ import annotations

from collections.abc import Callable

from graphopt.analysis.shape_values import follow
from graphopt.analysis.size_facts import SizeFacts
from graphopt.ir import Graph, Node, Value
from graphopt.ir.query import attr

Owner = Callable[[Graph], Node | None]

_RANKS = {"LSTM": 3, "GRU": 3, "RNN": 3, "Gemm": 2}
_MAX_STEPS = 100
"""Nodes looked at behind an If: what decides stands close to it."""


def branch(node: Node, taken: bool) -> Graph:
    """Return the branch of an If that a condition selects."""
    found: Graph = attr(node, "then_branch" if taken else "else_branch")
    return found


def why_impossible(node: Node, taken: bool, facts: SizeFacts, owner: Owner) -> str | None:
    """Say why taking a branch of the If ``node`` makes the run fail; ``None`` where nothing shows that."""
    supposed = facts.supposing()
    changed = _enter(node, taken, supposed)
    waiting = dict.fromkeys(_readers(changed, node.graph, owner))
    for _ in range(_MAX_STEPS):
        if not waiting:
            return None
        reader = next(iter(waiting))
        del waiting[reader]
        reason, changed = _step(reader, supposed)
        if reason is not None:
            return reason
        waiting.update(dict.fromkeys(_readers(changed, node.graph, owner)))
    return None


def _enter(node: Node, taken: bool, facts: SizeFacts) -> list[Value]:
    """Give the outputs of an If the sizes of those of one branch; returns the outputs with news."""
    changed = []
    for value, result in zip(node.outputs, branch(node, taken).outputs, strict=False):
        sizes = facts.sizes(result)
        if sizes is not None and facts.sizes(value) != sizes:
            facts.put_sizes(value, sizes)
            changed.append(value)
    return changed


def _readers(values: list[Value], graph: Graph | None, owner: Owner) -> list[Node]:
    """Return the nodes of ``graph`` that read one of ``values``, themselves or in a nested graph."""
    found: dict[Node, None] = {}
    for value in values:
        for use in value.uses():
            node: Node | None = use.node
            while node is not None and node.graph is not graph:
                node = None if node.graph is None else owner(node.graph)
            if node is not None:
                found[node] = None
    return list(found)


def _step(node: Node, facts: SizeFacts) -> tuple[str | None, list[Value]]:
    """Return why ``node`` fails under ``facts``, and the outputs that they tell something new of."""
    if node.domain != "":
        return None, []
    reason = _refusal(node, facts)
    if reason is not None:
        return reason, []
    if node.op_type == "If":
        return _step_if(node, facts)
    before = [(facts.sizes(value), facts.elements(value)) for value in node.outputs]
    follow(node, facts)
    after = [(facts.sizes(value), facts.elements(value)) for value in node.outputs]
    return None, [value for value, old, new in zip(node.outputs, before, after, strict=True) if old != new]


def _step_if(node: Node, facts: SizeFacts) -> tuple[str | None, list[Value]]:
    condition = facts.elements(node.inputs[0])
    known = None if condition is None else condition.known
    if known is None or len(known) != 1:
        return None, []
    for inner in branch(node, bool(known[0])):
        reason, _ = _step(inner, facts)
        if reason is not None:
            return reason, []
    return None, _enter(node, bool(known[0]), facts)


def _refusal(node: Node, facts: SizeFacts) -> str | None:
    wanted = _RANKS.get(node.op_type)
    if node.op_type == "Conv":
        weight = facts.sizes(node.inputs[1])
        wanted = None if weight is None else len(weight)
    sizes = facts.sizes(node.inputs[0]) if wanted is not None else None
    if sizes is None or wanted is None or len(sizes) == wanted:
        return None
    return f"{node.op_type} {node.name} would get an input of {len(sizes)} dimensions, not {wanted}"
