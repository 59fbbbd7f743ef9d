"""The runtime on a real network, from the models that lie beside the checkout on some machines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.calibration import dataset_from_arrays, random_inputs
from graphopt.runtime import Session, bench, compare

MODEL = Path(__file__).resolve().parents[3] / "shared" / "models" / "cifar10_resnet20.onnx"
pytestmark = pytest.mark.skipif(not MODEL.is_file(), reason="shared/models/cifar10_resnet20.onnx is not here")


def test_a_network_equals_itself_and_unoptimized_almost():
    session = Session(MODEL)
    (info,) = session.inputs
    images = np.random.default_rng(0).standard_normal((20, *info.shape[1:])).astype(np.float32)
    data = dataset_from_arrays({info.name: images}, session.inputs)
    assert compare(session, MODEL.read_bytes(), data).equal, "runs are deterministic"
    result = compare(MODEL, Session(MODEL, optimize=False), data, rtol=1e-5)
    result.check()
    (out,) = result.outputs
    assert out.sqnr_db > 100 and out.argmax_agreement == 1.0


@pytest.mark.slow
def test_a_network_is_as_fast_as_itself():
    feeds = random_inputs(Session(MODEL).inputs, 0)
    assert bench(MODEL, MODEL, feeds, runs=30, min_seconds=0).ratio.median == pytest.approx(1.0, abs=0.15)
