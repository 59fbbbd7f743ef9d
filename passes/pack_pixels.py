"""Convolutions of few channels over blocks of 2 x 2 pixels as channels, for targets that take many channels at a time.

Before, over an image of three channels::

    y = Conv <kernel_shape = [7, 7], strides = [2, 2], pads = [3, 3, 3, 3]> (x, w)

After, twelve channels of half the rows and columns, and kernels of blocks instead of pixels::

    b = Conv <kernel_shape = [2, 2], strides = [2, 2]> (x, choose)      # each weight is 0 or 1
    y = Conv <kernel_shape = [4, 4], strides = [1, 1], pads = [2, 2, 1, 1]> (b, v)

This is the space-to-depth transform (Qualcomm's QNN SDK, HTP network design recommendations), as a convolution because
that runs wherever the layer itself does. Where few channels take as long as many (``packed_inputs`` in the target's
facts, or ``channels``), a layer takes as long as its kernel has elements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis import Shapes
from graphopt.ir import Model, Node, attr, constant
from graphopt.ir.query import static_shape
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.layers import unfold_of

_BLOCK = 2
_LEAST = 4
"""A convolution takes no less than one with so many elements in its kernel does."""


@dataclass(frozen=True)
class _Axis:
    """One axis in blocks: so many in a ``kernel``, padded by ``begin`` and ``end`` blocks.

    In its first block the kernel of pixels starts at pixel ``lead``.
    """

    kernel: int
    begin: int
    end: int
    lead: int


@dataclass(frozen=True, kw_only=True)
class PackPixels(Pass):
    """Write convolutions with strides over few channels as ones over blocks of pixels, where that takes less."""

    name: ClassVar[str] = "pack-pixels"
    preserves: ClassVar = (Shapes,)

    channels: int = option(0, "channels that take as long as one, 0 for what the target's facts say", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text."""
        changes = Changes()
        together = self.channels or ctx.host_or_target.packed_inputs
        if not together:
            return changes
        ctx.get(Shapes)
        for node in ctx.nodes("Conv"):
            weights = constant(node.inputs[1])
            if weights is None or not _may_gain(node, weights, together):
                continue
            axes = _axes(node, weights)
            if axes is None:
                why = "stays: its rows and columns are not known, or odd, or not all of them are read"
                ctx.missed("PACK001", node, why)
                continue
            if _gains(weights, axes, together) and ctx.may_rewrite(node, "convolve blocks of pixels"):
                _rewrite(node, weights, axes, ctx)
                changes["convolutions"] += 1
        return changes


def _may_gain(node: Node, weights: NDArray[Any], together: int) -> bool:
    if weights.ndim != 4 or _BLOCK**2 * weights.shape[1] > together:
        return False
    strided = list(attr(node, "strides", [1, 1])) == [_BLOCK, _BLOCK]
    return strided and attr(node, "group", 1) == 1 and list(attr(node, "dilations", [1, 1])) == [1, 1]


def _axes(node: Node, weights: NDArray[Any]) -> tuple[_Axis, _Axis] | None:
    """Return how the convolution reads blocks of rows and of columns, None where it does not read whole blocks."""
    source, result = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    if source is None or result is None:
        return None
    pads = unfold_of(node, weights.shape).pads
    found = []
    for size, left, kernel, pad in zip(source[2:], result[2:], weights.shape[2:], pads[:2], strict=True):
        first, last = -pad // _BLOCK, (kernel - 1 - pad) // _BLOCK
        end = left - size // _BLOCK + last
        if size % _BLOCK or end < 0 or first > 0:
            return None
        found.append(_Axis(last - first + 1, -first, end, -pad % _BLOCK))
    return found[0], found[1]


def _gains(weights: NDArray[Any], axes: tuple[_Axis, _Axis], together: int) -> bool:
    groups = -(-int(weights.shape[0]) // together)
    before = max(int(weights.shape[2]) * int(weights.shape[3]), _LEAST) * groups
    return before > max(axes[0].kernel * axes[1].kernel, _LEAST) * groups + max(_BLOCK**2, _LEAST)


def _rewrite(node: Node, weights: NDArray[Any], axes: tuple[_Axis, _Axis], ctx: PassContext) -> None:
    value, shape = node.inputs[0], static_shape(node.inputs[0])
    assert value is not None and shape is not None
    channels = weights.shape[1]
    base = node.name or node.outputs[0].name or "conv"
    choose = np.eye(_BLOCK**2 * channels, dtype=weights.dtype).reshape(-1, _BLOCK, _BLOCK, channels)
    chosen = ctx.edit.constant(np.ascontiguousarray(choose.transpose(0, 3, 1, 2)), f"{base}_choose")
    blocks: dict[str, int | list[int]] = {"kernel_shape": [_BLOCK, _BLOCK], "strides": [_BLOCK, _BLOCK]}
    packed = ctx.edit.insert_before(node, "Conv", [value, chosen], blocks, name=f"{base}/blocks").outputs[0]
    halved = [size // _BLOCK for size in shape[2:]]
    ctx.edit.annotate(packed, value.dtype, [shape[0], _BLOCK**2 * channels, *halved])
    rows, columns = axes
    kernel = ctx.edit.constant(_in_blocks(weights, axes), f"{base}_blocks")
    attributes: dict[str, int | list[int]] = {
        "kernel_shape": [rows.kernel, columns.kernel],
        "pads": [rows.begin, columns.begin, rows.end, columns.end],
    }
    ctx.edit.rewrite(node, "Conv", [packed, kernel, *node.inputs[2:]], attributes)


def _in_blocks(weights: NDArray[Any], axes: tuple[_Axis, _Axis]) -> NDArray[Any]:
    """Return weights [O, C, rows, columns] as [O, 4 C, rows, columns] of blocks, the pixels of a block in rows."""
    outputs, channels, rows, columns = weights.shape
    top, left = (axis.lead for axis in axes)
    wide = np.zeros((outputs, channels, axes[0].kernel * _BLOCK, axes[1].kernel * _BLOCK), weights.dtype)
    wide[:, :, top : top + rows, left : left + columns] = weights
    split = wide.reshape(outputs, channels, axes[0].kernel, _BLOCK, axes[1].kernel, _BLOCK)
    return np.ascontiguousarray(split.transpose(0, 3, 5, 1, 2, 4)).reshape(outputs, -1, *(axis.kernel for axis in axes))
