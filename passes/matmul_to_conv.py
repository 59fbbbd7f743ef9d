"""Products with constant weights as 1x1 convolutions, for targets whose compilers know those best.

Before::

    y = Gemm <transB = 1> (x, W, b)          # x[N, K], W[M, K]
    z = MatMul(v, U)                          # v[B, T, K], U[K, M]

After::

    y = Reshape(Conv(Reshape(x, [N, K, 1, 1]), W[M, K, 1, 1], b), [N, M])
    z = Transpose(Reshape(Conv(Reshape(Transpose(v), ...), U.T[M, K, 1, 1]), ...))

A product of rank 2 becomes a convolution over one pixel, one of higher rank a convolution over its rows as pixels; an
Add of a constant vector right behind a MatMul becomes the bias. Sizes have to be known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, Value, attr, constant
from graphopt.ir.query import is_constant, sole_use, static_shape
from graphopt.pipeline import Changes, Pass, PassContext

Array = NDArray[Any]


@dataclass(frozen=True)
class _Product:
    """A product: the data, weights [M, K], the bias [M] if any, and the node whose result it is."""

    node: Node
    data: Value
    weights: Array
    bias: Array | None
    last: Node


@dataclass(frozen=True, kw_only=True)
class MatmulToConv(Pass):
    """Write MatMul and Gemm with constant weights as convolutions with kernels of one element."""

    name: ClassVar[str] = "matmul-to-conv"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        ctx.get(Shapes)
        changes = Changes()
        for node in ctx.nodes("MatMul", "Gemm"):
            found = _product(node)
            if found is None:
                continue
            if static_shape(found.data) is None or static_shape(found.last.outputs[0]) is None:
                ctx.missed("M2C001", node, "stays: its sizes are not known", hint="run fix-shapes first")
                continue
            if ctx.may_rewrite(node, "write it as a 1x1 convolution"):
                _rewrite(found, ctx)
                changes["convolutions"] += 1
        return changes


def _product(node: Node) -> _Product | None:
    data, weight = node.inputs[0], node.inputs[1]
    array = constant(weight)
    if data is None or array is None or array.ndim != 2 or is_constant(data):
        return None
    if node.op_type == "MatMul":
        reader = sole_use(node.outputs[0])
        bias = _vector(reader, node.outputs[0], array.shape[1]) if reader is not None else None
        last = node if bias is None or reader is None else reader
        return _Product(node, data, np.ascontiguousarray(array.T), bias, last)
    if attr(node, "transA", 0) or attr(node, "alpha", 1.0) != 1.0 or attr(node, "beta", 1.0) != 1.0:
        return None
    weights = array if attr(node, "transB", 0) else np.ascontiguousarray(array.T)
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        if bias is None or bias.size not in (1, len(weights)) or (bias.ndim == 2 and bias.shape[1] != bias.size):
            return None
        bias = np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), len(weights)))
    return _Product(node, data, weights, bias, node)


def _vector(reader: Node, value: Value, size: int) -> Array | None:
    """Return the constant of an Add that a bias of ``size`` elements can do."""
    if reader.op_type != "Add" or reader.domain != "":
        return None
    other = reader.inputs[1] if reader.inputs[0] is value else reader.inputs[0]
    array = constant(other)
    return array.reshape(-1) if array is not None and array.size == size and array.shape[-1:] == (size,) else None


def _rewrite(found: _Product, ctx: PassContext) -> None:
    edit, anchor = ctx.edit, found.last
    before, after = static_shape(found.data), static_shape(found.last.outputs[0])
    assert before is not None and after is not None
    width, outputs = found.weights.shape[1], found.weights.shape[0]
    rows = int(np.prod(before[1:-1], dtype=np.int64)) if len(before) > 2 else 1

    def add(operator: str, inputs: list[Value], shape: list[int], attributes: dict[str, Any] | None = None) -> Value:
        node = edit.insert_before(anchor, operator, inputs, attributes)
        edit.annotate(node.outputs[0], found.data.dtype, shape)
        return node.outputs[0]

    def reshaped(value: Value, shape: list[int]) -> Value:
        target = edit.constant(np.array(shape, np.int64), f"{found.node.name or 'product'}_shape")
        return add("Reshape", [value, target], shape)

    count = before[0] if len(before) > 1 else 1
    value = found.data
    if rows > 1:
        value = reshaped(value, [count, rows, width]) if len(before) > 3 else value
        value = add("Transpose", [value], [count, width, rows], {"perm": [0, 2, 1]})
    value = reshaped(value, [count, width, rows, 1])
    base = found.node.name or "product"
    operands = [value, edit.constant(found.weights.reshape(outputs, width, 1, 1), f"{base}_kernel")]
    if found.bias is not None:
        operands.append(edit.constant(found.bias, f"{base}_bias"))
    value = add("Conv", operands, [count, outputs, rows, 1], {"kernel_shape": [1, 1]})
    if rows > 1:
        value = reshaped(value, [count, outputs, rows])
        value = add("Transpose", [value], [count, rows, outputs], {"perm": [0, 2, 1]})
    if rows == 1 or len(after) > 3:
        value = reshaped(value, list(after))
    weight = found.node.inputs[1]
    edit.replace(found.last, [value])
    if found.last is not found.node:
        edit.erase_dead(found.node)
    if weight is not None:
        edit.drop_unread(weight)
