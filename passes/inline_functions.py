"""Calls of model-local functions give way to the functions' bodies.

Before::

    y = local.Scale <factor = 2.0> (x)
    local.Scale <factor> (a) => (b) { f = Constant <value_float: float = @factor> ()  b = Mul(a, f) }

After::

    f = Constant <value_float = 2.0> ()
    y = Mul(x, f)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.ir import AttributeType, Function, Model, Node, nodes
from graphopt.ir.inline import all_nodes, call_graph, calls, expanded_sizes
from graphopt.pipeline import Changes, Pass, PassContext, option

GRAPHS = (AttributeType.GRAPH, AttributeType.GRAPHS)


@dataclass(frozen=True, kw_only=True)
class InlineFunctions(Pass):
    """Put the body of a model-local function in place of each call of it, and drop functions that nothing calls.

    A function stays when it calls itself, was written for other operator set versions than the model imports, or would
    grow to more than ``max_nodes`` nodes.
    """

    name: ClassVar[str] = "inline-functions"

    max_nodes: int = option(100_000, "nodes that the body of a function may have with all calls in it inlined", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Inline calls until none is left that may be, then look for functions without calls."""
        changes = Changes()
        if not model.functions:
            return changes
        sizes = expanded_sizes(model)
        waiting = [node for node in nodes(model) if node.op_identifier() in model.functions]
        while waiting:
            call = waiting.pop()
            function = model.functions[call.op_identifier()]
            reason = self._why_not(function, call, sizes[call.op_identifier()], model)
            if reason is not None:
                ctx.missed("INLINE001", call, reason)
            elif ctx.may_rewrite(call, f"inline the function {function.name}"):
                _import_domains(function, model, ctx)
                inlined = ctx.edit.inline_call(call, function)
                waiting.extend(n for n in all_nodes(inlined) if n.op_identifier() in model.functions)
                changes["calls inlined"] += 1
        _drop_unused(model, ctx, changes)
        return changes

    def _why_not(self, function: Function, call: Node, size: int | None, model: Model) -> str | None:
        if size is None:
            return "the function calls itself"
        if size > self.max_nodes:
            return f"its body has {size} nodes with all calls inlined, {self.max_nodes} are allowed"
        for domain in _domains(function, model):
            wanted = function.opset_imports.get(domain, 0)
            if model.opset_imports.get(domain, wanted) != wanted:
                return f"it was written for version {wanted} of the operator set {domain or 'ai.onnx'!r}"
        if any(attribute.type in GRAPHS for attribute in call.attributes.values()):
            return "it takes a graph as an attribute"
        if len(call.inputs) > len(function.inputs):
            return f"it takes {len(function.inputs)} inputs, not {len(call.inputs)}"
        return None


def _domains(function: Function, model: Model) -> list[str]:
    body = [node for node in all_nodes(function) if node.op_identifier() not in model.functions]
    return sorted({node.domain for node in body})


def _import_domains(function: Function, model: Model, ctx: PassContext) -> None:
    for domain in _domains(function, model):
        if domain not in model.opset_imports and domain in function.opset_imports:
            ctx.edit.set_opset(function.opset_imports[domain], domain)


def _drop_unused(model: Model, ctx: PassContext, changes: Changes) -> None:
    called = call_graph(model)
    used = set(calls(model.graph, model))
    waiting = list(used)
    while waiting:
        fresh = set(called[waiting.pop()]) - used
        used |= fresh
        waiting.extend(fresh)
    for key in [key for key in model.functions if key not in used]:
        ctx.edit.remove_function(key)
        changes["functions dropped"] += 1
