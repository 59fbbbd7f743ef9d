"""The yardstick of ``bench.py npu``: what onnxruntime's own helper for QNN makes of a model by default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model

SAMPLES = 32
"""Calibration inputs at most: the helper keeps all intermediate values of all of them in memory."""


class Reader(CalibrationDataReader):
    """Hands a .npz file of samples to onnxruntime, one at a time."""

    def __init__(self, path: Path, model: Path):
        with np.load(path) as arrays:
            self._arrays = {name: arrays[name][:SAMPLES] for name in arrays.files}
        graph = onnx.load(model, load_external_data=False).graph
        self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.input}
        self._rows = self._all()

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample, None after the last."""
        return next(self._rows, None)

    def _all(self) -> Iterator[dict[str, Any]]:
        count = min(len(array) for array in self._arrays.values())
        for index in range(count):
            row = {name: array[index : index + 1] for name, array in self._arrays.items()}
            # An input without a batch axis was stacked along a new one.
            yield {name: a[0] if a.ndim > self._ranks.get(name, a.ndim) else a for name, a in row.items()}


def plain_qdq(source: Path, calibration: Path, output: Path) -> None:
    """Quantize ``source`` with the helper's defaults: 8 bits, unsigned, a scale a tensor, ranges of extremes.

    Raises ValueError where the helper fails.
    """
    bare, prepared = output.with_name("bare.onnx"), output.with_name("prepared.onnx")
    proto = onnx.load(source)
    # The helper stumbles over metadata.
    del proto.metadata_props[:]
    onnx.save(proto, bare)
    # It raises whatever it likes, and one network that it cannot do is a row of the table.
    try:
        model = prepared if qnn_preprocess_model(bare, prepared) else bare
        quantize(model, output, get_qnn_qdq_config(model, Reader(calibration, source)))
    except Exception as error:
        raise ValueError(f"onnxruntime's helper: {type(error).__name__}: {error}") from error
