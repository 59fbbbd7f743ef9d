"""A quantized model turned back into one of floats: the way to quantize it anew.

Before::

    q = QuantizeLinear(x, sx, zx)
    d = DequantizeLinear(q, sx, zx)
    w = DequantizeLinear(w8, sw)             # int8 w8, a constant
    y = Conv(d, w)

After::

    y = Conv(x, w)                           # float32 w, a constant

Weights keep the values that they were rounded to. Where integers are moved about between the pair (Transpose, Reshape,
MaxPool, ...), floats are moved instead. The forms that ``quantize-dynamic`` and ``quantize-weights`` write go as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.ir import DataType, Model, Node, Value, attr, constant, opset
from graphopt.ir.match import Match, Op, Wild, match, op
from graphopt.ir.query import constant_size, is_constant, scalar, shape_of
from graphopt.pipeline import Changes, Pass, PassContext
from graphopt.quantization.guard import quantized_node

Array = np.ndarray[Any, Any]
QUANTIZE = ("QuantizeLinear", "com.microsoft::QuantizeLinear")
DEQUANTIZE = ("DequantizeLinear", "com.microsoft::DequantizeLinear")
PRODUCT = "com.microsoft::MatMulIntegerToFloat"
MOVERS = {"DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "SpaceToDepth"}
MOVERS |= {"Pad", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
LINEAR = ("Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Sub", "Sum")
"""Operators whose result may be negative: a range from zero on behind them stands for a Relu."""
LOWEST = {DataType.UINT8: 0, DataType.INT8: -128, DataType.UINT16: 0, DataType.INT16: -32768}
LOWEST |= {DataType.UINT4: 0, DataType.INT4: -8}
STEPS = {DataType.UINT8: 255, DataType.INT8: 255, DataType.UINT16: 65535, DataType.INT16: 65535}
RELU6_OPSET = 11
"""From this opset on the bounds of Clip are inputs."""


def _dynamic(operator: str) -> Op:
    product = op("Cast", op(operator, Wild("q"), Wild("w"), Wild("z")))
    return op("Mul", product, op("Mul", Wild("s"), Wild("ws")))


DYNAMIC = {"MatMul": _dynamic("MatMulInteger"), "Conv": _dynamic("ConvInteger")}


@dataclass(frozen=True, kw_only=True)
class StripQdq(Pass):
    """Turn a quantized model back into one of floats, whose weights stay rounded."""

    name: ClassVar[str] = "strip-qdq"
    lossless: ClassVar[bool] = False

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Undo constants first, then movers, then pairs; say what is left."""
        changes = Changes()
        for node in ctx.nodes("Mul"):
            changes["dynamic layers undone"] += _undo_dynamic(node, ctx)
        for node in ctx.nodes(*DEQUANTIZE):
            changes["tables decoded"] += _undo_table(node, ctx)
        for node in ctx.nodes(PRODUCT):
            changes["products undone"] += _undo_product(node, ctx)
        pending = ctx.nodes(*DEQUANTIZE)
        while pending:
            node = pending.pop()
            moved = _move_up(node, ctx)
            if moved is not None:
                pending.append(moved)
                changes["moved in float"] += 1
        for node in ctx.nodes(*DEQUANTIZE):
            changes["constants decoded"] += _decode(node, ctx)
        for node in ctx.nodes(*DEQUANTIZE):
            changes["pairs removed"] += _undo_pair(node, ctx)
        left = quantized_node(ctx.edit)
        if left is not None:
            ctx.warn("STRIP001", left, "the model is still quantized: there is no way back from this operator here")
        return changes


def _decoded(node: Node, integers: Array, scale: Array, zero: Array | None) -> Array:
    """Return what a DequantizeLinear gives, in the type of its scale."""
    axis, block = attr(node, "axis", 1), attr(node, "block_size", 0)
    factors, middle = scale, np.zeros((), np.int64) if zero is None else zero.astype(np.int64)
    if block:
        axis %= integers.ndim
        cut = (slice(None),) * axis + (slice(integers.shape[axis]),)
        factors = np.repeat(scale, block, axis)[cut]
        middle = np.repeat(middle, block, axis)[cut] if middle.ndim else middle
    elif scale.size > 1:
        shape = [1] * integers.ndim
        shape[axis] = -1
        factors, middle = scale.reshape(shape), middle.reshape(shape) if middle.size > 1 else middle.reshape(())
    else:
        factors, middle = scale.reshape(()), middle.reshape(())
    return ((integers.astype(np.int64) - middle).astype(np.float32) * factors).astype(scale.dtype)


