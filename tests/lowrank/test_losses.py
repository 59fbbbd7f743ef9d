"""What outputs lose: as a share of their variance, of what probabilities are made of, of what is still finite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt import io
from graphopt.calibration.datasets import dataset_from_feeds
from graphopt.ir import Editor, Model
from graphopt.lowrank.losses import Losses
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


def losses(model: Model, folder: Path, samples: int = 100) -> Losses:
    data = dataset_from_feeds(DATA, Session(io.to_proto(model).SerializeToString()).inputs)
    return Losses(model, ModelRunner(data), folder, samples)


def share_lost(factor: float) -> float:
    """Return the error of the product with scaled weights, as a share of the variance of the exact one."""
    exact = np.concatenate([run(model_of(PLAIN, weights={"w": WEIGHTS}), feed)[0] for feed in DATA]).astype(np.float64)
    return float((((factor - 1) * exact) ** 2).mean() / exact.var())


@pytest.mark.parametrize("body", [PLAIN, SQUASHED])
def test_the_loss_is_the_mean_squared_error_as_a_share_of_the_variance(body: str, tmp_path: Path) -> None:
    """Before a Softmax: behind it, a sharper one would be another loss."""
    model = model_of(body, weights={"w": WEIGHTS})
    found = losses(model, tmp_path)
    assert found.of(model) == 0
    assert found.of(scaled(model, 1.5)) == pytest.approx(share_lost(1.5), rel=1e-4)


def test_what_is_not_finite_any_more_is_all_lost(tmp_path: Path) -> None:
    model = model_of(PLAIN, weights={"w": WEIGHTS})
    assert losses(model, tmp_path).of(scaled(model, np.nan)) == pytest.approx(1.0)


def test_a_model_without_numbers_tells_nothing(tmp_path: Path) -> None:
    model = model_of("agraph (float[N, 8] x, string[1] s) => (string[1] y) { y = Identity(s) }")
    assert not Losses(model, ModelRunner(None), tmp_path, 4).can_tell
