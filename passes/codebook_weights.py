"""Weights as places in a short list of numbers: a file of 4 or 8 bits a weight, in plain ONNX.

Before::

    y = Conv(x, w)                            # float32 w[O, C, 3, 3]

After ``codebook-weights{bits=4}``::

    w = Gather(codebook, Cast(places))        # float32 codebook[16], uint4 places[O, C, 3, 3]
    y = Conv(x, w)

Runtimes compute the weights when they load the model, so that it runs as before and is smaller on the disk. Opsets
before 21 have no type of 4 bits: places take 8 then, and the file as much less as compressing it gives. Constant
folding leaves such weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import ml_dtypes
import numpy as np

from graphopt.ir import DataType, Model, Node, Value, constant, opset
from graphopt.ir.linear import is_overridable
from graphopt.ir.query import constant_size
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.codebook import kmeans, logarithmic
from graphopt.quantization.guard import refuse_quantized

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SMALL_INTEGERS, SMALL_IR_VERSION = 21, 10
"""The opset and the version of the file format from which there are integers of 4 bits."""


@dataclass(frozen=True, kw_only=True)
class CodebookWeights(Pass):
    """Store weights as places in a codebook."""

    name: ClassVar[str] = "codebook-weights"
    lossless: ClassVar[bool] = False
    bits: int = option(4, "bits of a place: a codebook has two to their power numbers", ge=2, le=8)
    kind: str = option("kmeans", "numbers with the least squared error, or powers of two", choices=("kmeans", "log"))
    min_weights: int = option(1024, "weights with fewer elements stay as they are", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Rewrite each weight. Raises PassError when the model is quantized already."""
        changes = Changes()
        refuse_quantized(ctx)
        small = self.bits <= 4 and opset(model) >= SMALL_INTEGERS
        done: dict[Value, Value] = {}
        for node in ctx.nodes(*LAYERS):
            weight = node.inputs[1]
            if weight is None or not self._suits(node, weight, ctx):
                continue
            if weight not in done:
                if not ctx.may_rewrite(node, "store its weights as places in a codebook"):
                    continue
                done[weight] = self._write(weight, ctx, small=small)
                changes["weights stored"] += 1
        if not changes:
            return changes
        if small and model.ir_version < SMALL_IR_VERSION:
            ctx.edit.set_ir_version(SMALL_IR_VERSION)
        if self.bits <= 4 and not small:
            hint = f"run convert-opset{{version={SMALL_INTEGERS}}} first"
            ctx.missed("BOOK002", None, f"before opset {SMALL_INTEGERS} the places take 8 bits each", hint)
        return changes

    def _suits(self, node: Node, weight: Value, ctx: PassContext) -> bool:
        size = constant_size(weight)
        if size is None and is_overridable(node):
            ctx.missed("BOOK001", node, "its weights are listed as inputs of the model, which callers may override")
        if size is None or size < max(self.min_weights, 1) or weight.dtype != DataType.FLOAT:
            return False
        if weight.is_graph_output():
            ctx.missed("BOOK001", node, "its weights are an output of the model")
            return False
        array = constant(weight)
        if array is None or not np.isfinite(array).all():
            ctx.missed("BOOK001", node, "its weights are not finite")
            return False
        return True

    def _write(self, weight: Value, ctx: PassContext, *, small: bool) -> Value:
        """Put a Gather in place of an initializer, for all its readers."""
        array = constant(weight)
        assert array is not None
        book, places = kmeans(array, 2**self.bits) if self.kind == "kmeans" else logarithmic(array, self.bits)
        kind: Any = ml_dtypes.uint4 if small else np.uint8
        edit, first = ctx.edit, ctx.edit.model.graph[0]
        stored = edit.constant(places.astype(kind), f"{weight.name}_places")
        numbers = edit.constant(book, f"{weight.name}_codebook")
        name = f"{weight.name}/decode"
        wide = edit.insert_before(first, "Cast", [stored], {"to": int(DataType.INT32)}, name=f"{name}_places")
        decoded = edit.insert_before(first, "Gather", [numbers, wide.outputs[0]], name=name)
        edit.annotate(wide.outputs[0], DataType.INT32, array.shape)
        edit.annotate(decoded.outputs[0], DataType.FLOAT, array.shape)
        edit.replace_uses(weight, decoded.outputs[0])
        edit.drop_unread(weight)
        return decoded.outputs[0]
