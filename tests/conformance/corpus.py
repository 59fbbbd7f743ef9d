"""ONNX's own backend-test data: every case with its model, inputs, expected outputs and tolerance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx.backend.test.case.model import collect_testcases as collect_models
from onnx.backend.test.case.node import collect_testcases as collect_nodes
from onnx.backend.test.loader import DATA_DIR, load_model_tests

STORED = ("simple", "pytorch-converted", "pytorch-operator", "light")


@dataclass(frozen=True)
class Case:
    """One case: ``sets`` holds (inputs, expected outputs) as arrays, lists of arrays or None, in the model's order."""

    name: str
    model: onnx.ModelProto
    sets: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


def stored() -> Iterator[Case]:
    """Yield the cases that lie in the onnx package as files."""
    for kind in STORED:
        if not (Path(DATA_DIR) / kind).is_dir():
            continue
        for case in sorted(load_model_tests(kind=kind), key=lambda c: c.name):
            if case.model_dir is None:
                continue
            folder = Path(case.model_dir)
            model = onnx.load(folder / "model.onnx")
            sets = [_read_set(part, model) for part in sorted(folder.glob("test_data_set_*"))]
            yield Case(f"{kind}/{case.name}", model, sets, case.rtol, case.atol)


@cache
def generated() -> tuple[Case, ...]:
    """Return the cases that the onnx package computes (a dozen seconds, once)."""
    found = [*collect_nodes(None), *collect_models()]
    return tuple(
        Case(f"{c.kind}/{c.name}", c.model, [(list(i), list(o)) for i, o in c.data_sets or []], c.rtol, c.atol)
        for c in sorted(found, key=lambda c: (c.kind, c.name))
        if c.model is not None
    )


def _read_set(folder: Path, model: onnx.ModelProto) -> tuple[list[Any], list[Any]]:
    return _read(folder, "input", model.graph.input), _read(folder, "output", model.graph.output)


def _read(folder: Path, prefix: str, infos: Any) -> list[Any]:
    files = sorted(folder.glob(f"{prefix}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [_value(path.read_bytes(), info) for path, info in zip(files, infos, strict=False)]


def _value(data: bytes, info: onnx.ValueInfoProto) -> Any:
    kind = info.type.WhichOneof("value")
    if kind == "sequence_type":
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind == "optional_type":
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data))
