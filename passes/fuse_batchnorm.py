"""BatchNormalization into the weights of the layer in front of it, or of a convolution without padding behind it.

Before::

    c = Conv(x, W, b)
    y = BatchNormalization <epsilon = e> (c, gamma, beta, mean, var)

After, with s = gamma / sqrt(var + e)::

    y = Conv(x, W * s, (b - mean) * s + beta)

Only the inference form is folded: statistics given as constants, no other output read. Groups, ConvTranspose, Gemm and
MatMul are understood. The new weights are computed in float64 and cast back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, attr, constant, opset, rank_of
from graphopt.ir import linear as layers
from graphopt.ir.query import is_read, sole_use
from graphopt.pipeline import Changes, Pass, PassContext, option

Vector = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class FuseBatchnorm(Pass):
    """Fold BatchNormalization into the weights of a neighbouring Conv, ConvTranspose, Gemm or MatMul."""

    name: ClassVar[str] = "fuse-batchnorm"
    preserves: ClassVar = (Shapes,)
    growth: int = option(1 << 20, "bytes that the copy of a shared weight may take", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Try the layer in front of each BatchNormalization first, then the convolution behind it."""
        changes = Changes()
        candidates = ctx.nodes("BatchNormalization")
        if candidates:
            ctx.get(Shapes)
        for node in candidates:
            if node.graph is None or not _is_inference(node, opset(model)):
                continue
            affine = _affine(node, ctx)
            if affine is None:
                continue
            if self._into_producer(node, *affine, ctx) or self._into_consumer(node, *affine, ctx):
                changes["folded"] += 1
        return changes

    def _into_producer(self, node: Node, scale: Vector, shift: Vector, ctx: PassContext) -> bool:
        source = node.inputs[0]
        layer = layers.linear_behind(source)
        if source is not None and layers.is_overridable(source.producer()):
            ctx.missed(
                "BN001", node, "the weights in front of it are inputs of the model too: a caller may override them"
            )
        if layer is None or source is None or layer.channels != scale.size or layer.node.graph is not node.graph:
            return False
        if layer.axis == -1 and layer.rank != 2:
            return False
        if sole_use(source) is not node:
            ctx.missed("BN002", node, "the result in front of it is read by others too")
            return False
        weights = layers.rescaled(layer, scale, shift)
        if not self._may_write(node, layer, weights, ctx):
            return False
        if not ctx.may_rewrite(node, f"fold it into {layer.node.op_type} {layer.node.name!r}"):
            return False
        layers.write(ctx.edit, layer, *(weights or ()))
        return ctx.edit.replace(node, [layer.output])

    def _into_consumer(self, node: Node, scale: Vector, shift: Vector, ctx: PassContext) -> bool:
        source, layer = node.inputs[0], layers.linear_ahead(node.outputs[0])
        if source is None or layer is None or layers.input_channels(layer) != scale.size:
            return False
        reader = layer.node
        if reader.graph is not node.graph:
            return False
        if not layers.pads_nothing(reader) or (reader.op_type != "Conv" and rank_of(source) != 2):
            return False
        weights = layers.rescaled_input(layer, scale, shift)
        if not self._may_write(node, layer, weights, ctx):
            return False
        if not ctx.may_rewrite(node, f"fold it into {reader.op_type} {reader.name!r} behind it"):
            return False
        layers.write(ctx.edit, layer, *(weights or ()))
        return ctx.edit.replace(node, [source])

    def _may_write(self, node: Node, layer: layers.Linear, weights: Any, ctx: PassContext) -> bool:
        why = layers.refusal(layer, weights, self.growth)
        if why is not None:
            ctx.missed("BN003", node, why, f"{self.name}{{growth=...}} sets how much a copy may take")
        return why is None and layers.can_hold(layer, weights[1])


def _is_inference(node: Node, version: int) -> bool:
    """Tell whether only the normalised result is asked for, channel by channel, with the statistics given."""
    others = node.outputs[1:]
    if any(is_read(value) for value in others):
        return False
    if version >= 14:
        return not attr(node, "training_mode", 0)
    if any(value.name for value in others):
        return False
    if version < 9 and not attr(node, "spatial", 1):
        return False
    return version >= 7 or bool(attr(node, "is_test", 0))


def _affine(node: Node, ctx: PassContext) -> tuple[Vector, Vector] | None:
    """Return the scale and shift that the normalisation amounts to, in float64; ``None`` when they are not constant."""
    arrays = [constant(value) for value in node.inputs[1:5]]
    if len(arrays) != 4 or any(array is None for array in arrays):
        if any(value is not None and value.is_initializer() for value in node.inputs[1:5]):
            ctx.missed("BN001", node, "its statistics are inputs of the model too: a caller may override them")
        return None
    gamma, beta, mean, var = (array.astype(np.float64).reshape(-1) for array in arrays if array is not None)
    spread = var + float(np.float32(attr(node, "epsilon", 1e-5)))
    if not np.all(spread > 0):
        ctx.missed("BN004", node, "a variance is not positive")
        return None
    scale = gamma / np.sqrt(spread)
    return scale, beta - mean * scale
