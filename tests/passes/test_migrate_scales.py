"""migrate-scales: where the factor goes, which scale is taken, and that outputs stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt import io
from graphopt.calibration.datasets import dataset_from_feeds
from graphopt.driver import optimize
from graphopt.errors import UsageError
from graphopt.ir import Model
from graphopt.ir.query import constant
from graphopt.runtime import Session
from tests.helpers import check_equivalent, clone, codes, model_of, operators, run

RNG = np.random.default_rng(0)
OUTLIERS = np.float32([1, 1, 100, 1, 1, 1, 1, 40])


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def migrated(model: Model, feeds: dict[str, Any], options: str = "") -> tuple[Model, Any]:
    after = clone(model)
    data = dataset_from_feeds([feeds], Session(io.to_proto(model).SerializeToString()).inputs)
    return after, optimize(after, pipeline=f"migrate-scales{options}", data=data)


def weight(model: Model, name: str) -> np.ndarray[Any, Any]:
    array = constant(model.graph.initializers[name])
    assert array is not None
    return array


NORM = {"gamma": OUTLIERS, "beta": normal(8), "Q": normal(8, 5), "K": normal(8, 6)}
FEED = {"x": normal(2, 30, 8)}
SOURCES = {
    "normalisation": "n = LayerNormalization(x, gamma, beta)",
    "factor": "n = Mul(x, gamma)",
    "factor and offset": "m = Mul(gamma, x) n = Add(m, beta)",
    "divisor": "m = Div(x, inverse) n = Relu(m)",
}


@pytest.mark.parametrize("options", ["", "{alpha=0.5}", "{alpha=1}"])
@pytest.mark.parametrize("source", SOURCES)
def test_moves_the_factor_into_what_makes_the_outliers(source: str, options: str) -> None:
    body = f"g (float[2, s, 8] x) => (q, k) {{ {SOURCES[source]} q = MatMul(n, Q) k = MatMul(n, K) }}"
    weights = {name: array for name, array in NORM.items() if name in body} | {"inverse": 1 / OUTLIERS}
    before = model_of(body, weights=weights)
    after, result = migrated(before, FEED, options)
    assert len(result.run.ctx.rewrites) == 1
    assert operators(after) == operators(before)
    check_equivalent(before, after, FEED)
    _, again = migrated(after, FEED, options)
    assert not again.run.ctx.rewrites


def test_follows_the_formula_of_the_paper() -> None:
    body = "g (float[2, s, 8] x) => (q, k) { n = Mul(x, gamma) q = MatMul(n, Q) k = MatMul(n, K) }"
    before = model_of(body, weights={name: NORM[name] for name in ("gamma", "Q", "K")})
    after, _ = migrated(before, FEED, "{alpha=0.7}")
    inputs = np.abs(FEED["x"] * OUTLIERS).max(axis=(0, 1))
    rows = np.maximum(np.abs(NORM["Q"]).max(axis=1), np.abs(NORM["K"]).max(axis=1))
    np.testing.assert_allclose(OUTLIERS / weight(after, "gamma"), inputs**0.7 / rows**0.3, rtol=1e-4)


def rounded(array: np.ndarray[Any, Any], axis: int | None, steps: int) -> np.ndarray[Any, Any]:
    step = np.abs(array).max(axis=axis, keepdims=axis is not None) / steps
    return np.asarray(np.round(array / step) * step)


def test_auto_lowers_the_error_of_rounding_both_sides() -> None:
    before = model_of(
        "g (float[2, s, 8] x) => (q, n) { n = Mul(x, gamma) q = MatMul(n, Q) }",
        weights={name: NORM[name] for name in ("gamma", "Q")},
    )
    hidden = model_of(
        "g (float[2, s, 8] x) => (q) { n = Mul(x, gamma) q = MatMul(n, Q) }",
        weights={name: NORM[name] for name in ("gamma", "Q")},
    )
    after, _ = migrated(hidden, FEED)
    want, _ = run(before, FEED)

    def error(gamma: np.ndarray[Any, Any], matrix: np.ndarray[Any, Any]) -> float:
        return float(np.square(rounded(FEED["x"] * gamma, None, 127) @ rounded(matrix, 0, 127) - want).mean())

    assert error(weight(after, "gamma"), weight(after, "Q")) < 0.5 * error(NORM["gamma"], NORM["Q"])


RESIDUAL = """g (float[2, s, 8] x) => (y) {
    n = LayerNormalization(x, gamma, beta) q = MatMul(n, W) y = Add(q, n) }"""


def test_inserts_a_factor_where_others_read_the_value() -> None:
    before = model_of(RESIDUAL, weights={"gamma": OUTLIERS, "beta": normal(8), "W": normal(8, 8)})
    after, result = migrated(before, FEED)
    assert operators(after) == operators(before) + operators(model_of("g (float x) => (y) { y = Mul(x, x) }"))
    check_equivalent(before, after, FEED)
    _, again = migrated(after, FEED)
    assert not again.run.ctx.rewrites
    assert str(result.run.records[-1].changes) == "1 factors inserted"


@pytest.mark.parametrize("insert", ["0", "0.0001"])
def test_inserts_nothing_that_does_not_pay(insert: str) -> None:
    before = model_of(RESIDUAL, weights={"gamma": OUTLIERS, "beta": normal(8), "W": normal(8, 8)})
    _, result = migrated(before, FEED, f"{{insert={insert}}}")
    assert not result.run.ctx.rewrites
    assert ("MIG001" in codes(result)) == (insert != "0")


def test_inserts_one_factor_for_all_readers_behind_an_activation() -> None:
    body = """g (float[2, s, 8] x) => (q, k) {
        m = Mul(x, gamma) e = Erf(m) o = Mul(e, gamma2) n = Sub(o, m) q = MatMul(n, Q) k = MatMul(n, K) }"""
    weights = {"gamma": OUTLIERS, "gamma2": OUTLIERS, "Q": NORM["Q"], "K": NORM["K"]}
    before = model_of(body, weights=weights)
    after, result = migrated(before, FEED)
    assert len(result.run.ctx.rewrites) == 1
    assert operators(after)["Mul"] == operators(before)["Mul"] + 1
    check_equivalent(before, after, FEED)


def test_scales_inputs_of_convolutions_when_asked() -> None:
    body = "g (float[2, 3, 9, 9] x) => (y) { c = Conv(x, A, b) r = Relu(c) y = Conv(r, B) }"
    first = (normal(8, 3, 3, 3) * OUTLIERS.reshape(8, 1, 1, 1)).astype(np.float32)
    before, feed = (
        model_of(body, weights={"A": first, "b": normal(8), "B": normal(5, 8, 3, 3)}),
        {"x": normal(2, 3, 9, 9)},
    )
    _, result = migrated(before, feed)
    assert not result.run.ctx.rewrites
    after, result = migrated(before, feed, "{convolutions=true}")
    assert len(result.run.ctx.rewrites) == 1
    check_equivalent(before, after, feed)


def test_leaves_balanced_channels_alone() -> None:
    body = "g (float[2, s, 8] x) => (q) { n = Mul(x, gamma) q = MatMul(n, Q) }"
    before = model_of(body, weights={"gamma": np.ones(8, np.float32), "Q": np.eye(8, dtype=np.float32)})
    _, result = migrated(before, {"x": np.sign(FEED["x"])})
    assert not result.run.ctx.rewrites


def test_needs_data() -> None:
    body = "g (float[2, s, 8] x) => (q) { n = Mul(x, gamma) q = MatMul(n, Q) }"
    with pytest.raises(UsageError, match="needs calibration data"):
        optimize(model_of(body, weights={"gamma": OUTLIERS, "Q": normal(8, 5)}), pipeline="migrate-scales")


@pytest.mark.parametrize("alpha", ["2", "-0.1", "much", "nan"])
def test_refuses_a_strength_out_of_bounds(alpha: str) -> None:
    with pytest.raises(UsageError, match="alpha must be auto or a number from 0 to 1"):
        optimize(
            model_of("g (float[2] x) => (y) { y = Relu(x) }"),
            pipeline=f'migrate-scales{{alpha="{alpha}"}}',
            data="random",
        )


def test_what_is_always_empty_is_left_alone():
    text = """g (float[2,4] x) => (float[k,3] y) {
        z = Slice(x, none, none, none)
        e = MatMul(z, left)
        y = MatMul(e, right)
    }"""
    ones = {"left": np.ones((4, 4), np.float32), "right": np.ones((4, 3), np.float32)}
    model = model_of(text, weights={"none": np.array([0], np.int64), **ones})
    optimize(model, pipeline="migrate-scales", data="random")
    assert operators(model)["MatMul"] == 2
