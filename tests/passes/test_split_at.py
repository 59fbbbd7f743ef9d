"""split-at: head and tail, one run after the other, give what the whole gave."""

import numpy as np
import pytest

from graphopt.errors import UsageError
from tests.helpers import clone, model_of, operators, optimized, run

BODY = """g (float[2,4] x, float[2,4] z) => (float[2,4] y, float[2,4] side) {
    [first] a = Exp(x)
    side = Neg(a)
    b = Add(a, z)
    [cut] c = Sqrt(b)
    [join] d = Mul(c, a)
    y = Add(d, w)
}"""
FEEDS = {name: np.abs(np.random.default_rng(3).standard_normal((2, 4))).astype(np.float32) for name in "xz"}


def whole():
    return model_of(BODY, weights={"w": np.ones(4, np.float32)})


@pytest.mark.parametrize("where", ["cut", "Sqrt", "join,cut", "c*"])
def test_the_parts_one_after_the_other_give_what_the_whole_gives(where):
    head, _ = optimized(whole(), f'split-at{{nodes="{where}"}}')
    tail, _ = optimized(whole(), f'split-at{{nodes="{where}",part=tail}}')

    between = dict(zip([value.name for value in head.graph.outputs], run(head, FEEDS), strict=True))
    wanted = run(whole(), FEEDS)
    got = run(tail, {value.name: between[value.name] for value in tail.graph.inputs})
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_array_equal(between["side"], wanted[1])
    assert set(between) == {"side", "a", "b"}
    assert operators(head) + operators(tail) == operators(whole())


def test_weights_and_inputs_go_with_the_part_that_reads_them():
    tail, _ = optimized(whole(), "split-at{nodes=cut,part=tail}")
    head, _ = optimized(whole(), "split-at{nodes=cut}")

    assert [value.name for value in tail.graph.inputs] == ["a", "b"]
    assert "w" in tail.graph.initializers and "w" not in head.graph.initializers


@pytest.mark.parametrize(("nodes", "said"), [("nobody", "nobody"), ("first,Neg,Add", "nothing is left"), ("", "where")])
def test_a_cut_that_makes_no_sense_is_refused(nodes, said):
    before = clone(whole())
    with pytest.raises(UsageError, match=said):
        optimized(before, f'split-at{{nodes="{nodes}"}}')


NESTED = """g (bool c, float[2,4] x) => (float[2,4] y, float[2,4] side) {
    [first] a = Exp(x)
    [second] b = Neg(x)
    [branch] d = If (c) <
        then_branch = t () => (float[2,4] p) { [inner] u = Sqrt(a) p = Mul(u, w) },
        else_branch = e () => (float[2,4] q) {
            q = If (c) <then_branch = f () => (float[2,4] r) { r = Identity(b) },
                        else_branch = h () => (float[2,4] s) { [deep] v = Abs(b) s = Add(v, a) }> }
    >
    [after] y = Add(d, a)
    side = Relu(b)
}"""
SWITCHED = [{"x": FEEDS["x"], "c": np.array(value)} for value in (True, False)]


@pytest.mark.parametrize("where", ["branch", "inner", "deep", "Sqrt", "inner,after"])
@pytest.mark.parametrize("feeds", SWITCHED)
def test_what_is_named_inside_a_nested_graph_takes_all_of_it_along(where, feeds):
    before = model_of(NESTED, weights={"w": np.full(4, 3, np.float32)})
    head, _ = optimized(before, f'split-at{{nodes="{where}"}}')
    tail, _ = optimized(before, f'split-at{{nodes="{where}",part=tail}}')

    assert operators(head) == {"Exp": 1, "Neg": 1, "Relu": 1}
    assert operators(head) + operators(tail) == operators(before)
    assert {value.name for value in head.graph.outputs} == {"side", "a", "b"}
    assert "w" in tail.graph.initializers and "w" not in head.graph.initializers
    between = dict(zip([value.name for value in head.graph.outputs], run(head, {"x": feeds["x"]}), strict=True))
    known = {**between, **feeds}
    (got,) = run(tail, {value.name: known[value.name] for value in tail.graph.inputs})
    np.testing.assert_array_equal(got, run(before, feeds)[0])


def test_a_nested_graph_in_front_of_the_cut_stays_in_the_head():
    before = model_of(NESTED, weights={"w": np.full(4, 3, np.float32)})
    head, _ = optimized(before, "split-at{nodes=after}")
    tail, _ = optimized(before, "split-at{nodes=after,part=tail}")

    assert operators(head) == operators(before) - operators(tail)
    assert operators(tail) == {"Add": 1}
    for feeds in SWITCHED:
        between = dict(zip([value.name for value in head.graph.outputs], run(head, feeds), strict=True))
        (got,) = run(tail, {value.name: between[value.name] for value in tail.graph.inputs})
        np.testing.assert_array_equal(got, run(before, feeds)[0])


def test_the_suppression_of_boxes_inside_a_loop_goes_to_the_tail_with_the_loop():
    body = """g (int64 count, float[1,6,4] boxes, float[1,1,6] x) => (float[1,1,6] y) {
        s = Sigmoid(x)
        y = Loop (count, , s) <body = b (int64 i, bool go, float[1,1,6] k) => (bool on, float[1,1,6] next) {
            on = Identity(go)
            chosen = NonMaxSuppression(boxes, k, limit)
            some = Cast <to = 1> (chosen)
            sum = ReduceSum <keepdims = 0> (some)
            next = Add(k, sum)
        }>
    }"""
    before = model_of(body, weights={"limit": np.array([3])})
    feeds = {"count": np.array(2), "boxes": np.tile(np.float32([0, 0, 1, 1]), (1, 6, 1))}
    feeds |= {"x": np.arange(6, dtype=np.float32).reshape(1, 1, 6)}
    head, _ = optimized(before, "split-at{nodes=NonMaxSuppression}")
    tail, _ = optimized(before, "split-at{nodes=NonMaxSuppression,part=tail}")

    assert operators(head) == {"Sigmoid": 1}
    assert [value.name for value in head.graph.inputs] == ["x"]
    (middle,) = run(head, {"x": feeds["x"]})
    given = {value.name: {**feeds, "s": middle}[value.name] for value in tail.graph.inputs}
    np.testing.assert_array_equal(run(tail, given)[0], run(before, feeds)[0])
