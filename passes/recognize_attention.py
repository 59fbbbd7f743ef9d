"""Decomposed multi-head attention as one operator of onnxruntime's.

Before (q, k and v of shape [batch, sequence, heads * size])::

    a = Transpose <perm = [0, 2, 1, 3]> (Reshape(q, [0, 0, 12, 32]))
    b = Transpose <perm = [0, 2, 3, 1]> (Reshape(k, [0, 0, 12, 32]))
    c = Transpose <perm = [0, 2, 1, 3]> (Reshape(v, [0, 0, 12, 32]))
    p = Softmax(Add(Mul(MatMul(a, b), 0.17678), mask))
    y = Reshape(Transpose <perm = [0, 2, 1, 3]> (MatMul(p, c)), [0, 0, 384])

After, where the target runs the domain ``com.microsoft``::

    y = com.microsoft::MultiHeadAttention <num_heads = 12, scale = 0.17678> (q, k, v, , , mask)

The factor may stand on q, k or the scores, as Mul or Div, or be missing. Without a mask, onnxruntime 1.31's CPU
provider takes 0.88 to 0.98 of the time of the parts and their projections (16 to 512 positions, one thread). The biases
of the projections stay Adds: in the operator's own input for them, the same takes 0.89 to 0.99. With a mask it is 0.93
to 1.02, but up to 1.04 for a width of 64 and 32 sequences of 16 positions, which is why a mask needs a width of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.size_facts import Sizes
from graphopt.analysis.symbolic import ONE, Expr
from graphopt.ir import DataType, Editor, Model, Node, Value, attr, opset, rank_of, shape_of
from graphopt.ir.query import scalar, sole_use
from graphopt.pipeline import Changes, Pass, PassContext

DOMAIN = "com.microsoft"
MASKED_WIDTH = 256
"""heads * size from which on a mask is taken over: it costs the operator a copy for each head."""
_HEADS_FIRST = [0, 2, 1, 3]
_KEYS_LAST = [0, 2, 3, 1]
SizesOf = Callable[[Value | None], Sizes | None]


class _MisfitError(Exception):
    """Says why the operator could not stand for an attention."""


@dataclass(frozen=True)
class _Core:
    """``weighted = softmax(scale * scores + mask) @ values``; ``misfit`` says why the operator cannot stand for it."""

    softmax: Node
    scores: Node
    scale: float
    mask: Value | None
    weighted: Node
    misfit: str = ""


@dataclass(frozen=True)
class _Heads:
    """A value [batch, length, heads * size], cut into heads; ``scale`` is the factor put on it after that."""

    value: Value
    batch: Expr
    length: Expr
    heads: int
    size: int
    scale: float


@dataclass(frozen=True)
class _Attention:
    parts: tuple[_Heads, _Heads, _Heads]
    scale: float
    mask: Value | None
    end: Node


@dataclass(frozen=True, kw_only=True)
class RecognizeAttention(Pass):
    """Replace decomposed multi-head attention by com.microsoft::MultiHeadAttention, where the target runs it."""

    name: ClassVar[str] = "recognize-attention"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Look around each Softmax."""
        changes = Changes()
        if ctx.target is None or DOMAIN not in ctx.target.domains:
            return changes
        cores = [core for node in ctx.nodes("Softmax") if (core := _core(node, opset(model))) is not None]
        if not cores:
            return changes
        sizes = ctx.get(ShapeValues).sizes
        for core in cores:
            try:
                found = _read(core, sizes)
            except _MisfitError as misfit:
                ctx.missed("ATT001", core.softmax, f"this attention stays in parts: {misfit}")
                continue
            if ctx.may_rewrite(found.end, "it ends a decomposed multi-head attention"):
                _write(found, ctx)
                changes["MultiHeadAttention"] += 1
        return changes


def _core(softmax: Node, version: int) -> _Core | None:
    """Return what is around a Softmax between two products, ``None`` where there is nothing of the kind."""
    weighted = _plain(sole_use(softmax.outputs[0]), "MatMul")
    if weighted is None or weighted.inputs[0] is not softmax.outputs[0]:
        return None
    last = attr(softmax, "axis", -1 if version >= 13 else 1) in (-1, 3)
    misfit = "" if last else "its Softmax is not over the last axis"
    source, mask = softmax.inputs[0], None
    masking = _plain(_private_producer(source), "Add", "Where")
    if masking is not None:
        first, second = masking.inputs[-2:]
        source, mask = (second, first) if _product_behind(first) is None else (first, second)
        misfit = "its mask is put in by Where, and the operator adds one" if masking.op_type == "Where" else misfit
    found = _product_behind(source)
    return None if found is None else _Core(softmax, *found, mask, weighted, misfit)


def _plain(node: Node | None, *operators: str) -> Node | None:
    """Return ``node`` if it is one of these operators of ONNX's."""
    return node if node is not None and node.op_type in operators and node.domain == "" else None


def _private_producer(value: Value | None) -> Node | None:
    """Return the node that computes ``value`` for one reader alone."""
    return None if value is None or sole_use(value) is None else value.producer()


def _product_behind(value: Value | None) -> tuple[Node, float] | None:
    """Return the MatMul that ``value`` comes from and the factor put on its result."""
    source, factor = _unscaled(value)
    node = _plain(_private_producer(source), "MatMul")
    return None if node is None else (node, factor)


def _unscaled(value: Value | None) -> tuple[Value | None, float]:
    """Go back through products with, and quotients by, a number; return where that ends and the factor."""
    total = 1.0
    while (node := _plain(_private_producer(value), "Mul", "Div")) is not None:
        left, right = node.inputs
        if node.op_type == "Mul" and scalar(left) is not None:
            left, right = right, left
        number = scalar(right)
        if number is None or number == 0 or (rank_of(right) or 0) > (rank_of(left) or 0):
            break
        total *= number if node.op_type == "Mul" else 1 / number
        value = left
    return value, total


