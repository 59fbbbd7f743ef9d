"""The whole model in half precision: half the bytes, and twice the speed where the target computes in it.

Before::

    y = Relu(MatMul(x, w))                    # float32 x, w, y

After::

    h = Cast <to = FLOAT16> (x)
    y = Cast <to = FLOAT> (Relu(MatMul(h, w)))        # float16 w

Inputs and outputs keep their type unless ``io=convert``. What cannot go along stays in float32 between Casts, and a
remark says why: operators that ONNX or the type's range do not allow, sizes and angles that are computed from integers,
constants that would become zero or leave the range. A mask of -1e38 becomes the lowest number of the type instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.errors import UsageError
from graphopt.ir import (
    DataType,
    Graph,
    Model,
    Node,
    Value,
    attr,
    constant,
    graphs,
    is_constant,
    nodes,
    shape_of,
)
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.half import TYPES, HalfPlan, fits, is_named, rounded
from graphopt.targets import HOST, find

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class ConvertFloat(Pass):
    """Convert a float32 model to float16 or bfloat16."""

    name: ClassVar[str] = "convert-float"
    lossless: ClassVar[bool] = False
    dtype: str = option("float16", "the type to compute in", choices=("float16", "bfloat16"))
    io: str = option("keep", "whether inputs and outputs of the model keep float32", choices=("keep", "convert"))
    keep: str = option("", "operators or names of nodes that stay in float32: glob patterns, with commas between")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Convert in one rewrite. Raises UsageError for a pattern in ``keep`` that names nothing."""
        patterns = [pattern for pattern in re.split(r"[,;\s]+", self.keep) if pattern]
        everything = list(nodes(model))
        for pattern in patterns:
            if not any(is_named(node, pattern) for node in everything):
                raise UsageError(f"no operator and no node is called {pattern!r}", where=str(self))
        ctx.get(Shapes)
        plan = HalfPlan.make(model, TYPES[self.dtype], patterns)
        writer = _Writer(ctx, plan, io=self.io == "convert")
        if not everything or not writer.has_work(everything):
            return Changes()
        if not ctx.may_rewrite(everything[0], f"convert the model to {self.dtype}"):
            return Changes()
        target = ctx.target or find(HOST)
        if self.dtype not in target.floats:
            hint = "it is for other targets, or float16"
            ctx.warn("HALF003", None, f"the target {target.name} does not run models in {self.dtype}", hint)
        writer.run(everything)
        _explain(plan, ctx)
        return writer.changes


def _explain(plan: HalfPlan, ctx: PassContext) -> None:
    """Say once for each operator and reason what stays."""
    groups: dict[tuple[str, str], list[Node]] = {}
    for node, reason in plan.kept.items():
        if reason:
            groups.setdefault((node.op_type, reason), []).append(node)
    for (operator, reason), found in groups.items():
        stays = f"{len(found)} {operator} stay in float32" if len(found) > 1 else f"{operator} stays in float32"
        ctx.missed("HALF001", found[0], f"{stays}: {reason}")


