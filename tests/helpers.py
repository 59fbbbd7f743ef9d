"""What many tests need: models from text, running them, and running pipelines over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt import io
from graphopt.driver import Result, optimize
from graphopt.ir import Model, nodes
from graphopt.runtime import Session

SHARED = Path(__file__).resolve().parents[2] / "shared"
Arrays = Mapping[str, np.ndarray[Any, Any]]


def model_of(
    body: str, *, opset: int = 17, weights: Arrays | None = None, functions: str = "", domain: str | None = None
) -> Model:
    """Return a model from ONNX text (``agraph (float[2] x) => (float[2] y) { y = Relu(x) }``), weights by name."""
    other = "" if domain is None else f', "{domain}" : 1'
    header = f'<ir_version: 8, opset_import: ["" : {opset}{other}]>'
    proto = onnx.parser.parse_model(f"{header}\n{body}\n{functions}")
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return io.from_proto(proto)


def clone(model: Model) -> Model:
    """Return an independent copy."""
    return io.from_proto(io.to_proto(model))


def run(model: Model, feeds: Arrays, *, optimize_graph: bool = False) -> list[np.ndarray[Any, Any]]:
    """Run a model on onnxruntime, its own optimizations off unless asked for; outputs in order."""
    session = Session(io.to_proto(model).SerializeToString(), optimize=optimize_graph)
    return list(session.run(feeds).values())


def optimized(model: Model, pipeline: str) -> tuple[Model, Result]:
    """Return a copy of ``model`` with ``pipeline`` run over it, and the result of the run."""
    copy = clone(model)
    return copy, optimize(copy, pipeline=pipeline)


def operators(model: Model) -> Counter[str]:
    """Return how many nodes of each operator there are, nested graphs included."""
    return Counter(node.op_type for node in nodes(model))


def check_equivalent(before: Model, after: Model, feeds: Arrays, *, rtol: float = 1e-5) -> None:
    """Assert that both give the same outputs: integers exactly, floats within ``rtol`` of the output's scale."""
    for want, got in zip(run(before, feeds), run(after, feeds), strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        if want.dtype.kind != "f" or want.size == 0:
            np.testing.assert_array_equal(got, want)
            continue
        finite = want[np.isfinite(want)]
        scale = float(np.abs(finite).max()) if finite.size else 1.0
        np.testing.assert_allclose(got, want, rtol=0, atol=rtol * max(scale, 1e-30))


def codes(result: Result) -> set[str]:
    """Return the codes of the diagnostics of a run."""
    return {diagnostic.code for diagnostic in result.diagnostics}


def shared(*parts: str) -> Path:
    """Return a file of the shared folder beside the checkout; skip the test, saying so, where there is none."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs ../shared/{'/'.join(parts)}, which is not there")
    return path