def _read(core: _Core, sizes: SizesOf) -> _Attention:
    """Return the attention around a core. Raises _MisfitError."""
    if core.misfit:
        raise _MisfitError(core.misfit)
    if core.softmax.outputs[0].dtype != DataType.FLOAT:
        raise _MisfitError("the operator's CPU kernel is for float32")
    query = _heads(core.scores.inputs[0], _HEADS_FIRST, "queries", sizes)
    key = _heads(core.scores.inputs[1], _KEYS_LAST, "keys", sizes)
    values = _heads(core.weighted.inputs[1], _HEADS_FIRST, "values", sizes)
    if not query.heads == key.heads == values.heads:
        raise _MisfitError("queries, keys and values have different numbers of heads")
    if not query.batch == key.batch == values.batch:
        raise _MisfitError("queries, keys and values are not known to have the same batch size")
    scale = core.scale * query.scale * key.scale
    if values.scale != 1 or scale == 0 or not isfinite(scale):
        raise _MisfitError("it has a factor that the operator has no place for")
    if core.mask is not None and query.heads * query.size < MASKED_WIDTH:
        raise _MisfitError(f"it has a mask, and with a width below {MASKED_WIDTH} that makes the operator slower")
    if core.mask is not None and not _fits(sizes(core.mask), query, key):
        raise _MisfitError("its mask is not known to be [1 or batch, 1 or heads, queries, keys]")
    return _Attention((query, key, values), scale, core.mask, _end(core.weighted, query, values, sizes))


def _heads(value: Value | None, order: list[int], what: str, sizes: SizesOf) -> _Heads:
    """Return what is cut into heads and transposed to ``order`` to give ``value``. Raises _MisfitError."""
    axes = [0, 1, 2, 3]
    value, scale = _unscaled(value)
    while (node := _plain(_private_producer(value), "Transpose")) is not None and len(attr(node, "perm", ())) == 4:
        axes = [attr(node, "perm")[axis] for axis in axes]
        value, factor = _unscaled(node.inputs[0])
        scale *= factor
    reshape = None if value is None else _plain(value.producer(), "Reshape")
    whole = None if reshape is None else reshape.inputs[0]
    before, cut = sizes(whole), sizes(value)
    if whole is None or axes != order or before is None or cut is None or len(before) != 3 or len(cut) != 4:
        raise _MisfitError(f"its {what} come from no Reshape of [batch, length, width] to heads and Transpose")
    heads, size = cut[2].value, cut[3].value
    if heads is None or size is None or before[2].value != heads * size:
        raise _MisfitError(f"the number of heads of its {what} is not known")
    # Both hold the same number of elements: where one dimension stays, so does the other.
    if cut[0] != before[0] and cut[1] != before[1]:
        raise _MisfitError(f"the Reshape of its {what} is not known to keep batch and length")
    return _Heads(whole, before[0], before[1], heads, size, scale)


def _end(weighted: Node, query: _Heads, values: _Heads, sizes: SizesOf) -> Node:
    """Return the Reshape that puts the heads together again. Raises _MisfitError."""
    transpose = _plain(sole_use(weighted.outputs[0]), "Transpose")
    end = None if transpose is None else _plain(sole_use(transpose.outputs[0]), "Reshape")
    if transpose is None or end is None or list(attr(transpose, "perm") or ()) != _HEADS_FIRST:
        raise _MisfitError("its heads are not put together by Transpose and Reshape")
    shape = sizes(end.outputs[0])
    whole = shape is not None and len(shape) == 3 and shape[2].value == values.heads * values.size
    if not whole or shape is None or (shape[0] != query.batch and shape[1] != query.length):
        raise _MisfitError("its heads are not known to be put together to [batch, length, width]")
    return end


def _fits(mask: Sizes | None, query: _Heads, key: _Heads) -> bool:
    """Tell whether a mask has the shape that the operator takes, but for leading dimensions of 1."""
    if mask is None or not 2 <= len(mask) <= 4:
        return False
    batch, heads, queries, keys = (*(ONE,) * (4 - len(mask)), *mask)
    leading = batch in (ONE, query.batch) and heads.value in (1, query.heads)
    return leading and queries == query.length and keys == key.length


def _write(found: _Attention, ctx: PassContext) -> None:
    edit, end, (query, _, values) = ctx.edit, found.end, found.parts
    if DOMAIN not in edit.model.opset_imports:
        edit.set_opset(1, DOMAIN)
    inputs: list[Value | None] = [part.value for part in found.parts]
    if found.mask is not None:
        inputs += [None, None, _of_rank_4(found.mask, end, edit)]
    attributes = {"num_heads": query.heads, "scale": found.scale}
    node = edit.insert_before(end, "MultiHeadAttention", inputs, attributes, domain=DOMAIN)
    lengths = (shape_of(query.value) or (None, None))[:2]
    edit.annotate(node.outputs[0], DataType.FLOAT, (*lengths, values.heads * values.size))
    edit.replace(end, [node.outputs[0]])


def _of_rank_4(mask: Value, anchor: Node, edit: Editor) -> Value:
    shape = shape_of(mask) or ()
    axes = list(range(4 - len(shape)))
    if not axes:
        return mask
    by_input = opset(edit.model) >= 13
    inputs = [mask, edit.constant(np.array(axes), f"{mask.name}_axes")] if by_input else [mask]
    node = edit.insert_before(anchor, "Unsqueeze", inputs, None if by_input else {"axes": axes})
    edit.annotate(node.outputs[0], mask.dtype, (*[1] * len(axes), *shape))
    return node.outputs[0]
