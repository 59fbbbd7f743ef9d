"""Insert Q/DQ pairs from calibration, where the target computes with integers.

Before::

    y = Conv(x, W, b)
    z = Relu(y)

After, W and b rounded to integers and with x and z on the grids that calibration chose::

    xq = DequantizeLinear(QuantizeLinear(x, sx, zx), sx, zx)
    y = Conv(xq, DequantizeLinear(Wq, sw, 0, axis=0), DequantizeLinear(bq, sx * sw, axis=0))
    z = Relu(y)
    zq = DequantizeLinear(QuantizeLinear(z, sz, zz), sz, zz)

No pair stands between a layer and the activation that its integer kernel computes too. Weights are rounded column by
column against the Gram matrix of the layer's input (``rounding=gram``), biases make up for the mean error that is left.

Regions where this machine's integer kernels lose against its float kernels stay in float (``placement=measured``); on
a target that is another machine nothing can be timed, and all that can be quantized is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from typing import Any, ClassVar

from graphopt.analysis import Shapes
from graphopt.analysis.cost import weight_bytes
from graphopt.analysis.statistics import CalibrationData
from graphopt.errors import TargetError, UsageError
from graphopt.ir import Model, Node, Value, opset
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.grid import Grid
from graphopt.quantization.guard import refuse_quantized
from graphopt.quantization.insert import Inserter, Layer
from graphopt.quantization.layers import LayerMatrix
from graphopt.quantization.measured import WORTH, Kept, Measured, Measurement
from graphopt.quantization.mixed import Bound, mixed
from graphopt.quantization.placement import LINEAR, Placement, place
from graphopt.quantization.plan import (
    Choices,
    ValueRange,
    chosen,
    layer_requests,
    quantized_layer,
    value_ranges,
    value_requests,
)
from graphopt.quantization.products import merge_biases
from graphopt.quantization.sensitivity import measure
from graphopt.quantization.trial import Plan
from graphopt.targets import Quantization

_INT4_OPSET = 21  # the first with tensors of 4-bit integers


@dataclass(frozen=True, kw_only=True)
class InsertQdq(Pass):
    """Quantize layers and what stays in integers between them, with Q/DQ pairs from calibration."""

    name: ClassVar[str] = "insert-qdq"
    lossless: ClassVar[bool] = False
    needs: ClassVar = (CalibrationData,)
    preserves: ClassVar = ()

    calibrate: str = option(
        "auto", "how ranges are estimated", choices=("minmax", "moving", "percentile", "entropy", "mse", "auto")
    )
    weight_bits: int = option(8, "bits of the weights", choices=(4, 8))
    weight_ranges: str = option("mse", "how ranges of weights are chosen", choices=("maxabs", "mse"))
    rounding: str = option("gram", "how weights are rounded", choices=("nearest", "gram"))
    correct_bias: bool = option(True, "let biases make up for the mean error of rounding")
    keep: str = option("", "names of nodes that stay in float: patterns with * and ?, separated by commas")
    placement: str = option(
        "measured", "quantize where integers are measured to be faster, or all that can be", choices=("measured", "all")
    )
    min_sqnr: float = option(0.0, "keep in float what it takes for so many dB at each output, 0 for no bound", ge=0)
    max_loss: float = option(-1.0, "keep in float what it takes for the metric to fall by no more, -1 for any", ge=-1)
    sensitivity: int = option(0, "tell in the report what each layer costs, measured on so many samples", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """See the module's text. Raises UsageError for an opset below the target's and names of no node."""
        refuse_quantized(ctx)
        facts = _facts(ctx)
        needed = max(facts.min_opset, _INT4_OPSET) if self.weight_bits == 4 else facts.min_opset
        if opset(model) < needed:
            raise UsageError(
                f"Q/DQ pairs of these types need opset {needed}, the model has {opset(model)}",
                where=self.name,
                hint=f"put convert-opset{{version={max(needed, 17)}}} before it",
            )
        ctx.get(Shapes)
        choices = self._choices(facts)
        kept = self._kept(ctx)
        placement = place(model, facts, kept, lambda node, why: ctx.missed("QDQ001", node, f"stays in float: {why}"))
        if not placement.nodes:
            nested = sum(node.graph is not model.graph for node in ctx.nodes(*LINEAR))
            why = f"its {nested} layers are in branches or loops" if nested else "it has no layer with constant weights"
            ctx.missed("QDQ002", None, f"nothing was quantized: {why}", hint="try inline-if" if nested else None)
            return Changes()
        return self._insert(ctx, facts, placement, choices)

    def _choices(self, facts: Quantization) -> Choices:
        weights = {4: "int4", 8: facts.weights}[self.weight_bits]
        return chosen(
            facts,
            calibrate=self.calibrate,
            weights=weights,
            weight_ranges=self.weight_ranges,
            rounding=self.rounding,
            bias_correction=self.correct_bias,
        )

    def _kept(self, ctx: PassContext) -> list[Node]:
        named = [node for node in ctx.edit.model.graph if node.name]
        kept: dict[Node, None] = {}
        for pattern in filter(None, (text.strip() for text in self.keep.split(","))):
            found = [node for node in named if fnmatchcase(str(node.name), pattern)]
            if not found:
                raise UsageError(f"no node is called {pattern!r}", where=f"{self.name}{{keep}}")
            kept.update(dict.fromkeys(found))
        return list(kept)

    def _insert(self, ctx: PassContext, facts: Quantization, full: Placement, choices: Choices) -> Changes:
        matrices = [LayerMatrix.of(node) for node in full.layers]
        grams = layer_requests(matrices, choices)
        wanted = [request for requests in value_requests(full, choices).values() for request in requests]
        statistics = ctx.statistics([*wanted, *grams.values()])
        ranges = value_ranges(full, statistics, choices)
        grids = {value: ranges[root].grid for value, root in full.values.items()}
        placement = full
        if self.placement == "measured":
            placement = self._faster(ctx, facts, full, grids, choices)
        layers = []
        for layer in matrices:
            if layer.node in placement.nodes:
                gram = statistics[grams[layer]] if layer in grams else None
                if gram is None and self.rounding == "gram":
                    ctx.missed(
                        "QDQ006", layer.node, f"weights are rounded to nearest: {layer.width} inputs are too many"
                    )
                layers.append(quantized_layer(layer, gram, float(grids[layer.data].scale), choices))
        plan = Plan(placement, grids, tuple(layers))
        bound = Bound(self.min_sqnr, self.max_loss if self.max_loss >= 0 else math.inf)
        if bound and layers:
            wide = replace(choices, activations=facts.wide_activations) if facts.wide_activations else None
            fine = {value: found.grid for value, found in value_ranges(full, statistics, wide).items()} if wide else {}
            plan = self._still_faster(ctx, facts, plan, _within(bound, ctx, facts, plan, fine), choices)
        if self.sensitivity and layers and ctx.runner is not None:
            costs = measure(ctx.edit.model, facts, plan, ctx.runner, limit=self.sensitivity, metrics=True)
            ctx.notes.setdefault(self.name, {})["sensitivity"] = costs.to_json()
        before = weight_bytes(ctx.edit.model)
        pairs = Inserter(ctx.edit, facts, plan.placement, plan.grids, ctx.may_rewrite).run(list(plan.layers))
        merged = merge_biases(ctx.edit, facts.product, ctx.may_rewrite) if self._may_merge(ctx, facts) else 0
        sizes = {"before": before, "after": weight_bytes(ctx.edit.model)}
        ctx.notes.setdefault(self.name, {}).update(_notes(ranges, plan.layers), weight_bytes=sizes)
        return Changes(pairs=pairs, layers=len(plan.layers), merged=merged)

    def _may_merge(self, ctx: PassContext, facts: Quantization) -> bool:
        """Tell whether a target was named that has the operator; without one the model stays plain ONNX."""
        return ctx.target is not None and facts.product.partition("::")[0] in ctx.target.domains

    def _still_faster(self, ctx: PassContext, facts: Quantization, before: Plan, plan: Plan, choices: Choices) -> Plan:
        """Return ``plan``, or nothing where what a bound has put back to float leaves too little to gain."""
        if self.placement != "measured" or ctx.runner is None or not ctx.host_or_target.is_host:
            return plan
        if not plan.layers or plan.placement.nodes == before.placement.nodes:
            return plan
        whole = Measurement(ctx.edit.model, facts, before.placement, before.grids, choices, ctx.runner)
        ratio = whole.ratio_of(plan.placement)
        if ratio <= WORTH:
            return plan
        ctx.warn("QDQ005", None, f"the model stays in float: what meets the bound takes {ratio:.2f} of float's latency")
        return plan.within(Placement((), {}, frozenset()))

    def _faster(
        self, ctx: PassContext, facts: Quantization, full: Placement, grids: dict[Value, Grid], choices: Choices
    ) -> Placement:
        """Return the part of ``full`` that is worth it on this machine, all of it where that cannot be measured."""
        target = ctx.host_or_target
        if not target.is_host or ctx.runner is None:
            ctx.missed("QDQ003", None, f"no region was timed: this machine is not a {target.name}")
            return full
        found = Measurement(ctx.edit.model, facts, full, grids, choices, ctx.runner).run()
        ctx.notes[self.name] = {"placement": _measured(found)}
        if found.placement is None:
            tried = ", ".join(f"{ratio:.2f}" for ratio in found.ratios)
            ctx.warn(
                "QDQ005",
                None,
                f"the model stays in float, nothing is faster in integers here: {tried} of float's latency",
                hint="placement=all quantizes it all the same",
            )
            return Placement((), {}, frozenset())
        for kept in found.kept:
            ctx.missed("QDQ004", kept.nodes[0], _why(kept), hint="placement=all quantizes it all the same")
        return found.placement


def _within(bound: Bound, ctx: PassContext, facts: Quantization, plan: Plan, fine: dict[Value, Grid]) -> Plan:
    """Return the part of ``plan`` that meets ``bound``, with remarks about the rest."""
    assert ctx.runner is not None
    found = mixed(ctx.edit.model, facts, plan, bound, ctx.runner, fine_grids=fine)
    for node in found.floats:
        ctx.missed("QDQ010", node, f"stays in float: {found.why(node)}")
    for value in found.fine:
        ctx.missed("QDQ011", value, f"is stored in {facts.wide_activations}: 8 bits are too few for the bound")
    ctx.notes.setdefault("insert-qdq", {})["mixed"] = found.to_json()
    return found.plan


def _facts(ctx: PassContext) -> Quantization:
    target = ctx.host_or_target
    if target.quantization is None:
        raise TargetError("nothing is known of how it computes with integers", where=target.name)
    return target.quantization


def _why(kept: Kept) -> str:
    what = f"it and {len(kept.nodes) - 1} next to it stay in float" if len(kept.nodes) > 1 else "stays in float"
    if kept.integer_seconds > kept.float_seconds:
        return f"{what}: {kept.integer_seconds * 1e3:.3f} ms in integers, {kept.float_seconds * 1e3:.3f} ms in float"
    return f"{what}: converting between integers and floats around them takes more than integers save"


def _measured(found: Measured) -> dict[str, Any]:
    """Return the timings for the report, and what ``keep`` is to be for the same choice without timing."""
    regions = [
        {"nodes": [str(node.name) for node in kept.nodes], "integer": kept.integer_seconds, "float": kept.float_seconds}
        for kept in found.kept
    ]
    keep = ",".join(escape(str(node.name)) for kept in found.kept for node in kept.nodes)
    return {"ratio": found.ratio, "ratios": list(found.ratios), "kept": regions, "keep": keep}


def _notes(ranges: dict[Any, ValueRange], layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the ranges and the layers' expected errors for the report."""
    return {
        "ranges": {
            str(value.name): {"low": found.low, "high": found.high, "error": found.error, "power": found.power}
            for value, found in ranges.items()
        },
        "layers": {
            str(layer.node.name): {"error": layer.error, "power": layer.power, "sqnr": layer.sqnr} for layer in layers
        },
    }
