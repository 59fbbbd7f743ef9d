"""merge-common: equal computations merge where the first is visible; everything else stays apart."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir import verify
from tests.helpers import check_equivalent, model_of, operators, optimized

X = {"x": np.array([1.5, -2.0, np.nan], np.float32)}


def merged(body: str, *, weights=None, opset: int = 17):
    before = model_of(f"g (float[3] x) => (float[3] y) {{ {body} }}", weights=weights, opset=opset)
    after, _ = optimized(before, "merge-common")
    verify(after)
    check_equivalent(before, after, X)
    return operators(after)


def test_chains_merge_in_one_run():
    assert merged("a = Relu(x) b = Neg(a) c = Relu(x) d = Neg(c) y = Add(b, d)") == {"Relu": 1, "Neg": 1, "Add": 1}


def test_commutative_operands():
    assert merged("r = Relu(x) a = Mul(x, r) b = Mul(r, x) y = Add(a, b)")["Mul"] == 1
    assert merged("r = Relu(x) a = Sub(x, r) b = Sub(r, x) y = Add(a, b)")["Sub"] == 2


def test_attributes_count_and_tensors_by_content():
    assert merged("a = Elu<alpha = 1.0>(x) b = Elu<alpha = 2.0>(x) y = Add(a, b)")["Elu"] == 2
    constants = (
        "s = Shape(x) a = ConstantOfShape<value = float[1] {%s}>(s) b = ConstantOfShape<value = float[1] {%s}>(s)"
    )
    assert merged(f"{constants % (1, 1)} c = Add(a, b) y = Mul(c, x)")["ConstantOfShape"] == 1
    assert merged(f"{constants % (1, 2)} c = Add(a, b) y = Mul(c, x)")["ConstantOfShape"] == 2


def test_small_constants_count_by_their_content():
    body = "a = Add(x, p) b = Add(q, x) c = Sub(x, p) d = Sub(x, r) e = Mul(a, b) f = Mul(c, d) y = Div(e, f)"
    one = np.ones(3, np.float32)
    assert merged(body, weights={"p": one, "q": one, "r": one + 1}) == {"Add": 1, "Sub": 2, "Mul": 2, "Div": 1}
    zeros = {"p": np.float32(0.0), "q": np.float32(-0.0)}
    assert merged("a = Div(x, p) b = Div(x, q) y = Add(a, b)", weights=zeros)["Div"] == 2


@pytest.mark.parametrize("line", ["{} = RandomUniformLike(x)", "{} = Dropout(x, r, t)"])
def test_random_operators_stay(line):
    before = model_of(
        f"g (float[3] x) => (float[3] y) {{ {line.format('a')} {line.format('b')} y = Sub(a, b) }}",
        weights={"r": np.float32(0.5), "t": np.array(True)},
    )
    after, result = optimized(before, "merge-common")
    assert operators(after) == operators(before)
    assert not result.run.records[0].changes


def test_dropout_without_training_merges():
    assert merged("a = Dropout(x) b = Dropout(x) y = Add(a, b)")["Dropout"] == 1


def test_graph_outputs_keep_their_names():
    before = model_of("g (float[3] x) => (float[3] y, float[3] z) { y = Relu(x) z = Relu(x) }")
    after, _ = optimized(before, "merge-common")
    assert operators(after) == {"Relu": 2}
    assert [value.name for value in after.graph.outputs] == ["y", "z"]


def test_a_node_merges_with_the_output_before_it():
    before = model_of("g (float[3] x) => (float[3] y, float[3] z) { y = Relu(x) r = Relu(x) z = Neg(r) }")
    after, _ = optimized(before, "merge-common")
    assert operators(after) == {"Relu": 1, "Neg": 1}
    check_equivalent(before, after, X)


def test_branches_see_what_is_before_them_and_not_each_other():
    before = model_of(
        """g (float[3] x, bool c) => (float[3] y) { a = Relu(x) z = If(c) <
        then_branch = t () => (float[3] r) { b = Relu(x) d = Exp(x) r = Add(b, d) },
        else_branch = e () => (float[3] r) { d = Exp(x) f = Neg(x) r = Mul(d, f) }>
        n = Neg(x) s = Add(z, n) y = Add(s, a) }"""
    )
    after, _ = optimized(before, "merge-common")
    verify(after)
    assert operators(after) == {"Relu": 1, "If": 1, "Exp": 2, "Add": 3, "Mul": 1, "Neg": 2}
    for c in (True, False):
        check_equivalent(before, after, X | {"c": np.array(c)})


@pytest.mark.parametrize("first,second,left", [("a, m", "b", 1), ("a", "b, m", 2)])
def test_the_first_has_to_have_every_output_that_is_read_of_the_second(first, second, left):
    other = "mask = Cast<to = 1>(m)"
    before = model_of(
        f"""g (float[3] x) => (float[3] y, float[3] mask) {{
        {first} = Dropout(x) {second} = Dropout(x) {other} y = Add(a, b) }}"""
    )
    after, _ = optimized(before, "merge-common")
    assert operators(after)["Dropout"] == left
    check_equivalent(before, after, X)
