"""Cross-layer equalization: channels that differ much in size are brought to one size, at no cost.

Before, where the channels of W1 differ by orders of magnitude::

    h = Relu(Conv(x, W1, b1))
    y = Conv(h, W2, b2)

After, with s = sqrt(r1 * r2) / r2 for each channel (Nagel et al. 2019, section 4.1)::

    h = Relu(Conv(x, W1 / s, b1 / s))
    y = Conv(h, W2 * s, b2)

Here r1 is the largest absolute weight that produces a channel and r2 the largest that reads it.
Every value whose channels must be scaled alike is found first: through activations that commute with a positive factor,
pooling, data movement and residual sums, with all who produce it and all who read it. Chains of such values, as around
a depthwise convolution, are balanced in turns until nothing moves.

A large bias is absorbed (section 4.1.3) with calibration data and ``absorb``: where a channel in front of a Relu never
fell below c > 0, c is taken off its bias and W2 c is added to the bias behind. That, and ``relu6=relu``, which turns
Clip(0, 6) into Relu where calibration data hardly ever reaches 6, keep the outputs on such data only; both are off
unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis import Shapes
from graphopt.analysis.statistics import Histogram, Request
from graphopt.ir import Model, Node, is_constant
from graphopt.ir import linear as layers
from graphopt.ir.query import place, scalar, sole_use
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.balance import balanced
from graphopt.quantization.regions import Region
from graphopt.quantization.scaling import divide, refusal, regions_behind

_BALANCED = 0.02
"""Scales this close to one (in logarithms) are left alone."""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class EqualizeLayers(Pass):
    """Scale channels between neighbouring layers so that none dwarfs the others when they share a grid."""

    name: ClassVar[str] = "equalize-layers"
    preserves: ClassVar = (Shapes,)
    relu6: str = option(
        "keep",
        "Clip(0, c): relu puts a Relu in its place, with calibration data",
        choices=("keep", "relu"),
    )
    clipped: float = option(1e-4, "share of the numbers that relu6=relu may let through unclipped", ge=0, lt=1)
    absorb: bool = option(False, "move what is always positive from biases to the next layer, by calibration data")
    growth: int = option(1 << 20, "bytes that the copy of a shared weight may take", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Open the clips, collect the regions, balance all together, scale one after the other, then move biases."""
        changes = Changes()
        if len(ctx.nodes(*_LAYERS)) < 2:
            return changes
        ctx.get(Shapes)
        if self.relu6 == "relu" and _has_data(ctx, "EQL003", "relu6=relu"):
            changes["clips opened"] = self._open_clips(ctx)
        regions = [region for region in regions_behind(ctx.nodes(*_LAYERS)) if _is_wanted(region, ctx)]
        for region, scale in zip(regions, balanced(regions), strict=True):
            changes["equalized"] += self._scale(region, scale, ctx)
        if self.absorb and _has_data(ctx, "EQL003", "absorb"):
            changes["biases moved"] = self._absorb(ctx)
        return changes

    def _scale(self, region: Region, scale: NDArray[np.float64], ctx: PassContext) -> bool:
        node = region.sources[0].node
        if np.abs(np.log(scale)).max(initial=0.0) < _BALANCED:
            return False
        why = refusal(region, scale, self.growth)
        if why is not None:
            ctx.missed("EQL002", node, why, f"{self.name}{{growth=...}} sets how much copies may take")
            return False
        readers = ", ".join(repr(end.node.name) for end in region.sinks)
        if not ctx.may_rewrite(node, f"balance its channels with {readers}"):
            return False
        divide(ctx.edit, region, scale)
        return True

    def _open_clips(self, ctx: PassContext) -> int:
        """Put Relu in place of each Clip(0, c) whose input hardly ever exceeds c."""
        asked: dict[Node, Request] = {}
        for node in ctx.nodes("Clip"):
            source = node.inputs[0]
            bounds = [scalar(value) for value in node.inputs[1:3]]
            if source is not None and source.name and len(bounds) == 2 and bounds[0] == 0 and bounds[1] is not None:
                asked[node] = Request(source.name, "histogram")
        found = ctx.statistics(list(asked.values()))
        opened = 0
        for node, request in asked.items():
            share = _share_above(found[request], float(scalar(node.inputs[2])))
            if share > self.clipped:
                ctx.missed("EQL004", node, f"{share:.2%} of its numbers are clipped, so it stays", "clipped=SHARE")
            elif ctx.may_rewrite(node, f"clips {share:.2%} of the numbers: make it a Relu"):
                ctx.edit.rewrite(node, "Relu", [node.inputs[0]])
                opened += 1
        return opened

    def _absorb(self, ctx: PassContext) -> int:
        """Move what each channel in front of a Relu never falls below into the bias of the layer behind it."""
        asked = {}
        for relu in ctx.nodes("Relu"):
            found = _pair_around(relu)
            if found is not None and relu.inputs[0] is not None and relu.inputs[0].name:
                axis = found[0].axis
                asked[relu] = (*found, Request(relu.inputs[0].name, "channel_range", axis=axis))
        lows = ctx.statistics([request for *_, request in asked.values()])
        moved = 0
        for relu, (first, second, request) in asked.items():
            offset = np.maximum(lows[request].low.astype(np.float64), 0.0)
            # What a second run still finds is the rounding of the first.
            offset[offset < 1e-3 * float(lows[request].high.max(initial=0.0))] = 0.0
            moved += bool(offset.any()) and self._move_bias(relu, first, second, offset, ctx)
        return moved

    def _move_bias(
        self, relu: Node, first: layers.Linear, second: layers.Linear, offset: NDArray[np.float64], ctx: PassContext
    ) -> bool:
        ahead = layers.rescaled_input(second, np.ones(offset.size), offset)
        behind = layers.rescaled(first, np.ones(offset.size), -offset)
        if ahead is None or behind is None or not layers.can_hold(second, ahead[1]):
            return False
        if not layers.can_hold(first, behind[1]) or not ctx.may_rewrite(relu, "absorb the bias in front of it"):
            return False
        layers.write(ctx.edit, first, *behind)
        layers.write(ctx.edit, second, *ahead)
        return True


