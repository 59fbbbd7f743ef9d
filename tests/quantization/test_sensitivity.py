"""What rounding costs, source by source, and which layers a bound on the loss keeps in float."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphopt.calibration import dataset_from_feeds
from graphopt.driver import Result, optimize
from graphopt.errors import PassError, UsageError
from graphopt.ir import Model, Node, constant
from graphopt.ir.text import dump
from graphopt.quantization.cover import Cover
from graphopt.quantization.sensitivity import Source, decibel
from graphopt.runtime import Session
from graphopt.targets import Target, find
from tests.helpers import clone, model_of, operators, run

CPU = find("cpu-x64-avx2")
"""What is quantized for it computes the same on every CPU."""
WIDE = replace(CPU, quantization=replace(CPU.quantization, wide_activations="uint16"))
"""A target that computes with 16-bit activations where 8 bits are too few."""
CONV = "Conv <pads = [1, 1, 1, 1]>"
CHAIN = f"""g (float[1,4,8,8] x) => (float[1,4,8,8] y) {{
    [first] a = {CONV}(x, A)
    b = Relu(a)
    [middle] c = {CONV}(b, B)
    d = Relu(c)
    [last] y = {CONV}(d, C)
}}"""
"""Three convolutions in a row."""
FEEDS = [{"x": np.random.default_rng(seed).standard_normal((1, 4, 8, 8)).astype(np.float32)} for seed in range(12)]


def chain(outlier: float = 1.0, *, opset: int = 17) -> Model:
    """Return CHAIN with a channel between ``middle`` and ``last`` that is so large and that nobody needs.

    It changes no output, but on a grid wide enough for it nothing is left of the other channels.
    """
    rng = np.random.default_rng(3)
    a, b, c = (rng.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6 for _ in range(3))
    b[0] *= outlier
    c[:, 0] = 0
    return model_of(CHAIN, weights={"A": a, "B": b, "C": c}, opset=opset)


def quantized(model: Model, options: str, *, target: Target = CPU, **given: Any) -> Result:
    """Insert pairs for what can be quantized, calibrated on FEEDS."""
    data = dataset_from_feeds(FEEDS, Session(_bytes(model)).inputs)
    return optimize(model, pipeline=f"insert-qdq{{placement=all,{options}}}", data=data, target=target, **given)


def _bytes(model: Model) -> bytes:
    from graphopt import io

    return io.to_proto(model).SerializeToString()


def sqnr(reference: Model, model: Model) -> float:
    """Return the SQNR in dB over FEEDS, the only output's."""
    pairs = [(run(reference, feeds)[0], run(model, feeds)[0]) for feeds in FEEDS]
    return 10 * math.log10(sum((a**2).sum() for a, _ in pairs) / sum(((a - b) ** 2).sum() for a, b in pairs))


def in_integers(model: Model) -> list[str]:
    """Return the names of the layers with integer weights."""
    found = [node for node in model.graph if node.op_type == "Conv"]
    return [str(n.name) for n in found if n.inputs[1].producer() is not None]


def kept(result: Result) -> list[str | None]:
    """Return the nodes of the remarks on what stays in float for the bound."""
    return [diagnostic.node for diagnostic in result.diagnostics if diagnostic.code == "QDQ010"]


