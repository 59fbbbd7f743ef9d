"""Operators written out in simpler ones, for targets and opsets that do not have them.

Before::

    y = HardSwish(x)

After ``decompose{ops=HardSwish}``::

    g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x)
    y = Mul(x, g)

The forms are those that the recognize-* passes and onnxruntime's own fusions know, so nothing is lost by going there
and back. Understood: Celu, Gelu, HardSwish, Mish, Softplus, Softsign, Swish, LayerNormalization, RMSNormalization,
GroupNormalization. Softplus is written ``Max(x, 0) + Log(1 + Exp(-Abs(x)))``, which overflows nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import pi, sqrt
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.errors import UsageError
from graphopt.ir import DataType, Model, Node, Value, attr, opset, rank_of, shape_of
from graphopt.ir.query import is_read
from graphopt.pipeline import Changes, Pass, PassContext, option

_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.DOUBLE)


@dataclass(frozen=True)
class Writer:
    """Writes operators in front of ``node``; operands are values, or numbers in the node's dtype."""

    node: Node
    ctx: PassContext
    dtype: DataType

    def __call__(self, operator: str, *operands: Value | float, like: Value | None = None, **attrs: float) -> Value:
        """Insert one operator; its result has the writer's dtype and the shape of ``like`` (the node's first input)."""
        inputs = [item if isinstance(item, Value) else self.number(item, operator) for item in operands]
        made = self.ctx.edit.insert_before(self.node, operator, inputs, attrs).outputs[0]
        self.ctx.edit.annotate(made, self.dtype, shape_of(like or self.node.inputs[0]))
        return made

    def number(self, number: float, hint: str) -> Value:
        """Return a scalar constant of the writer's dtype."""
        return self.ctx.edit.constant(np.array(number, self.dtype.numpy()), f"{self.node.outputs[0].name}.{hint}")

    def cast(self, value: Value, dtype: DataType) -> Value:
        """Return ``value`` in another dtype."""
        return value if value.dtype == dtype else replace(self, dtype=dtype)("Cast", value, to=int(dtype))

    def unshaped(self, operator: str, *operands: Value) -> Value:
        """Insert one operator whose result's shape is not worth writing down."""
        made = self(operator, *operands)
        self.ctx.edit.annotate(made, self.dtype, None)
        return made

    def mean(self, value: Value, axes: Sequence[int]) -> Value:
        """Insert a ReduceMean that keeps its axes, in the form of the model's opset."""
        if opset(self.ctx.edit.model) < 18:
            made = self.ctx.edit.insert_before(self.node, "ReduceMean", [value], {"axes": list(axes), "keepdims": 1})
        else:
            operand = self.ctx.edit.constant(np.array(axes, np.int64), f"{self.node.outputs[0].name}.axes")
            made = self.ctx.edit.insert_before(self.node, "ReduceMean", [value, operand], {"keepdims": 1})
        self.ctx.edit.annotate(made.outputs[0], value.dtype, None)
        return made.outputs[0]


def _celu(node: Node, x: Value, write: Writer) -> Value:
    alpha = float(attr(node, "alpha", 1.0))
    return write("Elu", x) if alpha == 1 else write("Mul", write("Elu", write("Div", x, alpha)), alpha)


def _gelu(node: Node, x: Value, write: Writer) -> Value:
    if attr(node, "approximate", "none") == "tanh":
        cube = write("Mul", write("Mul", x, x), x)
        inner = write("Mul", write("Add", x, write("Mul", cube, 0.044715)), sqrt(2 / pi))
        gate = write("Add", write("Tanh", inner), 1.0)
    else:
        gate = write("Add", write("Erf", write("Div", x, sqrt(2))), 1.0)
    return write("Mul", write("Mul", x, gate), 0.5)


