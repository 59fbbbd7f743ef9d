"""Pads in front of convolutions and pools: into their own padding.

Before::

    p = Pad(x, [0, 0, 0, 0, 0, 0, 1, 1])      # zeros
    y = Conv<strides = [2, 2]>(p, w)

After::

    y = Conv<strides = [2, 2], pads = [0, 0, 1, 1]>(x, w)

Every reader of the Pad has to take it in, otherwise nothing is done. A reshape that only adds dimensions of size 1 may
stand in between (a one-dimensional convolution written as a two-dimensional one). What each reader needs:

- Conv: zeros on spatial axes, ``auto_pad`` NOTSET or VALID;
- AveragePool: zeros, which its mean then has to count, so ``count_include_pad`` becomes 1;
- MaxPool: what never is the maximum: -inf, the least integer, or 0 behind an operator that gives nothing below 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.analysis.views import is_view, moves_only_ones, reshape_target, view_shape
from graphopt.ir import DataType, Dim, Model, Node, Value, attr, opset, rank_of, shape_of
from graphopt.ir.facts import pad_value, pads_of
from graphopt.ir.query import scalar, sole_use
from graphopt.pipeline import Changes, Pass, PassContext

NOT_NEGATIVE = ("Abs", "Exp", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus")
"""Operators whose output is never below 0."""


@dataclass(frozen=True)
class Padding:
    """What a Pad adds before and after each axis, and the value that it fills in."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    fill: float

    def through(self, origin: list[int | None]) -> Padding:
        """Return the padding behind a reshape whose output dimensions are the input dimensions ``origin``."""
        begins = tuple(0 if axis is None else self.begins[axis] for axis in origin)
        return Padding(begins, tuple(0 if axis is None else self.ends[axis] for axis in origin), self.fill)


@dataclass(frozen=True, kw_only=True)
class FusePad(Pass):
    """Put a constant Pad into the padding of the Conv, AveragePool or MaxPool that reads it."""

    name: ClassVar[str] = "fuse-pad"
    preserves: ClassVar = (Shapes,)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Look at the readers of each Pad."""
        changes, pads = Changes(), ctx.nodes("Pad")
        if not pads:
            return changes
        ctx.get(Shapes)
        for node in pads:
            if node.graph is not None and _fuse(node, ctx, opset(model)):
                changes["pads fused"] += 1
        return changes


def _fuse(node: Node, ctx: PassContext, version: int) -> bool:
    source, padded = node.inputs[0], node.outputs[0]
    view = sole_use(padded)
    behind = view.outputs[0] if view is not None and is_view(view) else padded
    readers = [use.node for use in behind.uses()]
    if source is None or not any(reader.op_type in _ACCEPTS for reader in readers):
        return False
    why = _obstacle(node, behind, version)
    padding = None if why else _padding(node, behind, version)
    if why or padding is None:
        ctx.missed("PAD001", node, why or "its amounts are computed, negative, or its shape is not known")
        return False
    for use in behind.uses():
        accepts = _ACCEPTS.get(use.node.op_type)
        if use.idx != 0 or use.node.domain != "" or accepts is None or not accepts(use.node, padding, node):
            ctx.missed("PAD002", node, f"{use.node.op_type} {use.node.name!r} reads it and cannot pad by itself")
            return False
    target = None
    if behind is not padded:
        shape = _unpadded(view_shape(behind.producer() or node), padding)
        target = reshape_target(shape_of(source), shape)
        if target is None:
            return False
    if not ctx.may_rewrite(node, f"let {len(readers)} nodes that read it pad by themselves"):
        return False
    for reader in dict.fromkeys(readers):
        _take_in(reader, padding, ctx)
    if target is None or view is None:
        ctx.edit.replace(node, [source])
        return True
    ctx.edit.annotate(behind, behind.dtype, _unpadded(shape_of(behind), padding))
    numbers = ctx.edit.constant(np.array(target, np.int64), f"{behind.name}_shape")
    ctx.edit.rewrite(view, "Reshape", [source, numbers])
    return True


def _obstacle(node: Node, behind: Value, version: int) -> str:
    if behind.is_graph_output() or node.outputs[0].is_graph_output():
        return "the padded value is an output"
    if attr(node, "mode", "constant") != "constant":
        return f"it pads by {attr(node, 'mode')}"
    return "" if pad_value(node, version) is not None else "the value that it pads with is computed"


def _padding(node: Node, behind: Value, version: int) -> Padding | None:
    amounts, fill = pads_of(node, version), pad_value(node, version)
    if amounts is None or fill is None or min((*amounts[0], *amounts[1]), default=0) < 0:
        return None
    padding = Padding(tuple(amounts[0]), tuple(amounts[1]), fill)
    view = behind.producer()
    if view is node or view is None:
        return padding
    origin = moves_only_ones(view)
    padded = [axis for axis in range(len(padding.begins)) if padding.begins[axis] or padding.ends[axis]]
    if origin is None or any(axis not in origin for axis in padded):
        return None
    return padding.through(origin)


def _unpadded(shape: tuple[Dim, ...] | None, padding: Padding) -> list[Dim] | None:
    if shape is None:
        return None
    added = [a + b for a, b in zip(padding.begins, padding.ends, strict=True)]
    return [
        dim - more if isinstance(dim, int) else (None if more else dim) for dim, more in zip(shape, added, strict=True)
    ]


def _spatial(node: Node, padding: Padding) -> bool:
    """Tell whether only spatial axes are padded and the reader's own padding is explicit."""
    if rank_of(node.inputs[0]) != len(padding.begins) or len(padding.begins) < 3:
        return False
    outside = (*padding.begins[:2], *padding.ends[:2])
    return not any(outside) and attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")


