"""What outputs lose: as a share of their variance, of what probabilities are made of, of what is still finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from graphopt import io
from graphopt.calibration.datasets import dataset_from_feeds
from graphopt.ir import Editor, Model
from graphopt.lowrank.losses import Losses
from graphopt.pruning.relay import Relay
from graphopt.runner import ModelRunner
from graphopt.runtime import Session
from tests.helpers import clone, model_of, run

DATA = [{"x": np.random.default_rng(seed).standard_normal((4, 8)).astype(np.float32)} for seed in range(3)]
WEIGHTS = np.random.default_rng(9).standard_normal((8, 5)).astype(np.float32)
PLAIN = "agraph (float[N, 8] x) => (float[N, 5] y) { y = MatMul(x, w) }"
SQUASHED = "agraph (float[N, 8] x) => (float[N, 5] y) { h = MatMul(x, w) y = Softmax(h) }"


def scaled(model: Model, factor: float) -> Model:
    """Return a copy with other weights."""
    copy = clone(model)
    Editor(copy).set_weight(copy.graph.initializers["w"], np.asarray(WEIGHTS * factor, np.float32))
    return copy


@contextmanager
def losses(model: Model, samples: int = 100) -> Iterator[Losses]:
    data = dataset_from_feeds(DATA, Session(io.to_proto(model).SerializeToString()).inputs)
    with Relay(ModelRunner(data), model, 16, samples) as relay:
        yield Losses(model, relay)


def share_lost(factor: float) -> float:
    """Return the error of the product with scaled weights, as a share of the variance of the exact one."""
    exact = np.concatenate([run(model_of(PLAIN, weights={"w": WEIGHTS}), feed)[0] for feed in DATA]).astype(np.float64)
    return float((((factor - 1) * exact) ** 2).mean() / exact.var())


@pytest.mark.parametrize("body", [PLAIN, SQUASHED])
def test_the_loss_is_the_mean_squared_error_as_a_share_of_the_variance(body: str) -> None:
    """Before a Softmax: behind it, a sharper one would be another loss."""
    model = model_of(body, weights={"w": WEIGHTS})
    with losses(model) as found:
        assert found.of(model) == 0
        assert found.of(scaled(model, 1.5)) == pytest.approx(share_lost(1.5), rel=1e-4)


def test_what_is_not_finite_any_more_is_all_lost() -> None:
    model = model_of(PLAIN, weights={"w": WEIGHTS})
    with losses(model) as found:
        assert found.of(scaled(model, np.nan)) == pytest.approx(1.0)


def test_a_model_without_numbers_tells_nothing() -> None:
    model = model_of("agraph (float[N, 8] x, string[1] s) => (string[1] y) { y = Identity(s) }")
    with Relay(ModelRunner(None), model, 16) as relay:
        assert not Losses(model, relay).can_tell