def _hard_swish(node: Node, x: Value, write: Writer) -> Value:
    return write("Mul", x, write("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _softplus(node: Node, x: Value, write: Writer) -> Value:
    tail = write("Log", write("Add", write("Exp", write("Neg", write("Abs", x))), 1.0))
    return write("Add", write("Max", x, 0.0), tail)


def _softsign(node: Node, x: Value, write: Writer) -> Value:
    return write("Div", x, write("Add", write("Abs", x), 1.0))


def _mish(node: Node, x: Value, write: Writer) -> Value:
    return write("Mul", x, write("Tanh", write("Softplus", x)))


def _swish(node: Node, x: Value, write: Writer) -> Value:
    alpha = float(attr(node, "alpha", 1.0))
    return write("Mul", x, write("Sigmoid", x if alpha == 1 else write("Mul", x, alpha)))


def _layer_norm(node: Node, x: Value, write: Writer) -> Value:
    """The statistics are computed in float32 at least, as the operator does."""
    inner, axes = replace(write, dtype=_at_least_single(write.dtype)), _trailing_axes(node)
    wide = write.cast(x, inner.dtype)
    return _scaled(node, inner("Sub", wide, inner.mean(wide, axes)), write, inner)


def _rms_norm(node: Node, x: Value, write: Writer) -> Value:
    inner = replace(write, dtype=_at_least_single(write.dtype))
    return _scaled(node, write.cast(x, inner.dtype), write, inner)


def _scaled(node: Node, centred: Value, write: Writer, inner: Writer) -> Value:
    variance = inner.mean(inner("Mul", centred, centred), _trailing_axes(node))
    spread = inner("Sqrt", inner("Add", variance, float(attr(node, "epsilon", 1e-5)), like=variance), like=variance)
    result = write.cast(inner("Div", centred, spread), write.dtype)
    for operator, operand in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        result = result if operand is None else write(operator, result, operand)
    return result


def _at_least_single(dtype: DataType) -> DataType:
    return DataType.FLOAT if dtype == DataType.FLOAT16 else dtype


def _trailing_axes(node: Node) -> list[int]:
    axis = int(attr(node, "axis", -1))
    return list(range(axis if axis < 0 else axis - (rank_of(node.inputs[0]) or 0), 0))


def _group_norm(node: Node, x: Value, write: Writer) -> Value:
    groups, edit, base = int(attr(node, "num_groups")), write.ctx.edit, node.outputs[0].name
    rank = rank_of(x) or 0
    fold = edit.constant(np.array([0, groups, -1], np.int64), f"{base}.groups")
    wide = edit.constant(np.array([-1, *[1] * (rank - 2)], np.int64), f"{base}.channels")
    grouped = write.unshaped("Reshape", x, fold)
    plain = [edit.constant(np.full(groups, number, write.dtype.numpy()), f"{base}.plain") for number in (1, 0)]
    # Before opset 21 scale and bias have one number for each group, which InstanceNormalization can do by itself.
    by_group = [value for value in node.inputs[1:3] if value is not None] if opset(edit.model) < 21 else plain
    epsilon = float(attr(node, "epsilon", 1e-5))
    normal = write("InstanceNormalization", grouped, *by_group, like=grouped, epsilon=epsilon)
    shape = edit.insert_before(node, "Shape", [x]).outputs[0]
    edit.annotate(shape, DataType.INT64, [rank])
    result = write("Reshape", normal, shape)
    for operator, operand in zip(("Mul", "Add"), node.inputs[1:3], strict=True):
        if operand is not None and by_group is plain:
            result = write(operator, result, write.unshaped("Reshape", operand, wide))
    return result


_FORMS: dict[str, Callable[[Node, Value, Writer], Value]] = {
    "Celu": _celu,
    "Gelu": _gelu,
    "HardSwish": _hard_swish,
    "Mish": _mish,
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Swish": _swish,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "GroupNormalization": _group_norm,
}


@dataclass(frozen=True, kw_only=True)
class Decompose(Pass):
    """Write operators out in simpler ones, for targets that do not have them."""

    name: ClassVar[str] = "decompose"
    preserves: ClassVar = (Shapes,)
    ops: str = option("", "which ones, separated by + (for example Gelu+HardSwish); all when empty")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Write out each node of the operators asked for. Raises UsageError for one that has no decomposition."""
        wanted = [name for name in self.ops.split("+") if name] or list(_FORMS)
        for name in wanted:
            if name not in _FORMS:
                raise UsageError(f"no decomposition of {name}", where=str(self), hint=f"known: {', '.join(_FORMS)}")
        changes = Changes()
        for name in sorted(wanted, key=list(_FORMS).index):
            candidates = ctx.nodes(name)
            if candidates:
                ctx.get(Shapes)
            for node in candidates:
                changes[name] += self._write_out(node, ctx)
        return changes

    def _write_out(self, node: Node, ctx: PassContext) -> bool:
        x = node.inputs[0]
        if node.graph is None or x is None or x.dtype is None or x.dtype not in _FLOATS:
            return False
        obstacle = _obstacle(node)
        if obstacle is not None:
            ctx.missed("DEC001", node, obstacle)
            return False
        if not ctx.may_rewrite(node, f"write {node.op_type} out"):
            return False
        return ctx.edit.replace(node, [_FORMS[node.op_type](node, x, Writer(node, ctx, x.dtype))])


def _obstacle(node: Node) -> str | None:
    """Return what keeps a normalisation from being written out."""
    if not node.op_type.endswith("Normalization"):
        return None
    rank = rank_of(node.inputs[0])
    if rank is None:
        return "the rank of its input is unknown"
    if any(is_read(value) for value in node.outputs[1:]):
        return "the mean or the deviation is read too"
    if node.op_type == "GroupNormalization" and rank < 3:
        return "it has no axes behind the channels"
    return None
