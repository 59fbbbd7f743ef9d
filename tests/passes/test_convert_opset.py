"""Each converter: the same outputs before and after, and the version asked for."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import PassError, UsageError
from graphopt.ir import opset
from tests.helpers import check_equivalent, model_of, operators, optimized

RNG = np.random.default_rng(0)
X = {"x": RNG.normal(size=(1, 2, 4, 6)).astype(np.float32)}
IMAGE = "float[1,2,4,6] x"

UP = {
    "slice": (9, "y = Slice <starts = [1, 0], ends = [2, 3], axes = [1, 2]> (x)", 17),
    "topk": (9, "y, i = TopK <k = 2> (x)", 17),
    "upsample": (7, 'y = Upsample <scales = [1.0, 1.0, 2.0, 2.0], mode = "nearest"> (x)', 8),
    "upsample to resize": (7, 'y = Upsample <scales = [1.0, 1.0, 2.0, 2.0], mode = "linear"> (x)', 17),
    "upsample nearest to resize": (7, "y = Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (x)", 19),
    "clip": (10, "y = Clip <min = -0.5, max = 0.5> (x)", 17),
    "clip, one bound": (10, "y = Clip <min = -0.5> (x)", 17),
    "pad": (10, "y = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 2], value = 3.0> (x)", 21),
    "dropout": (11, "y = Dropout <ratio = 0.3> (x)", 17),
    "squeeze": (12, "y = Squeeze <axes = [0]> (x)", 17),
    "squeeze all": (12, "y = Squeeze (x)", 17),
    "unsqueeze": (12, "y = Unsqueeze <axes = [0, 3]> (x)", 17),
    "reduce sum": (12, "y = ReduceSum <axes = [2]> (x)", 17),
    "reduce mean": (17, "y = ReduceMean <axes = [2, 3], keepdims = 0> (x)", 18),
    "split": (12, "y, z = Split <axis = 2, split = [1, 3]> (x)", 18),
    "split evenly": (13, "y, z = Split <axis = 2> (x)", 18),
    "softmax over the last": (12, "y = Softmax <axis = 3> (x)", 17),
    "softmax over the rest": (12, "y = Softmax <axis = 1> (x)", 17),
    "log softmax, default": (12, "y = LogSoftmax (x)", 17),
    "batch normalization": (8, "y = BatchNormalization (x, c, c, c, c)", 15),
    "reshape": (12, "s = Constant <value = int64[2] {2, 24}> () \n y = Reshape (x, s)", 19),
}
DOWN = {
    "slice": (17, "y = Slice (x, one, two, one)", 9),
    "clip": (17, "y = Clip (x, low, high)", 10),
    "pad": (17, "y = Pad (x, pads)", 10),
    "squeeze": (17, "y = Squeeze (x, zero)", 11),
    "reduce mean": (18, "y = ReduceMean (x, two)", 13),
    "split": (18, "y, z = Split <axis = 2, num_outputs = 2> (x)", 12),
    "uneven split": (18, "f = Flatten (x) \n a, b, c1, d, e = Split <axis = 1, num_outputs = 5> (f)", 12),
    "softmax over the last": (17, "y = Softmax <axis = -1> (x)", 11),
    "gemm without bias": (13, "f = Flatten (x) \n y = Gemm <transB = 1> (f, f)", 9),
}
WEIGHTS = {
    "c": np.array([1.5, 0.5], np.float32),
    "zero": np.array([0]),
    "one": np.array([1]),
    "two": np.array([2]),
    "low": np.array(-0.5, np.float32),
    "high": np.array(0.5, np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 2]),
}


def build(body: str, version: int):
    weights = {
        name: array
        for name, array in WEIGHTS.items()
        if name in body.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    outputs = ", ".join(
        f"{name}" for name in body.splitlines()[-1].split("=")[0].replace(" ", "").split(",") if name != "i"
    )
    return model_of(f"g ({IMAGE}) => ({outputs}) {{ {body} }}", opset=version, weights=weights)


@pytest.mark.parametrize("name", UP)
def test_up(name):
    version, body, wanted = UP[name]
    before = build(body, version)
    after, _ = optimized(before, f"convert-opset{{version={wanted}}}")
    assert opset(after) == wanted
    check_equivalent(before, after, X)


@pytest.mark.parametrize("name", DOWN)
def test_down(name):
    version, body, wanted = DOWN[name]
    before = build(body, version)
    after, _ = optimized(before, f"convert-opset{{version={wanted}}}")
    assert opset(after) == wanted
    check_equivalent(before, after, X)


def test_there_and_back_leaves_the_same_operators():
    before = build("y = Squeeze <axes = [0]> (x)", 12)
    after, _ = optimized(before, "convert-opset{version=18},convert-opset{version=12}")
    assert operators(after) == operators(before)
    assert not after.graph.initializers
    check_equivalent(before, after, X)


@pytest.mark.parametrize(
    ("version", "body", "wanted", "words"),
    [
        (20, "y = Gelu (x)", 17, "no operator Gelu"),
        (18, "y = ReduceMax <noop_with_empty_axes = 1> (x)", 13, "noop_with_empty_axes=1"),
        (17, "y = Softmax <axis = 1> (x)", 11, "along axis 1 of 4"),
        (8, "y = BatchNormalization <spatial = 0> (x, c, c, c, c)", 9, "spatial=0"),
        (13, "y = Equal (x, x)", 9, "input 0 of Equal cannot be tensor.float."),
        (21, "y = Cast <to = 17> (x)", 17, "output 0 of Cast cannot be tensor.float8e4m3fn."),
        (14, "y, m, v = BatchNormalization <training_mode = 1> (x, c, c, c, c)", 13, "fewer|cannot express"),
        (17, "t = Neg(low) \n y = Clip (x, t)", 10, "min is an attribute, and here it is computed"),
    ],
)
def test_what_the_other_version_cannot_say_is_refused_with_the_node(version, body, wanted, words):
    with pytest.raises(PassError, match=words):
        optimized(build(body, version), f"convert-opset{{version={wanted}}}")


@pytest.mark.parametrize("version", ["6", "999"])
def test_versions_out_of_range_are_usage_errors(version):
    with pytest.raises(UsageError):
        optimized(build("y = Relu (x)", 17), f"convert-opset{{version={version}}}")


@pytest.mark.parametrize(("given", "reached"), [(11, 13), (13, 13), (18, 18)])
def test_only_up_leaves_newer_models_alone(given, reached):
    before = model_of("g (float[2, 3] x) => (y) { y = Relu(x) }", opset=given)

    after, _ = optimized(before, "convert-opset{version=13,only_up=true}")

    assert opset(after) == reached


def test_nodes_of_nested_graphs_are_converted_too():
    body = """
    g (float[2,1] x, bool c) => (y) {
      y = If (c) < then_branch = t () => (r) { r = Squeeze <axes = [1]> (x) },
                   else_branch = e () => (r) { r = Squeeze <axes = [-1]> (x) } >
    }
    """
    before = model_of(body, opset=11)
    after, _ = optimized(before, "convert-opset{version=17}")
    feeds = {"x": np.ones((2, 1), np.float32), "c": np.array(True)}
    check_equivalent(before, after, feeds)
    check_equivalent(before, after, feeds | {"c": np.array(False)})
