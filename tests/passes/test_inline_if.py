"""inline-if: a decided If gives way to its branch; an open one stays as it is."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir import verify
from tests.helpers import check_equivalent, model_of, operators, optimized

X = {"x": np.array([1.0, -2.0], np.float32)}
BOTH = [X | {"c": np.array(c)} for c in (True, False)]
FLAGS = {"yes": np.array(True), "no": np.array([False])}


def inlined(body: str, feeds, *, pipeline: str = "inline-if", weights=None, given: str = "float[2] x"):
    before = model_of(f"g ({given}) => (float[2] y) {{ {body} }}", weights=FLAGS | (weights or {}))
    after, _ = optimized(before, pipeline)
    verify(after)
    for feed in feeds:
        check_equivalent(before, after, feed)
    return after


def if_(condition: str, then: str, other: str, out: str = "y") -> str:
    return (
        f"{out} = If({condition}) <then_branch = t () => (float[2] r) {{ {then} }}, "
        f"else_branch = e () => (float[2] r) {{ {other} }}>"
    )


@pytest.mark.parametrize("condition,left", [("yes", "Relu"), ("no", "Neg")])
def test_a_constant_condition_leaves_one_branch(condition, left):
    after = inlined(if_(condition, "r = Relu(x)", "r = Neg(x)"), [X])
    assert operators(after) == {left: 1}
    assert [value.name for value in after.graph.outputs] == ["y"]


def test_an_open_condition_stays():
    after = inlined(if_("c", "r = Relu(x)", "r = Neg(x)"), BOTH, given="float[2] x, bool c")
    assert operators(after) == {"If": 1, "Relu": 1, "Neg": 1}


def test_names_that_branches_share_are_made_unique():
    first = if_("yes", "n = Neg(x) r = Relu(n)", "n = Abs(x) r = Sqrt(n)", "u")
    second = if_("no", "n = Exp(x) r = Relu(n)", "n = Ceil(x) r = Floor(n)", "v")
    after = inlined(f"{first} {second} y = Add(u, v)", [X])
    assert operators(after) == {"Neg": 1, "Relu": 1, "Ceil": 1, "Floor": 1, "Add": 1}


def test_initializers_of_branches_move_out_with_unique_names():
    choice = """{} = If({}) <then_branch = t () => (float[2] r) <float[2] w = {{5, 6}}> {{ r = Mul(x, w) }},
    else_branch = e () => (float[2] r) <float[2] w = {{7, 8}}> {{ r = Add(x, w) }}>"""
    after = inlined(f"{choice.format('u', 'yes')} {choice.format('v', 'no')} y = Sub(u, v)", [X])
    assert operators(after) == {"Mul": 1, "Add": 1, "Sub": 1}


def test_a_branch_that_returns_its_initializer():
    body = """y = If(yes) <then_branch = t () => (float[2] r) <float[2] r = {5, 6}> { },
    else_branch = e () => (float[2] r) { r = Neg(x) }>"""
    after = inlined(body, [X])
    assert operators(after) == {"Identity": 1}


def test_several_outputs_of_which_two_are_one_value():
    before = model_of(
        """g (float[2] x) => (float[2] y, float[2] z) { y, z = If(yes) <
        then_branch = t () => (float[2] r, float[2] s) { r = Neg(x) s = Identity(r) },
        else_branch = e () => (float[2] r, float[2] s) { r = Abs(x) s = Exp(x) }> }""",
        weights=FLAGS,
    )
    after, _ = optimized(before, "inline-if")
    assert [value.name for value in after.graph.outputs] == ["y", "z"]
    check_equivalent(before, after, X)


def test_nested_branches_are_inlined_too_and_inner_graphs_keep_working():
    inner = if_("c", "r = Exp(n)", "r = Abs(n)", "r")
    body = if_("yes", f"n = Neg(x) {inner}", "r = Relu(x)")
    after = inlined(body, BOTH, given="float[2] x, bool c", pipeline="inline-if,inline-if")
    assert operators(after) == {"Neg": 1, "If": 1, "Exp": 1, "Abs": 1}
    nested = if_("yes", f"n = Neg(x) {if_('no', 'r = Exp(n)', 'r = Abs(n)', 'r')}", "r = Relu(x)")
    assert operators(inlined(nested, [X])) == {"Neg": 1, "Abs": 1}


def test_what_an_enclosing_if_tested_is_known_inside():
    then = if_("c", "r = Exp(x)", "r = Abs(x)", "r")
    other = if_("c", "r = Sqrt(x)", "r = Ceil(x)", "r")
    after = inlined(if_("c", then, other), BOTH, given="float[2] x, bool c")
    assert operators(after) == {"If": 1, "Exp": 1, "Ceil": 1}


def test_branches_that_do_the_same():
    after = inlined(if_("c", "n = Neg(x) r = Relu(n)", "m = Neg(x) r = Relu(m)"), BOTH, given="float[2] x, bool c")
    assert operators(after) == {"Neg": 1, "Relu": 1}
    after = inlined(if_("c", "n = Neg(x) r = Relu(n)", "m = Neg(x) r = Relu(x)"), BOTH, given="float[2] x, bool c")
    assert operators(after)["If"] == 1


SQUEEZE = """s = Shape(x) n = Gather(s, last) e = Equal(n, one) z = If(e) <
then_branch = t () => (float[a,b] r) { r = Squeeze(x, last) },
else_branch = e () => (float[a,b,c] r) { r = Identity(x) }>"""
INDEX = {"last": np.array([-1]), "one": np.array([1]), "k2": np.array([2]), "zero": np.array([0])}


def test_a_branch_whose_rank_a_later_operator_refuses_is_never_taken():
    before = model_of(
        f"g (float[a,3,c] x) => (float[a,4] y) {{ {SQUEEZE} y = Gemm(z, w) }}",
        weights=INDEX | {"w": np.ones((3, 4), np.float32)},
    )
    after, _ = optimized(before, "inline-if,remove-dead")
    assert operators(after) == {"Squeeze": 1, "Gemm": 1}
    check_equivalent(before, after, {"x": np.ones((2, 3, 1), np.float32)})
    kept, _ = optimized(before, "inline-if{use_ranks=false}")
    assert operators(kept)["If"] == 1


def test_a_rank_that_a_later_if_tests_is_followed_through_it():
    """As in silero's voice detector: the rank decides whether a dimension is added, and both ways lead to the LSTM."""
    follow = """q = Shape(z) rank = Size(q) two = Equal(rank, k) u = If(two) <
    then_branch = t () => (float[a,b,c] r) { r = Unsqueeze(z, zero) },
    else_branch = e () => (float[a,b,c,d] r) { p = Unsqueeze(z, zero) r = Abs(p) }>
    y, hidden, cell = LSTM<hidden_size = 2>(u, w, w2)"""
    before = model_of(
        f"g (float[a,3,c] x) => (float[s,d,n,h] y) {{ {SQUEEZE} {follow} }}",
        weights=INDEX | {"k": np.array(2), "w": np.ones((1, 8, 3), np.float32), "w2": np.ones((1, 8, 2), np.float32)},
    )
    after, _ = optimized(before, "inline-if,fold-shapes,fold-constants,inline-if,remove-dead")
    assert "If" not in operators(after)
    check_equivalent(before, after, {"x": np.ones((2, 3, 1), np.float32)})


def test_ranks_that_nothing_refuses_leave_the_choice():
    before = model_of(f"g (float[a,3,c] x) => (float y) {{ {SQUEEZE} y = ReduceSum<keepdims = 0>(z) }}", weights=INDEX)
    after, _ = optimized(before, "inline-if")
    assert operators(after)["If"] == 1
    for last in (1, 2):
        check_equivalent(before, after, {"x": np.ones((2, 3, last), np.float32)})
