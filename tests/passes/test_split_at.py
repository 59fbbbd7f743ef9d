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
