"""Sessions of models in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from graphopt import io
from graphopt.analysis.cost import parameters
from graphopt.ir import DataType, Model
from graphopt.runtime import Session

_IN_MEMORY = 1 << 30
"""Models with more bytes of weights than this are handed to the runtime as a file: one protobuf holds 2 GB at most."""


def session_of(model: Model, *, optimize: bool = False, **options: Any) -> Session:
    """Return a session of ``model``, by default without the runtime's own optimizations.

    ``options`` are those of :class:`~graphopt.runtime.Session`. Raises ModelError and TargetError.
    """
    size = sum(tensor.nbytes for tensor in parameters(model) if tensor.dtype != DataType.STRING)
    if size <= _IN_MEMORY:
        return Session(io.to_proto(model).SerializeToString(), optimize=optimize, **options)
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        path = Path(folder) / "model.onnx"
        io.save(model, path)
        return Session(path, optimize=optimize, **options)
