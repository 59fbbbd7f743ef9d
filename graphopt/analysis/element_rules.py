"""How operators make the elements of small integer tensors, symbolically: the arithmetic around Shape.

A rule returns the elements of each output, or ``None`` when it can tell nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphopt.analysis.size_facts import MAX_ELEMENTS, Elements, SizeFacts, has
from graphopt.analysis.symbolic import (
    ONE,
    ZERO,
    Expr,
    compare,
    differs,
    divide,
    maximum,
    minimum,
    number,
    product,
    remainder,
)
from graphopt.ir import DataType, Node
from graphopt.ir.query import attr

Found = list[Elements] | None
Rule = Callable[[Node, SizeFacts], Found]
Operation = Callable[[Expr, Expr], Expr | None]


def _shape(node: Node, facts: SizeFacts) -> Found:
    sizes = facts.sizes(node.inputs[0])
    if sizes is None:
        return None
    return [Elements(sizes[attr(node, "start", 0) : attr(node, "end", len(sizes))], 1)]


def _size(node: Node, facts: SizeFacts) -> Found:
    sizes = facts.sizes(node.inputs[0])
    return None if sizes is None else [Elements((product(sizes),), 0)]


def _same(node: Node, facts: SizeFacts) -> Found:
    elements = facts.elements(node.inputs[0])
    return None if elements is None else [elements]


def _cast(node: Node, facts: SizeFacts) -> Found:
    elements, target = facts.elements(node.inputs[0]), attr(node, "to")
    if elements is None:
        return None
    if target == DataType.BOOL.value:
        return [Elements(tuple(_truth(item) for item in elements.items), elements.rank)]
    # A size that is a name is taken to fit into 32 bits.
    return [elements] if target in (DataType.INT32.value, DataType.INT64.value) else None


def _truth(item: Expr | None) -> Expr | None:
    if item is None or item.value is None:
        return ONE if item is not None and differs(item, ZERO) else None
    return ONE if item.value else ZERO


def _reshape(node: Node, facts: SizeFacts) -> Found:
    """Scalars and vectors in, scalars and vectors out: the elements stay, the rank is that of the output."""
    elements, sizes = facts.elements(node.inputs[0]), facts.sizes(node.outputs[0])
    return None if elements is None or sizes is None or len(sizes) > 1 else [Elements(elements.items, len(sizes))]


def _concat(node: Node, facts: SizeFacts) -> Found:
    items: list[Expr | None] = []
    for value in node.inputs:
        elements, sizes = facts.elements(value), facts.sizes(value)
        if elements is not None and elements.rank == 1:
            items.extend(elements.items)
        elif sizes is not None and len(sizes) == 1 and sizes[0].value is not None and sizes[0].value <= MAX_ELEMENTS:
            items.extend([None] * sizes[0].value)
        else:
            return None
    return [Elements(tuple(items), 1)] if len(items) <= MAX_ELEMENTS else None


def _gather(node: Node, facts: SizeFacts) -> Found:
    data, places = facts.elements(node.inputs[0]), facts.elements(node.inputs[1])
    known = None if places is None else places.known
    if data is None or data.rank != 1 or known is None or places is None:
        return None
    if not all(-len(data.items) <= place < len(data.items) for place in known):
        return None
    return [Elements(tuple(data.items[place] for place in known), places.rank)]


def _slice(node: Node, facts: SizeFacts) -> Found:
    data = facts.elements(node.inputs[0])
    starts, ends = facts.numbers(node, 1, "starts"), facts.numbers(node, 2, "ends")
    steps = facts.numbers(node, 4) if has(node, 4) else [1]
    if data is None or data.rank != 1 or not steps or not steps[0]:
        return None
    if starts is None or ends is None or len(starts) != 1 or len(ends) != 1:
        return None
    return [Elements(data.items[starts[0] : ends[0] : steps[0]], 1)]


def _split(node: Node, facts: SizeFacts) -> Found:
    data, lengths = facts.elements(node.inputs[0]), facts.numbers(node, 1, "split")
    if data is None or data.rank != 1:
        return None
    if lengths is None:
        if has(node, 1, "split") or len(data.items) % len(node.outputs):
            return None
        lengths = [len(data.items) // len(node.outputs)] * len(node.outputs)
    if sum(lengths) != len(data.items):
        return None
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    return [Elements(data.items[end - length : end], 1) for end, length in zip(ends, lengths, strict=True)]


def _binary(operation: Operation) -> Rule:
    def rule(node: Node, facts: SizeFacts) -> Found:
        operands = [facts.elements(value) for value in node.inputs]
        return None if not operands else _combined(operands, operation)

    return rule


def _combined(operands: Sequence[Elements | None], operation: Operation) -> Found:
    total = operands[0]
    for operand in operands[1:]:
        pairs = _paired(total, operand)
        if pairs is None or total is None or operand is None:
            return None
        items = tuple(None if a is None or b is None else operation(a, b) for a, b in pairs)
        total = Elements(items, max(total.rank, operand.rank))
    return None if total is None else [total]


def _paired(left: Elements | None, right: Elements | None) -> list[tuple[Expr | None, Expr | None]] | None:
    """Return the elements of two operands side by side, broadcast."""
    if left is None or right is None:
        return None
    a, b = left.items, right.items
    if len(a) == 1:
        a = a * len(b)
    elif len(b) == 1:
        b = b * len(a)
    return list(zip(a, b, strict=True)) if len(a) == len(b) else None


def _mod(node: Node, facts: SizeFacts) -> Found:
    return None if attr(node, "fmod", 0) else _binary(remainder)(node, facts)


def _equal(left: Expr, right: Expr) -> Expr | None:
    if left == right:
        return ONE
    return ZERO if differs(left, right) else None


def _less(left: Expr, right: Expr) -> Expr | None:
    if (compare(left, right) or 0) > 0 or left == right:
        return ZERO
    return ONE if (compare(left, right) or 0) < 0 and differs(left, right) else None


def _less_or_equal(left: Expr, right: Expr) -> Expr | None:
    return _negated(_less(right, left))


def _negated(item: Expr | None) -> Expr | None:
    return None if item is None or item.value is None else number(0 if item.value else 1)


def _not(node: Node, facts: SizeFacts) -> Found:
    elements = facts.elements(node.inputs[0])
    return None if elements is None else [Elements(tuple(map(_negated, elements.items)), elements.rank)]


def _neg(node: Node, facts: SizeFacts) -> Found:
    elements = facts.elements(node.inputs[0])
    if elements is None:
        return None
    return [Elements(tuple(None if item is None else -item for item in elements.items), elements.rank)]


def _where(node: Node, facts: SizeFacts) -> Found:
    test, yes, no = (facts.elements(value) for value in node.inputs)
    both = _paired(yes, no)
    if test is None or both is None or yes is None or no is None:
        return None
    tests = test.items * len(both) if len(test.items) == 1 else test.items
    both = both * len(tests) if len(both) == 1 else both
    if len(tests) != len(both):
        return None
    items = tuple(_chosen(item, *pair) for item, pair in zip(tests, both, strict=True))
    return [Elements(items, max(test.rank, yes.rank, no.rank))]


def _chosen(test: Expr | None, yes: Expr | None, no: Expr | None) -> Expr | None:
    if yes is not None and yes == no:
        return yes
    if test is None or test.value is None:
        return None
    return yes if test.value else no


def _constant_of_shape(node: Node, facts: SizeFacts) -> Found:
    shape = facts.numbers(node, 0)
    fill = attr(node, "value")
    if shape is None or len(shape) > 1 or fill is None or fill.dtype not in (DataType.INT64, DataType.INT32):
        return None
    count = shape[0] if shape else 1
    if not 0 <= count <= MAX_ELEMENTS:
        return None
    return [Elements((number(int(fill.numpy().reshape(-1)[0])),) * count, len(shape))]


def _expand(node: Node, facts: SizeFacts) -> Found:
    elements, shape = facts.elements(node.inputs[0]), facts.numbers(node, 1)
    if elements is None or shape is None or len(shape) > 1:
        return None
    count = shape[0] if shape else 1
    if len(elements.items) != 1:
        return [elements] if count in (1, len(elements.items)) else None
    if not 0 <= count <= MAX_ELEMENTS:
        return None
    return [Elements(elements.items * count, max(elements.rank, len(shape)))]


def _reduced(combine: Operation) -> Rule:
    def rule(node: Node, facts: SizeFacts) -> Found:
        elements, sizes = facts.elements(node.inputs[0]), facts.sizes(node.outputs[0])
        if elements is None or not elements.items or sizes is None or elements.rank != 1:
            return None
        # One element left: the reduction went over the only axis, and did not do nothing for want of axes.
        if attr(node, "noop_with_empty_axes", 0) and len(elements.items) != 1:
            return None
        total = elements.items[0]
        for item in elements.items[1:]:
            total = None if total is None or item is None else combine(total, item)
        return [Elements((total,), len(sizes))]

    return rule


def _range(node: Node, facts: SizeFacts) -> Found:
    parts = [facts.numbers(node, index) for index in range(3)]
    numbers = [part[0] for part in parts if part]
    if len(numbers) != 3 or numbers[2] == 0:
        return None
    found = range(numbers[0], numbers[1], numbers[2])
    return [Elements(tuple(number(item) for item in found), 1)] if len(found) <= MAX_ELEMENTS else None


RULES: dict[str, Rule] = {
    "Add": _binary(Expr.__add__),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(divide),
    "Equal": _binary(_equal),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _binary(lambda left, right: _less(right, left)),
    "GreaterOrEqual": _binary(lambda left, right: _less_or_equal(right, left)),
    "Identity": _same,
    "Less": _binary(_less),
    "LessOrEqual": _binary(_less_or_equal),
    "Max": _binary(maximum),
    "Min": _binary(minimum),
    "Mod": _mod,
    "Mul": _binary(Expr.__mul__),
    "Neg": _neg,
    "Not": _not,
    "Range": _range,
    "ReduceMax": _reduced(maximum),
    "ReduceMin": _reduced(minimum),
    "ReduceProd": _reduced(Expr.__mul__),
    "ReduceSum": _reduced(Expr.__add__),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _binary(Expr.__sub__),
    "Unsqueeze": _reshape,
    "Where": _where,
}
"""The rules by operator."""
