"""Weights stored in 8 or 4 bits, arithmetic in float: a smaller file, and less memory to read for each product.

Before::

    y = MatMul(x, w)                                        # float32 w[K, N]
    e = Gather(table, ids)                                  # float32 table[V, D]

After ``quantize-weights{bits=4,block=32}``::

    w = DequantizeLinear <axis = 0, block_size = 32> (w4, scale)      # int4 w4[K, N], scale[K / 32, N]
    y = MatMul(x, w)
    e = DequantizeLinear <axis = -1, block_size = D> (Gather(table8, ids), Gather(row_scale, ids))

onnxruntime makes one kernel of the two nodes of a product, MatMulNBits. A table is read first and decoded afterwards,
so that the rows asked for alone are; as Gather takes no type of 4 bits, tables have 8.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import ml_dtypes
import numpy as np

from graphopt.errors import UsageError
from graphopt.ir import DataType, Model, Node, Value, attr, constant, opset
from graphopt.ir.linear import is_overridable
from graphopt.ir.query import constant_size
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.grid import Grid, weight_grid
from graphopt.quantization.guard import refuse_quantized
from graphopt.quantization.tables import READERS, Tables

Array = np.ndarray[Any, Any]
TYPES = {"int8": np.int8, "uint8": np.uint8, "int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}
PER_CHANNEL, BLOCKED = 13, 21
"""The opsets from which DequantizeLinear takes a scale for each channel, and for each block (and 4 bits)."""

SMALLEST_BLOCK = 16
"""The smallest block that onnxruntime has a kernel for."""
FIRST_WITH_4_BITS = 10
"""The version of the file format that brought integers of 4 bits."""


@dataclass
class _Written:
    """What was written already: the decoded weight by value and form."""

    weights: dict[tuple[Value, bool, float], Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights(Pass):
    """Store the weights of MatMul and Gemm, and tables that Gather reads, in 8 or 4 bits.

    It pays where few rows meet many weights, as in a language model that writes word by word; with many rows
    ``quantize-dynamic`` is faster. Convolutions stay: no kernel reads their weights in this form.
    """

    name: ClassVar[str] = "quantize-weights"
    lossless: ClassVar[bool] = False
    bits: int = option(8, "bits of a weight: 8 or 4", ge=4, le=8)
    block: int = option(0, "weights along the reduction that share a scale; 0 for one scale a channel", ge=0)
    symmetric: bool = option(False, "no zero points: int8 and int4 instead of uint8 and uint4")
    tables: bool = option(True, "tables that Gather reads too, in 8 bits with a scale for each row")
    min_weights: int = option(1024, "weights and tables with fewer elements stay in float", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Rewrite each layer and table. Raises PassError when the model is quantized already."""
        if self.bits not in (4, 8):
            raise UsageError("bits must be 8 or 4", where=str(self))
        if self.block and (self.block < SMALLEST_BLOCK or self.block & (self.block - 1)):
            raise UsageError(f"block must be 0 or a power of two from {SMALLEST_BLOCK} on", where=str(self))
        changes = Changes()
        layers, gathers = ctx.nodes("MatMul", "Gemm"), ctx.nodes("Gather") if self.tables else []
        refuse_quantized(ctx)
        written, tables = _Written(), Tables(ctx.edit, self.min_weights)
        needed = BLOCKED if self.block or self.bits == 4 else PER_CHANNEL
        if layers and opset(model) < needed:
            hint = f"run convert-opset{{version={BLOCKED}}} first"
            ctx.missed("WGT001", layers[0], f"weights in this form need opset {needed}", hint)
            layers = []
        for node in layers:
            changes["weights quantized"] += self._layer(node, ctx, written)
        for node in gathers:
            reason = tables.refusal(node)
            if reason:
                way = f"run convert-opset{{version={BLOCKED}}} first" if opset(model) < BLOCKED else None
                ctx.missed("WGT004", node, reason, way)
            elif reason is None and ctx.may_rewrite(node, "store its table in 8 bits"):
                tables.rewrite(node)
                changes["tables quantized"] += 1
        if changes and needed == BLOCKED and model.ir_version < FIRST_WITH_4_BITS:
            ctx.edit.set_ir_version(FIRST_WITH_4_BITS)
        return changes

    def _size(self, weight: Value | None) -> int:
        """Return the number of elements of a constant of float32 that is large enough, else 0."""
        size = constant_size(weight) or 0
        return size if weight is not None and weight.dtype == DataType.FLOAT and size >= self.min_weights else 0

    def _layer(self, node: Node, ctx: PassContext, written: _Written) -> bool:
        weight = node.inputs[1]
        if weight is None or not self._size(weight):
            if is_overridable(node):
                ctx.missed("WGT002", node, "its weights are listed as inputs of the model, which callers may override")
            return False
        array = constant(weight)
        if array is None or array.ndim != 2 or not np.isfinite(array).all():
            ctx.missed("WGT002", node, "its weights are not a matrix of finite numbers")
            return False
        if _is_read_in_float(weight):
            ctx.missed("WGT003", node, "others read its weights in float, so that a copy would be needed")
            return False
        if not ctx.may_rewrite(node, f"store its weights in {self.bits} bits"):
            return False
        transposed = node.op_type == "Gemm" and bool(attr(node, "transB", 0))
        alpha = float(attr(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0
        decoded = written.weights.get((weight, transposed, alpha))
        if decoded is None:
            scaled = array if alpha == 1.0 else (array * np.float32(alpha)).astype(np.float32)
            decoded = self._decoded(weight, scaled.T if transposed else scaled, ctx)
            written.weights[weight, transposed, alpha] = decoded
        ctx.edit.set_input(node, 1, decoded)
        # No kernel reads transposed weights in this form, or multiplies its result.
        for name in ("transB", "alpha") if node.op_type == "Gemm" else ():
            ctx.edit.set_attr(node, name, None)
        ctx.edit.drop_unread(weight)
        return True

    def _decoded(self, weight: Value, array: Array, ctx: PassContext) -> Value:
        """Return a DequantizeLinear of integers for ``array``, which is [K, N]."""
        dtype = f"{'' if self.symmetric else 'u'}int{self.bits}"
        block = min(self.block, array.shape[0]) if self.block else None
        axis = 1 if block is None else 0
        # With two free bounds or 8 bits a search gains next to nothing.
        method: Literal["mse", "maxabs"] = "mse" if self.bits == 4 and (self.symmetric or block is None) else "maxabs"
        grid = weight_grid(array, dtype, axis=axis, block=block, symmetric=self.symmetric, method=method)
        inputs = _constants(grid, array, weight, ctx)
        attributes = {"axis": axis} if block is None else {"axis": axis, "block_size": block}
        first = ctx.edit.model.graph[0]
        decode = ctx.edit.insert_before(first, "DequantizeLinear", inputs, attributes, name=f"{weight.name}/decode")
        ctx.edit.annotate(decode.outputs[0], DataType.FLOAT, array.shape)
        return decode.outputs[0]


def _is_read_in_float(value: Value) -> bool:
    """Tell whether anything but the places that this pass rewrites reads ``value``."""
    return value.is_graph_output() or any((use.node.op_type, use.idx) not in READERS for use in value.uses())


def _constants(grid: Grid, array: Array, weight: Value, ctx: PassContext) -> list[Value]:
    """Return integers, scale and, where it is not zero throughout, zero point as initializers."""
    kind = TYPES[grid.dtype]
    values = [
        ctx.edit.constant(grid.quantize(array).astype(kind), f"{weight.name}_{grid.dtype}"),
        ctx.edit.constant(grid.scale, f"{weight.name}_scale"),
    ]
    if grid.zero_point.any():
        values.append(ctx.edit.constant(grid.zero_point.astype(kind), f"{weight.name}_zero"))
    return values
