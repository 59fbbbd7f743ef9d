"""The project's own models do what models/SOURCES.md says of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.runtime import Session
from models import metrics

MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = ("fashion_cnn", "fashion_transformer")


def stated_accuracy(name: str) -> float:
    """Read the accuracy from the model's line in the table of SOURCES.md."""
    found = re.search(rf"^\| `{name}\.onnx` .*?\| ([0-9.]+) % \|$", (MODELS / "SOURCES.md").read_text(), re.MULTILINE)
    assert found, f"SOURCES.md states no accuracy for {name}"
    return float(found[1]) / 100


@pytest.mark.parametrize("name", NAMES)
def test_accuracy_is_as_stated(name: str):
    session = Session(MODELS / f"{name}.onnx")
    accuracy = metrics.fashion_accuracy([session.run(feed) for feed in metrics.fashion_test()])
    # One image of the thousand may tip over on a processor that sums in another order.
    assert accuracy == pytest.approx(stated_accuracy(name), abs=0.0011)


@pytest.mark.parametrize("name", NAMES)
def test_batch_size_is_free(name: str):
    session = Session(MODELS / f"{name}.onnx")
    feed = next(metrics.fashion_test())["images"]
    together = session.run({"images": feed[:7]})["logits"]
    one_by_one = [session.run({"images": feed[i : i + 1]})["logits"] for i in range(7)]
    assert together.shape == (7, 10)
    np.testing.assert_allclose(together, np.concatenate(one_by_one), rtol=0, atol=1e-5 * np.abs(together).max())


def test_the_networks_hold_the_patterns_that_passes_look_for():
    ops = {name: {n.op_type for n in onnx.load(MODELS / f"{name}.onnx").graph.node} for name in NAMES}
    assert {"BatchNormalization", "Pad", "Conv", "Clip", "Relu", "Gemm"} <= ops["fashion_cnn"]
    assert {"Erf", "Softmax", "MatMul", "ReduceMean", "Shape", "Reshape"} <= ops["fashion_transformer"]


def test_calibration_images_are_none_of_the_test_images():
    with np.load(MODELS / "fashion_sample.npz") as data:
        assert data["test_images"].shape == (1000, 28, 28) and data["calibration_images"].shape == (256, 28, 28)
        test = {image.tobytes() for image in data["test_images"]}
        assert not test & {image.tobytes() for image in data["calibration_images"]}
        assert np.bincount(data["test_labels"], minlength=10).min() >= 80


def test_more_outputs_than_labels_are_refused():
    with pytest.raises(ValueError, match="1001 rows of logits for 1000"):
        metrics.fashion_accuracy([{"logits": np.zeros((1001, 10), np.float32)}])


def test_the_files_are_small():
    files = [path for path in MODELS.iterdir() if path.suffix in (".onnx", ".npz")]
    assert len(files) == 3
    assert sum(path.stat().st_size for path in files) < 2_000_000
