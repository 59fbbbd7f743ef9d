"""Initializers with equal content are stored once.

Before::

    <float[2] a = {1, 2}, float[2] b = {1, 2}>
    y = Add(x, a)
    z = Mul(y, b)

After::

    <float[2] a = {1, 2}>
    y = Add(x, a)
    z = Mul(y, a)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.ir import DataType, Model, TensorProtocol, Value, tensor_hash
from graphopt.ir.query import shape_of, tensor_of
from graphopt.ir.tensors import SparseInitializer, UnresolvedTensor, quantization_annotation
from graphopt.pipeline import Changes, Pass, PassContext, option

SAMPLE = 16
"""Elements of a large tensor that are looked at first."""


@dataclass(frozen=True, kw_only=True)
class MergeInitializers(Pass):
    """Let one initializer stand for all that hold the same tensor.

    Content is read only where dtype, shape and a sample of the elements agree. Initializers that callers may override
    or receive as outputs stay.
    """

    name: ClassVar[str] = "merge-initializers"
    preserves: ClassVar = (Shapes,)

    min_elements: int = option(0, "leave initializers with fewer elements alone", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Group by what is cheap to look at, then by hash."""
        changes = Changes()
        groups: dict[tuple[object, ...], list[Value]] = {}
        for value in model.graph.initializers.values():
            tensor = tensor_of(value)
            if tensor is not None and tensor.size >= self.min_elements and not quantization_annotation(value):
                groups.setdefault((tensor.dtype, shape_of(value)), []).append(value)
        for group in groups.values():
            for alike in _by_sample(group) if len(group) > 1 else ():
                _merge(alike, ctx, changes)
        return changes


def _by_sample(group: list[Value]) -> list[list[Value]]:
    """Split large tensors of one dtype and shape by a few of their elements, so that few are read as a whole."""
    found: dict[bytes, list[Value]] = {}
    for value in group:
        tensor = tensor_of(value)
        if tensor is not None:
            found.setdefault(_sample(tensor), []).append(value)
    return [alike for alike in found.values() if len(alike) > 1]


def _sample(tensor: TensorProtocol) -> bytes:
    lazy = isinstance(tensor, SparseInitializer | UnresolvedTensor) or tensor.dtype == DataType.STRING
    if lazy or tensor.size <= SAMPLE * SAMPLE:
        return b""
    flat = tensor.numpy().reshape(-1)
    return bytes(flat[:: flat.size // SAMPLE].tobytes())


def _merge(alike: list[Value], ctx: PassContext, changes: Changes) -> None:
    kept: dict[str, Value] = {}
    # A graph output cannot give way to another value, so it is the one to keep.
    for value in sorted(alike, key=lambda value: not value.is_graph_output()):
        tensor = tensor_of(value)
        if tensor is None:
            continue
        first = kept.setdefault(tensor_hash(tensor), value)
        if first is value or value.is_graph_output():
            continue
        if ctx.may_rewrite(value, f"use the equal initializer {first.name}"):
            ctx.edit.replace_uses(value, first)
            ctx.edit.erase_constant(value)
            changes["initializers merged"] += 1
