"""reduce-strength: squares become products, other powers stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import model_of, operators, optimized, run


@pytest.mark.parametrize(("name", "dtype"), [("float", np.float32), ("double", np.float64)])
def test_a_square_becomes_a_product(name: str, dtype: type) -> None:
    before = model_of(f"g ({name}[n] x) => (y) {{ y = Pow(x, two) }}", weights={"two": np.float32(2)})
    after, _ = optimized(before, "reduce-strength")
    assert operators(after) == {"Mul": 1}
    x = np.array([0, -0.0, 1.5, -3, 1e20, -1e-30, np.inf, -np.inf, np.nan], dtype)
    np.testing.assert_array_equal(run(after, {"x": x})[0], run(before, {"x": x})[0])


LEFT_ALONE = {
    "a cube": "(float[n] x) => (y) { y = Pow(x, three) }",
    "a computed exponent": "(float[n] x, float z) => (y) { y = Pow(x, z) }",
    "an exponent that adds an axis": "(float[n] x) => (y) { y = Pow(x, deep) }",
    "integers": "(int32[n] x) => (y) { y = Pow(x, two) }",
    "part of a normalisation": "(float[n, 3] x) => (y) { p = Pow(x, two) y = ReduceMean <axes = [-1]> (p) }",
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    weights = {"two": np.float32(2), "three": np.float32(3), "deep": np.full((1, 1), 2, np.float32)}
    before = model_of(f"g {LEFT_ALONE[reason]}", weights=weights)
    after, _ = optimized(before, "reduce-strength")
    assert operators(after) == operators(before)
