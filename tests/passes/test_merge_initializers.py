"""merge-initializers: equal tensors are stored once, and no more of them is read than needed."""

from __future__ import annotations

import numpy as np
import onnx

from graphopt import io, optimize
from graphopt.ir import Editor, Tensor, verify
from tests.helpers import check_equivalent, model_of, optimized

X = {"x": np.array([1.0, 2.0], np.float32)}
TWO = np.array([1, 2], np.float32)


def names(body: str, weights, *, pipeline: str = "merge-initializers") -> list[str]:
    before = model_of(f"g (float[2] x) => (float[2] y) {{ {body} }}", weights=weights)
    after, _ = optimized(before, pipeline)
    verify(after)
    check_equivalent(before, after, X)
    return list(after.graph.initializers)


SUM = "p = Add(x, a) y = Mul(p, b)"


def test_equal_tensors_become_one():
    assert names(SUM, {"a": TWO, "b": TWO.copy()}) == ["a"]


def test_different_content_dtype_or_shape_stays():
    assert names(SUM, {"a": TWO, "b": TWO + 1}) == ["a", "b"]
    assert names(SUM, {"a": TWO, "b": TWO.reshape(1, 2)[0:1].reshape(2)[:1]}) == ["a", "b"]
    body = "p = Add(x, a) q = Cast<to = 7>(p) r = Add(q, b) y = Cast<to = 1>(r)"
    assert names(body, {"a": np.zeros(2, np.float32), "b": np.zeros(2, np.int64)}) == ["a", "b"]


def test_zeros_of_different_sign_and_nans():
    assert names(SUM, {"a": np.array([0.0, 1], np.float32), "b": np.array([-0.0, 1], np.float32)}) == ["a", "b"]
    assert names(SUM, {"a": np.array([np.nan, 1], np.float32), "b": np.array([np.nan, 1], np.float32)}) == ["a"]


def test_small_ones_stay_on_request():
    assert names(SUM, {"a": TWO, "b": TWO}, pipeline="merge-initializers{min_elements=3}") == ["a", "b"]


def test_an_initializer_that_is_an_output_is_the_one_that_stays():
    before = model_of("g (float[2] x) => (float[2] y, float[2] b) { y = Add(x, a) }", weights={"a": TWO, "b": TWO})
    after, _ = optimized(before, "merge-initializers")
    assert list(after.graph.initializers) == ["b"]
    check_equivalent(before, after, X)


def test_two_outputs_both_stay():
    before = model_of("g () => (float[2] a, float[2] b) { }", weights={"a": TWO, "b": TWO})
    after, _ = optimized(before, "merge-initializers")
    assert list(after.graph.initializers) == ["a", "b"]


def test_overridable_initializers_stay():
    proto = io.to_proto(
        model_of("g (float[2] x, float[2] b) => (float[2] y) { p = Add(x, a) y = Mul(p, b) }", weights={"a": TWO})
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(TWO, "b"))
    after, _ = optimized(io.from_proto(proto), "merge-initializers")
    assert set(after.graph.initializers) == {"a", "b"}


def test_captures_of_branches_follow():
    before = model_of(
        """g (float[2] x, bool c) => (float[2] y) { p = Add(x, a) y = If(c) <
        then_branch = t () => (float[2] r) { r = Mul(p, b) },
        else_branch = e () => (float[2] r) { r = Sub(p, a) }> }""",
        weights={"a": TWO, "b": TWO},
    )
    after, _ = optimized(before, "merge-initializers")
    assert list(after.graph.initializers) == ["a"]
    for c in (True, False):
        check_equivalent(before, after, X | {"c": np.array(c)})


class Watched(Tensor):
    """A tensor that remembers whether all of it was read."""

    read = False

    def tobytes(self) -> bytes:
        self.read = True
        return super().tobytes()


def test_large_tensors_that_differ_in_a_sample_are_not_read():
    rng = np.random.default_rng(0)
    model = model_of(
        "g (float[100,100] x) => (float[100,100] y) { p = Add(x, a) y = Mul(p, b) }",
        weights={"a": np.ones((100, 100), np.float32), "b": np.ones((100, 100), np.float32)},
    )
    edit = Editor(model)
    watched = [Watched(rng.random((100, 100), dtype=np.float32), name=name) for name in "ab"]
    for tensor in watched:
        edit.set_weight(model.graph.initializers[tensor.name], tensor)
    optimize(model, pipeline="merge-initializers")
    assert len(model.graph.initializers) == 2
    assert not any(tensor.read for tensor in watched)
