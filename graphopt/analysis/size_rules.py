"""How operators make the dimensions of their first output from those of their inputs, symbolically.

A rule returns the dimensions, ``None`` for one that it cannot tell, or ``None`` when it can tell nothing; ONNX's own
inference, which knows every operator but no arithmetic on names, fills in the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.analysis.size_facts import SizeFacts, Sizes, has
from graphopt.analysis.symbolic import ONE, Expr, compare, divide_exactly, minimum, number, product
from graphopt.ir import Node
from graphopt.ir.query import attr

Found = Sequence[Expr | None] | None
Rule = Callable[[Node, SizeFacts], Found]

NO_END = (1 << 31) - 1
"""Ends of slices from here on mean the end of the axis: exporters write the largest int32 or int64."""


def _like_first(node: Node, facts: SizeFacts) -> Found:
    return facts.sizes(node.inputs[0])


def _elementwise(node: Node, facts: SizeFacts) -> Found:
    shapes = [facts.sizes(value) for value in node.inputs]
    return broadcast([shape for shape in shapes if shape is not None]) if None not in shapes else None


def broadcast(shapes: Sequence[Sizes]) -> list[Expr | None]:
    """Return the shape that ``shapes`` broadcast to; ``None`` for a dimension that hangs on which one is 1."""
    rank = max((len(shape) for shape in shapes), default=0)
    found: list[Expr | None] = []
    for axis in range(-rank, 0):
        sizes = dict.fromkeys(shape[axis] for shape in shapes if len(shape) >= -axis)
        sizes.pop(ONE, None)
        found.append(_common(list(sizes)))
    return found


def _common(sizes: list[Expr]) -> Expr | None:
    """Return the size that different sizes, none of them 1, broadcast to."""
    if not sizes:
        return ONE
    if len(sizes) == 1:
        return sizes[0]
    fixed = [size for size in sizes if size.value is not None]
    if fixed:
        return fixed[0]
    # n and min(n, 512) only broadcast where they are equal: min(n, 512) is 1 for n = 1 alone.
    for size in sizes:
        if all(other == size or _is_capped(other, size) for other in sizes):
            return size
    return None


def _is_capped(capped: Expr, size: Expr) -> bool:
    call = capped.call("min")
    if call is None or size not in (call.left, call.right):
        return False
    cap = (call.right if call.left == size else call.left).value
    return cap is not None and cap > 1


def _matmul(node: Node, facts: SizeFacts) -> Found:
    left, right = facts.sizes(node.inputs[0]), facts.sizes(node.inputs[1])
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    return [*broadcast([left[:-2], right[:-2]]), left[-2], right[-1]]


def _gemm(node: Node, facts: SizeFacts) -> Found:
    left, right = facts.sizes(node.inputs[0]), facts.sizes(node.inputs[1])
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    return [left[1 if attr(node, "transA", 0) else 0], right[0 if attr(node, "transB", 0) else 1]]


def _transpose(node: Node, facts: SizeFacts) -> Found:
    sizes = facts.sizes(node.inputs[0])
    if sizes is None:
        return None
    order = attr(node, "perm") or range(len(sizes))[::-1]
    return [sizes[axis] for axis in order] if len(order) == len(sizes) else None


def _reshape(node: Node, facts: SizeFacts) -> Found:
    shape = facts.elements(node.inputs[1]) if len(node.inputs) > 1 else None
    if shape is None or shape.rank != 1:
        return None
    return reshaped(facts.sizes(node.inputs[0]), shape.items, bool(attr(node, "allowzero", 0)))


def reshaped(sizes: Sizes | None, shape: Sequence[Expr | None], keeps_zero: bool) -> list[Expr | None]:
    """Return the dimensions that Reshape to ``shape`` gives an input with dimensions ``sizes``."""
    found: list[Expr | None] = []
    for axis, item in enumerate(shape):
        if item is not None and item.value == 0 and not keeps_zero:
            found.append(sizes[axis] if sizes is not None and axis < len(sizes) else None)
        else:
            found.append(None if item is None or item.value == -1 else item)
    if sizes is not None and found.count(None) == 1:
        rest = product(size for size in found if size is not None)
        found[found.index(None)] = divide_exactly(product(sizes), rest) if rest.value != 0 else None
    return found


def _axes(node: Node, facts: SizeFacts, index: int, rank: int) -> list[int] | None:
    axes = facts.numbers(node, index, "axes")
    return None if axes is None else [axis % rank if rank else axis for axis in axes]


def _squeeze(node: Node, facts: SizeFacts) -> Found:
    sizes = facts.sizes(node.inputs[0])
    if sizes is None or (has(node, 1, "axes") and facts.numbers(node, 1, "axes") is None):
        return None
    axes = _axes(node, facts, 1, len(sizes))
    if axes is None:
        if any(size.value is None for size in sizes):
            return None
        axes = [axis for axis, size in enumerate(sizes) if size == ONE]
    return [size for axis, size in enumerate(sizes) if axis not in axes]


def _unsqueeze(node: Node, facts: SizeFacts) -> Found:
    sizes, axes = facts.sizes(node.inputs[0]), facts.numbers(node, 1, "axes")
    if sizes is None or axes is None:
        return None
    rank = len(sizes) + len(axes)
    places = {axis % rank for axis in axes}
    rest = iter(sizes)
    return [ONE if axis in places else next(rest) for axis in range(rank)] if len(places) == len(axes) else None


def _concat(node: Node, facts: SizeFacts) -> Found:
    shapes = [facts.sizes(value) for value in node.inputs]
    known = [shape for shape in shapes if shape is not None]
    axis = attr(node, "axis", 0)
    if len(known) != len(shapes) or not known or not -len(known[0]) <= axis < len(known[0]):
        return None
    found: list[Expr | None] = list(known[0])
    if any(len(shape) != len(found) for shape in known):
        return None
    for place, sizes in enumerate(zip(*known, strict=True)):
        # Sizes beside the axis are equal in any model that runs: a known one speaks for all.
        found[place] = next((size for size in sizes if size.value is not None), sizes[0])
    total = known[0][axis]
    for shape in known[1:]:
        total = total + shape[axis]
    found[axis] = total
    return found


def _slice(node: Node, facts: SizeFacts) -> Found:
    sizes = facts.sizes(node.inputs[0])
    parts = slice_parts(node, facts, None if sizes is None else len(sizes))
    if sizes is None or parts is None:
        return None
    found: list[Expr | None] = list(sizes)
    for axis, start, end, step in parts:
        found[axis] = _sliced(sizes[axis], start, end, step)
    return found


Part = tuple[int, Expr | None, Expr | None, int | None]


def slice_parts(node: Node, facts: SizeFacts, rank: int | None) -> list[Part] | None:
    """Return (axis, start, end, step) for each axis that a Slice cuts, ``None`` when the axes are not known."""
    if rank is None or rank == 0:
        return None
    starts, ends = _bounds(node, facts, 1, "starts"), _bounds(node, facts, 2, "ends")
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = facts.numbers(node, 3, "axes") if has(node, 3, "axes") else list(range(len(starts)))
    steps = facts.numbers(node, 4) if has(node, 4) else [1] * len(starts)
    if axes is None or len(axes) != len(starts) or not all(-rank <= axis < rank for axis in axes):
        return None
    places = [axis % rank for axis in axes]
    lengths: Sequence[int | None] = steps or [None] * len(starts)
    return list(zip(places, starts, ends, lengths, strict=True))


def _bounds(node: Node, facts: SizeFacts, index: int, attribute: str) -> tuple[Expr | None, ...] | None:
    if attribute in node.attributes:
        return tuple(number(item) for item in attr(node, attribute))
    elements = facts.elements(node.inputs[index]) if len(node.inputs) > index else None
    return None if elements is None else elements.items


def _sliced(size: Expr, start: Expr | None, end: Expr | None, step: int | None) -> Expr | None:
    if start is None or end is None or step is None:
        return None
    length, first, last = size.value, start.value, end.value
    if length is not None and first is not None and last is not None:
        return number(len(range(length)[first:last:step])) if abs(step) < NO_END and step else None
    if step != 1 or first is None:
        return None
    if last is not None and last < 0:
        end = size + end
    elif reaches_end(end, size):
        end = size
    if first < 0:
        start = size + start
    if compare(end, size) != -1 and end != size:
        end = minimum(end, size)
    if end is None or start.least is None or start.least < 0 or end.least is None or end.least < 0:
        return None
    return end - start if (compare(end, start) or 0) > 0 or end == start else None


def reaches_end(end: Expr, size: Expr) -> bool:
    """Tell whether a slice up to ``end`` surely goes to the end of an axis of ``size``."""
    return (end.value is not None and end.value >= NO_END) or (compare(end, size) or 0) > 0 or end == size


def _gather(node: Node, facts: SizeFacts) -> Found:
    data, places = facts.sizes(node.inputs[0]), facts.sizes(node.inputs[1])
    if not data or places is None:
        return None
    axis = attr(node, "axis", 0) % len(data)
    return [*data[:axis], *places, *data[axis + 1 :]]


def _reduce(node: Node, facts: SizeFacts) -> Found:
    sizes = facts.sizes(node.inputs[0])
    if sizes is None or not sizes:
        return None
    given = has(node, 1, "axes")
    axes = _axes(node, facts, 1, len(sizes))
    if given and axes is None:
        return None
    if not axes:
        if attr(node, "noop_with_empty_axes", 0):
            return sizes
        axes = list(range(len(sizes)))
    if attr(node, "keepdims", 1):
        return [ONE if axis in axes else size for axis, size in enumerate(sizes)]
    return [size for axis, size in enumerate(sizes) if axis not in axes]


def _flatten(node: Node, facts: SizeFacts) -> Found:
    sizes = facts.sizes(node.inputs[0])
    if sizes is None:
        return None
    axis = attr(node, "axis", 1)
    axis = axis + len(sizes) if axis < 0 else axis
    return [product(sizes[:axis]), product(sizes[axis:])]


def _expand(node: Node, facts: SizeFacts) -> Found:
    sizes, shape = facts.sizes(node.inputs[0]), facts.elements(node.inputs[1])
    if sizes is None or shape is None or shape.rank != 1:
        return None
    # An unknown element could be 1 or anything.
    known = tuple(facts.fresh() if item is None else item for item in shape.items)
    found = broadcast([sizes, known])
    offset = len(found) - len(shape.items)
    return [None if axis >= offset and shape.items[axis - offset] is None else size for axis, size in enumerate(found)]


def _constant_of_shape(node: Node, facts: SizeFacts) -> Found:
    shape = facts.elements(node.inputs[0])
    return None if shape is None or shape.rank != 1 else shape.items


def _shape(node: Node, facts: SizeFacts) -> Found:
    sizes = facts.sizes(node.inputs[0])
    return None if sizes is None else [number(len(sizes[attr(node, "start", 0) : attr(node, "end", len(sizes))]))]


def _range(node: Node, facts: SizeFacts) -> Found:
    parts = [facts.elements(value) for value in node.inputs]
    if len(parts) != 3 or None in parts:
        return None
    start, limit, delta = (part.items[0] if part is not None and part.items else None for part in parts)
    if start is None or limit is None or delta is None:
        return None
    begin, end, step = start.value, limit.value, delta.value
    if begin is not None and end is not None and step:
        return [number(len(range(begin, end, step)))]
    length = limit - start
    return [length] if delta == ONE and length.least is not None and length.least >= 0 else None


_SAME = """Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Cast CastLike Ceil Celu Clip Cos Cosh
CumSum DequantizeLinear Dropout Elu Erf Exp Floor Gelu GroupNormalization HardSigmoid HardSwish Hardmax Identity
InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization
MeanVarianceNormalization Mish Neg Not PRelu QuantizeLinear RMSNormalization Reciprocal Relu Round ScatterElements
ScatterND Selu Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu"""
_BROADCAST = """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max
Mean Min Mod Mul Or Pow Sub Sum Where Xor"""
_REDUCE = """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare"""


def _attention(node: Node, facts: SizeFacts) -> Found:
    """Queries of [batch, length, width] and values of [batch, length, width]; other layouts are not followed."""
    query, values = (facts.sizes(node.inputs[index]) if len(node.inputs) > index else None for index in (0, 2))
    return [*query[:2], values[2]] if query and values and len(query) == len(values) == 3 else None


RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME.split(), _like_first),
    **dict.fromkeys(_BROADCAST.split(), _elementwise),
    **dict.fromkeys(_REDUCE.split(), _reduce),
    "com.microsoft::Gelu": _like_first,
    "com.microsoft::MultiHeadAttention": _attention,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""The rules by operator."""