def _total(node: Node, padding: Padding) -> list[int]:
    added = [*padding.begins[2:], *padding.ends[2:]]
    own = attr(node, "pads", [0] * len(added)) if attr(node, "auto_pad", "NOTSET") == "NOTSET" else [0] * len(added)
    return [a + b for a, b in zip(own, added, strict=True)]


def _take_in(node: Node, padding: Padding, ctx: PassContext) -> None:
    total = _total(node, padding)
    ctx.edit.set_attr(node, "auto_pad", None)
    ctx.edit.set_attr(node, "pads", total)
    if node.op_type == "AveragePool":
        ctx.edit.set_attr(node, "count_include_pad", 1)


def _conv_accepts(node: Node, padding: Padding, pad: Node) -> bool:
    return padding.fill == 0 and _spatial(node, padding)


def _pool_fits(node: Node, padding: Padding) -> bool:
    """Pools want less padding than their kernel covers, so that no window lies in the padding alone, which one with
    dilation can in any case; and rounding up counts from the padded size."""
    kernel = attr(node, "kernel_shape", [])
    dilated = any(step != 1 for step in attr(node, "dilations", []))
    if attr(node, "ceil_mode", 0) or dilated or not _spatial(node, padding):
        return False
    return all(amount < size for amount, size in zip(_total(node, padding), [*kernel, *kernel], strict=True))


def _average_accepts(node: Node, padding: Padding, pad: Node) -> bool:
    counted = attr(node, "count_include_pad", 0) or not any(attr(node, "pads", []))
    return padding.fill == 0 and bool(counted) and _pool_fits(node, padding)


def _max_accepts(node: Node, padding: Padding, pad: Node) -> bool:
    return len(node.outputs) == 1 and _is_never_maximum(padding.fill, pad.inputs[0]) and _pool_fits(node, padding)


def _is_never_maximum(fill: float, value: Value | None) -> bool:
    if value is None:
        return False
    if value.dtype == DataType.UINT8:
        return fill == 0
    if value.dtype == DataType.INT8:
        return fill == -128
    if fill == -np.inf:
        return True
    producer = value.producer()
    if fill != 0 or producer is None or producer.domain != "":
        return False
    if producer.op_type == "Clip":
        least = scalar(producer.inputs[1]) if len(producer.inputs) > 1 else attr(producer, "min")
        return least is not None and least >= 0
    return producer.op_type in NOT_NEGATIVE


_ACCEPTS = {"Conv": _conv_accepts, "AveragePool": _average_accepts, "MaxPool": _max_accepts}
