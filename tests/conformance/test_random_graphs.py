"""Random models: ``lossless`` and every pass of it alone keep the outputs, and what else a user counts on.

Hypothesis makes the choices in the short runs, and so shrinks what fails; the long ones, behind the marker ``slow``, go
by number.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt import io
from graphopt.driver import Result, optimize
from graphopt.errors import ModelError, PassError
from graphopt.pipeline import load_preset
from graphopt.pipeline.instruments import Verify
from graphopt.runtime import Session
from tests.conformance.random_graphs import SIZES, Builder, feeds
from tests.conformance.random_models import random_model

Arrays = dict[str, np.ndarray[Any, Any]]
PASSES = sorted({str(item) for item in load_preset("lossless").passes()} | {"decompose", "recognize-groupnorm"})
OPSETS = (9, 11, 13, 17, 18, 21, 23)
RUNTIME_MISTAKES = ("Pad should be smaller than kernel", "is not a graph input, initializer, or output")
"""onnxruntime 1.31 on a Pad in front of a pool, and on a decomposed Gelu whose ``x * 0.5`` others read too."""

CHOICES = st.randoms(use_true_random=False)


def examples(count: int) -> settings:
    """Return settings that make the same examples each time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=slow)


def run(model: bytes, builder: Builder, *, optimize_graph: bool = False) -> list[Arrays]:
    """Return the outputs for each choice of sizes, onnxruntime's own optimizations off unless asked for."""
    session = Session(model, optimize=optimize_graph)
    return [dict(session.run(feeds(builder, choice, choice))) for choice in range(len(SIZES))]


def check_same(before: list[Arrays], after: list[Arrays]) -> None:
    """Assert equal names, order, types and shapes; integers equal, floats within 1e-5 of the output's scale."""
    for wanted, found in zip(before, after, strict=True):
        assert list(found) == list(wanted)
        for name, want in wanted.items():
            got = found[name]
            assert (got.dtype, got.shape) == (want.dtype, want.shape), name
            if want.dtype.kind != "f" or want.size == 0:
                np.testing.assert_array_equal(got, want, name)
                continue
            finite = want[np.isfinite(want)].astype(np.float64)
            scale = float(np.abs(finite).max()) if finite.size else 1.0
            # Half precision has 11 bits: one rounding more or less is 2 ** -11.
            limit = 2.0**-10 if want.dtype == np.float16 else 1e-5
            np.testing.assert_allclose(got, want, rtol=0, atol=limit * max(scale, 1e-6), err_msg=name)


def serialized(result: Result) -> bytes:
    return io.to_proto(result.model).SerializeToString()


def check_lossless(proto: onnx.ModelProto, builder: Builder) -> None:
    original = proto.SerializeToString()
    before = run(original, builder)
    result = optimize(original, instruments=[Verify()])
    optimized = serialized(result)
    check_same(before, run(optimized, builder))
    check_optimizable(optimized, builder)
    assert serialized(optimize(original)) == optimized, "the same run gives other bytes"
    again = optimize(optimized)
    assert again.run.ctx.rewrites == [], "a second run finds more to do"


def check_optimizable(model: bytes, builder: Builder) -> None:
    """Run with onnxruntime's own optimizations on top, except where their own mistakes show."""
    try:
        run(model, builder, optimize_graph=True)
    except ModelError as error:
        assert any(text in str(error) for text in RUNTIME_MISTAKES), error


def check_pass(proto: onnx.ModelProto, builder: Builder, pipeline: str) -> None:
    original = proto.SerializeToString()
    try:
        result = optimize(original, pipeline=pipeline, instruments=[Verify()])
    except PassError:
        # Only a conversion may refuse: what the other operator set cannot say.
        assert pipeline.startswith("convert-opset")
        return
    check_same(run(original, builder), run(serialized(result), builder))


@examples(150)
@given(CHOICES)
def test_lossless_keeps_outputs(rng):
    check_lossless(*random_model(rng))


@examples(150)
@given(CHOICES, st.sampled_from(PASSES))
def test_each_pass_alone_keeps_outputs(rng, pipeline):
    check_pass(*random_model(rng), pipeline)


@examples(120)
@given(CHOICES, st.sampled_from(OPSETS))
def test_conversion_keeps_outputs(rng, version):
    check_pass(*random_model(rng), f"convert-opset{{version={version}}}")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_lossless_keeps_outputs_of_many_models(seed):
    for index in range(500):
        check_lossless(*random_model(random.Random(1000 * seed + index)))


@pytest.mark.slow
def test_each_pass_alone_keeps_outputs_of_many_models():
    for index in range(150):
        proto, builder = random_model(random.Random(10_000 + index))
        for pipeline in PASSES:
            check_pass(proto, builder, pipeline)


@pytest.mark.slow
def test_conversion_keeps_outputs_of_many_models():
    for index in range(250):
        proto, builder = random_model(random.Random(20_000 + index))
        for version in OPSETS:
            check_pass(proto, builder, f"convert-opset{{version={version}}}")
