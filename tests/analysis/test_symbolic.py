"""Symbolic sizes: exact arithmetic in canonical form, checked against numbers put in for the symbols."""

from __future__ import annotations

import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.analysis.symbolic import (
    ONE,
    ZERO,
    Call,
    Expr,
    compare,
    differs,
    divide,
    divide_exactly,
    maximum,
    minimum,
    number,
    product,
    remainder,
    symbol,
)

N, M = symbol("n"), symbol("m")


def value_of(expr: Expr, sizes: dict[str, int]) -> int:
    """Return the number that an expression is for these sizes, worked out independently of the class."""
    total = 0
    for monomial, coefficient in expr.terms:
        for atom in monomial:
            coefficient *= sizes[atom] if isinstance(atom, str) else call(atom, sizes)
        total += coefficient
    return total


def call(atom: Call, sizes: dict[str, int]) -> int:
    functions = {"div": operator.floordiv, "mod": operator.mod, "min": min, "max": max}
    return functions[atom.function](value_of(atom.left, sizes), value_of(atom.right, sizes))


OPERATIONS = {
    "+": (operator.add, operator.add),
    "-": (operator.sub, operator.sub),
    "*": (operator.mul, operator.mul),
    "min": (minimum, min),
    "max": (maximum, max),
    "div": (divide, lambda a, b: int(a / b) if b else None),
    "mod": (remainder, lambda a, b: a % b if b else None),
}
leaves = st.one_of(st.integers(-6, 12).map(number), st.sampled_from([N, M]))


@st.composite
def computations(draw, depth: int = 4):
    """Draw an expression together with a function that computes the same on numbers."""
    if depth == 0 or draw(st.booleans()):
        leaf = draw(leaves)
        return leaf, lambda sizes: value_of(leaf, sizes)
    symbolic, plain = OPERATIONS[draw(st.sampled_from(sorted(OPERATIONS)))]
    (left, f), (right, g) = draw(computations(depth - 1)), draw(computations(depth - 1))
    found = symbolic(left, right)
    return (left, f) if found is None else (found, lambda sizes: plain(f(sizes), g(sizes)))


SIZES = st.fixed_dictionaries({"n": st.integers(1, 30), "m": st.integers(1, 30)})


@given(computations(), SIZES)
def test_every_expression_means_what_was_computed(computation, sizes):
    expr, compute = computation
    assert value_of(expr, sizes) == compute(sizes)


@given(computations(), computations(), SIZES)
def test_comparisons_hold_for_all_sizes(first, second, sizes):
    left, right = first[0], second[0]
    a, b = value_of(left, sizes), value_of(right, sizes)
    order = compare(left, right)
    assert order is None or (order == 0 and a == b) or (order < 0 and a <= b) or (order > 0 and a >= b)
    assert not (differs(left, right) and a == b)
    assert left.least is None or a >= left.least


def test_equal_sizes_are_written_alike():
    assert (N + M) * (N - M) == N * N - M * M
    assert N * number(0) == ZERO
    assert product([]) == ONE
    assert hash(N + M) == hash(M + N)


def test_division():
    assert divide(N * number(12), number(4)) == N * number(3)
    assert divide(N * M, M) == N
    assert divide(number(-7), number(2)) == number(-3)
    assert divide(N, number(2)) == divide(N, number(2)) != divide(M, number(2))
    assert divide(N, ZERO) is None
    assert divide(N - number(3), number(2)) is None
    assert divide_exactly(N * M + N, N) == M + ONE
    assert divide_exactly(N + ONE, number(2)) is None


def test_remainder():
    assert remainder(N * number(6), number(3)) == ZERO
    assert remainder(number(7), number(4)) == number(3)
    assert remainder(N, M) is None


@pytest.mark.parametrize("expr,text", [(N * number(2) + ONE, "1 + 2*n"), (ZERO, "0"), (-N, "-1*n")])
def test_text(expr, text):
    assert str(expr) == text


def test_what_an_expression_is():
    assert N.name == "n"
    assert (N + ONE).name is None
    assert number(5).value == 5
    assert N.value is None
    capped = minimum(N, number(512))
    assert capped is not None
    assert capped.call("min") == Call("min", number(512), N)
    assert capped.call("max") is None