class _Writer:
    """Carries out a plan: every float32 value gets the type that its producer gives, and Casts where readers differ."""

    def __init__(self, ctx: PassContext, plan: HalfPlan, *, io: bool):
        self.ctx, self.edit, self.plan, self.io = ctx, ctx.edit, plan, io
        self.changes = Changes()

    def has_work(self, everything: list[Node]) -> bool:
        """Tell whether any float32 value would change its type."""
        values = [value for node in everything for value in node.outputs]
        values += [value for graph in graphs(self.edit.model) for value in graph.inputs]
        return any(value.dtype == DataType.FLOAT and self._is_half(value) for value in values)

    def run(self, everything: list[Node]) -> None:
        """Convert constants, then types, then put Casts where a reader wants the other type."""
        all_graphs = list(graphs(self.edit.model))
        values = [value for graph in all_graphs for value in (*graph.inputs, *graph.initializers.values())]
        values += [value for node in everything for value in node.outputs]
        floats = [value for value in dict.fromkeys(values) if value.dtype == DataType.FLOAT]
        half = {value: self._is_half(value) for value in floats}
        outputs = {value: graph for graph in all_graphs for value in graph.outputs if value in half}
        for node in everything:
            self._convert_attributes(node)
        for value, is_half in half.items():
            if is_constant(value) and (value.is_initializer() or value not in outputs):
                self._convert_constant(value, outputs.get(value))
            else:
                self._convert_value(value, outputs.get(value), is_half=is_half)
        kept = set(self.plan.kept)
        self.changes["nodes converted"] += sum(
            node not in kept and any(value in half for value in (*node.inputs, *node.outputs)) for node in everything
        )

    def _is_half(self, value: Value) -> bool:
        """Tell which type a float32 value gets where it is made."""
        producer = value.producer()
        if is_constant(value):
            return False
        if producer is not None and producer.op_type == "Cast" and producer not in self.plan.kept:
            # It can give either type: the one that somebody wants.
            wanted = any(self._wants_half(use.node, use.idx, default=False) for use in value.uses())
            return wanted or (value.is_graph_output() and self._border(value.graph))
        if producer is not None:
            return self.plan.gives_half(producer, value.index() or 0)
        return self._border(value.graph) if value.is_graph_input() else False

    def _wants_half(self, node: Node, index: int, *, default: bool) -> bool:
        """Tell which type a reader wants; one that takes either, a Cast, wants the ``default``."""
        return default if node.op_type == "Cast" else self.plan.wants_half(node, index)

    def _border(self, graph: Graph | None) -> bool:
        """Tell whether inputs and outputs of a graph are in the other type."""
        owner = self.plan.owners.get(graph) if graph is not None else None
        return self.io if owner is None else owner not in self.plan.kept

    def _convert_attributes(self, node: Node) -> None:
        if node in self.plan.kept or not node.outputs or node.outputs[0].dtype != DataType.FLOAT:
            return
        if node.op_type == "Cast" and self._is_half(node.outputs[0]):
            self.edit.set_attr(node, "to", int(self.plan.dtype))
        elif node.op_type == "ConstantOfShape":
            tensor = attr(node, "value")
            array = np.zeros(1, np.float32) if tensor is None else tensor.numpy()
            self.edit.set_attr(node, "value", self._rounded(array, node.outputs[0]))

    def _rounded(self, array: Array, value: Value) -> Array:
        if not fits(array, self.plan.dtype)[0]:
            lowest = f"numbers of {float(np.abs(array[np.isfinite(array)]).max()):.3g} become the largest of the type"
            self.ctx.missed("HALF002", value, lowest)
        return rounded(array, self.plan.dtype)

    def _convert_constant(self, value: Value, output_of: Graph | None) -> None:
        """Give readers in the other type a constant of that type; one that all read so is converted in place."""
        wanting = [(use.node, use.idx) for use in value.uses() if self._wants_half(use.node, use.idx, default=False)]
        as_output = output_of is not None and self._border(output_of)
        array = constant(value) if wanting or as_output else None
        if array is None:
            return
        converted = self._rounded(array, value)
        self.changes["constants converted"] += 1
        stays = [(use.node, use.idx) for use in value.uses() if (use.node, use.idx) not in wanting]
        if value.is_initializer() and not stays and (as_output or output_of is None):
            self.edit.set_weight(value, converted)
            return
        if as_output and value.is_initializer():
            original = self.edit.constant(array, f"{value.name}_float")
            self.edit.set_weight(value, converted)
            for node, index in stays:
                self.edit.set_input(node, index, original)
            return
        copy = self.edit.constant(converted, f"{value.name}_half")
        for node, index in wanting:
            self.edit.set_input(node, index, copy)
        self.edit.drop_unread(value)

    def _convert_value(self, value: Value, output_of: Graph | None, *, is_half: bool) -> None:
        differing: list[tuple[Node, int]] = []
        agreeing: list[tuple[Node, int]] = []
        for use in list(value.uses()):
            wants = self._wants_half(use.node, use.idx, default=is_half)
            (differing if wants != is_half else agreeing).append((use.node, use.idx))
        as_output = output_of is not None and self._border(output_of) != is_half
        shape = shape_of(value)
        other = DataType.FLOAT if is_half else self.plan.dtype
        default = value.const_value
        if is_half and default is not None:
            self.edit.set_weight(value, self._rounded(default.numpy(), value))
        elif is_half:
            self.edit.annotate(value, self.plan.dtype, shape)
        if not differing and not as_output:
            return
        cast = self._cast(value, other)
        self.edit.annotate(cast, other, shape)
        if as_output:
            self.edit.replace_uses(value, cast)
            for node, index in agreeing:
                self.edit.set_input(node, index, value)
        for node, index in differing:
            self.edit.set_input(node, index, cast)
        self.changes["casts"] += 1

    def _cast(self, value: Value, to: DataType) -> Value:
        producer, graph = value.producer(), value.graph
        if producer is not None:
            return self.edit.insert_after(producer, "Cast", [value], {"to": int(to)}).outputs[0]
        assert graph is not None
        name = f"{value.name}/Cast"
        return self.edit.insert_before(graph[0], "Cast", [value], {"to": int(to)}, name=name).outputs[0]
