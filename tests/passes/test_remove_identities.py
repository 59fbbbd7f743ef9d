"""remove-identities: every kind of no-op goes, and what looks like one but changes values or shapes stays."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import check_equivalent, model_of, operators, optimized, run

SPECIAL = np.array([[-0.0, 0.0, np.inf], [-np.inf, np.nan, -1.5]], np.float32)
ONE, ZERO = np.float32(1), np.float32(0)


def after_one(line: str, *, opset: int = 17, weights=None, given: str = "float[2,3] x", result: str = "float[a,b] y"):
    """Return (before, after) of ``t = line(x)`` followed by a Neg, so that the no-op is not a graph output."""
    kind = result.split(" ")[0]
    last = "Identity" if kind.startswith("bool") else "Neg"
    body = f"g ({given}) => ({result}) {{ {line} y = {last}(t) }}"
    before = model_of(body, opset=opset, weights=weights)
    return before, optimized(before, "remove-identities,remove-dead")[0]


REMOVED = {
    "identity": ("t = Identity(x)", 17, {}),
    "dropout": ("t = Dropout(x)", 17, {}),
    "dropout ratio": ("t = Dropout(x, r)", 13, {"r": np.float32(0.5)}),
    "dropout inference": ("t = Dropout(x, r, m)", 13, {"r": np.float32(0.5), "m": np.array(False)}),
    "dropout opset 7": ("t = Dropout<ratio = 0.3>(x)", 7, {}),
    "cast": ("t = Cast<to = 1>(x)", 17, {}),
    "castlike": ("t = CastLike(x, c)", 17, {"c": ONE}),
    "transpose": ("t = Transpose<perm = [0, 1]>(x)", 17, {}),
    "slice": (
        "t = Slice(x, s, e, a, p)",
        17,
        {"s": np.array([0, -3]), "e": np.array([2**31 - 1, 3]), "a": np.array([0, -1]), "p": np.array([1, 1])},
    ),
    "slice opset 9": ("t = Slice<starts = [0], ends = [9223372036854775807], axes = [1]>(x)", 9, {}),
    "pad": ("t = Pad(x, p)", 17, {"p": np.zeros(4, np.int64)}),
    "pad opset 9": ("t = Pad<pads = [0, 0, 0, 0]>(x)", 9, {}),
    "concat": ("t = Concat<axis = 0>(x)", 17, {}),
    "split": ("t = Split<axis = 0>(x)", 17, {}),
    "expand ones": ("t = Expand(x, s)", 17, {"s": np.array([1, 1])}),
    "expand same": ("t = Expand(x, s)", 17, {"s": np.array([2, 3])}),
    "tile": ("t = Tile(x, s)", 17, {"s": np.array([1, 1])}),
    "add": ("t = Add(x, c)", 17, {"c": np.zeros((1, 3), np.float32)}),
    "add left": ("t = Add(c, x)", 17, {"c": ZERO}),
    "sub": ("t = Sub(x, c)", 17, {"c": ZERO}),
    "mul": ("t = Mul(c, x)", 17, {"c": np.ones(3, np.float32)}),
    "div": ("t = Div(x, c)", 17, {"c": ONE}),
    "pow": ("t = Pow(x, c)", 17, {"c": np.array(1, np.int64)}),
    "where yes": ("t = Where(c, x, z)", 17, {"c": np.array([True]), "z": np.zeros(3, np.float32)}),
    "where no": ("t = Where(c, z, x)", 17, {"c": np.array(False), "z": ZERO}),
    "max": ("t = Max(x)", 17, {}),
    "mean": ("t = Mean(x)", 17, {}),
    "clip": ("t = Clip(x, l, h)", 17, {"l": np.float32(-np.inf), "h": np.float32(np.inf)}),
    "reduce nothing": ("t = ReduceSum<noop_with_empty_axes = 1>(x)", 17, {}),
    "gather all": ("t = Gather<axis = 1>(x, i)", 17, {"i": np.array([0, 1, 2])}),
    "gather all, from behind": ("t = Gather<axis = 1>(x, i)", 17, {"i": np.array([-3, -2, -1])}),
}


@pytest.mark.parametrize("case", REMOVED)
def test_goes(case):
    line, opset, weights = REMOVED[case]
    before, after = after_one(line, opset=opset, weights=weights)
    assert operators(after) == {"Neg": 1}
    check_equivalent(before, after, {"x": SPECIAL})


KEPT = {
    "training": ("t = Dropout(x, r, m)", {"r": np.float32(0.5), "m": np.array(True)}, 17),
    "cast to another": ("t0 = Cast<to = 10>(x) t = Cast<to = 1>(t0)", {}, 17),
    "transpose": ("t = Transpose(x)", {}, 17),
    "slice short": ("t = Slice(x, s, e)", {"s": np.array([0, 0]), "e": np.array([2, 2])}, 17),
    "slice reversed": (
        "t = Slice(x, s, e, a, p)",
        {"s": np.array([-1]), "e": np.array([-(2**31)]), "a": np.array([1]), "p": np.array([-1])},
        17,
    ),
    "pad": ("t = Pad(x, p)", {"p": np.array([0, 0, 0, 1])}, 17),
    "expand": ("t = Expand(x, s)", {"s": np.array([4, 1, 1])}, 17),
    "tile": ("t = Tile(x, s)", {"s": np.array([1, 2])}, 17),
    "add broadcasts": ("t = Add(x, c)", {"c": np.zeros((2, 1, 1), np.float32)}, 17),
    "mul broadcasts": ("t = Mul(x, c)", {"c": np.ones((1, 1, 1), np.float32)}, 17),
    "not all ones": ("t = Mul(x, c)", {"c": np.array([1, 1, 2], np.float32)}, 17),
    "negative zero taken off": ("t = Sub(x, c)", {"c": np.float32(-0.0)}, 17),
    "zero minus": ("t = Sub(c, x)", {"c": ZERO}, 17),
    "one over": ("t = Div(c, x)", {"c": ONE}, 17),
    "one to the power": ("t = Pow(c, x)", {"c": ONE}, 17),
    "where broadcasts": ("t = Where(c, x, z)", {"c": np.ones((2, 1, 1), bool), "z": ZERO}, 17),
    "where undecided": ("t = Where(c, x, z)", {"c": np.array([True, True, False]), "z": ZERO}, 17),
    "clip absent bounds clips infinities": ("t = Clip(x)", {}, 17),
    "reduce": ("t = ReduceSum<keepdims = 1>(x)", {}, 17),
    "gather permutes": ("t = Gather<axis = 1>(x, i)", {"i": np.array([0, 2, 1])}, 17),
    "gather part": ("t = Gather<axis = 1>(x, i)", {"i": np.array([0, 1])}, 17),
}


@pytest.mark.parametrize("case", KEPT)
def test_stays(case):
    line, weights, opset = KEPT[case]
    before, after = after_one(line, weights=weights, opset=opset, result="float y")
    assert operators(after) == operators(before)


def test_adding_zero_keeps_negative_zero_when_asked_to():
    before = model_of("g (float[2] x) => (float[2] y) { t = Add(x, c) y = Reciprocal(t) }", weights={"c": ZERO})
    feed = {"x": np.array([-0.0, 2], np.float32)}
    after, _ = optimized(before, "remove-identities{signed_zeros=true}")
    np.testing.assert_array_equal(run(after, feed)[0], np.array([np.inf, 0.5], np.float32))
    after, _ = optimized(before, "remove-identities")
    np.testing.assert_array_equal(run(after, feed)[0], np.array([-np.inf, 0.5], np.float32))


def test_adding_negative_zero_goes_even_then():
    before = model_of("g (float[2] x) => (float[2] y) { t = Add(x, c) y = Reciprocal(t) }", weights={"c": -ZERO})
    assert operators(optimized(before, "remove-identities{signed_zeros=true}")[0]) == {"Reciprocal": 1}


def test_an_overridable_initializer_is_no_constant():
    body = "g (float[2] x, float c) => (float[2] y) { t = Mul(x, c) y = Neg(t) }"
    before = model_of(body, weights={"c": ONE})
    assert operators(optimized(before, "remove-identities")[0])["Mul"] == 1


@pytest.mark.parametrize(
    ("line", "opset", "weights", "size"),
    [
        ("t = Resize(x, , s)", 17, {"s": np.ones(4, np.float32)}, 3),
        ('t = Resize<mode = "cubic">(x, , , z)', 17, {"z": np.array([1, 2, 3, 3])}, 3),
        ("t = Upsample(x, s)", 9, {"s": np.ones(4, np.float32)}, 3),
        ("t = MaxPool<kernel_shape = [1, 1]>(x)", 17, {}, 3),
        ("t = AveragePool<kernel_shape = [1, 1], strides = [1, 1]>(x)", 17, {}, 3),
        ("t = GlobalAveragePool(x)", 17, {}, 1),
        ("t = ReduceMean<axes = [2, 3]>(x)", 17, {}, 1),
        ("t = DepthToSpace<blocksize = 1>(x)", 17, {}, 3),
        ("t = SpaceToDepth<blocksize = 1>(x)", 17, {}, 3),
    ],
)
def test_images(line, opset, weights, size):
    kind = f"float[1,2,{size},{size}]"
    before, after = after_one(line, opset=opset, weights=weights, given=f"{kind} x", result=f"{kind} y")
    assert operators(after) == {"Neg": 1}
    check_equivalent(before, after, {"x": np.random.default_rng(0).normal(size=(1, 2, size, size)).astype("f")})


@pytest.mark.parametrize(
    ("line", "weights"),
    [
        ("t = Resize(x, , s)", {"s": np.array([1, 1, 2, 1], np.float32)}),
        ('t = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(x, , s)', {"s": np.ones(4, np.float32)}),
        ("t = MaxPool<kernel_shape = [1, 1], strides = [2, 2]>(x)", {}),
        ("t = AveragePool<kernel_shape = [1, 1], pads = [0, 0, 1, 1]>(x)", {}),
        ("t = GlobalAveragePool(x)", {}),
        ("t = ReduceMean<axes = [2, 3], keepdims = 0>(x)", {}),
    ],
)
def test_images_that_change(line, weights):
    before, after = after_one(line, weights=weights, opset=17, given="float[1,2,3,3] x", result="float y")
    assert operators(after) == operators(before)


@pytest.mark.parametrize("line", ["t = And(x, c)", "t = Or(x, x)", "t = Xor(d, x)", "t = And(x, x)"])
def test_logic(line):
    weights = {"c": np.array(True), "d": np.array([False])}
    body = f"g (bool[2] x) => (bool[2] y) {{ {line} y = Not(t) }}"
    before = model_of(body, weights=weights)
    after, _ = optimized(before, "remove-identities")
    assert operators(after) == {"Not": 1}
    check_equivalent(before, after, {"x": np.array([True, False])})


def test_integers_are_exact():
    body = "g (int64[3] x) => (int64[3] y) { a = Add(x, z) b = Div(a, o) y = Neg(b) }"
    before = model_of(body, weights={"z": np.array(0), "o": np.array([1])})
    after, _ = optimized(before, "remove-identities")
    assert operators(after) == {"Neg": 1}
    check_equivalent(before, after, {"x": np.array([2**62, -1, 0])})


def test_symbolic_dimensions_prove_a_where():
    body = "g (float[N,3] x) => (float[N,3] y) { r = Relu(x) t = Where(c, x, r) y = Neg(t) }"
    after, _ = optimized(model_of(body, weights={"c": np.array(True)}), "remove-identities,remove-dead")
    assert operators(after) == {"Neg": 1}


def test_an_input_that_is_an_output_keeps_an_identity():
    before = model_of(
        "g (float[2] x) => (float[2] y, float[2] z) { y = Identity(x) z = Mul(x, c) }", weights={"c": ONE}
    )
    after, result = optimized(before, "fixpoint{max=4}(remove-identities)")
    assert operators(after) == {"Identity": 2}
    assert len(result.run.ctx.rewrites) == 1
    check_equivalent(before, after, {"x": np.ones(2, np.float32)})


def test_an_output_keeps_its_name():
    before = model_of("g (float[2] x) => (float[2] y) { a = Relu(x) y = Identity(a) }")
    after, _ = optimized(before, "remove-identities")
    assert operators(after) == {"Relu": 1}
    assert [value.name for value in after.graph.outputs] == ["y"]


def test_two_outputs_of_one_value_keep_one_identity():
    before = model_of("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Identity(y) }")
    after, _ = optimized(before, "remove-identities")
    assert operators(after) == {"Relu": 1, "Identity": 1}


def test_inside_branches():
    body = """g (bool c, float[2] x) => (float[2] y) {
        y = If(c) <then_branch = t () => (float[2] a) { b = Identity(x) d = Relu(b) a = Identity(d) },
                   else_branch = e () => (float[2] f) { f = Identity(x) }>
    }"""
    before = model_of(body)
    after, _ = optimized(before, "remove-identities")
    assert operators(after) == {"If": 1, "Relu": 1, "Identity": 1}
    for choice in (True, False):
        check_equivalent(before, after, {"c": np.array(choice), "x": np.array([-1, 1], np.float32)})


def test_a_mask_that_is_read_keeps_its_dropout():
    before = model_of("g (float[2] x) => (float[2] y, bool[2] m) { t, m = Dropout(x) y = Neg(t) }")
    assert operators(optimized(before, "remove-identities")[0])["Dropout"] == 1
