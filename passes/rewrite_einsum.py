"""Einsum as the products, sums and transpositions that it stands for.

Before::

    y = Einsum <equation = "bchw,bkc->bkhw"> (x, w)          # sizes: b 1, c 6, h 4, w 5, k 7

After::

    f = Reshape(x, [1, 6, 20])
    p = MatMul(w, f)
    y = Reshape(p, [1, 7, 4, 5])

Letters of both operands that are summed over become one MatMul, with constant weights second where there are any;
without such letters it is a Mul. Letters of one operand alone that the result lacks become a ReduceSum first. More
than two operands are multiplied from left to right, as onnxruntime does. What is left alone: a letter twice in one
operand (a diagonal), sizes that are not known or broadcast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import DataType, Model, Node, Value, attr, constant, opset
from graphopt.ir.query import static_shape
from graphopt.pipeline import Changes, Pass, PassContext

_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.DOUBLE)
_DIMENSIONS = "0123456789"
"""Stand for the dimensions of an ellipsis: equations hold letters only."""


@dataclass(frozen=True)
class _Equation:
    """Letters of each operand and of the result, and the size of each letter."""

    operands: tuple[str, ...]
    result: str
    sizes: dict[str, int]


@dataclass(frozen=True)
class _Operand:
    """A value and the letter of each of its axes."""

    value: Value
    letters: str


@dataclass(frozen=True, kw_only=True)
class RewriteEinsum(Pass):
    """Write Einsum as MatMul or Mul between Transposes and Reshapes."""

    name: ClassVar[str] = "rewrite-einsum"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        ctx.get(Shapes)
        changes = Changes()
        for node in ctx.nodes("Einsum"):
            if node.graph is None:
                continue
            equation = _equation(node)
            why = equation if isinstance(equation, str) else _obstacle(node, opset(model))
            if why or isinstance(equation, str):
                ctx.missed("EINSUM001", node, f"{_text(node)} stays: {why}")
                continue
            if ctx.may_rewrite(node, f"write {_text(node)} out"):
                value = _Writer(node, ctx, equation).result()
                changes["written out"] += ctx.edit.replace(node, [value])
        return changes


def _text(node: Node) -> str:
    given = attr(node, "equation", "")
    return (given.decode() if isinstance(given, bytes) else str(given)).replace(" ", "")


def _obstacle(node: Node, version: int) -> str:
    if version < 13:
        return "before opset 13 ReduceSum has another form"
    if any(value is None or value.dtype not in _FLOATS for value in node.inputs):
        return "it is not of floats"
    return ""


def _equation(node: Node) -> _Equation | str:
    """Return what the node computes, or why it is left alone."""
    left, arrow, right = _text(node).partition("->")
    terms = left.split(",")
    shapes = [static_shape(value) for value in node.inputs]
    if any(shape is None for shape in shapes) or len(terms) != len(shapes):
        return "its sizes are not known"
    known = [shape for shape in shapes if shape is not None]
    spare = [len(shape) - len(term.replace("...", "")) for term, shape in zip(terms, known, strict=True)]
    if min(spare) < 0 or max(spare) > len(_DIMENSIONS):
        return "its equation does not fit its operands"
    most = _DIMENSIONS[: max((n for n, term in zip(spare, terms, strict=True) if "..." in term), default=0)]
    operands = [term.replace("...", most[len(most) - n :]) for n, term in zip(spare, terms, strict=True)]
    counts = Counter(letter for letters in operands for letter in letters)
    if not arrow:
        right = "..." * ("..." in left) + "".join(sorted(x for x, n in counts.items() if n == 1 and x not in most))
    result = right.replace("...", most)
    if any(len(set(letters)) < len(letters) for letters in (*operands, result)):
        return "a letter stands twice in one operand"
    sizes: dict[str, int] = {}
    for letters, shape in zip(operands, known, strict=True):
        if len(letters) != len(shape):
            return "its equation does not fit its operands"
        if any(sizes.setdefault(letter, size) != size for letter, size in zip(letters, shape, strict=True)):
            return "an operand is broadcast"
    return _Equation(tuple(operands), result, sizes)


class _Writer:
    """Writes one Einsum out in front of it."""

    def __init__(self, node: Node, ctx: PassContext, equation: _Equation):
        self.node, self.edit, self.equation = node, ctx.edit, equation

    def result(self) -> Value:
        operands = [
            _Operand(value, letters)
            for value, letters in zip(self.node.inputs, self.equation.operands, strict=True)
            if value is not None
        ]
        done = operands[0]
        for index, operand in enumerate(operands[1:], start=2):
            later = "".join((*(item.letters for item in operands[index:]), self.equation.result))
            done = self.product(done, operand, later, self.equation.result if index == len(operands) else "")
        return self.transposed(self.summed(done, self.equation.result), self.equation.result).value

    def product(self, first: _Operand, second: _Operand, wanted: str, order: str) -> _Operand:
        """Multiply two operands; letters that are not ``wanted`` are summed over. ``order`` is what would suit best."""
        first, second = self.summed(first, second.letters + wanted), self.summed(second, first.letters + wanted)
        both = [x for x in first.letters if x in second.letters]
        batch, inner = [x for x in both if x in wanted], [x for x in both if x not in wanted]
        if not inner:
            letters = order or _union(first.letters, second.letters)
            sides = [self.aligned(operand, letters) for operand in (first, second)]
            return self.made("Mul", sides, letters)
        if self.swaps(first, second, both, order):
            first, second = second, first
        rows, columns = ([x for x in operand.letters if x not in both] for operand in (first, second))
        batch = [x for x in order if x in batch] or batch
        inner = [x for x in second.letters if x in inner]
        left = self.flattened(first, [*([x] for x in batch), rows, inner])
        right = self.flattened(second, [*([x] for x in batch), inner, columns])
        sizes = self.sizes(batch)
        flat = self.add("MatMul", [left, right], [*sizes, self.count(rows), self.count(columns)])
        letters = "".join((*batch, *rows, *columns))
        return _Operand(self.reshaped(flat, self.sizes(letters)), letters)

    def swaps(self, first: _Operand, second: _Operand, both: Sequence[str], order: str) -> bool:
        """Tell whether the second operand should come first: kernels want weights second, and else what is saved is
        the Transpose behind."""
        if (constant(first.value) is None) != (constant(second.value) is None):
            return constant(second.value) is None
        own = [x for x in order if x not in both]
        return bool(own) and own[-1] in first.letters and own[0] in second.letters

    def summed(self, operand: _Operand, kept: str) -> _Operand:
        axes = [axis for axis, letter in enumerate(operand.letters) if letter not in kept]
        if not axes:
            return operand
        letters = "".join(letter for letter in operand.letters if letter in kept)
        where = self.edit.constant(np.array(axes, np.int64), f"{self.base}_axes")
        value = self.add("ReduceSum", [operand.value, where], self.sizes(letters), {"keepdims": 0})
        return _Operand(value, letters)

    def transposed(self, operand: _Operand, letters: Iterable[str]) -> _Operand:
        order = "".join(letters)
        if order == operand.letters:
            return operand
        perm = [operand.letters.index(letter) for letter in order]
        array = constant(operand.value)
        if array is not None:
            value = self.edit.constant(np.ascontiguousarray(array.transpose(perm)), f"{operand.value.name}_transposed")
            return _Operand(value, order)
        sizes = self.equation.sizes
        if [x for x in order if sizes[x] != 1] == [x for x in operand.letters if sizes[x] != 1]:
            return _Operand(self.reshaped(operand.value, self.sizes(order)), order)
        return _Operand(self.add("Transpose", [operand.value], self.sizes(order), {"perm": perm}), order)

    def aligned(self, operand: _Operand, letters: str) -> Value:
        """Return the operand with the axes ``letters``, of size 1 where it has none."""
        ordered = self.transposed(operand, (x for x in letters if x in operand.letters))
        return self.reshaped(ordered.value, [self.equation.sizes[x] if x in operand.letters else 1 for x in letters])

    def flattened(self, operand: _Operand, groups: Sequence[Sequence[str]]) -> Value:
        """Return the operand with one axis for each group of letters."""
        ordered = self.transposed(operand, (letter for group in groups for letter in group))
        return self.reshaped(ordered.value, [self.count(group) for group in groups])

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        if static_shape(value) == tuple(shape):
            return value
        array = constant(value)
        if array is not None:
            return self.edit.constant(array.reshape(shape), f"{value.name}_reshaped")
        target = self.edit.constant(np.array(shape, np.int64), f"{self.base}_shape")
        return self.add("Reshape", [value, target], shape)

    def made(self, operator: str, inputs: Sequence[Value], letters: str) -> _Operand:
        return _Operand(self.add(operator, inputs, self.sizes(letters)), letters)

    def add(
        self, operator: str, inputs: Sequence[Value], shape: Sequence[int], attributes: dict[str, Any] | None = None
    ) -> Value:
        made = self.edit.insert_before(self.node, operator, inputs, attributes).outputs[0]
        self.edit.annotate(made, self.node.inputs[0].dtype if self.node.inputs[0] is not None else None, shape)
        return made

    @property
    def base(self) -> str:
        return self.node.name or "einsum"

    def sizes(self, letters: Iterable[str]) -> list[int]:
        return [self.equation.sizes[letter] for letter in letters]

    def count(self, letters: Iterable[str]) -> int:
        return prod(self.sizes(letters))


def _union(first: str, second: str) -> str:
    return first + "".join(letter for letter in second if letter not in first)
