"""Runs ``lossless`` over cases of the corpus and prints one JSON object a case: what became of it.

``python -m tests.conformance.check_lossless stored|generated PART PARTS PIPELINE``. A process of its own, so that a
crash in native code is seen as one.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import numpy as np
import onnx

from graphopt import io
from graphopt.driver import optimize
from graphopt.errors import GraphOptError
from graphopt.pipeline.instruments import Verify
from graphopt.runtime import Session
from tests.conformance.corpus import Case, generated, stored

NEWEST_IR = 13
"""The newest IR version that onnxruntime reads; the corpus is one ahead, and uses nothing new of it."""


def run(model: bytes, inputs: list[Any]) -> list[Any]:
    """Run with onnxruntime's own optimizations off, so that what is judged is the model as it was written."""
    session = Session(model, optimize=False)
    feeds = {info.name: plain(value) for info, value in zip(session.inputs, inputs, strict=False)}
    return list(session.run(feeds).values())


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


def judge(case: Case, pipeline: str | None) -> str:
    """Return ``ok``, ``skipped: why`` for what onnxruntime cannot run as it is, or what went wrong."""
    case.model.ir_version = min(case.model.ir_version, NEWEST_IR)
    original = case.model.SerializeToString()
    try:
        before = [run(original, inputs) for inputs, _ in case.sets]
    except Exception as error:  # whatever onnxruntime raises means that it does not run this case
        return f"skipped: {type(error).__name__}: {error}"[:200]
    for got, (_, want) in zip(before, case.sets, strict=True):
        if any(difference(g, w, case) for g, w in zip(got, want, strict=False)):
            return "skipped: onnxruntime itself gives other outputs"
    try:
        result = optimize(original, pipeline=pipeline, instruments=[Verify()])
        after = io.to_proto(result.model).SerializeToString()
        outputs = [run(after, inputs) for inputs, _ in case.sets]
    except GraphOptError as error:
        return f"error: {error}"
    except Exception:
        return f"crash: {traceback.format_exc()[-600:]}"
    for got, (_, want) in zip(outputs, case.sets, strict=True):
        for index, (g, w) in enumerate(zip(got, want, strict=True)):
            wrong = difference(g, w, case)
            if wrong:
                return f"wrong: output {index}: {wrong}"
    return "ok"


def main() -> None:
    kind, part, parts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pipeline = sys.argv[4] if len(sys.argv) > 4 else None
    cases = list(stored()) if kind == "stored" else generated()
    for case in cases[part::parts]:
        print(json.dumps({"start": case.name}), flush=True)
        print(json.dumps({"case": case.name, "verdict": judge(case, pipeline)}), flush=True)


if __name__ == "__main__":
    main()
