"""The presets that need no data, on the project's own models: smaller files that classify as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graphopt.driver import optimize
from graphopt.errors import PassError
from graphopt.runtime import Session

MODELS = Path(__file__).resolve().parents[2] / "models"
IMAGES = np.load(MODELS / "fashion_sample.npz")["test_images"][:200, None].astype(np.float32)
BATCHES = np.split(IMAGES, 4)


def logits(path: Path) -> np.ndarray:
    session = Session(path.read_bytes())
    return np.concatenate([session.run({"images": batch})["logits"] for batch in BATCHES])


@pytest.mark.parametrize(
    ("preset", "model", "noise", "share"),
    [
        ("int8-dynamic", "fashion_transformer", 0.03, 0.5),
        ("int4-weights", "fashion_transformer", 0.3, 0.5),
        ("float16", "fashion_transformer", 0.003, 0.58),
        ("float16", "fashion_cnn", 0.003, 0.56),
    ],
)
def test_is_smaller_and_close(preset: str, model: str, noise: float, share: float, tmp_path: Path) -> None:
    source, output = MODELS / f"{model}.onnx", tmp_path / "out.onnx"
    optimize(source, preset=preset, output=output)
    want, got = logits(source), logits(output)
    assert (want.argmax(1) == got.argmax(1)).mean() > (0.9 if preset == "int4-weights" else 0.98)
    assert np.sqrt(((want - got) ** 2).mean() / (want**2).mean()) < noise
    assert output.stat().st_size < source.stat().st_size * share


@pytest.mark.parametrize("preset", ["int8-dynamic", "int4-weights"])
def test_a_second_time_is_refused(preset: str, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    optimize(MODELS / "fashion_transformer.onnx", preset=preset, output=output)
    with pytest.raises(PassError, match="quantized already"):
        optimize(output, preset=preset)
