"""Constant nodes become initializers; initializers that callers cannot override become constants.

Before::

    two = Constant <value_float = 2.0> ()
    y = Mul(x, two)

After::

    <float two = {2.0}>
    y = Mul(x, two)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, TensorProtocol, Value
from graphopt.ir.query import attr, constant_node_tensor
from graphopt.ir.tensors import SparseTensor
from graphopt.pipeline import Changes, Pass, PassContext, option


@dataclass(frozen=True, kw_only=True)
class LiftConstants(Pass):
    """Turn Constant nodes into initializers of the main graph, and fix initializers listed as inputs.

    Up to IR version 3 every initializer is listed as an input too, and runtimes treat it as constant: it is taken off
    the inputs and the IR version is raised to 4. From version 4 on being listed means that callers may override it, so
    it stays listed unless ``freeze_inputs`` is set.
    """

    name: ClassVar[str] = "lift-constants"
    preserves: ClassVar = (Shapes,)

    freeze_inputs: bool = option(False, "take initializers off the inputs also where callers may override them")
    sparse_bytes: int = option(1 << 20, "largest dense form, in bytes, that a sparse Constant is given", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Visit the Constant nodes by index and the inputs of the main graph once."""
        changes = Changes()
        for node in ctx.nodes("Constant"):
            tensor = self._tensor(node, ctx)
            if tensor is not None and ctx.may_rewrite(node, "turn a Constant node into an initializer"):
                ctx.edit.to_initializer(node.outputs[0], tensor)
                changes["constants lifted"] += 1
        self._inputs(model, ctx, changes)
        return changes

    def _tensor(self, node: Node, ctx: PassContext) -> TensorProtocol | np.ndarray[Any, Any] | None:
        sparse = attr(node, "sparse_value")
        if not isinstance(sparse, SparseTensor):
            return constant_node_tensor(node)
        size = math.prod(sparse.dims) * sparse.values.dtype.itemsize
        if size > self.sparse_bytes:
            ctx.missed(
                "LIFT001",
                node,
                f"its dense form has {size:.0f} bytes, more than {self.sparse_bytes}",
                "raise the option sparse_bytes",
            )
            return None
        try:
            return sparse.dense()
        except (IndexError, ValueError) as error:
            ctx.missed("LIFT002", node, f"its indices do not fit its shape: {error}")
            return None

    def _inputs(self, model: Model, ctx: PassContext, changes: Changes) -> None:
        listed = [value for value in model.graph.initializers.values() if value.is_graph_input()]
        old = model.ir_version < 4
        if not (old or self.freeze_inputs):
            for value in listed:
                ctx.missed(
                    "LIFT003",
                    value,
                    "callers may override this initializer, so it is not a constant",
                    "set the option freeze_inputs when none does",
                )
            return
        for value in listed:
            if not self._may_freeze(value, ctx):
                return
            ctx.edit.remove_graph_input(value)
            changes["inputs frozen"] += 1
        if old:
            ctx.edit.set_ir_version(4)
            changes["format raised"] += 1

    @staticmethod
    def _may_freeze(value: Value, ctx: PassContext) -> bool:
        return ctx.may_rewrite(value, "take an initializer off the inputs")