def _parameters(node: Node) -> tuple[Array, Array | None] | None:
    """Return scale and zero point of a DequantizeLinear; ``None`` when they are computed."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    scale, middle = constant(node.inputs[1]), constant(zero)
    return None if scale is None or (zero is not None and middle is None) else (scale, middle)


def _decode(node: Node, ctx: PassContext) -> bool:
    integers, parameters = constant(node.inputs[0]), _parameters(node)
    if node.graph is None or integers is None or parameters is None or integers.dtype.name.startswith("float"):
        return False
    if not ctx.may_rewrite(node, "decode constant integers"):
        return False
    ctx.edit.to_initializer(node.outputs[0], _decoded(node, integers, *parameters))
    return True


def _undo_pair(node: Node, ctx: PassContext) -> bool:
    quantize = node.inputs[0].producer() if node.graph is not None and node.inputs[0] is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return False
    source = quantize.inputs[0]
    if source is None or not ctx.may_rewrite(node, "read what was quantized"):
        return False
    ctx.edit.replace(node, [_with_activation(source, quantize, ctx)])
    return True


def _with_activation(source: Value, quantize: Node, ctx: PassContext) -> Value:
    """Return ``source``, behind a Relu where quantizing cut off negative numbers.

    Quantizers drop a Relu, or a Clip to 6, whose work the range of the integers does.
    """
    producer = source.producer()
    zero = quantize.inputs[2] if len(quantize.inputs) > 2 else None
    kind = DataType.UINT8 if zero is None else zero.dtype
    lowest = LOWEST.get(kind) if kind is not None else None
    middle = 0 if zero is None else scalar(zero)
    if producer is None or producer.op_type not in LINEAR or middle is None or middle != lowest:
        return source
    step = scalar(quantize.inputs[1])
    highest = step * STEPS.get(kind, 0) if step is not None and kind is not None else 0.0
    if abs(highest - 6.0) < 1e-3 and opset(ctx.edit.model) >= RELU6_OPSET:
        bounds = [ctx.edit.constant(np.asarray(bound, np.float32), f"{source.name}_bound") for bound in (0.0, 6.0)]
        made = ctx.edit.insert_before(quantize, "Clip", [source, *bounds], like=source)
    else:
        made = ctx.edit.insert_before(quantize, "Relu", [source], like=source)
    ctx.missed("STRIP002", made, f"its range starts at zero, so {made.op_type} stands behind it now")
    # The next pair of this value finds the activation as its input.
    ctx.edit.set_input(quantize, 0, made.outputs[0])
    return made.outputs[0]


def _move_up(node: Node, ctx: PassContext) -> Node | None:
    """Decode ahead of what moves integers, and return the new DequantizeLinear; ``None`` when nothing moves them."""
    source = node.inputs[0] if node.graph is not None else None
    mover = source.producer() if source is not None else None
    if source is None or mover is None or mover.op_type not in MOVERS or mover.domain or len(mover.outputs) > 1:
        return None
    if constant_size(node.inputs[1]) != 1 or mover.graph is not node.graph:
        return None
    moved = _moved(mover, node)
    if moved is None or not ctx.may_rewrite(node, f"decode ahead of {mover.op_type}"):
        return None
    early = ctx.edit.insert_before(mover, "DequantizeLinear", [mover.inputs[0], *node.inputs[1:]], domain=node.domain)
    ctx.edit.annotate(early.outputs[0], node.outputs[0].dtype, None)
    inputs = [early.outputs[0], *moved]
    late = ctx.edit.insert_after(mover, mover.op_type, inputs, dict(mover.attributes), like=node.outputs[0])
    ctx.edit.replace(node, late.outputs)
    return early


def _moved(mover: Node, decode: Node) -> list[Value | None] | None:
    """Return the other inputs of the mover on floats; ``None`` for a Pad that fills in another number than zero."""
    others = list(mover.inputs[1:])
    if mover.op_type != "Pad" or attr(mover, "mode", "constant") != "constant":
        return others
    zero = decode.inputs[2] if len(decode.inputs) > 2 else None
    fill = others[1] if len(others) > 1 else None
    numbers = [0 if value is None else scalar(value) for value in (fill, zero)]
    # Left out on floats, what is filled in is zero.
    return [others[0], None, *others[2:]] if None not in numbers and numbers[0] == numbers[1] else None


def _undo_table(node: Node, ctx: PassContext) -> bool:
    """Undo rows of a table that are decoded with scales read from another."""
    pair = [value.producer() for value in node.inputs if value is not None]
    if len(pair) != 2 or any(reader is None or reader.op_type != "Gather" for reader in pair):
        return False
    rows, scales = (reader for reader in pair if reader is not None)
    table, factors = constant(rows.inputs[0]), constant(scales.inputs[0])
    same = rows.inputs[1] is scales.inputs[1] and not attr(rows, "axis", 0) and not attr(scales, "axis", 0)
    if table is None or factors is None or not same or attr(node, "axis", 1) != -1 or not attr(node, "block_size", 0):
        return False
    if not ctx.may_rewrite(node, "decode a table"):
        return False
    name = (rows.inputs[0].name if rows.inputs[0] is not None else None) or "table"
    floats = ctx.edit.constant(_decoded(node, table, factors, None), f"{name}_float")
    made = ctx.edit.insert_before(rows, "Gather", [floats, rows.inputs[1]], like=node.outputs[0])
    ctx.edit.replace(node, made.outputs)
    return True


def _undo_product(node: Node, ctx: PassContext) -> bool:
    """Write a product of integers as that of what two DequantizeLinear give, and an Add of the bias."""
    a, b, *facts = (node.inputs[index] if index < len(node.inputs) else None for index in range(7))
    if not ctx.may_rewrite(node, "multiply floats"):
        return False
    decoded = []
    for integers, scale, zero in ((a, facts[0], facts[2]), (b, facts[1], facts[3])):
        inputs = [integers, scale] if zero is None else [integers, scale, zero]
        made = ctx.edit.insert_before(node, "DequantizeLinear", inputs)
        ctx.edit.annotate(made.outputs[0], node.outputs[0].dtype, shape_of(integers))
        decoded.append(made.outputs[0])
    made = ctx.edit.insert_before(node, "MatMul", decoded, like=node.outputs[0])
    if facts[4] is not None:
        made = ctx.edit.insert_before(node, "Add", [made.outputs[0], facts[4]], like=node.outputs[0])
    ctx.edit.replace(node, made.outputs)
    return True


def _undo_dynamic(node: Node, ctx: PassContext) -> bool:
    matches = {operator: match(pattern, node) for operator, pattern in DYNAMIC.items()} if node.graph else {}
    operator, found = next((item for item in matches.items() if item[1] is not None), ("", None))
    if found is None or not _is_dynamic(found):
        return False
    integers, scale = constant(found.values["w"]), constant(found.values["ws"])
    if integers is None or scale is None or not ctx.may_rewrite(node, f"undo a dynamically quantized {operator}"):
        return False
    source = found.values["q"].producer()
    product = next(item for item in found.nodes if item.op_type.endswith("Integer"))
    factors = scale.reshape(-1, *[1] * (integers.ndim - 1)) if operator == "Conv" else scale
    weight = ctx.edit.constant(integers.astype(np.float32) * factors, f"{found.values['w'].name}_float")
    inputs = [source.inputs[0] if source is not None else None, weight]
    made = ctx.edit.insert_before(node, operator, inputs, dict(product.attributes), like=node.outputs[0])
    ctx.edit.replace(node, made.outputs)
    return True


def _is_dynamic(found: Match) -> bool:
    """Tell whether one DynamicQuantizeLinear gives integers, scale and zero point, and the weight is constant."""
    source = found.values["q"].producer()
    if source is None or source.op_type != "DynamicQuantizeLinear" or not is_constant(found.values["w"]):
        return False
    return [found.values[name] for name in ("q", "s", "z")] == list(source.outputs)
