"""Nodes that depend on constants only are computed now.

Before::

    <float[2, 3] w>
    t = Transpose(w)
    n = Neg(t)
    y = MatMul(x, n)

After::

    <float[3, 2] n>
    y = MatMul(x, n)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.constants import ConstantCone, decodes_codebook
from graphopt.errors import ModelError
from graphopt.ir import Model, Node, Value, constant, constant_size, is_constant
from graphopt.ir.query import attr, shape_of, static_shape
from graphopt.ir.skeleton import LIGHT_ELEMENTS
from graphopt.pipeline import Changes, Pass, PassContext, option

Array = np.ndarray[Any, Any]
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Operators whose output has the bytes of their input: never computed, so that no weight is copied."""


@dataclass
class _State:
    """What is known while the pass runs: the nodes that are left alone, the bytes held by results so far."""

    excluded: set[Node] = field(default_factory=set)
    held: int = 0


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Compute nodes that depend on constants only, in one run of the runtime per sweep.

    A result may take ``max_growth`` bytes more than the constants that it makes superfluous, and so may every value on
    the way to it: larger ones are refused before they are computed. Results of operators whose size hangs on results of
    the same sweep wait for the next one. QuantizeLinear and DequantizeLinear stay, and so do weights that are places in
    a codebook, because folding them would store integer weights as floats.
    """

    name: ClassVar[str] = "fold-constants"
    refines: ClassVar = (Shapes,)
    preserves: ClassVar = (Shapes,)

    max_growth: int = option(1 << 20, "bytes that a result may take beyond the constants it replaces", ge=0)
    max_memory: int = option(1 << 28, "bytes that all results, and what is on the way to them, may take", ge=0)
    fold_quantizers: bool = option(False, "compute QuantizeLinear, DequantizeLinear and codebooks of constants too")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Sweep until nothing more can be computed."""
        changes = Changes()
        self._aliases(ctx, changes)
        self._shapes(ctx, changes)
        state = _State()
        if not self.fold_quantizers:
            state.excluded.update(node for node in ctx.nodes("Cast") if decodes_codebook(node))
        self._scalars(ctx, changes)
        while self._sweep(model, ctx, state, changes):
            self._scalars(ctx, changes)
        return changes

    def _aliases(self, ctx: PassContext, changes: Changes) -> None:
        for node in ctx.nodes("Identity"):
            source = node.inputs[0]
            if source is None or not is_constant(source) or node.outputs[0].is_graph_output():
                continue
            if source.graph is ctx.edit.model.graph and ctx.may_rewrite(node, "read a constant without an Identity"):
                ctx.edit.replace(node, [source])
                changes["aliases removed"] += 1

    def _shapes(self, ctx: PassContext, changes: Changes) -> None:
        candidates = ctx.nodes("Shape", "Size")
        if candidates:
            ctx.get(Shapes)
        for node in candidates:
            array = None if node.graph is None else _known_shape(node)
            if array is not None and ctx.may_rewrite(node, f"replace {node.op_type} of a known shape by a constant"):
                _put(ctx, node.outputs[0], array)
                changes["shapes folded"] += 1

    def _scalars(self, ctx: PassContext, changes: Changes) -> None:
        """Give Range scalars: onnxruntime runs it on vectors of one element, but not once they are constants."""
        for node in ctx.nodes("Range"):
            for index, value in enumerate(node.inputs):
                array = constant(value) if constant_size(value) == 1 else None
                if value is None or array is None or not array.ndim:
                    continue
                if not ctx.may_rewrite(node, f"make input {index} a scalar"):
                    continue
                ctx.edit.set_input(node, index, ctx.edit.constant(array.reshape(()), f"{node.outputs[0].name}_{index}"))
                ctx.edit.drop_unread(value)
                changes["vectors made scalars"] += 1

    def _sweep(self, model: Model, ctx: PassContext, state: _State, changes: Changes) -> bool:
        """Make one sweep; returns whether another may find more."""
        cone = ConstantCone.build(model, state.excluded, () if self.fold_quantizers else QUANTIZERS)
        self._refuse(cone, ctx, state)
        left_alone = len(state.excluded)
        done = False
        for batch in self._batches(cone, ctx, state):
            for value, array in _evaluate(batch, cone, ctx, state):
                node = value.producer()
                if node is None or not ctx.may_rewrite(node, "compute a node that depends on constants only"):
                    return False
                _put(ctx, value, array)
                state.held += array.nbytes
                changes["values folded"] += 1
                done = True
        return done or len(state.excluded) > left_alone

    def _refuse(self, cone: ConstantCone, ctx: PassContext, state: _State) -> None:
        """Leave out, before anything is computed, what is too large or of unknown size."""
        while True:
            refused: set[Node] = set()
            for node in cone.order:
                size = cone.nbytes(node)
                if size is None:
                    refused.add(node)
                    if all(value is None or is_constant(value) for value in node.inputs):
                        state.excluded.add(node)
                        ctx.missed("FOLD002", node, "the size of its output cannot be told, or its sizes are invalid")
                elif size > cone.budget[node] + self.max_growth:
                    refused.add(node)
                    state.excluded.add(node)
                    ctx.missed(
                        "FOLD001",
                        node,
                        _too_large(size, cone.budget[node] + self.max_growth),
                        "raise the option max_growth to have it folded",
                    )
            if not refused:
                return
            cone.drop(refused)

    def _batches(self, cone: ConstantCone, ctx: PassContext, state: _State) -> Iterator[list[Value]]:
        """Yield the values to compute: all at once, or one by one where memory cannot hold all that is behind them."""
        values = cone.frontier()
        if sum(_memory(node, cone) for node in cone.order) + state.held <= self.max_memory:
            if values:
                yield values
            return
        for value in values:
            node = value.producer()
            size = sum(_memory(node, cone) for node in cone.behind(value)) + state.held
            if size <= self.max_memory:
                yield [value]
            elif node is not None:
                state.excluded.add(node)
                hint = "raise the option max_memory to have it folded"
                ctx.missed("FOLD004", node, _too_large(size, self.max_memory), hint)


