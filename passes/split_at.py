"""A model in two: what an accelerator runs, and a tail that belongs on the CPU.

Before::

    s = Sigmoid(Conv(x, w))
    i = NonMaxSuppression(boxes, s)
    y = Gather(boxes, i)

After ``split-at{nodes=NonMaxSuppression}``, with the values that the tail reads as further outputs::

    s = Sigmoid(Conv(x, w))

After ``split-at{nodes=NonMaxSuppression,part=tail}``, with them as inputs, by the same names::

    i = NonMaxSuppression(boxes, s)
    y = Gather(boxes, i)

The tail is what is named and all that depends on it; what holds a nested graph goes as a whole. Running the two one
after the other gives what the model gave.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.errors import UsageError
from graphopt.ir import Editor, Model, Node, Value, nodes, shape_of
from graphopt.ir.interface import InterfaceEditor
from graphopt.ir.query import is_constant, is_read
from graphopt.pipeline import Changes, Pass, PassContext, option


@dataclass(frozen=True, kw_only=True)
class SplitAt(Pass):
    """Cut the model in two before the nodes named, and keep one part: two runs make two models."""

    name: ClassVar[str] = "split-at"
    lossless: ClassVar[bool] = False
    nodes: str = option("", "names or operators of the first nodes of the tail: patterns with * and ?, by commas")
    part: str = option("head", "the part that is kept", choices=("head", "tail"))

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text. Raises UsageError for names of no node, and where one part would be empty."""
        ctx.get(Shapes)
        tail = _behind(self._named(model, ctx.edit), ctx.edit)
        order = list(model.graph)
        if len(tail) == len(order):
            raise UsageError("nothing is left in front of these nodes", where=f"{self.name}{{nodes={self.nodes}}}")
        first = next(node for node in order if node in tail)
        if not ctx.may_rewrite(first, f"cut the model here and keep its {self.part}"):
            return Changes()
        copy = model.clone()
        copy.meta.update(model.meta)
        twins = dict(zip(order, copy.graph, strict=True))
        cut = {twins[node] for node in tail}
        gone = _keep_head(copy, cut) if self.part == "head" else _keep_tail(copy, cut)
        ctx.edit.replace_model(copy)
        return Changes(removed=gone)

    def _named(self, model: Model, edit: Editor) -> list[Node]:
        """Return the nodes of the main graph that are named, or hold one that is."""
        found: dict[Node, None] = {}
        for pattern in filter(None, (text.strip() for text in self.nodes.split(","))):
            matching = [
                _outermost(node, edit)
                for node in nodes(model)
                if fnmatchcase(str(node.name or ""), pattern) or fnmatchcase(node.op_type, pattern)
            ]
            if not matching:
                raise UsageError(f"no node is called {pattern!r}", where=f"{self.name}{{nodes}}")
            found.update(dict.fromkeys(matching))
        if not found:
            raise UsageError("it has to be told where", where=f"{self.name}{{nodes}}")
        return list(found)


def _behind(first: list[Node], edit: Editor) -> set[Node]:
    """Return the nodes of the main graph that are named or depend on them."""
    found = set(first)
    pending = list(first)
    for node in pending:  # grows while it is walked
        for reader in (_outermost(use.node, edit) for value in node.outputs for use in value.uses()):
            if reader not in found:
                found.add(reader)
                pending.append(reader)
    return found


def _outermost(node: Node, edit: Editor) -> Node:
    """Return the node of the main graph that ``node`` is in, itself where it is of that graph."""
    owner = None if node.graph is None or node.graph is edit.model.graph else edit.owner(node.graph)
    return node if owner is None else _outermost(owner, edit)


def _crossing(edit: Editor, tail: Collection[Node]) -> list[Value]:
    """Return the values that nodes in front of ``tail`` compute and it reads, in order."""
    return [
        value
        for node in edit.model.graph
        if node not in tail
        for value in node.outputs
        if any(_outermost(use.node, edit) in tail for use in value.uses())
    ]


def _keep_head(model: Model, tail: Collection[Node]) -> int:
    edit = InterfaceEditor(model)
    kept = [value for value in model.graph.outputs if value.producer() not in tail]
    edit.set_outputs([*kept, *(value for value in _crossing(edit, tail) if value not in kept)])
    return _erase(edit, tail)


def _keep_tail(model: Model, tail: Collection[Node]) -> int:
    edit = InterfaceEditor(model)
    outputs = [value for value in model.graph.outputs if value.producer() in tail]
    crossing = _crossing(edit, tail)
    shapes = [shape_of(value) for value in crossing]
    edit.set_outputs(outputs)
    head = [node for node in model.graph if node not in tail]
    for value, shape in zip(crossing, shapes, strict=True):
        edit.give(value)
        if shape is not None:
            edit.set_input_shape(model.graph.inputs[-1], shape)
    return _erase(edit, head)


def _erase(edit: InterfaceEditor, gone: Collection[Node]) -> int:
    for node in reversed([node for node in edit.model.graph if node in set(gone)]):
        edit.erase(node)
    for value in [*edit.model.graph.initializers.values()]:
        if not is_read(value) and is_constant(value):
            edit.erase_constant(value)
    for value in [*edit.model.graph.inputs]:
        if not is_read(value):
            edit.remove_graph_input(value)
    return len(gone)
