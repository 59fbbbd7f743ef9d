"""8-bit products whose activations are quantized as they come, without calibration.

Before::

    y = MatMul(x, w)                              # float32 w[K, N]

After::

    q, scale, zero = DynamicQuantizeLinear(x)     # once for all readers of x
    i = MatMulInteger(q, w8, zero)                # int8 w8[K, N], a scale for each column
    y = Mul(Cast(i), Mul(scale, w_scale))

A Gemm gets its bias in an Add behind. onnxruntime makes one kernel of the four nodes: DynamicQuantizeMatMul, or
MatMulIntegerToFloat where several products read one quantized value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from graphopt.ir import DataType, Model, Node, Value, attr, constant, opset, rank_of
from graphopt.ir.linear import is_overridable
from graphopt.ir.query import constant_size, tensor_of
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.grid import weight_grid
from graphopt.quantization.guard import refuse_quantized
from graphopt.quantization.tables import Tables
from graphopt.targets import HOST, find

Array = np.ndarray[Any, Any]
OLDEST = 11


@dataclass(frozen=True)
class _Weight:
    """Integers of a weight and their scales, as initializers."""

    integers: Value
    scale: Value


@dataclass
class _Written:
    """What was written already: quantized activations by value and graph, integer weights by value and layer's form."""

    activations: dict[tuple[Value, Any], tuple[Value, Value, Value]] = field(default_factory=dict)
    weights: dict[tuple[Value, tuple[Any, ...]], _Weight] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(Pass):
    """Make products with constant weights 8 bits wide, their inputs quantized as they come: needs no data.

    Where the target's 8-bit kernel can overflow, weights stay so small that it does not.
    """

    name: ClassVar[str] = "quantize-dynamic"
    lossless: ClassVar[bool] = False
    min_weights: int = option(1024, "products with fewer weights stay in float: quantizing the input costs more", ge=0)
    convolutions: bool = option(False, "Conv too, which onnxruntime's CPU kernels run slower than in float")
    tables: bool = option(False, "store tables that Gather reads in 8 bits too, with a scale for each row")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Rewrite each layer. Raises PassError when the model is quantized already."""
        changes = Changes()
        candidates = ctx.nodes("MatMul", "Gemm", *(["Conv"] if self.convolutions else []))
        refuse_quantized(ctx)
        if candidates and opset(model) < OLDEST:
            hint = f"run convert-opset{{version={OLDEST}}} first"
            ctx.missed("DYN001", candidates[0], f"DynamicQuantizeLinear needs opset {OLDEST}", hint)
            return changes
        written = _Written()
        for node in candidates:
            reason = self._refusal(node)
            if reason:
                ctx.missed("DYN002", node, reason)
            elif reason is None and ctx.may_rewrite(node, "quantize its input as it comes, and its weights"):
                _quantize(node, ctx, written)
                changes["layers quantized"] += 1
        tables = Tables(ctx.edit, self.min_weights)
        for node in ctx.nodes("Gather") if self.tables else []:
            reason = tables.refusal(node)
            if reason:
                ctx.missed("DYN003", node, reason)
            elif reason is None and ctx.may_rewrite(node, "store its table in 8 bits"):
                tables.rewrite(node)
                changes["tables quantized"] += 1
        return changes

    def _refusal(self, node: Node) -> str | None:
        """Say why a layer stays; empty when nobody would expect otherwise."""
        weight, size = node.inputs[1], constant_size(node.inputs[1])
        if size is None or weight is None:
            if is_overridable(node):
                return "its weights are listed as inputs of the model, which callers may override"
            left = tensor_of(node.inputs[0])
            return "its constant is on the left" if left is not None and len(left.shape) > 1 else ""
        if weight.dtype != DataType.FLOAT:
            return "its weights are not float32"
        if size < max(self.min_weights, 1):
            return f"it has {size} weights, fewer than min_weights" if size else ""
        if node.op_type == "MatMul" and rank_of(weight) != 2:
            return "its weights are not a matrix"
        array = constant(weight)
        return None if array is not None and np.isfinite(array).all() else "its weights are not finite"


def _quantize(node: Node, ctx: PassContext, written: _Written) -> None:
    inputs = list(node.inputs)
    source, result = inputs[0], node.outputs[0]
    if node.op_type == "Gemm" and attr(node, "transA", 0):
        source = ctx.edit.insert_before(node, "Transpose", [source], {"perm": [1, 0]}).outputs[0]
    integers, scale, zero = _activation(source, node, ctx, written)
    weight = _weight(node, ctx, written)
    edit = ctx.edit
    operator = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
    attributes = dict(node.attributes) if node.op_type == "Conv" else {}
    product = edit.insert_before(node, operator, [integers, weight.integers, zero], attributes)
    wide = edit.insert_before(node, "Cast", product.outputs, {"to": int(DataType.FLOAT)})
    scales = edit.insert_before(node, "Mul", [scale, weight.scale])
    last = edit.insert_before(node, "Mul", [wide.outputs[0], scales.outputs[0]], like=result)
    bias = inputs[2] if len(inputs) > 2 else None
    if bias is not None:
        edit.annotate(last.outputs[0], None, None)
        last = edit.insert_before(node, "Add", [last.outputs[0], _bias(bias, node, ctx)], like=result)
    edit.replace(node, last.outputs)
    for value in inputs[1:]:
        if value is not None:
            edit.drop_unread(value)


def _activation(source: Value | None, node: Node, ctx: PassContext, written: _Written) -> tuple[Value, Value, Value]:
    """Return integers, scale and zero point of ``source``, which all its readers in one graph share."""
    if source is None or node.graph is None:
        raise ctx.fail("its input is missing", node)
    known = written.activations.get((source, node.graph))
    if known is not None:
        return known
    names = [f"{source.name}_{part}" for part in ("integers", "scale", "zero")]
    producer = source.producer()
    # Other readers may stand ahead of this one, so it goes as far ahead as it can.
    if producer is not None and producer.graph is node.graph:
        maker = ctx.edit.insert_after(producer, "DynamicQuantizeLinear", [source], outputs=names)
    else:
        maker = ctx.edit.insert_before(node.graph[0], "DynamicQuantizeLinear", [source], outputs=names)
    found = (maker.outputs[0], maker.outputs[1], maker.outputs[2])
    written.activations[source, node.graph] = found
    return found


def _weight(node: Node, ctx: PassContext, written: _Written) -> _Weight:
    """Return the integers and scales of a layer's weight; layers that share the weight share these."""
    value = node.inputs[1]
    transposed = node.op_type == "Gemm" and bool(attr(node, "transB", 0))
    alpha = float(attr(node, "alpha", 1.0)) if node.op_type == "Gemm" else 1.0
    array = constant(value)
    if value is None or array is None:
        raise ctx.fail("its weights are not constant", node)
    known = written.weights.get((value, (node.op_type == "Conv", transposed, alpha)))
    if known is not None:
        return known
    array = array.T if transposed else array
    facts = (ctx.target or find(HOST)).quantization
    limit = facts.pair_limit if facts is not None else 0
    # The kernel of a convolution goes through the kernel's window first, through the channels last.
    order = (*range(2, array.ndim), 1) if node.op_type == "Conv" else (0,)
    axis = 0 if node.op_type == "Conv" else 1
    grid = weight_grid(array, "int8", axis=axis, pair_limit=limit, reduction=order)
    scale = (grid.scale * np.float32(alpha)).astype(np.float32)
    if node.op_type == "Conv":
        scale = scale.reshape(-1, *[1] * (array.ndim - 2))
    found = _Weight(
        ctx.edit.constant(grid.quantize(array).astype(np.int8), f"{value.name}_int8"),
        ctx.edit.constant(scale, f"{value.name}_scale"),
    )
    written.weights[value, (node.op_type == "Conv", transposed, alpha)] = found
    return found


def _bias(bias: Value, node: Node, ctx: PassContext) -> Value:
    """Return what the Add behind the product adds."""
    beta = float(attr(node, "beta", 1.0)) if node.op_type == "Gemm" else 1.0
    if beta == 1.0 and node.op_type == "Gemm":
        return bias
    array = constant(bias)
    if node.op_type == "Conv":
        rank = rank_of(node.inputs[1]) or 0
        if array is None:
            shape = ctx.edit.constant(np.array([-1] + [1] * (rank - 2)), f"{bias.name}_shape")
            return ctx.edit.insert_before(node, "Reshape", [bias, shape]).outputs[0]
        return ctx.edit.constant(array.reshape(-1, *[1] * (rank - 2)), f"{bias.name}_column")
    if array is None:
        factor = ctx.edit.constant(np.asarray(beta, np.float32), f"{node.outputs[0].name}_beta")
        return ctx.edit.insert_before(node, "Mul", [bias, factor]).outputs[0]
    return ctx.edit.constant((array * np.float32(beta)).astype(np.float32), f"{bias.name}_scaled")
