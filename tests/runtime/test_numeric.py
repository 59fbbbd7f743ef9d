"""Running IR models, and the inputs to run them on."""

import numpy as np
import pytest

from graphopt import numeric
from graphopt.calibration.sessions import session_of
from graphopt.diagnostics import DiagnosticSink
from graphopt.errors import VerifyError
from tests.helpers import model_of

BODY = "g (float[n,3] x) => (float[n,4] y) { y = MatMul(x, w) }"


def model(value=1.0):
    return model_of(BODY, weights={"w": np.full((3, 4), value, np.float32)})


def test_the_check_holds_a_model_against_the_reference():
    check = numeric.output_check(session_of(model()), [{"x": np.ones((1, 3), np.float32)}], rtol=1e-3)

    check(model(1.0005))
    with pytest.raises(VerifyError, match="output y"):
        check(model(1.01))


def test_random_inputs_come_with_a_warning_and_data_does_not(tmp_path):
    inputs = session_of(model()).inputs
    sink = DiagnosticSink()
    (feeds,) = numeric.inputs_for(inputs, None, sink, bindings={"n": 5})
    assert feeds["x"].shape == (5, 3)
    assert [d.code for d in sink] == ["DATA001"]

    np.savez(tmp_path / "data.npz", x=np.ones((6, 3), np.float32))
    sink = DiagnosticSink()
    batches = list(numeric.inputs_for(inputs, tmp_path / "data.npz", sink, batch=4))
    assert [feeds["x"].shape for feeds in batches] == [(4, 3), (2, 3)]
    assert list(sink) == []
