"""The preset compact on the project's own models: fewer MACs, 8 bits where they pay, and nearly the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphopt import io
from graphopt.analysis.cost import Cost
from graphopt.driver import optimize
from graphopt.runtime import Session
from models.metrics import fashion_accuracy, fashion_test

MODELS = Path(__file__).resolve().parents[2] / "models"


def accuracy(path: Path) -> float:
    session = Session(path)
    return fashion_accuracy([session.run(batch) for batch in fashion_test()])


@pytest.mark.parametrize("model", ["fashion_cnn", "fashion_transformer"])
def test_prunes_refits_and_quantizes_in_one_run(model: str, tmp_path: Path) -> None:
    source, whole, output = MODELS / f"{model}.onnx", tmp_path / "whole.onnx", tmp_path / "out.onnx"
    optimize(source, preset="lossless", output=whole)
    result = optimize(source, preset="compact", output=output, data="models.metrics:fashion_calibration")

    pruned = next(record for record in result.run.records if record.text.startswith("prune-channels"))
    assert pruned.changes["channels"] and pruned.changes["refit"]
    assert Cost.measure(io.load(output)).total_macs <= 0.7 * Cost.measure(io.load(whole)).total_macs
    assert accuracy(output) > accuracy(source) - 0.02
