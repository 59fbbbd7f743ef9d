"""MatMul and Add to Gemm, and what stands around a Gemm into its attributes.

Before::

    m = MatMul(x, W)                 # x of rank 2
    y = Add(m, b)

After::

    y = Gemm(x, W, b)

Also: an Add behind a Gemm without bias, a 2-D Transpose in front of a Gemm or MatMul (transA, transB), a scalar factor
behind a Gemm whose weights are computed (alpha, beta), and two MatMuls by constants in a row where their product has no
more elements than both. onnxruntime's CPU provider runs MatMul + Add on 2-D inputs as a Gemm anyway (ratio 0.98 to 1.02
over 1x512x10 up to 128x384x384), so this saves nodes at the same speed; there is no Gemm for higher ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import DataType, Model, Node, Value, attr, constant, opset, rank_of, shape_of
from graphopt.ir.query import scalar, sole_use, static_shape, tensor_of, use_count
from graphopt.pipeline import Changes, Pass, PassContext

_FLOATS = (DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16)


@dataclass(frozen=True, kw_only=True)
class FuseGemm(Pass):
    """Turn MatMul and Add on matrices into Gemm, and take transposes and scalar factors into it."""

    name: ClassVar[str] = "fuse-gemm"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Merge constant MatMuls, then bias, transposes and factors."""
        changes = Changes()
        products = ctx.nodes("MatMul", "Gemm")
        if not products or opset(model) < 7:
            return changes
        ctx.get(Shapes)
        for node in products:
            if node.graph is None or node.outputs[0].dtype not in _FLOATS:
                continue
            changes["products merged"] += _merge_products(node, ctx)
            if rank_of(node.inputs[0]) != 2 or rank_of(node.inputs[1]) != 2:
                continue
            biased = _absorb_bias(node, ctx)
            changes["biases absorbed"] += biased is not None
            last = biased or node
            changes["transposes absorbed"] += _absorb_transpose(last, 0, ctx) + _absorb_transpose(last, 1, ctx)
            changes["factors absorbed"] += _absorb_factor(last, ctx)
        return changes


def _merge_products(second: Node, ctx: PassContext) -> bool:
    """Turn ``(x A) B`` into ``x (A B)`` where that takes no more elements, hence no more work either."""
    first = second.inputs[0].producer() if second.inputs[0] is not None else None
    if second.op_type != "MatMul" or first is None or first.op_type != "MatMul" or first.domain != "":
        return False
    left, right = tensor_of(first.inputs[1]), tensor_of(second.inputs[1])
    if left is None or right is None or len(left.shape) != 2 or len(right.shape) != 2:
        return False
    rows, columns = left.shape.numpy()[0], right.shape.numpy()[1]
    if rows * columns > left.size + right.size or sole_use(first.outputs[0]) is not second:
        return False
    weights = [first.inputs[1], second.inputs[1]]
    if first.graph is not second.graph or any(w is None or use_count(w) != 1 or w.is_graph_output() for w in weights):
        return False
    a, b = left.numpy(), right.numpy()
    product = (a.astype(np.float64) @ b.astype(np.float64)).astype(a.dtype)
    if not np.isfinite(product).all() or not ctx.may_rewrite(second, "merge two MatMuls by constants"):
        return False
    merged = ctx.edit.constant(product, f"{weights[1].name if weights[1] else 'weight'}.merged")
    result = second.outputs[0]
    node = ctx.edit.insert_before(second, "MatMul", [first.inputs[0], merged], like=result)
    return ctx.edit.replace(second, [node.outputs[0]])


def _absorb_transpose(node: Node, index: int, ctx: PassContext) -> bool:
    source = node.inputs[index]
    transpose = source.producer() if source is not None else None
    if source is None or transpose is None or transpose.op_type != "Transpose" or transpose.domain != "":
        return False
    if sole_use(source) is not node or list(attr(transpose, "perm", [1, 0])) != [1, 0]:
        return False
    if not ctx.may_rewrite(transpose, f"take the transpose into {node.op_type} {node.name!r}"):
        return False
    if node.op_type == "MatMul":
        ctx.edit.set_operator(node, "Gemm")
        _add_empty_bias(node, ctx)
    key = ("transA", "transB")[index]
    ctx.edit.set_attr(node, key, None if attr(node, key, 0) else 1)
    ctx.edit.set_input(node, index, transpose.inputs[0])
    ctx.edit.erase_dead(transpose)
    return True


def _add_empty_bias(node: Node, ctx: PassContext) -> None:
    """Before opset 11 the bias of a Gemm is not optional: give it a zero."""
    dtype = node.outputs[0].dtype
    if opset(ctx.edit.model) < 11 and dtype is not None:
        ctx.edit.set_input(node, 2, ctx.edit.constant(np.zeros(1, dtype.numpy()), f"{node.outputs[0].name}.bias"))


def _absorb_bias(node: Node, ctx: PassContext) -> Node | None:
    """Return the Gemm that does what ``node`` and the Add behind it did."""
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    add = sole_use(node.outputs[0])
    if has_bias or add is None or add.op_type != "Add" or add.domain != "" or add.graph is not node.graph:
        return None
    bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    if bias is None or not _is_row(bias, node):
        return None
    if not ctx.may_rewrite(add, f"take it as the bias of {node.op_type} {node.name!r}"):
        return None
    attributes = {key: attr(node, key) for key in ("alpha", "transA", "transB") if key in node.attributes}
    name = f"{node.name or node.outputs[0].name}/Gemm"
    gemm = ctx.edit.insert_before(add, "Gemm", [*node.inputs[:2], bias], attributes, name=name, like=add.outputs[0])
    ctx.edit.replace(add, [gemm.outputs[0]])
    return gemm


def _is_row(bias: Value, node: Node) -> bool:
    """Tell whether ``bias`` broadcasts over the rows of the product without changing its shape."""
    shape, product = static_shape(bias), shape_of(node.outputs[0])
    if shape is None or len(shape) > 2 or product is None or len(product) != 2:
        return False
    if len(shape) == 2 and shape[0] != 1:
        return False
    return not shape or shape[-1] == 1 or shape[-1] == product[1]


def _absorb_factor(node: Node, ctx: PassContext) -> bool:
    """Take a scalar Mul or Div behind a Gemm of two computed matrices into alpha and beta."""
    factor = sole_use(node.outputs[0])
    if node.op_type != "Gemm" or factor is None or factor.op_type not in ("Mul", "Div") or factor.domain != "":
        return False
    if factor.graph is not node.graph or constant(node.inputs[1]) is not None:
        return False
    other = factor.inputs[1] if factor.inputs[0] is node.outputs[0] else factor.inputs[0]
    number = scalar(other)
    if not isinstance(number, float) or (rank_of(other) or 0) > 2 or node.outputs[0].dtype == DataType.DOUBLE:
        return False
    if factor.op_type == "Div":
        if other is factor.inputs[0] or number == 0:
            return False
        number = 1.0 / number
    scales = {key: np.float32(attr(node, key, 1.0) * number) for key in ("alpha", "beta")}
    if not all(np.isfinite(value) for value in scales.values()):
        return False
    if not ctx.may_rewrite(factor, f"take the factor into Gemm {node.name!r}"):
        return False
    for key, value in scales.items():
        ctx.edit.set_attr(node, key, float(value))
    return ctx.edit.replace(factor, [node.outputs[0]])
