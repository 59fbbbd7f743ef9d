"""Runs a pipeline over cases of the corpus and prints one JSON object a case: what became of it.

``python -m tests.conformance.check_lossless stored|generated PART PARTS PIPELINE``. A process of its own, so that a
crash in native code is seen as one.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from graphopt import io
from graphopt.driver import optimize
from graphopt.errors import GraphOptError, PassError, UsageError
from graphopt.pipeline.instruments import Verify
from graphopt.runtime import Session
from tests.conformance.corpus import Case, generated, stored

NEWEST_IR = 13
"""The newest IR version that onnxruntime reads; the corpus is one ahead, and uses nothing new of it."""


def run(model: bytes, feeds: dict[str, Any]) -> list[Any]:
    """Run with onnxruntime's own optimizations off, so that what is judged is the model as it was written."""
    session = Session(model, optimize=False)
    return list(session.run({name: plain(value) for name, value in feeds.items()}).values())


def plain(value: Any) -> Any:
    """Return an array for what the corpus gives as a protobuf (8-bit floats, 4-bit integers) or as a scalar."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if value is None or isinstance(value, list) else np.asarray(value)


def difference(got: Any, want: Any, case: Case) -> str | None:
    """Return what is wrong with an output, ``None`` when it is within the case's tolerance."""
    if isinstance(want, list):
        if not isinstance(got, list) or len(got) != len(want):
            return "a sequence of another length"
        return next((text for g, w in zip(got, want, strict=True) if (text := difference(g, w, case))), None)
    if want is None or got is None:
        return None if want is got else "an empty optional on one side"
    got, want = np.asarray(got), np.asarray(plain(want))
    if got.shape != want.shape:
        return f"shape {got.shape}, expected {want.shape}"
    if got.dtype != want.dtype and not {got.dtype.kind, want.dtype.kind} <= set("OUS"):
        return f"dtype {got.dtype}, expected {want.dtype}"
    if want.dtype.kind in "OUSb":
        return None if np.array_equal(got, want) else "other elements"
    if want.dtype.kind == "V" or want.dtype.name.startswith(("bfloat", "float8", "float4", "int4", "uint4")):
        got, want = got.astype(np.float32), want.astype(np.float32)
    try:
        np.testing.assert_allclose(got, want, rtol=case.rtol, atol=case.atol)
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return None


def variants(case: Case, variant: str) -> Iterator[tuple[onnx.ModelProto, dict[str, Any], list[Any]]]:
    """Yield the models to check with their inputs and the outputs that they have to give."""
    case.model.ir_version = min(case.model.ir_version, NEWEST_IR)
    names = [info.name for info in case.model.graph.input]
    for inputs, outputs in case.sets:
        model, feeds = onnx.ModelProto(), dict(zip(names, inputs, strict=False))
        model.CopyFrom(case.model)
        if variant in ("float-constants", "constants"):
            fix(model, feeds, all_types=variant == "constants")
        elif variant == "symbolic":
            forget_sizes(model)
        yield model, feeds, outputs


def fix(model: onnx.ModelProto, feeds: dict[str, Any], *, all_types: bool) -> None:
    """Make inputs initializers, and take them out of ``feeds``."""
    fixed = [name for name, value in feeds.items() if is_tensor(value) and (all_types or is_float(value))]
    for name in fixed:
        value = feeds.pop(name)
        if not isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.from_array(np.asarray(value))
        model.graph.initializer.add().CopyFrom(value)
        model.graph.initializer[-1].name = name
    left = [info for info in model.graph.input if info.name not in fixed]
    del model.graph.input[:]
    model.graph.input.extend(left)


def is_tensor(value: Any) -> bool:
    return value is not None and not isinstance(value, list)


def is_float(value: Any) -> bool:
    return not isinstance(value, onnx.TensorProto) and np.asarray(value).dtype.kind == "f"


def forget_sizes(model: onnx.ModelProto) -> None:
    count = 0
    for info in model.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            dim.dim_param = f"size{count}"
            count += 1
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")


def judge(case: Case, variant: str) -> str:
    """Return ``ok``, ``skipped: why`` for what onnxruntime cannot run as it is, or what went wrong."""
    verdicts = [judge_one(*item, case, variant) for item in variants(case, variant)]
    bad = [verdict for verdict in verdicts if not verdict.startswith(("ok", "skipped"))]
    return (bad or verdicts or ["skipped: no data"])[0]


def judge_one(model: onnx.ModelProto, feeds: dict[str, Any], wanted: list[Any], case: Case, variant: str) -> str:
    original = model.SerializeToString()
    try:
        before = run(original, feeds)
    except Exception as error:  # whatever onnxruntime raises means that it does not run this case
        return f"skipped: {type(error).__name__}: {error}"[:200]
    if any(difference(g, w, case) for g, w in zip(before, wanted, strict=False)):
        return "skipped: onnxruntime itself gives other outputs"
    version = variant.removeprefix("opset-")
    pipeline = f"convert-opset{{version={version}}}" if version != variant else None
    try:
        result = optimize(original, pipeline=pipeline, instruments=[Verify()])
        outputs = run(io.to_proto(result.model).SerializeToString(), feeds)
    except (PassError, UsageError) as error:
        return f"declined: {error}" if pipeline else f"error: {error}"
    except GraphOptError as error:
        return f"error: {error}"
    except Exception:
        return f"crash: {traceback.format_exc()[-600:]}"
    for index, (g, w) in enumerate(zip(outputs, wanted, strict=True)):
        wrong = difference(g, w, case)
        if wrong:
            return f"wrong: output {index}: {wrong}"
    return "ok"


def main() -> None:
    kind, part, parts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    variant = sys.argv[4] if len(sys.argv) > 4 else "as-is"
    cases = list(stored()) if kind == "stored" else generated()
    for case in cases[part::parts]:
        print(json.dumps({"start": case.name}), flush=True)
        print(json.dumps({"case": case.name, "verdict": judge(case, variant)}), flush=True)


if __name__ == "__main__":
    main()