def _has_data(ctx: PassContext, code: str, wish: str) -> bool:
    has_data = ctx.runner is not None and ctx.runner.has_data
    if not has_data:
        ctx.missed(code, None, f"{wish} needs calibration data, so it is left out", "give a data set with --data")
    return has_data


def _share_above(histogram: Histogram, bound: float) -> float:
    above = histogram.edges[:-1] >= bound
    return float(histogram.counts[above].sum()) / max(histogram.total, 1)


def _pair_around(relu: Node) -> tuple[layers.Linear, layers.Linear] | None:
    """Return the layer in front of a Relu and the one behind it, where biases can move: one reader each, no padding."""
    source = relu.inputs[0]
    first, second = layers.linear_behind(source), layers.linear_ahead(relu.outputs[0])
    if first is None or second is None or source is None or sole_use(source) is not relu:
        return None
    if not layers.pads_nothing(second.node) or layers.input_channels(second) != first.channels:
        return None
    return (first, second) if is_constant(second.weight) and first.node.graph is second.node.graph else None


def _is_wanted(region: Region, ctx: PassContext) -> bool:
    """Tell whether weights stand on both sides of the region and nothing is in the way; say so where something is."""
    if not all(any(end.is_linear for end in ends) for ends in (region.sources, region.sinks)):
        return False
    if region.blocked is not None:
        where, why = region.blocked
        name = place(where) if isinstance(where, Node) else f"the value {where.name!r}"
        ctx.missed("EQL001", region.sources[0].node, f"not balanced with those who read it, because of {name}: {why}")
        return False
    return all(end.is_linear for end in (*region.sources, *region.sinks))
