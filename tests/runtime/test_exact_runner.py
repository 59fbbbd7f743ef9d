"""Models for another machine are scored with integer kernels that never saturate, whatever this one's do."""

import importlib

import numpy as np
import pytest

from graphopt import optimize, targets
from graphopt.calibration import dataset_from_arrays
from graphopt.calibration.sessions import session_of
from graphopt.pipeline import Pipeline
from graphopt.runner import ModelRunner
from tests.helpers import model_of, run

# On x86-64 without VNNI two neighbours are added in 16 bits: 2 * 255 * 127 is more than they hold.
BODY = """g (float[N,64] x) => (float[N,32] y) {
    q = QuantizeLinear(x, step, zero)  d = DequantizeLinear(q, step, zero)
    w = DequantizeLinear(weights, step, none)
    p = MatMul(d, w)
    r = QuantizeLinear(p, large, zero)  y = DequantizeLinear(r, large, zero)
}"""
NUMBERS = {
    "step": np.float32(1),
    "large": np.float32(64 * 127),
    "zero": np.uint8(0),
    "none": np.int8(0),
    "weights": np.full((64, 32), 127, np.int8),
}
X = np.full((8, 64), 255, np.float32)


def saturating():
    return model_of(BODY, weights=NUMBERS)


def runner(**options):
    return ModelRunner(dataset_from_arrays({"x": X}, session_of(saturating()).inputs, batch=1), **options)


@pytest.mark.parametrize("part", ["whole", "fitting", "held out"])
def test_outputs_are_what_the_model_says_to_the_letter(part):
    exact = runner(exact=True)
    chosen = {"whole": exact, **dict(zip(("fitting", "held out"), exact.folds(), strict=True))}[part]

    for outputs in chosen.outputs(saturating()):
        np.testing.assert_array_equal(outputs["y"], run(saturating(), {"x": X[:1]})[0])


def test_the_metric_is_that_of_exact_outputs():
    wanted = float(run(saturating(), {"x": X[:1]})[0].mean())

    assert runner(exact=True, metric=lambda outputs: float(outputs[0]["y"].mean())).metric(saturating()) == wanted


@pytest.mark.skipif(targets.find("ort-cpu").name != "cpu-x64-avx2", reason="the kernels of this CPU do not saturate")
def test_otherwise_they_are_those_of_this_machines_kernels():
    (outputs,) = runner().outputs(saturating(), limit=1)

    assert outputs["y"].max() < run(saturating(), {"x": X[:1]})[0].max() / 1.5


@pytest.mark.parametrize(("target", "exact"), [(None, False), ("ort-cpu", False), ("qnn-htp", True)])
def test_it_is_asked_for_where_the_target_is_not_this_machine(monkeypatch, target, exact):
    made = []

    class Watched(ModelRunner):
        def __init__(self, *args, **options):
            made.append(options["exact"])
            super().__init__(*args, **options)

    monkeypatch.setattr(importlib.import_module("graphopt.driver"), "ModelRunner", Watched)
    optimize(
        model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }"),
        pipeline=Pipeline(()),
        target=None if target is None else targets.find(target),
    )

    assert made == [exact]
