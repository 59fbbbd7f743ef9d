"""An If whose condition is decided gives way to the branch that is taken.

Before::

    y = If (true) <then_branch = { t = Relu(x) }, else_branch = { e = Neg(x) }>

After::

    y = Relu(x)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.analysis.branches import branch, why_impossible
from graphopt.analysis.shape_values import ShapeValues
from graphopt.ir import Graph, Model, Node, Value, rank_of
from graphopt.ir.fingerprint import operation_key
from graphopt.ir.query import scalar
from graphopt.pipeline import Changes, Pass, PassContext, option

Decision = tuple[bool, str]


@dataclass(frozen=True, kw_only=True)
class InlineIf(Pass):
    """Put the branch of an If in its place where the condition, or the rest of the model, leaves no choice.

    The condition is decided when it is constant, when an enclosing If tested it already, when both branches do the
    same, and, with ``use_ranks``, when the other branch gives a later operator an input of a rank that it must refuse.
    """

    name: ClassVar[str] = "inline-if"
    refines: ClassVar = (Shapes,)

    use_ranks: bool = option(True, "drop a branch that can only make a later operator fail")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Visit outer nodes before inner ones, then those that only ranks can decide, until none is left."""
        changes = Changes()
        for node in ctx.nodes("If"):
            decision = None if node.graph is None else _decided(node, ctx)
            if decision is not None:
                _inline(node, decision, ctx, changes)
        if changes:
            ctx.analyses.drop(refined=(Shapes,))
        while self.use_ranks and self._by_rank(ctx, changes):
            ctx.analyses.drop(refined=(Shapes,))
        return changes

    def _by_rank(self, ctx: PassContext, changes: Changes) -> bool:
        """Decide what can be decided with the sizes known now; each branch put in place makes more known."""
        candidates = [node for node in ctx.nodes("If") if _ranks_differ(node, ctx)]
        if not candidates:
            return False
        facts = ctx.get(ShapeValues).facts
        done = False
        for node in candidates:
            for taken in (False, True):
                reason = None if node.graph is None else why_impossible(node, taken, facts, ctx.edit.owner)
                if reason is not None:
                    done = _inline(node, (not taken, reason), ctx, changes) or done
        return done


def _inline(node: Node, decision: Decision, ctx: PassContext, changes: Changes) -> bool:
    taken, reason = decision
    if not ctx.may_rewrite(node, f"inline the {'then' if taken else 'else'} branch: {reason}"):
        return False
    ctx.edit.splice(node, branch(node, taken))
    changes["branches inlined"] += 1
    return True


def _decided(node: Node, ctx: PassContext) -> Decision | None:
    condition = node.inputs[0]
    known = scalar(condition)
    if known is not None:
        return bool(known), "the condition is constant"
    outer = _tested_outside(condition, node.graph, ctx)
    if outer is not None:
        return outer, "an enclosing If tested the same condition"
    if _same_graph(branch(node, True), branch(node, False), {}):
        return True, "both branches are alike"
    return None


def _tested_outside(condition: Value | None, graph: Graph | None, ctx: PassContext) -> bool | None:
    """Return what an enclosing If found ``condition`` to be, ``None`` when none tested it."""
    while graph is not None:
        owner = ctx.edit.owner(graph)
        if owner is None:
            return None
        if owner.op_type == "If" and owner.domain == "" and owner.inputs[0] is condition:
            return graph is branch(owner, True)
        graph = owner.graph
    return None


def _same_graph(left: Graph, right: Graph, pairs: dict[Value, Value]) -> bool:
    """Tell whether two graphs without initializers of their own compute the same, node by node."""
    if len(left) != len(right) or left.initializers or right.initializers or len(left.outputs) != len(right.outputs):
        return False
    pairs.update(zip(left.inputs, right.inputs, strict=False))
    for a, b in zip(left, right, strict=True):
        if not _same_node(a, b, pairs):
            return False
        pairs.update(zip(a.outputs, b.outputs, strict=True))
    return all(pairs.get(a, a) is b for a, b in zip(left.outputs, right.outputs, strict=True))


def _same_node(a: Node, b: Node, pairs: dict[Value, Value]) -> bool:
    if a.op_identifier() != b.op_identifier() or len(a.inputs) != len(b.inputs) or len(a.outputs) != len(b.outputs):
        return False
    for mine, theirs in zip(a.inputs, b.inputs, strict=True):
        if (mine if mine is None else pairs.get(mine, mine)) is not theirs:
            return False
    key = operation_key(a)
    return key is not None and key == operation_key(b)


def _ranks_differ(node: Node, ctx: PassContext) -> bool:
    ctx.get(Shapes)
    pairs = zip(branch(node, True).outputs, branch(node, False).outputs, strict=False)
    return any(rank_of(a) != rank_of(b) and None not in (rank_of(a), rank_of(b)) for a, b in pairs)
