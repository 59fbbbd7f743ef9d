"""What cuts do to the outputs, against networks written anew and run whole."""

from __future__ import annotations

import re

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.calibration import dataset_from_arrays
from graphopt.calibration.sessions import session_of
from graphopt.ir import Editor, Model
from graphopt.pruning.effects import Changed, Effects
from graphopt.pruning.matrices import bias_of, layer_of, rows_of, write_rows
from graphopt.pruning.relay import Relay
from graphopt.runner import ModelRunner
from tests.helpers import clone, model_of, run

RNG = np.random.default_rng(8)
X = RNG.standard_normal((40, 6)).astype(np.float32)
ARRAYS = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in {"a": (6, 8), "b": (8, 5), "bt": (5, 8), "k": (5, 8, 1, 1), "bias": (5,), "d": (5, 3)}.items()
} | {"image": np.array([0, 8, 1, 1]), "flat": np.array([0, 5])}

READERS = {
    "MatMul": "m = MatMul(r, b)",
    "MatMul with an Add": "n = MatMul(r, b) m = Add(n, bias)",
    "Gemm": "m = Gemm<transB = 1, alpha = 0.5, beta = 2.0>(r, bt, bias)",
    "Conv": "i = Reshape(r, image) c = Conv(i, k) m = Reshape(c, flat)",
    "Conv, a shared bias": "i = Reshape(r, image) c = Conv(i, k, bias) l = Reshape(c, flat) m = Mul(l, bias)",
    "two, of the same weights": "n = MatMul(r, b) q = Neg(r) o = MatMul(q, b) p = Relu(o) m = Add(n, p)",
}


def net(reader: str) -> Model:
    inner = f"h = MatMul(x, a) r = Relu(h) {reader} z = Tanh(m) y = MatMul(m, d)"
    read = set(re.findall(r"\w+", inner))
    weights = {name: array for name, array in ARRAYS.items() if name in read}
    return annotated(model_of(f"g (float[N, 6] x) => (float[N, 3] y, float[N, 5] z) {{ {inner} }}", weights=weights))


def annotated(model: Model) -> Model:
    AnalysisManager(Editor(model)).get(Shapes)
    return model


def cut(model: Model) -> Changed:
    """Other weights and biases for all readers of ``r`` and what becomes of it."""
    found = {}
    for node in model.graph:
        layer = layer_of(node) if node.op_type in ("MatMul", "Gemm", "Conv") else None
        if layer is not None and node.inputs[0] is not model.graph.inputs[0] and node.outputs[0].name != "y":
            rows, bias = rows_of(layer), bias_of(layer)
            found[node] = rows + 0.3 * RNG.standard_normal(rows.shape), bias + RNG.standard_normal(bias.shape)
    return found


def brute(model: Model, changed: Changed) -> float:
    """The loss by the model written anew."""
    copy = annotated(clone(model))
    by_output = {node.outputs[0].name: node for node in copy.graph}
    for node, (weights, bias) in changed.items():
        layer = layer_of(by_output[node.outputs[0].name])
        assert layer is not None
        write_rows(Editor(copy), layer, weights, bias)
    pairs = zip(run(model, {"x": X}), run(copy, {"x": X}), strict=True)
    return float(np.mean([np.mean((found - exact) ** 2) / np.var(exact) for exact, found in pairs]))


@pytest.mark.parametrize("stop", [None, ("r",)])
@pytest.mark.parametrize("reader", READERS)
def test_losses_are_those_of_the_network_written_anew(reader: str, stop: tuple[str] | None):
    model = net(READERS[reader])
    runner = ModelRunner(dataset_from_arrays({"x": X}, session_of(model).inputs, batch=7))
    before = clone(model)
    cuts = [cut(model) for _ in range(3)]

    with Relay(runner, model, 16) as relay:
        effects = Effects(model, relay)
        if stop is not None:
            effects.rest(stop)
        found = effects.losses(cuts)

    assert cuts[0]
    np.testing.assert_allclose(found, [brute(model, changed) for changed in cuts], rtol=1e-4)
    np.testing.assert_array_equal(run(model, {"x": X})[0], run(before, {"x": X})[0])


def test_nothing_is_lost_by_the_weights_that_layers_have():
    model = net(READERS["Gemm"])
    runner = ModelRunner(dataset_from_arrays({"x": X}, session_of(model).inputs, batch=7))
    gemm = next(node for node in model.graph if node.op_type == "Gemm")
    layer = layer_of(gemm)
    assert layer is not None

    with Relay(runner, model, 16) as relay:
        (found,) = Effects(model, relay).losses([{gemm: (rows_of(layer), bias_of(layer))}])

    assert found < 1e-10
