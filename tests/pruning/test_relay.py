"""Networks run from resting places give what they give when run whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.calibration import dataset_from_arrays
from graphopt.calibration.sessions import session_of
from graphopt.ir import Editor, Model
from graphopt.ir.interface import InterfaceEditor
from graphopt.pruning.relay import Relay
from graphopt.pruning.route import resting_places
from graphopt.runner import ModelRunner
from tests.helpers import clone, model_of, run

RNG = np.random.default_rng(11)
X = RNG.standard_normal((10, 3, 8, 8)).astype(np.float32)
TEXT = """g (float[N, 3, 8, 8] x) => (float[N, 6, 8, 8] y) {
    a = Conv(x, w1) b = Relu(a)
    c = Conv<pads = [1, 1, 1, 1]>(b, w2) d = Relu(c) e = Conv<pads = [1, 1, 1, 1]>(d, w3)
    s = Add(e, b) t = Relu(s) y = Conv(t, w4)
}"""
SIZES = {"w1": (6, 3, 1, 1), "w2": (6, 6, 3, 3), "w3": (6, 6, 3, 3), "w4": (6, 6, 1, 1)}


def model(scale: float = 1.0) -> Model:
    rng = np.random.default_rng(5)
    weights = {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in SIZES.items()}
    found = model_of(TEXT, weights=weights)
    AnalysisManager(Editor(found)).get(Shapes)
    return found


def runner() -> ModelRunner:
    return ModelRunner(dataset_from_arrays({"x": X}, session_of(model()).inputs, batch=10))


def whole(given: Model, name: str) -> np.ndarray:
    """What a value of the model is on all the data, in one run."""
    copy = clone(given)
    value = next(value for node in copy.graph for value in node.outputs if value.name == name)
    InterfaceEditor(copy).set_outputs([value])
    return run(copy, {"x": X})[0]


@pytest.mark.parametrize("stops", [[("x",)], [("b",)], [("b", "d")], [("x",), ("b", "c"), ("b", "e"), ("t",)]])
def test_values_behind_resting_places_are_those_of_the_whole_run(tmp_path: Path, stops: list[tuple[str, ...]]):
    models = model(), model(0.5)
    relay = Relay(runner(), models, tmp_path, 4)

    for stop in stops:
        relay.move([stop, stop])
        found = list(relay.run([("y",), ("t", "y")]))
        assert [len(one["y"]) for one, _ in found] == [4, 4, 2]
        for index, name in ((0, "y"), (1, "t"), (1, "y")):
            got = np.concatenate([values[index][name] for values in found])
            np.testing.assert_allclose(got, whole(models[index], name), rtol=1e-4, atol=1e-4)


def test_each_network_may_rest_on_values_of_its_own(tmp_path: Path):
    models = model(), model(0.5)
    relay = Relay(runner(), models, tmp_path, 5)

    relay.move([("b", "d"), ("s",)])

    for index, given in enumerate(models):
        got = np.concatenate([values[index]["y"] for values in relay.run([("y",), ("y",)])])
        np.testing.assert_allclose(got, whole(given, "y"), rtol=1e-4, atol=1e-4)


def test_what_is_stored_is_what_the_last_resting_place_has(tmp_path: Path):
    relay = Relay(runner(), (model(),), tmp_path, 4)

    relay.move([("b", "d")])
    assert len(list(tmp_path.iterdir())) == 3 * 2
    relay.move([("t",)])

    stored = [np.load(path) for path in sorted(tmp_path.iterdir())]
    np.testing.assert_allclose(np.concatenate(stored), whole(model(), "t"), rtol=1e-4, atol=1e-4)


def test_a_resting_place_may_be_what_is_wanted(tmp_path: Path):
    relay = Relay(runner(), (model(),), tmp_path, 10)
    relay.move([("b",)])

    ((values,),) = relay.run([("b",)])

    np.testing.assert_allclose(values["b"], whole(model(), "b"), rtol=1e-4, atol=1e-4)


def test_no_more_samples_are_run_than_asked_for(tmp_path: Path):
    relay = Relay(runner(), (model(),), tmp_path, 4, limit=6)

    for stop in (None, ("b",)):
        if stop is not None:
            relay.move([stop])
        assert sum(len(values["y"]) for (values,) in relay.run([("y",)])) == 6


@pytest.mark.parametrize("stop", [None, ("b",), ("t",)])
def test_each_batch_is_run_for_each_setting(tmp_path: Path, stop: tuple[str, ...] | None):
    """The last weights are an input of the network that is run, and not of the one whose place it takes."""
    relay = Relay(runner(), (model(),), tmp_path, 4)
    if stop is not None:
        relay.move([stop])
    opened = model()
    edit = InterfaceEditor(opened)
    weight = opened.graph.initializers["w4"]
    edit.replace_uses(weight, edit.add_input("given", weight.dtype, SIZES["w4"]))
    last = RNG.standard_normal((2, *SIZES["w4"])).astype(np.float32)

    found = [values["y"] for (values,) in relay.run([("y",)], (opened,), [{"given": last[0]}, {"given": last[1]}])]

    assert [len(array) for array in found] == [4, 4, 4, 4, 2, 2]
    inner = whole(model(), "t")
    for index in range(2):
        want = np.einsum("oc,nchw->nohw", last[index][:, :, 0, 0], inner)
        np.testing.assert_allclose(np.concatenate(found[index::2]), want, rtol=1e-3, atol=1e-3)


def test_a_route_through_a_network_gives_what_every_layer_reads(tmp_path: Path):
    given = model()
    layers = [node for node in given.graph if node.op_type == "Conv"]
    stops = resting_places((given, given), layers)
    relay = Relay(runner(), (given, given), tmp_path, 3)

    for layer, stop in zip(layers, stops, strict=True):
        if stop is not None:
            relay.move(stop)
        name = str(layer.inputs[0].name)
        for wanted in ((name,), (str(layer.outputs[0].name),), ("y",)):
            got = np.concatenate([second[wanted[0]] for _, second in relay.run([("y",), wanted])])
            want = X if wanted == ("x",) else whole(given, wanted[0])
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
