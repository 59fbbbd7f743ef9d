"""Outlier channels of activations, scaled down where they are made and up again in the weights that read them.

Before, where a few channels of n are far larger than the others, so that a common grid is coarse for all of them::

    n = LayerNormalization(x, gamma, beta)
    q = MatMul(n, Wq)
    k = MatMul(n, Wk)

After, with one s for each channel and all readers (Xiao et al. 2022)::

    n = LayerNormalization(x, gamma / s, beta / s)
    q = MatMul(n, s * Wq)
    k = MatMul(n, s * Wk)

The factor is taken by a LayerNormalization, a Mul by a vector or a linear layer, also through attention (values to
output projection). Where others read n too, as in residual sums, or where an activation such as Gelu is in the way, a
Mul by 1 / s is put in front of the layers, provided that the expected error falls below the share ``insert``.

``alpha=auto`` takes the scale with the least expected error of rounding both sides to 8 bits; a number is the exponent
of the paper: s_j = max|x_j|**alpha / max|W_j|**(1 - alpha).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from graphopt.analysis import Shapes
from graphopt.analysis.statistics import CalibrationData, Statistics
from graphopt.errors import UsageError
from graphopt.ir import Model, Node, Value, attr, constant, rank_of
from graphopt.ir import linear as layers
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.migration import best_scale, error_of, loads_of, requests_of, smooth_scale
from graphopt.quantization.regions import End, Layout, Region
from graphopt.quantization.scaling import divide, refusal, regions_behind

_UNCHANGED = 0.02
"""Scales this close to one (in logarithms) are left alone."""

_SOURCES = ("LayerNormalization", "Mul", "Div", "Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class MigrateScales(Pass):
    """Move outliers of activations into the weights that read them, through normalisations and linear layers."""

    name: ClassVar[str] = "migrate-scales"
    needs: ClassVar = (CalibrationData,)
    preserves: ClassVar = (Shapes,)
    alpha: str = option("auto", "how much moves: a number from 0 to 1, or auto, by the expected error")
    insert: float = option(
        0.5, "insert a Mul where nothing takes the factor and the error falls below this share; 0: never", ge=0, le=1
    )
    convolutions: bool = option(False, "scale the inputs of convolutions too")
    growth: int = option(1 << 20, "bytes that the copy of a shared weight may take", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Find what can be scaled, measure it all in one run over the data, then scale."""
        if self.alpha != "auto" and not 0 <= _number(self.alpha) <= 1:
            raise UsageError("alpha must be auto or a number from 0 to 1", where=f"{self.name}{{alpha={self.alpha}}}")
        changes = Changes()
        ctx.get(Shapes)
        readers = ctx.nodes("Gemm", "MatMul", *(["Conv"] if self.convolutions else []))
        free = [region for region in regions_behind(ctx.nodes(*_SOURCES)) if self._is_wanted(region)]
        covered = {end.node for region in free for end in region.sinks}
        held = _inputs_of(node for node in readers if node not in covered) if self.insert else []
        requests = dict.fromkeys(request for region in (*free, *held) for request in requests_of(region))
        if not requests:
            return changes
        statistics = ctx.statistics(list(requests))
        for region in free:
            changes["migrated"] += self._migrate(region, statistics, ctx)
        for region in held:
            changes["factors inserted"] += self._insert(region, statistics, ctx)
        return changes

    def _is_wanted(self, region: Region) -> bool:
        kinds = {end.node.op_type if end.is_linear else "" for end in region.sinks}
        wanted = {"Gemm", "MatMul", "Conv"} if self.convolutions else {"Gemm", "MatMul"}
        return region.blocked is None and bool(region.sources) and bool(kinds) and kinds <= wanted

    def _scale(self, region: Region, statistics: Statistics) -> tuple[NDArray[np.float64], float] | None:
        """Return the scale and the share of the expected error that is left; ``None`` where nothing would change."""
        if any(request not in statistics for request in requests_of(region)):
            return None  # always empty, as calibration has said
        loads = loads_of(region, statistics)
        scale = best_scale(loads) if self.alpha == "auto" else smooth_scale(loads, float(self.alpha))
        if scale is None or np.abs(np.log(scale)).max(initial=0.0) < _UNCHANGED:
            return None
        return scale, error_of(loads, scale) / error_of(loads, np.ones(scale.size))

    def _migrate(self, region: Region, statistics: Statistics, ctx: PassContext) -> bool:
        found = self._scale(region, statistics)
        node = region.sources[0].node
        if found is None or not self._may_write(region, found[0], ctx):
            return False
        if not ctx.may_rewrite(node, f"scale its channels: {found[1]:.2f} of the expected error is left"):
            return False
        divide(ctx.edit, region, found[0])
        return True

    def _insert(self, region: Region, statistics: Statistics, ctx: PassContext) -> bool:
        found = self._scale(region, statistics)
        if found is None or not self._may_write(region, found[0], ctx):
            return False
        value, reader = next(iter(region.values)), region.sinks[0].node
        scale, left = found
        if left > self.insert:
            ctx.missed("MIG001", reader, f"a factor in front of it would leave {left:.2f} of the error", "insert=SHARE")
            return False
        producer = value.producer()
        what = f"scale its input by a Mul: {left:.2f} of the expected error is left"
        if producer is None or not ctx.may_rewrite(reader, what):
            return False
        factor = ctx.edit.constant((1 / scale).astype(_dtype(reader)), f"{value.name}_scale")
        scaled = ctx.edit.insert_after(producer, "Mul", [value, factor], like=value)
        for end in region.sinks:
            ctx.edit.set_input(end.node, 0, scaled.outputs[0])
        divide(ctx.edit, region, scale)
        return True

    def _may_write(self, region: Region, scale: NDArray[np.float64], ctx: PassContext) -> bool:
        why = refusal(region, scale, self.growth)
        if why is not None:
            ctx.missed("MIG002", region.sinks[0].node, why, f"{self.name}{{growth=...}} sets how much copies may take")
        return why is None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0


def _dtype(node: Node) -> np.dtype[Any]:
    weight = constant(node.inputs[1])
    return np.dtype(np.float32) if weight is None else weight.dtype


def _inputs_of(nodes: Iterable[Node]) -> list[Region]:
    """Return, for each value that linear layers of one graph read, these layers as a region of their own."""
    found: dict[Value, Region] = {}
    for node in nodes:
        layer, value = layers.linear_of(node), node.inputs[0]
        rank = rank_of(value)
        if layer is None or value is None or rank is None or attr(node, "transA", 0) or value.name is None:
            continue
        producer = value.producer()
        if rank < 2 or node.op_type == "Conv" or producer is None or producer.graph is not node.graph:
            continue
        layout = Layout((rank - 1,), (layers.input_channels(layer) or 0,))
        region = found.setdefault(value, Region(layout.sizes[0], {value: layout}))
        region.sinks.append(End(node, layout))
    return list(found.values())
