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
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from graphopt.analysis import Shapes
from graphopt.analysis.statistics import CalibrationData
from graphopt.errors import TargetError, UsageError
from graphopt.ir import Model, Node, opset
from graphopt.pipeline import Changes, Pass, PassContext, option
from graphopt.quantization.guard import refuse_quantized
from graphopt.quantization.insert import Inserter, Layer
from graphopt.quantization.placement import Placement, place
from graphopt.quantization.plan import (
    Choices,
    ValueRange,
    chosen,
    layer_requests,
    quantized_layer,
    value_ranges,
    value_requests,
)
from graphopt.targets import Quantization


@dataclass(frozen=True, kw_only=True)
class InsertQdq(Pass):
    """Quantize layers and what stays in integers between them, with Q/DQ pairs from calibration."""

    name: ClassVar[str] = "insert-qdq"
    lossless: ClassVar[bool] = False
    needs: ClassVar = (CalibrationData,)
    preserves: ClassVar = ()

    calibrate: str = option(
        "mse", "how ranges are estimated", choices=("minmax", "moving", "percentile", "entropy", "mse", "auto")
    )
    weight_bits: int = option(8, "bits of the weights", choices=(4, 8))
    weight_ranges: str = option("mse", "how ranges of weights are chosen", choices=("maxabs", "mse"))
    rounding: str = option("gram", "how weights are rounded", choices=("nearest", "gram"))
    correct_bias: bool = option(True, "let biases make up for the mean error of rounding")
    keep: str = option("", "names of nodes that stay in float: patterns with * and ?, separated by commas")

    def run(self, model: Model, ctx: PassContext) -> Changes:
        refuse_quantized(ctx)
        facts = _facts(ctx)
        if opset(model) < facts.min_opset:
            raise UsageError(
                f"Q/DQ pairs need opset {facts.min_opset}, the model has {opset(model)}",
                where=self.name,
                hint=f"put convert-opset{{version={max(facts.min_opset, 17)}}} before it",
            )
        ctx.get(Shapes)
        choices = self._choices(facts)
        kept = self._kept(ctx)
        placement = place(model, facts, kept, lambda node, why: ctx.missed("QDQ001", node, f"stays in float: {why}"))
        if not placement.nodes:
            ctx.missed("QDQ002", None, "nothing was quantized: the model has no layer with constant weights")
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

    def _kept(self, ctx: PassContext) -> set[str]:
        names = [node.name for node in ctx.edit.model.graph if node.name]
        kept: set[str] = set()
        for pattern in filter(None, (text.strip() for text in self.keep.split(","))):
            found = {name for name in names if fnmatchcase(name, pattern)}
            if not found:
                raise UsageError(f"no node is called {pattern!r}", where=f"{self.name}{{keep}}")
            kept |= found
        return kept

    def _insert(self, ctx: PassContext, facts: Quantization, placement: Placement, choices: Choices) -> Changes:
        grams = layer_requests(placement, choices)
        wanted = [request for requests in value_requests(placement, choices).values() for request in requests]
        statistics = ctx.statistics([*wanted, *grams.values()])
        ranges = value_ranges(placement, statistics, choices)
        grids = {value: found.grid for value, found in ranges.items()}
        layers = []
        for layer, request in grams.items():
            data = placement.values[_input(layer.node)]
            layers.append(quantized_layer(layer, statistics[request], float(grids[data].scale), choices))
        inserter = Inserter(ctx.edit, facts, placement, grids, ctx.may_rewrite)
        pairs = inserter.run(layers)
        ctx.notes[self.name] = _notes(ranges, layers)
        return Changes(pairs=pairs, layers=len(layers))


def _facts(ctx: PassContext) -> Quantization:
    target = ctx.host_or_target
    if target.quantization is None:
        raise TargetError("nothing is known of how it computes with integers", where=target.name)
    return target.quantization


def _input(node: Node) -> Any:
    return node.inputs[0]


def _notes(ranges: dict[Any, ValueRange], layers: list[Layer]) -> dict[str, Any]:
    """Return the ranges and the layers' expected errors for the report."""
    return {
        "ranges": {
            str(value.name): {"low": found.low, "high": found.high, "error": found.error, "power": found.power}
            for value, found in ranges.items()
        },
        "layers": {str(layer.node.name): {"error": layer.error, "power": layer.power} for layer in layers},
    }
