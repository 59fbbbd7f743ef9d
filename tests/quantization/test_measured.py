"""The measured choice of integer regions, on a machine whose kernels take what the test says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.ir import Editor, Model
from graphopt.quantization.grid import grid_for_range
from graphopt.quantization.measured import Measured, Measurement
from graphopt.quantization.placement import place
from graphopt.quantization.plan import chosen
from graphopt.targets import find
from tests.helpers import model_of

WEIGHTS = {"L": np.full((8, 8, 1, 1), 0.25, np.float32)}
CHAIN = "g (float[1,8,4,4] x) => (y) { a = Conv(x, L) e = Erf(a) b = Conv(e, L) c = Conv(b, L) y = Erf(c) }"
LAYERS = (0, 2, 3)
"""Where the layers stand in the graph."""
CONVERSION = 1.0


class Machine:
    """Runs the layers of CHAIN in given seconds, by their places; each Q or DQ that no layer takes in takes 1 s."""

    def __init__(self, integers: Mapping[int, float], floats: Mapping[int, float]) -> None:
        self._integers, self._floats = integers, floats
        self.trials = 0

    def node_seconds(self, model: Model) -> dict[str, float]:
        seconds = {}
        for node in model.graph:
            name = str(node.name)
            if node.op_type == "Conv":
                source = node.inputs[0]
                integer = source is not None and getattr(source.producer(), "op_type", "") == "DequantizeLinear"
                seconds[name] = (self._integers if integer else self._floats)[int(name.removeprefix("node/"))]
            reads = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
            if node.op_type == "QuantizeLinear" and (reads is None or reads.op_type != "Conv"):
                seconds[name] = CONVERSION
            if node.op_type == "DequantizeLinear" and any(use.node.op_type == "Erf" for use in node.outputs[0].uses()):
                seconds[name] = CONVERSION
        return seconds

    def latency_ratio(self, reference: Model, candidate: Model, *, rounds: int = 20) -> float:
        self.trials += 1
        return sum(self.node_seconds(candidate).values()) / sum(self.node_seconds(reference).values())


def measure(integers: Mapping[int, float], floats: Mapping[int, float]) -> tuple[Measured, Model, Machine]:
    model = model_of(CHAIN, weights=WEIGHTS)
    AnalysisManager(Editor(model)).get(Shapes)
    facts = find("cpu-x64").quantization
    assert facts is not None
    full = place(model, facts)
    grids = {value: grid_for_range(-1.0, 1.0, "uint8") for value in full.values}
    machine = Machine(integers, floats)
    return Measurement(model, facts, full, grids, chosen(facts), machine).run(), model, machine


def layers_of(found: Measured, model: Model) -> list[int]:
    assert found.placement is not None
    positions = {node: index for index, node in enumerate(model.graph)}
    return [positions[node] for node in found.placement.nodes]


def test_everything_stays_where_integers_win_everywhere() -> None:
    found, model, machine = measure(dict.fromkeys(LAYERS, 3.0), dict.fromkeys(LAYERS, 9.0))
    assert layers_of(found, model) == [0, 2, 3]
    assert found.kept == ()
    assert machine.trials == 1, "the cut asks for nothing new"
    assert list(found.ratios) == pytest.approx([(3 * 3.0 + 4 * CONVERSION) / 27.0])


def test_a_layer_that_loses_with_its_conversions_goes_back() -> None:
    found, model, _ = measure({0: 3.0, 2: 3.0, 3: 3.0}, {0: 4.0, 2: 9.0, 3: 9.0})
    assert layers_of(found, model) == [2, 3]
    (kept,) = found.kept
    assert [node.op_type for node in kept.nodes] == ["Conv"]
    assert (kept.integer_seconds, kept.float_seconds) == (3.0 + 2 * CONVERSION, 4.0)
    assert found.ratio == min(found.ratios) < found.ratios[0]


@pytest.mark.parametrize(("seconds", "placed"), [(8.5, [0, 2, 3]), (9.5, [0, 2])])
def test_a_layer_behind_another_shares_its_conversions(seconds: float, placed: list[int]) -> None:
    found, model, _ = measure({0: 1.0, 2: 1.0, 3: seconds}, dict.fromkeys(LAYERS, 9.0))
    assert layers_of(found, model) == placed, "one conversion to floats is needed either way"


def test_nothing_is_placed_where_all_lose() -> None:
    found, _, machine = measure(dict.fromkeys(LAYERS, 5.0), dict.fromkeys(LAYERS, 4.0))
    assert found.placement is None
    assert found.ratio > 1
    assert machine.trials == 1


def test_the_model_is_left_as_it_was() -> None:
    _, model, _ = measure(dict.fromkeys(LAYERS, 3.0), dict.fromkeys(LAYERS, 9.0))
    assert [node.op_type for node in model.graph] == ["Conv", "Erf", "Conv", "Conv", "Erf"]
    assert list(model.graph.initializers) == ["L"]
    assert all(not node.name for node in model.graph)
