"""fold-shapes: sizes are followed through the arithmetic around Shape; what is not certain stays."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import io
from graphopt.ir import constant, verify
from tests.helpers import check_equivalent, codes, model_of, operators, optimized

INDICES = {"i0": 0, "i1": 1, "i2": 2, "k2": 2}
VECTORS = {
    "v0": [0],
    "v1": [1],
    "v2": [2],
    "m1": [-1],
    "m4": [-4],
    "k1": [1],
    "k4": [4],
    "k12": [12],
    "ones": [1, 1, 1],
}
SMALL = {name: np.array(value) for name, value in (INDICES | VECTORS).items()}


def folded(body: str, feeds, *, weights=None, given: str = "float[b,n,12] x", result: str = "float[p,q,r] y"):
    """Return a model after fold-shapes and clean-up, checked against the original on ``feeds``."""
    before = model_of(f"g ({given}) => ({result}) {{ {body} }}", weights=SMALL | (weights or {}))
    after, _ = optimized(before, "fold-shapes,fold-constants,remove-dead")
    verify(after)
    for feed in feeds:
        check_equivalent(before, after, feed)
    return after


def x(*shape: int):
    return {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape)}


TWO = [x(2, 5, 12), x(1, 3, 12)]
HEAD = "s = Shape(x) b = Gather(s, i0) n = Gather(s, i1) bu = Unsqueeze(b, v0) nu = Unsqueeze(n, v0)"

RESHAPES = {
    "split heads": (f"{HEAD} t = Concat<axis = 0>(bu, nu, k4, m1)", [0, 0, 4, -1]),
    "merge heads": (f"{HEAD} t = Concat<axis = 0>(bu, m1)", [0, -1]),
    "product": (f"{HEAD} p = Mul(bu, nu) t = Concat<axis = 0>(p, k12)", [-1, 12]),
    "quotient": (f"{HEAD} m = Mul(nu, k12) d = Div(m, k4) t = Concat<axis = 0>(bu, d, k4)", [0, -1, 4]),
    "slice of shape": ("s = Shape(x) h = Slice(s, v0, v2) t = Concat<axis = 0>(h, k4, m1)", [0, 0, 4, -1]),
    "shape with start": ("h = Shape<start = 0, end = -1>(x) t = Concat<axis = 0>(h, m1)", [0, 0, -1]),
    "split": ("s = Shape(x) p, q, r = Split(s, ones) t = Concat<axis = 0>(p, q, r)", [0, 0, 12]),
    "through int32": (
        "s = Shape(x) c = Cast<to = 6>(s) g = Gather(c, v0) d = Cast<to = 7>(g) t = Concat<axis = 0>(d, m1)",
        [0, -1],
    ),
    "where": (f"{HEAD} t0 = Concat<axis = 0>(bu, m1, k12) e = Equal(t0, m1) t = Where(e, k1, t0)", [-1, 1, 12]),
}


@pytest.mark.parametrize("body,shape", RESHAPES.values(), ids=RESHAPES.keys())
def test_reshape_to_computed_sizes(body, shape):
    feeds = [x(5, 1, 12), x(2, 1, 12)] if shape == [-1, 1, 12] else TWO
    after = folded(f"{body} z = Reshape(x, t) y = Neg(z)", feeds, result=f"float[{','.join('pqrs'[: len(shape)])}] y")
    assert operators(after) == {"Reshape": 1, "Neg": 1}
    reshape = next(node for node in after.graph if node.op_type == "Reshape")
    assert constant(reshape.inputs[1]).tolist() == (shape if shape != [-1, 1, 12] else [0, 1, 12])


def test_a_size_that_cannot_be_followed_becomes_minus_one_when_it_is_the_only_one():
    body = """s = Shape(x) b = Gather(s, v0) f = Cast<to = 1>(b) h = Cast<to = 7>(f) t = Concat<axis = 0>(h, k12)
    z = Reshape(x, t) y = Neg(z)"""
    after = folded(body, [x(2, 1, 12), x(5, 1, 12)], result="float[p,q] y")
    assert operators(after) == {"Reshape": 1, "Neg": 1}


def test_sizes_found_behind_a_reshape_are_followed_further():
    body = f"""{HEAD} t = Concat<axis = 0>(bu, m1, k4) r = Reshape(x, t) s2 = Shape(r) c = Gather(s2, v1)
    t2 = Concat<axis = 0>(bu, c, v2, v2) z = Reshape(r, t2) y = Neg(z)"""
    after = folded(body, TWO, result="float[p,q,r,s] y")
    assert operators(after) == {"Reshape": 2, "Neg": 1}


def test_two_sizes_that_reshape_cannot_be_told_stay():
    body = f"{HEAD} t = Concat<axis = 0>(nu, bu, k12) z = Reshape(x, t) y = Neg(z)"
    after = folded(body, TWO)
    assert "Shape" in operators(after)


def test_allowzero_leaves_a_zero_alone():
    body = f"{HEAD} t = Concat<axis = 0>(bu, v0, nu) z = Reshape<allowzero = 1>(x, t) y = Neg(z)"
    after = folded(body, [{"x": np.zeros((2, 0, 12), np.float32)}])
    assert "Shape" in operators(after)


def test_an_empty_batch_still_runs_where_every_size_can_be_copied():
    body = f"{HEAD} t = Concat<axis = 0>(bu, nu, k12) z = Reshape(x, t) y = Neg(z)"
    after = folded(body, [x(0, 4, 12)])
    assert operators(after) == {"Reshape": 1, "Neg": 1}


def test_known_dimensions_become_constants():
    body = "s = Shape(x) c = Gather(s, i2) f = Cast<to = 1>(c) y = Mul(x, f)"
    assert operators(folded(body, TWO)) == {"Mul": 1}


def test_equal_sizes_are_computed_once():
    body = """a = Neg(x) s = Shape(x) n = Gather(s, i1) f = Cast<to = 1>(n)
    t = Shape(a) m = Gather(t, i1) h = Cast<to = 1>(m) p = Mul(a, f) y = Mul(p, h)"""
    assert operators(folded(body, TWO))["Shape"] == 1


def test_expand_to_the_shape_that_is_there_goes():
    body = f"{HEAD} t = Concat<axis = 0>(bu, nu, v1) z = Expand(x, t) y = Neg(z)"
    assert operators(folded(body, TWO)) == {"Neg": 1}


def test_expand_gets_a_constant_where_only_kept_sizes_are_computed():
    body = f"{HEAD} t = Concat<axis = 0>(k4, bu, nu, v1) z = Expand(x, t) y = Neg(z)"
    after = folded(body, TWO, result="float[p,q,r,s] y")
    assert operators(after) == {"Expand": 1, "Neg": 1}


def test_expand_that_repeats_by_a_size_stays():
    body = "s = Shape(x) z = Expand(u, s) y = Add(z, x)"
    after = folded(body, TWO, weights={"u": np.ones((1, 1, 12), np.float32)})
    assert operators(after)["Expand"] == 1


def test_a_slice_to_the_end_gets_a_constant_end():
    body = f"{HEAD} z = Slice(x, v0, nu, v1) y = Neg(z)"
    after = folded(body, TWO)
    assert operators(after) == {"Slice": 1, "Neg": 1}


def test_a_slice_to_another_size_stays():
    body = f"{HEAD} z = Slice(x, v0, bu, v1) y = Neg(z)"
    assert "Shape" in operators(folded(body, TWO))


def test_positions_cut_to_the_length_broadcast_to_it():
    """As text models look their positions up: the sum has the length of the input, so Reshape can copy it."""
    body = f"""{HEAD} p = Slice(table, v0, nu, v1) a = Add(x, p) s2 = Shape(a) c = Gather(s2, v1)
    t = Concat<axis = 0>(bu, c, k4, m1) z = Reshape(a, t) y = Neg(z)"""
    weights = {"table": np.random.default_rng(0).random((1, 8, 12), dtype=np.float32)}
    after = folded(body, TWO, weights=weights, result="float[p,q,r,s] y")
    reshape = next(node for node in after.graph if node.op_type == "Reshape")
    assert constant(reshape.inputs[1]).tolist() == [0, 0, 4, -1]


@pytest.mark.parametrize("name", ["?", "None", "-1"])
def test_placeholders_of_exporters_are_no_equal_sizes(name):
    """A question mark on two dimensions does not mean that they are equal."""
    body = f"{HEAD} t = Concat<axis = 0>(nu, bu, k12) z = Reshape(x, t) y = Neg(z)"
    proto = io.to_proto(model_of(f"g (float[a,b,12] x) => (float[p,q,r] y) {{ {body} }}", weights=SMALL))
    for dim in proto.graph.input[0].type.tensor_type.shape.dim[:2]:
        dim.dim_param = name
    before = io.from_proto(proto)
    after, _ = optimized(before, "fold-shapes")
    assert "Shape" in operators(after)
    check_equivalent(before, after, x(2, 5, 12))


def test_named_sizes_are_equal():
    body = f"{HEAD} t = Concat<axis = 0>(nu, bu, k12) z = Reshape(x, t) y = Neg(z)"
    after = folded(body, [x(4, 4, 12)], given="float[n,n,12] x")
    assert operators(after) == {"Reshape": 1, "Neg": 1}


def test_inside_branches():
    before = model_of(
        f"""g (float[b,n,12] x, bool c) => (float[p,q,r,s] y) {{ y = If(c) <
        then_branch = t () => (float[p,q,r,s] z) {{ {HEAD} t = Concat<axis = 0>(bu, nu, k4, m1) z = Reshape(x, t) }},
        else_branch = e () => (float[p,q,r,s] z) {{ z = Unsqueeze(x, v0) }}> }}""",
        weights=SMALL,
    )
    after, result = optimized(before, "fold-shapes,remove-dead")
    assert operators(after) == {"If": 1, "Reshape": 1, "Unsqueeze": 1}
    assert not codes(result)
    for c in (True, False):
        check_equivalent(before, after, x(2, 5, 12) | {"c": np.array(c)})


def test_a_model_without_shape_is_left_alone():
    before = model_of("g (float[b,4] x) => (float[b,4] y) { y = Neg(x) }")
    _, result = optimized(before, "fold-shapes")
    assert not result.run.records[0].changes


VALUES = {
    "size": "s = Size(x) y = Cast<to = 1>(s)",
    "range": "s = Shape(x) n = Gather(s, i2) r = Range(i0, n, k2) y = Cast<to = 1>(r)",
    "reduce": "s = Shape(x) p = ReduceProd<keepdims = 0>(s) y = Cast<to = 1>(p)",
    "largest": "s = Shape(x) p = ReduceMax<axes = [0]>(s) y = Cast<to = 1>(p)",
    "mod": "s = Shape(x) p = Mod(s, k2) y = Cast<to = 1>(p)",
    "compare": "s = Shape(x) p = Less(s, k4) q = GreaterOrEqual(s, i2) r = Or(p, q) y = Cast<to = 1>(p)",
    "neg": "s = Shape(x) p = Neg(s) q = Min(p, s) r = Max(q, k4) t = Sub(r, q) y = Cast<to = 1>(t)",
    "not": "s = Shape(x) p = Greater(s, k4) q = Not(p) y = Cast<to = 1>(q)",
    "expand": "s = Shape(x) n = Gather(s, v2) e = Expand(n, k4) y = Cast<to = 1>(e)",
    "squeeze": "s = Shape(x) n = Gather(s, v2) e = Squeeze(n, v0) y = Cast<to = 1>(e)",
    "filled": "s = Shape(x) n = Gather(s, v2) c = ConstantOfShape<value = int64[1] {7}>(n) y = Cast<to = 1>(c)",
    "step": "s = Shape(x) n = Slice(s, m1, m4, v0, m1) y = Cast<to = 1>(n)",
}


@pytest.mark.parametrize("body", VALUES.values(), ids=VALUES.keys())
def test_arithmetic_on_known_sizes_leaves_no_node(body):
    scalar = any(word in body for word in ("Size(", "keepdims", "Squeeze"))
    result = "float y" if scalar else "float[k] y"
    after = folded(body, [x(2, 3, 12)], given="float[2,3,12] x", result=result)
    assert not operators(after)
