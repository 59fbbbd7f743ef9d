"""rewrite-reduce: the same numbers, in both forms in which axes are given."""

import numpy as np
import pytest

from tests.helpers import check_equivalent, codes, model_of, operators, optimized

KINDS = ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
X = np.random.default_rng(2).uniform(0.1, 3, (2, 3, 4)).astype(np.float32)


@pytest.mark.parametrize("operator", KINDS)
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(("opset", "axes"), [(17, [1]), (17, [-1, 0]), (20, [1]), (20, None), (13, None)])
def test_it_computes_the_same(operator, keep, opset, axes):
    given = f", axes = {axes}" if axes and opset < 18 else ""
    inputs = "x, axes" if axes and opset >= 18 else "x"
    body = f"g (float[2,3,4] x) => (y) {{ y = {operator} <keepdims = {keep}{given}> ({inputs}) }}"
    weights = {"axes": np.array(axes, np.int64)} if inputs != "x" else {}
    before = model_of(body, opset=opset, weights=weights)

    after, _ = optimized(before, "rewrite-reduce")

    assert operators(after)["ReduceSum"] == 1 and operator not in operators(after)
    for sign in (1,) if operator == "ReduceLogSum" else (1, -1):
        check_equivalent(before, after, {"x": sign * X})


def test_axes_that_are_computed_are_handed_on():
    body = "g (float[2,3,4] x, int64[1] axes) => (y) { y = ReduceL2(x, axes) }"
    before = model_of(body, opset=20)

    after, _ = optimized(before, "rewrite-reduce")

    assert operators(after) == {"Mul": 1, "ReduceSum": 1, "Sqrt": 1}
    check_equivalent(before, after, {"x": X, "axes": np.array([2])})


@pytest.mark.parametrize(("dtype", "opset"), [("float", 11), ("float16", 17)])
def test_what_stays_is_said(dtype, opset):
    before = model_of(f"g ({dtype}[2,3,4] x) => (y) {{ y = ReduceL1 <axes = [1]> (x) }}", opset=opset)

    after, result = optimized(before, "rewrite-reduce")

    assert operators(after) == operators(before)
    assert "REDUCE001" in codes(result)
