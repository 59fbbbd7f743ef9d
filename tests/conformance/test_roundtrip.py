"""Every model of ONNX's backend-test data loads and saves unchanged, and its text parses back to its fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx.backend.test.loader import DATA_DIR

from graphopt import io
from graphopt.errors import GraphOptError
from graphopt.ir import fingerprint
from graphopt.ir.text import dump, parse
from tests.conformance.corpus import generated

WEIGHTS_SHOWN = (0, 16, 1 << 40)


def stored() -> Iterator[tuple[str, bytes, Path]]:
    for path in sorted(Path(DATA_DIR).rglob("*.onnx")):
        yield str(path.relative_to(DATA_DIR)), path.read_bytes(), path.parent


def check_all(
    cases: Iterable[tuple[str, bytes, Path | None]], at_least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    complaints: dict[str, list[str]] = {}
    count = 0
    for name, data, folder in cases:
        count += 1
        found = list(complaints_about(data, folder))
        if found:
            complaints[name] = found
    with capsys.disabled():
        print(f"\nround trip: {count} models, {len(complaints)} differ")
    assert complaints == {}
    assert count >= at_least


def complaints_about(data: bytes, folder: Path | None) -> Iterator[str]:
    try:
        model = io.load(data, base_dir=folder)
    except GraphOptError as error:
        yield f"does not load: {error}"
        return
    yield from differences(onnx.ModelProto.FromString(data), io.to_proto(model), "model")
    wanted = fingerprint(model)
    for weights in WEIGHTS_SHOWN:
        text = dump(model, weights=weights)
        try:
            again = parse(text)
        except GraphOptError as error:
            yield f"text with weights={weights} does not parse: {error}"
            continue
        if fingerprint(again) != wanted:
            yield f"text with weights={weights} has another fingerprint"
        if dump(again, weights=weights) != text:
            yield f"text with weights={weights} prints differently"


def differences(before: Any, after: Any, path: str) -> Iterator[str]:
    """Yield where two protobuf messages differ. An empty field counts as an absent one, an empty message does not."""
    for field in before.DESCRIPTOR.fields:
        here = f"{path}.{field.name}"
        left, right = getattr(before, field.name), getattr(after, field.name)
        if isinstance(left, str | bytes | int | float):
            if str(left) != str(right):
                yield f"{here}: {left!r:.60} became {right!r:.60}"
        elif hasattr(left, "DESCRIPTOR"):
            if before.HasField(field.name) != after.HasField(field.name):
                yield f"{here}: is only in one of the two"
            elif before.HasField(field.name):
                yield from differences(left, right, here)
        elif len(left) != len(right):
            yield f"{here}: {len(left)} entries became {len(right)}"
        elif len(left) and hasattr(left[0], "DESCRIPTOR"):
            for index, (one, other) in enumerate(zip(left, right, strict=True)):
                yield from differences(one, other, f"{here}[{index}]")
        elif str(left) != str(right):  # as text, because NaN differs from itself
            yield f"{here}: {left!s:.60} became {right!s:.60}"


def test_stored_models_survive_files_and_text(capsys):
    check_all(stored(), 140, capsys)


@pytest.mark.slow
def test_generated_models_survive_files_and_text(capsys):
    check_all(((case.name, case.model.SerializeToString(), None) for case in generated()), 1850, capsys)


def test_the_comparison_sees_a_change_deep_inside():
    before = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float x) => (float y) { y = Foo <a=1> (x) }'
    )
    after = onnx.ModelProto()
    after.CopyFrom(before)
    after.graph.node[0].attribute[0].i = 2
    assert list(differences(before, after, "model")) == ["model.graph.node[0].attribute[0].i: 1 became 2"]
    assert list(differences(before, before, "model")) == []
