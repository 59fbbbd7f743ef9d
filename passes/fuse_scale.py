"""A scalar factor behind a product of activations, moved into the weights that one operand comes from.

Before (attention)::

    q = Transpose(Reshape(Add(MatMul(x, Wq), bq), s))
    a = Div(MatMul(q, k), 8.0)

After::

    q = Transpose(Reshape(Add(MatMul(x, Wq / 8), bq / 8), s))
    a = MatMul(q, k)

The way back from the factor goes through MatMul (either operand), Reshape, Transpose, Squeeze, Unsqueeze, Flatten and
Identity, each read by nobody else, to a Conv, ConvTranspose, Gemm or MatMul with constant weights. onnxruntime takes
such a factor into its own FusedMatMul, so the gain is one node at the same speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, Value, constant_size, rank_of
from graphopt.ir import linear as layers
from graphopt.ir.query import scalar, sole_use
from graphopt.pipeline import Changes, Pass, PassContext, option

_MOVERS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")


@dataclass(frozen=True, kw_only=True)
class FuseScale(Pass):
    """Move a scalar factor back through products and reshapes into constant weights."""

    name: ClassVar[str] = "fuse-scale"
    preserves: ClassVar = (Shapes,)
    reach: int = option(12, "how many nodes to look back through", ge=1)
    growth: int = option(1 << 20, "bytes that the copy of a shared weight may take", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Look back from each Mul and Div by a scalar."""
        changes = Changes()
        candidates = ctx.nodes("Mul", "Div")
        if candidates:
            ctx.get(Shapes)
        for node in candidates:
            found = _factor(node)
            if found is None:
                continue
            source, number = found
            for layer in _layers_behind(node, source, self.reach):
                if self._fold(node, source, layer, number, ctx):
                    changes["factors moved"] += 1
                    break
        return changes

    def _fold(self, node: Node, source: Value, layer: layers.Linear, number: float, ctx: PassContext) -> bool:
        scale = np.full(layer.channels, number)
        weights = layers.rescaled(layer, scale, np.zeros(layer.channels))
        if layers.refusal(layer, weights, self.growth) is not None:
            return False
        if not ctx.may_rewrite(node, f"move the factor into {layer.node.op_type} {layer.node.name!r}"):
            return False
        layers.write(ctx.edit, layer, *(weights or ()))
        return ctx.edit.replace(node, [source])


def _factor(node: Node) -> tuple[Value, float] | None:
    """Return what ``node`` multiplies and by which number, ``None`` when it is no factor that keeps the shape."""
    if node.graph is None or len(node.inputs) != 2:
        return None
    sizes = [constant_size(value) for value in node.inputs]
    place = 1 if sizes[1] == 1 and sizes[0] is None else 0
    if sizes[place] != 1 or sizes[1 - place] is not None or (place == 0 and node.op_type == "Div"):
        return None
    source, number = node.inputs[1 - place], scalar(node.inputs[place])
    if source is None or not isinstance(number, float) or not np.isfinite(number) or number == 0:
        return None
    rank = rank_of(node.inputs[place])
    if rank and rank > (rank_of(source) or 0):
        return None
    return source, (1.0 / number if node.op_type == "Div" else number)


def _layers_behind(node: Node, source: Value, reach: int) -> Iterator[layers.Linear]:
    """Yield the linear layers that a factor on ``source`` can move into, the nearest first."""
    front: list[tuple[Value, Node]] = [(source, node)]
    for _ in range(reach):
        if not front:
            return
        value, reader = front.pop(0)
        producer = value.producer()
        if producer is None or sole_use(value) is not reader or producer.graph is not node.graph or producer.domain:
            continue
        layer = layers.linear_behind(value)
        if layer is not None:
            yield layer
        elif producer.op_type in _MOVERS and producer.inputs[0] is not None:
            front.append((producer.inputs[0], producer))
        elif producer.op_type == "MatMul":
            front.extend((operand, producer) for operand in producer.inputs if operand is not None)