class TestBound:
    def test_layers_around_a_value_that_breaks_are_found_and_kept_in_float(self) -> None:
        before, model = chain(1000), chain(1000)
        assert sqnr(before, quantized(clone(before), "").model) < 15

        result = quantized(model, "min_sqnr=30")

        assert kept(result) == ["middle", "last"]
        assert in_integers(model) == ["first"]
        assert sqnr(before, model) >= 30
        remark = next(d for d in result.diagnostics if d.code == "QDQ010")
        assert "dB" in remark.message

    def test_nothing_is_kept_or_measured_when_the_bound_holds_anyway(self) -> None:
        model = chain()

        result = quantized(model, "min_sqnr=25")

        assert in_integers(model) == ["first", "middle", "last"]
        assert kept(result) == []
        assert result.run.ctx.notes["insert-qdq"]["mixed"]["sensitivity"] is None

    def test_no_bound_is_the_default(self) -> None:
        result = quantized(chain(1000), "")

        assert kept(result) == []
        assert "mixed" not in result.run.ctx.notes["insert-qdq"]

    def test_one_that_cannot_be_reached_is_refused_with_the_best_there_is(self) -> None:
        model = chain()
        with pytest.raises(PassError, match=r"200 dB cannot be had .* the best found is \d+\.\d dB"):
            quantized(model, "min_sqnr=200")

        assert operators(model) == operators(chain())

    def test_16_bits_go_before_floats_where_the_target_has_them(self) -> None:
        before, model = chain(1000, opset=21), chain(1000, opset=21)

        result = quantized(model, "min_sqnr=30", target=WIDE)

        assert kept(result) == []
        assert [d.node for d in result.diagnostics if d.code == "QDQ011"] == ["middle", "last"]
        assert in_integers(model) == ["first", "middle", "last"]
        zeros = [n.inputs[2] for n in model.graph if n.op_type == "QuantizeLinear" and n.inputs[0].name == "d"]
        assert constant(zeros[0]).dtype == np.uint16
        assert sqnr(before, model) >= 30

    @pytest.mark.parametrize(
        ("most", "wide", "short"), [(0.0, [], True), (0.4, ["last"], True), (1.0, ["middle", "last"], False)]
    )
    def test_gives_way_to_the_most_that_may_have_16_bits(self, most: float, wide: list[str], short: bool) -> None:
        model = chain(1000, opset=21)

        result = quantized(model, f"min_sqnr=30,max_wide={most}", target=WIDE)

        assert [d.node for d in result.diagnostics if d.code == "QDQ011"] == wide
        assert ["QDQ012" in str(d.code) for d in result.diagnostics].count(True) == short
        kinds = [constant(n.inputs[2]).dtype for n in model.graph if n.op_type == "QuantizeLinear"]
        assert kinds.count(np.dtype("uint16")) / len(kinds) <= most

    @pytest.mark.parametrize(("most", "floats"), [(0.3, 0), (1.0, 2)])
    def test_gives_way_to_integers_on_an_npu_without_16_bits(self, most: float, floats: int) -> None:
        model = chain(1000)

        result = quantized(model, f"min_sqnr=30,max_wide={most}", target=find("rknn"))

        assert len(kept(result)) == floats
        assert ["QDQ012" in str(d.code) for d in result.diagnostics].count(True) == (floats == 0)

    def test_holds_at_each_output(self) -> None:
        body = CHAIN.replace("=> (float[1,4,8,8] y)", "=> (float[1,4,8,8] big, float[1,4,8,8] y)").replace(
            "b = Relu(a)", "b = Relu(a) big = Mul(a, million)"
        )
        source = chain(1000)
        arrays = {name: constant(value) for name, value in source.graph.initializers.items()}
        model = model_of(body, weights={**arrays, "million": np.array(1e6, np.float32)})

        result = quantized(model, "min_sqnr=30")

        assert kept(result) == ["middle", "last"]

    def test_gives_the_same_model_each_time(self) -> None:
        models = [chain(1000), chain(1000)]

        for model in models:
            quantized(model, "min_sqnr=30")

        assert dump(models[0]) == dump(models[1])