def _evaluate(
    values: list[Value], cone: ConstantCone, ctx: PassContext, state: _State
) -> Iterator[tuple[Value, Array]]:
    """Yield values with their arrays; where the runtime refuses, those that it computes without the culprit."""
    views = {value: array for value in values if (array := _view(value, cone)) is not None}
    yield from views.items()
    rest = [value for value in values if value not in views]
    if not rest:
        return
    try:
        arrays = ctx.evaluate(rest)
    except ModelError as error:
        if len(rest) == 1:
            culprit = _culprit(rest[0], cone, ctx)
            state.excluded.add(culprit)
            ctx.missed("FOLD003", culprit, f"the runtime does not compute it: {error.message}")
            return
        half = len(rest) // 2
        yield from _evaluate(rest[:half], cone, ctx, state)
        yield from _evaluate(rest[half:], cone, ctx, state)
        return
    yield from zip(rest, arrays, strict=True)


def _culprit(value: Value, cone: ConstantCone, ctx: PassContext) -> Node:
    """Return the first node behind ``value`` that cannot be run, found by halving."""
    order = cone.behind(value)
    low, high = 0, len(order) - 1
    while low < high:
        middle = (low + high) // 2
        try:
            ctx.evaluate([node.outputs[0] for node in order[: middle + 1] if node.outputs[0].name])
            low = middle + 1
        except ModelError:
            high = middle
    return order[low]


def _is_view(node: Node) -> bool:
    return node.op_type in VIEWS and node.inputs[0] is not None and is_constant(node.inputs[0])


def _view(value: Value, cone: ConstantCone) -> Array | None:
    """Return the result of a node that gives its constant input another shape, without copying it."""
    node = value.producer()
    shape = cone.facts.get(value, (None, None))[1]
    if node is None or not _is_view(node) or shape is None:
        return None
    array, sizes = constant(node.inputs[0]), [dim for dim in shape if isinstance(dim, int)]
    if array is None or len(sizes) != len(shape) or math.prod(sizes) != array.size:
        return None
    return array.reshape(sizes)


def _memory(node: Node, cone: ConstantCone) -> int:
    return 0 if _is_view(node) else cone.nbytes(node) or 0


def _known_shape(node: Node) -> Array | None:
    """Return what a Shape or Size node gives where the sizes that it asks for are known."""
    if node.op_type == "Size":
        static = static_shape(node.inputs[0])
        return None if static is None else np.array(math.prod(static), np.int64)
    shape = shape_of(node.inputs[0])
    if shape is None:
        return None
    dims = shape[attr(node, "start", 0) : attr(node, "end", len(shape))]
    return np.array(dims, np.int64) if all(isinstance(dim, int) for dim in dims) else None


def _put(ctx: PassContext, value: Value, array: Array) -> None:
    """Put ``array`` in place of ``value``; have shapes inferred anew where it may decide unknown ones."""
    readers = [output for use in value.uses() for output in use.node.outputs]
    ctx.edit.to_initializer(value, array)
    if array.dtype.kind in "iu" and array.size <= LIGHT_ELEMENTS and any(static_shape(out) is None for out in readers):
        ctx.analyses.drop(refined=(Shapes,))


def _too_large(size: int, limit: float) -> str:
    return f"it would take {size} bytes, {limit:.0f} are allowed"
