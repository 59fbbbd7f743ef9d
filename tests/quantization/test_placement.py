"""Which nodes compute with integers, and which values have pairs."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.ir import Editor, Model, Node, nodes
from graphopt.quantization.placement import Placement, place
from graphopt.targets import find
from tests.helpers import model_of

WEIGHTS = {"L": np.ones((8, 8, 1, 1), np.float32), "W": np.ones((8, 8), np.float32)}
FACTS = find("cpu-x64").quantization


def graph(body: str) -> Model:
    """Return a model, its types inferred; L are weights of convolutions, W of products."""
    head, rest = body.split("{", 1)
    used = {name: array for name, array in WEIGHTS.items() if name in rest}
    model = model_of(f"g {head} {{{rest}", weights=used)
    AnalysisManager(Editor(model)).get(Shapes)
    return model


def placed(body: str, *floats: str) -> Placement:
    """Place ``body``; ``floats`` are operators that stay in float."""
    model = graph(body)
    assert FACTS is not None
    return place(model, FACTS, [node for node in nodes(model) if node.op_type in floats])


def names(found: Placement) -> list[str]:
    return [node.op_type for node in found.nodes]


def pairs(found: Placement) -> dict[str, str]:
    return {str(value.name): str(root.name) for value, root in found.values.items()}


SUM = "(float[1,8,4,4] x) => (y) { a = Conv(x, L) b = Conv(x, L) s = Add(a, b) y = Conv(s, L) }"


def test_a_sum_between_integer_layers_joins_them() -> None:
    found = placed(SUM)
    assert names(found) == ["Conv", "Conv", "Add", "Conv"]
    assert pairs(found) == {name: name for name in ("x", "a", "b", "s", "y")}
    assert {value.name for value in found.made} == {"a", "b", "s", "y"}


def test_an_operator_that_no_integer_node_reads_does_not_join() -> None:
    assert names(placed("(float[1,8,4,4] x) => (y) { a = Conv(x, L) y = Add(a, a) }")) == ["Conv"]


def test_an_operator_that_no_integer_node_feeds_does_not_join() -> None:
    assert names(placed("(float[1,8,4,4] x) => (y) { a = Add(x, x) y = Conv(a, L) }")) == ["Conv"]


def test_operators_drop_out_with_the_layers_that_fed_them() -> None:
    body = "(float[1,8,4,8] x) => (y) { a = Conv(x, L) s = Add(a, a) m = Mul(s, s) y = MatMul(m, W) }"
    assert names(placed(body)) == ["Conv", "Add", "Mul", "MatMul"]
    assert names(placed(body, "Conv")) == ["MatMul"]
    assert names(placed(body, "Mul")) == ["Conv", "MatMul"]


def test_an_operator_without_an_integer_kernel_ends_the_chain() -> None:
    body = "(float[1,8,4,4] x) => (y) { a = Conv(x, L) e = Erf(a) s = Add(e, e) y = Conv(s, L) }"
    assert names(placed(body)) == ["Conv", "Conv"]


@pytest.mark.parametrize(
    ("mover", "reads"),
    [
        ("MaxPool <kernel_shape = [2, 2]> (a)", "p"),
        ("Transpose <perm = [0, 1, 3, 2]> (a)", "p"),
        ("Identity(a)", "p"),
    ],
)
def test_data_movement_shares_its_inputs_grid(mover: str, reads: str) -> None:
    found = placed(f"(float[1,8,4,4] x) => (y) {{ a = Conv(x, L) p = {mover} y = Conv({reads}, L) }}")
    assert len(found.nodes) == 3
    assert pairs(found)["p"] == "a"


def test_an_absorbed_activation_has_the_pair_behind_it() -> None:
    found = placed("(float[1,8,4,4] x) => (y) { a = Conv(x, L) r = Relu(a) y = Conv(r, L) }")
    assert set(pairs(found)) == {"x", "r", "y"}


def test_an_activation_that_others_pass_by_is_not_absorbed() -> None:
    found = placed("(float[1,8,4,4] x) => (y, z) { a = Conv(x, L) r = Relu(a) y = Conv(r, L) z = Erf(a) }")
    assert set(pairs(found)) == {"x", "a", "r", "y"}


def test_products_of_computed_values_are_no_layers_and_nobody_is_told() -> None:
    model = graph("(float[2,8] x, float[8,8] w) => (y) { y = MatMul(x, w) }")
    said: list[tuple[Node, str]] = []
    assert FACTS is not None
    assert not place(model, FACTS, declined=lambda node, why: said.append((node, why))).nodes
    assert not said


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ("Gemm <alpha = 0.5> (x, W)", "alpha or beta is not 1"),
        ("Gemm <beta = 2.0> (x, W, x)", "alpha or beta is not 1"),
        ("Gemm <transA = 1> (x, W)", "its input is transposed"),
        ("Gemm(x, x)", "its weights are computed"),
        ("MatMul(W, W)", "its input is constant"),
    ],
)
def test_a_layer_that_has_no_integer_form_is_named_with_the_reason(layer: str, why: str) -> None:
    model = graph(f"(float[8,8] x) => (y) {{ y = {layer} }}")
    said: list[str] = []
    assert FACTS is not None
    assert not place(model, FACTS, declined=lambda node, reason: said.append(reason)).nodes
    assert said == [why]