class TestLoss:
    @staticmethod
    def nearness(model: Model) -> Any:
        """Return a metric: 100 less the distance from the float model's outputs, in percent of their size."""
        wanted = [run(model, feeds)[0] for feeds in FEEDS]
        size = math.sqrt(sum(float((array**2).sum()) for array in wanted))

        def metric(outputs: list[Mapping[str, Any]]) -> float:
            found = np.concatenate([batch["y"] for batch in outputs])
            return 100 - 100 * float(np.sqrt(((found - np.concatenate(wanted)) ** 2).sum())) / size

        return metric

    def test_a_metric_may_be_bounded_instead(self) -> None:
        before, model = chain(1000), chain(1000)
        metric = self.nearness(before)

        result = quantized(model, "max_loss=4", metric=metric)

        assert set(kept(result)) >= {"middle", "last"}
        assert 100 - metric([{"y": run(model, feeds)[0]} for feeds in FEEDS]) <= 4
        assert result.run.ctx.notes["insert-qdq"]["mixed"]["loss"] <= 4

    def test_without_a_metric_it_is_refused(self) -> None:
        with pytest.raises(UsageError, match="needs a metric"):
            quantized(chain(), "max_loss=1")


class TestReport:
    def test_tells_what_each_layer_costs_alone(self) -> None:
        before = chain(1000)
        result = quantized(clone(before), "sensitivity=12")

        found = result.run.ctx.notes["insert-qdq"]["sensitivity"]
        costs = {unit["node"]: unit for unit in found["units"]}

        assert [unit["node"] for unit in found["units"]][-1] == "first"
        for name in ("middle", "last"):
            assert costs[name]["sqnr"] < 15
        assert costs["first"]["sqnr"] > 30
        assert costs["middle"]["weights_sqnr"] > 30
        assert costs["middle"]["macs"] == 4 * 4 * 9 * 64
        json.dumps(result.report(), allow_nan=False)

    def test_agrees_with_quantizing_one_layer_and_no_other(self) -> None:
        before = chain()
        found = quantized(clone(before), "sensitivity=12").run.ctx.notes["insert-qdq"]["sensitivity"]
        costs = {unit["node"]: unit["sqnr"] for unit in found["units"]}

        for name in ("first", "middle", "last"):
            others = ",".join(sorted({"first", "middle", "last"} - {name}))
            alone = clone(before)
            quantized(alone, f'keep="{others}"')
            assert costs[name] == pytest.approx(sqnr(before, alone), abs=1)

    def test_readers_of_one_value_are_told_apart(self) -> None:
        body = """g (float[1,4,8,8] x) => (float[1,4,8,8] y) {
            e = Exp(x) [loud] a = Conv(e, A) [quiet] b = Conv(e, B) c = Mul(b, small) y = Add(a, c) }"""
        rng = np.random.default_rng(3)
        arrays = {name: rng.standard_normal((4, 4, 1, 1)).astype(np.float32) for name in "AB"}
        model = model_of(body, weights={**arrays, "small": np.array(0.01, np.float32)})

        found = quantized(model, "sensitivity=12").run.ctx.notes["insert-qdq"]["sensitivity"]
        costs = {unit["node"]: unit["sqnr"] for unit in found["units"]}

        assert costs["quiet"] > costs["loud"] + 15

    def test_has_the_metric_of_each_layer_where_there_is_one(self) -> None:
        before = chain(1000)

        result = quantized(clone(before), "sensitivity=4", metric=TestLoss.nearness(before))

        found = result.run.ctx.notes["insert-qdq"]["sensitivity"]
        metrics = {unit["node"]: unit["metric"] for unit in found["units"]}
        assert found["metric"] == pytest.approx(100, abs=0.01)
        assert metrics["first"] > 95 > metrics["middle"] > found["quantized_metric"] - 5

    def test_has_sizes_and_expected_errors(self) -> None:
        notes = quantized(chain(), "").run.ctx.notes["insert-qdq"]

        assert notes["weight_bytes"]["before"] == 3 * 4 * 4 * 9 * 4
        assert notes["weight_bytes"]["after"] < notes["weight_bytes"]["before"] / 2
        assert all(layer["sqnr"] > 30 for layer in notes["layers"].values())

    def test_needs_an_output_of_floats(self) -> None:
        body = (
            CHAIN.replace("float[1,4,8,8] y", "int64[1,1,8,8] best")
            .replace("y = Conv", "y = Conv")
            .replace("(d, C)", "(d, C) best = ArgMax <axis = 1> (y)")
        )
        arrays = {name: constant(value) for name, value in chain().graph.initializers.items()}

        with pytest.raises(UsageError, match="no output of floats"):
            quantized(model_of(body, weights=arrays), "min_sqnr=20")

    def test_values_that_are_not_finite_in_the_float_model_do_not_count(self) -> None:
        body = CHAIN.replace("[last] y", "[last] z").replace("(d, C)", "(d, C) y = Log(z)")
        arrays = {name: constant(value) for name, value in chain().graph.initializers.items()}

        result = quantized(model_of(body, weights=arrays), "sensitivity=4")

        costs = {unit["node"]: unit["sqnr"] for unit in result.run.ctx.notes["insert-qdq"]["sensitivity"]["units"]}
        assert costs["first"] is None or costs["first"] > 0


