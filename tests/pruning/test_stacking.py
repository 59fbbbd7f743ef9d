"""Models of one sample at a time on several: only where that gives what each sample gives."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.calibration import dataset_from_arrays
from graphopt.calibration.sessions import session_of
from graphopt.ir import Editor, Model
from graphopt.pruning.relay import Relay
from graphopt.pruning.stacking import can_stack
from graphopt.runner import ModelRunner
from tests.helpers import model_of, run

RNG = np.random.default_rng(7)
X = RNG.standard_normal((5, 3, 8, 8)).astype(np.float32)
WEIGHTS = {"w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)}
ONE = "g (float[1, 3, 8, 8] x) => (float[1, 4] y) { c = Conv<pads = [1, 1, 1, 1]>(x, w) p = GlobalAveragePool(c) "
ALIKE = {"Flatten": "y = Flatten(p) }", "Reshape": "y = Reshape(p, any) }"}
APART = {
    "a size of all samples": "y = Reshape(p, fixed) }",
    "samples in a row": "f = Reshape(p, row) y = Identity(f) }",
    "a mean over samples": "f = Flatten(p) m = ReduceMean<axes = [0], keepdims = 1>(f) y = Sub(f, m) }",
}
SHAPES = {"any": [-1, 4], "fixed": [1, 4], "row": [1, -1]}


def model(text: str) -> Model:
    constants = {name: np.array(value) for name, value in SHAPES.items() if f", {name})" in text}
    found = model_of(text, weights={**WEIGHTS, **constants})
    AnalysisManager(Editor(found)).get(Shapes)
    return found


def runner(of: Model, samples: np.ndarray = X) -> ModelRunner:
    return ModelRunner(dataset_from_arrays({"x": samples}, session_of(of).inputs))


@pytest.mark.parametrize("tail", ALIKE.values(), ids=ALIKE)
def test_samples_that_do_not_meet_are_stacked(tail: str) -> None:
    net = model(ONE + tail)
    assert can_stack(net, runner(net))

    with Relay(runner(net), net, 3) as relay:
        for _ in range(2):
            found = [values["y"] for _, values in relay.run(["y"])]
            assert [len(array) for array in found] == [3, 2]
            wanted = np.concatenate([run(net, {"x": x[None]})[0] for x in X])
            np.testing.assert_allclose(np.concatenate(found), wanted, atol=1e-5)
            relay.move(("c",))


@pytest.mark.parametrize("tail", APART.values(), ids=APART)
def test_samples_that_meet_are_run_one_by_one(tail: str) -> None:
    net = model(ONE + tail)
    assert not can_stack(net, runner(net))

    with Relay(runner(net), net, 3) as relay:
        assert [len(values["c"]) for _, values in relay.run(["c"])] == [1] * 5


def test_one_sample_and_models_of_any_number_are_left_as_they_are() -> None:
    net = model(ONE + ALIKE["Flatten"])
    assert not can_stack(net, runner(net, X[:1]))
    free = model(ONE.replace("float[1, 3", "float[N, 3").replace("float[1, 4]", "float[N, 4]") + ALIKE["Flatten"])
    assert not can_stack(free, runner(free))
