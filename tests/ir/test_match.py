"""Patterns: what they bind, the order of operands, rounding of constants, and who may read what is inside."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ir import Model
from graphopt.ir.match import Const, Match, OneOf, Op, Pattern, Wild, ahead, match, op, roots_of
from tests.helpers import model_of

X, Y = Wild("x"), Wild("y")
WEIGHTS = {"c": np.float32(0.1), "deep": np.full((1, 1), 0.1, np.float32), "vector": np.ones(3, np.float32)}


def model(nodes: str, outputs: str = "y") -> Model:
    return model_of(f"g (float[n] a, float[n] b) => ({outputs}) {{ {nodes} }}", weights=WEIGHTS)


def found(pattern: Pattern, nodes: str, outputs: str = "y") -> Match | None:
    return match(pattern, list(model(nodes, outputs).graph)[-1])


@pytest.mark.parametrize("nodes", ["t = Relu(a) y = Add(t, b)", "t = Relu(a) y = Add(b, t)"])
def test_sums_match_in_either_order(nodes: str) -> None:
    result = found(op("Add", op("Relu", X), Y), nodes)
    assert result is not None
    assert (result.values["x"].name, result.values["y"].name) == ("a", "b")
    assert [node.op_type for node in result.nodes] == ["Add", "Relu"]


def test_differences_match_in_order_only() -> None:
    assert found(op("Sub", op("Relu", X), Y), "t = Relu(a) y = Sub(t, b)")
    assert found(op("Sub", op("Relu", X), Y), "t = Relu(a) y = Sub(b, t)") is None


def test_one_name_is_one_value() -> None:
    assert found(op("Mul", X, op("Relu", X)), "t = Relu(a) y = Mul(t, a)")
    assert found(op("Mul", X, op("Relu", X)), "t = Relu(a) y = Mul(t, b)") is None


def test_constants_match_up_to_their_rounding_and_tell_their_rank() -> None:
    exact = found(op("Mul", X, Const(0.1)), "y = Mul(a, c)")
    assert exact is not None
    assert exact.keeps_shape_of("x")
    assert found(op("Mul", X, Const(0.1001)), "y = Mul(a, c)") is None
    assert found(op("Mul", X, Const(name="k")), "y = Mul(a, vector)") is None
    deep = found(op("Mul", X, Const(name="k")), "y = Mul(a, deep)")
    assert deep is not None
    assert deep.numbers["k"] == pytest.approx(0.1)
    assert not deep.keeps_shape_of("x")


def test_alternatives_are_tried_until_one_fits() -> None:
    pattern = op("Neg", OneOf((op("Exp", X), op("Relu", X))))
    assert found(pattern, "t = Relu(a) y = Neg(t)")
    assert found(pattern, "t = Abs(a) y = Neg(t)") is None


@pytest.mark.parametrize(
    ("nodes", "outputs"), [("t = Relu(a) y = Neg(t)", "y, t"), ("t = Relu(a) z = Abs(t) y = Neg(t)", "y, z")]
)
def test_nothing_inside_may_be_read_outside(nodes: str, outputs: str) -> None:
    assert found(op("Neg", op("Relu", X)), nodes, outputs) is None


def test_a_named_operator_can_be_asked_for() -> None:
    result = found(op("Neg", Op("Relu", (X,), "inner")), "t = Relu(a) y = Neg(t)")
    assert result is not None
    assert result.node("inner").op_type == "Relu"
    with pytest.raises(KeyError):
        result.node("x")


def test_ahead_walks_forward_and_roots_are_known_from_the_pattern() -> None:
    first = next(iter(model("t = Relu(a) u = Neg(t) y = Exp(u)").graph))
    assert [node.op_type for node in ahead(first, 1)] == ["Relu", "Neg"]
    assert roots_of(OneOf((op("Neg", X), op("Mul", X, Y)))) == {"Neg", "Mul"}
    assert roots_of(X) == frozenset()