class TestCover:
    """Choosing on paper; noise at one output unless said otherwise."""

    @staticmethod
    def nodes(count: int) -> list[Node]:
        steps = " ".join(f"[n{i}] v{i + 1} = Relu(v{i})" for i in range(count))
        return list(model_of(f"g (float[1] v0) => (float[1] v{count}) {{ {steps} }}").graph)

    def test_takes_what_saves_most_for_its_cost(self) -> None:
        cheap, dear, quiet = self.nodes(3)
        sources = [
            Source(None, (node,), np.array([noise])) for node, noise in ((cheap, 0.4), (dear, 0.5), (quiet, 0.1))
        ]
        cover = Cover(sources, {cheap: 100, dear: 1000, quiet: 100}, np.ones(1))

        assert cover.extend({}, 0.65) == [cheap]
        assert cover.extend({}, 0.15) == [cheap, dear]

    def test_takes_all_that_share_a_value_or_none(self) -> None:
        one, two, other = nodes = self.nodes(3)
        value = one.outputs[0]
        sources = [Source(value, (one, two), np.array([0.6])), Source(None, (other,), np.array([0.2]))]

        assert set(Cover(sources, dict.fromkeys(nodes, 100), np.ones(1)).extend({}, 0.3)) == {one, two}

    def test_drops_what_later_ones_make_superfluous(self) -> None:
        free, big = self.nodes(2)
        sources = [Source(None, (free,), np.array([0.01])), Source(None, (big,), np.array([0.9]))]
        cover = Cover(sources, {free: 0, big: 10_000}, np.ones(1))

        assert cover.extend({}, 0.05) == [big]

    def test_looks_at_the_worst_output(self) -> None:
        left, right = self.nodes(2)
        sources = [Source(None, (left,), np.array([0.5, 0.0])), Source(None, (right,), np.array([0.0, 0.1]))]
        cover = Cover(sources, {left: 1, right: 1}, np.ones(2))

        assert cover.extend({}, 0.2) == [left]

    def test_scales_paper_to_what_was_measured(self) -> None:
        one, two = self.nodes(2)
        sources = [Source(None, (node,), np.array([noise])) for node, noise in ((one, 0.2), (two, 0.1))]
        cover = Cover.scaled(sources, {one: 1, two: 1}, (), np.array([0.6]))

        assert cover.left({one: None}) == pytest.approx(0.2)

    def test_noise_that_is_not_finite_goes_first(self) -> None:
        one, two = self.nodes(2)
        sources = [Source(None, (one,), np.array([0.2])), Source(None, (two,), np.array([math.inf]))]
        cover = Cover.scaled(sources, {one: 1, two: 1000}, (), np.array([math.inf]))

        assert cover.extend({}, 0.3) == [two]


@pytest.mark.parametrize(
    ("noise", "want"), [([0.01], 20), ([0.001, 0.1], 10), ([0.0], math.inf), ([math.inf], -math.inf)]
)
def test_decibels_are_the_worst_outputs(noise: list[float], want: float) -> None:
    assert decibel(np.array(noise)) == pytest.approx(want)
