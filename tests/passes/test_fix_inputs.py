"""fix-inputs: what a setting may be, and what is refused."""

import numpy as np
import pytest

from graphopt.errors import UsageError
from tests.helpers import model_of, optimized, run

BODY = "g (float[2] x, int64 sr) => (float[2] y) { c = Cast <to: int = 1> (sr) y = Mul(x, c) }"


def test_the_model_computes_with_the_value_and_has_no_such_input():
    model, _ = optimized(model_of(BODY), "fix-inputs{sr=3}")
    assert [value.name for value in model.graph.inputs] == ["x"]
    feeds = {"x": np.array([1.0, -2.0], np.float32)}
    np.testing.assert_array_equal(run(model, feeds)[0], 3 * feeds["x"])


def test_an_array_gets_the_value_everywhere():
    model, _ = optimized(
        model_of("g (float[2,3] x, float[3] s) => (float[2,3] y) { y = Mul(x, s) }"), "fix-inputs{s=2}"
    )
    feeds = {"x": np.ones((2, 3), np.float32)}
    np.testing.assert_array_equal(run(model, feeds)[0], 2 * feeds["x"])


@pytest.mark.parametrize(
    ("body", "option", "text"),
    [
        (BODY, "rate=3", "there is no input 'rate'"),
        ("g (float[N] x, float[N] s) => (float[N] y) { y = Mul(x, s) }", "s=2", "its size is open"),
        ("g (float[2] x, float[2] s) => (float[2] y, float[2] s) { y = Mul(x, s) }", "s=2", "it is an output too"),
        (
            "g (float[2] x, uint8 s) => (float[2] y) { c = Cast <to: int = 1> (s) y = Mul(x, c) }",
            "s=300",
            "no number of",
        ),
    ],
)
def test_what_makes_no_constant_is_refused(body, option, text):
    with pytest.raises(UsageError, match=text):
        optimized(model_of(body), f"fix-inputs{{{option}}}")
