"""Changing what a model takes and gives: switches."""

import numpy as np
import pytest

from graphopt.ir import DataType, verify
from graphopt.ir.interface import InterfaceEditor
from tests.helpers import model_of, run

X = np.array([-1, 2], np.float32)


def switched(readers=None, body="agraph (float[2] x) => (float[2] y, float[2] z) { y = Abs(x) z = Exp(y) }", name="y"):
    """Return a model with a switch behind ``name`` that negates it."""
    model = model_of(body)
    edit = InterfaceEditor(model)
    on = edit.add_input("on", DataType.BOOL, [])
    value = next(v for node in model.graph for v in (*node.inputs, *node.outputs) if v.name == name)
    places = None if readers is None else [(list(model.graph)[node], index) for node, index in readers]
    edit.insert_switch(value, on, [("Neg", []), ("Mul", [edit.constant(np.float32(2), "two")])], places)
    verify(model)
    return model


@pytest.mark.parametrize(("on", "y"), [(False, [1, 2]), (True, [-2, -4])])
class TestSwitch:
    def test_for_all_readers_and_the_models_output(self, on, y):
        found = run(switched(), {"x": X, "on": np.array(on)})

        np.testing.assert_allclose(found[0], y)
        np.testing.assert_allclose(found[1], np.exp(np.array(y, np.float32)), rtol=1e-6)

    def test_for_some_readers(self, on, y):
        found = run(switched([(1, 0)]), {"x": X, "on": np.array(on)})

        np.testing.assert_allclose(found[0], [1, 2])
        np.testing.assert_allclose(found[1], np.exp(np.array(y, np.float32)), rtol=1e-6)

    def test_of_an_input(self, on, y):
        body = "agraph (float[2] x) => (float[2] y) { y = Identity(x) }"

        (found,) = run(switched(body=body, name="x"), {"x": np.array([1, 2], np.float32), "on": np.array(on)})

        np.testing.assert_allclose(found, y)
