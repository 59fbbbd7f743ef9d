"""A session of a model in memory."""

import numpy as np
import pytest

from graphopt.calibration import sessions
from tests.helpers import model_of


@pytest.mark.parametrize("limit", [sessions._IN_MEMORY, 0])
def test_a_model_runs_from_memory_or_by_way_of_a_file(monkeypatch, limit):
    body = "g (float[n,3] x) => (float[n,4] y) { y = MatMul(x, w) }"
    model = model_of(body, weights={"w": np.ones((3, 4), np.float32)})
    monkeypatch.setattr(sessions, "_IN_MEMORY", limit)
    outputs = sessions.session_of(model).run({"x": np.ones((2, 3), np.float32)})

    np.testing.assert_array_equal(outputs["y"], np.full((2, 4), 3.0))
