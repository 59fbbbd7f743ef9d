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

Where a value without a pair makes a target compute in float, pairs go around each operator that it has a kernel for.
``activation_bits=16`` gives all of them 16 bits, where the target has a type for that; a bound on the loss
(``min_sqnr``, ``max_loss``) gives 16 bits to those that need them and floats on other targets.

Regions where this machine's integer kernels lose against its float kernels stay in float (``placement=measured``); on
a target that is another machine nothing can be timed, and all that can be quantized is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from graphopt.analysis import Shapes
from graphopt.analysis.cost import weight_bytes
from graphopt.analysis.statistics import CalibrationData
from graphopt.errors import TargetError, UsageError
from graphopt.ir import Model, Node, Value, opset
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.grid import Grid
from graphopt.quantization.guard import refuse_quantized
from graphopt.quantization.insert import Inserter
from graphopt.quantization.layers import LayerMatrix
from graphopt.quantization.measured import WORTH, Measurement
from graphopt.quantization.mixed import Bound, mixed
from graphopt.quantization.notes import notes, timings, why_kept
from graphopt.quantization.placement import LINEAR, Placement, place
from graphopt.quantization.plan import (
    Choices,
    chosen,
    layer_requests,
    quantized_layer,
    value_ranges,
    value_requests,
)
from graphopt.quantization.products import merge_biases
from graphopt.quantization.sensitivity import measure
from graphopt.quantization.trial import Plan
from graphopt.quantization.types import too_narrow, wide_kinds
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
    activation_bits: int = option(8, "bits of the values between layers", choices=(8, 16))
    weight_ranges: str = option("mse", "how ranges of weights are chosen", choices=("maxabs", "mse"))
    rounding: str = option("gram", "how weights are rounded", choices=("nearest", "gram"))
    correct_bias: bool = option(True, "let biases make up for the mean error of rounding")
    keep: str = option("", "names of nodes that stay in float: patterns with * and ?, separated by commas")
    wide: str = option("", "names of nodes that compute with 16 bits: patterns as for keep")
    placement: str = option(
        "measured", "quantize where integers are measured to be faster, or all that can be", choices=("measured", "all")
    )
    min_sqnr: float = option(
        0.0, "give floats or 16 bits to what it takes for so many dB at each output, 0 for no bound", ge=0
    )
    max_loss: float = option(
        -1.0, "give floats or 16 bits to what it takes for the metric to fall by no more, -1 for any", ge=-1
    )
    max_wide: float = option(1.0, "give 16 bits to no larger part of pairs, below 1 no floats on NPUs", ge=0, le=1)
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
        kept = self._named(ctx, "keep", self.keep)
        wide = self._named(ctx, "wide", self.wide)
        if (self.activation_bits == 16 or wide) and not facts.wide_activations:
            raise UsageError("the target has no type of 16 bits for activations", where=self.name)
        placement = place(model, facts, kept, lambda node, why: ctx.missed("QDQ001", node, f"stays in float: {why}"))
        if not placement.nodes:
            nested = sum(node.graph is not model.graph for node in ctx.nodes(*LINEAR))
            why = f"its {nested} layers are in branches or loops" if nested else "it has no layer with constant weights"
            ctx.missed("QDQ002", None, f"nothing was quantized: {why}", hint="try inline-if" if nested else None)
            return Changes()
        narrow = too_narrow(placement, facts)
        for node in narrow if self.activation_bits == 8 else ():
            ctx.missed("QDQ011", node, "computes with 16 bits: with 8, the target rounds once before it adds the bias")
        chosen_wide = placement.nodes if self.activation_bits == 16 else (*wide, *narrow)
        return self._insert(ctx, facts, placement, choices, frozenset(chosen_wide))

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

    def _named(self, ctx: PassContext, option_name: str, patterns: str) -> list[Node]:
        named = [node for node in ctx.edit.model.graph if node.name]
        kept: dict[Node, None] = {}
        for pattern in filter(None, (text.strip() for text in patterns.split(","))):
            found = [node for node in named if fnmatchcase(str(node.name), pattern)]
            if not found:
                raise UsageError(f"no node is called {pattern!r}", where=f"{self.name}{{{option_name}}}")
            kept.update(dict.fromkeys(found))
        return list(kept)

    def _insert(
        self, ctx: PassContext, facts: Quantization, full: Placement, choices: Choices, wide: frozenset[Node]
    ) -> Changes:
        matrices = [LayerMatrix.of(node) for node in full.layers]
        grams = layer_requests(matrices, choices)
        wanted = [request for requests in value_requests(full, choices).values() for request in requests]
        statistics = ctx.statistics([*wanted, *grams.values()])
        bound = Bound(self.min_sqnr, self.max_loss if self.max_loss >= 0 else math.inf, self.max_wide)
        kinds = [facts.activations, *(wide_kinds(facts) if bound or wide else ())]
        typed = {kind: value_ranges(full, statistics, choices.of_type(facts, kind)) for kind in kinds}
        ranges = typed[facts.activations]
        grids = {kind: {v: found[root].grid for v, root in full.values.items()} for kind, found in typed.items()}
        placement = full
        if self.placement == "measured":
            placement = self._faster(ctx, facts, full, grids[facts.activations], choices)
        layers = []
        for layer in matrices:
            if layer.node in placement.nodes:
                gram = statistics[grams[layer]] if layer in grams else None
                if gram is None and self.rounding == "gram":
                    ctx.missed(
                        "QDQ006", layer.node, f"weights are rounded to nearest: {layer.width} inputs are too many"
                    )
                scale = min(float(found[layer.data].scale) for found in grids.values())
                layers.append(quantized_layer(layer, gram, scale, choices))
        plan = Plan(placement, grids, tuple(layers), wide)
        if bound and layers:
            plan = self._still_faster(ctx, facts, plan, _within(bound, ctx, facts, plan), choices)
        if self.sensitivity and layers and ctx.runner is not None:
            costs = measure(ctx.edit.model, facts, plan, ctx.runner, limit=self.sensitivity, metrics=True)
            ctx.notes.setdefault(self.name, {})["sensitivity"] = costs.to_json()
        before = weight_bytes(ctx.edit.model)
        types = plan.types(facts)
        pairs = Inserter(ctx.edit, facts, plan.placement, plan.grids, types, ctx.may_rewrite).run(list(plan.layers))
        merged = merge_biases(ctx.edit, facts.product, ctx.may_rewrite) if self._may_merge(ctx, facts) else 0
        sizes = {"before": before, "after": weight_bytes(ctx.edit.model)}
        ctx.notes.setdefault(self.name, {}).update(notes(ranges, plan.layers, types), weight_bytes=sizes)
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
        grids = before.grids[facts.activations]
        whole = Measurement(ctx.edit.model, facts, before.placement, grids, choices, ctx.runner)
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
        ctx.notes[self.name] = {"placement": timings(found)}
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
            ctx.missed("QDQ004", kept.nodes[0], why_kept(kept), hint="placement=all quantizes it all the same")
        return found.placement


def _within(bound: Bound, ctx: PassContext, facts: Quantization, plan: Plan) -> Plan:
    """Return the part of ``plan`` that meets ``bound``, with remarks about the rest."""
    assert ctx.runner is not None
    found = mixed(ctx.edit.model, facts, plan, bound, ctx.runner)
    for node in found.floats:
        ctx.missed("QDQ010", node, f"stays in float: {found.why(node)}")
    for node in found.wide:
        ctx.missed("QDQ011", node, f"computes with 16 bits: {found.why_wide()}")
    if found.short:
        share = found.plan.types(facts).wide_share(found.plan.placement, facts)
        text = f"the bound does not hold: {found.after} with {share:.0%} of the pairs in 16 bits, and nothing in float"
        ctx.warn("QDQ012", None, text, hint="max_wide=1 spends as many as it takes, or floats where there are none")
    ctx.notes.setdefault("insert-qdq", {})["mixed"] = found.to_json()
    return found.plan


def _facts(ctx: PassContext) -> Quantization:
    target = ctx.host_or_target
    if target.quantization is None:
        raise TargetError("nothing is known of how it computes with integers", where=target.name)
    return target.quantization
