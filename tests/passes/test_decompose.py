"""decompose writes operators out; recognize-groupnorm puts one of them together again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.errors import UsageError
from tests.helpers import check_equivalent, codes, model_of, operators, optimized

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


ELEMENTWISE = {
    "Gelu(x)": 20,
    'Gelu <approximate = "tanh"> (x)': 20,
    "HardSwish(x)": 14,
    "Mish(x)": 18,
    "Softplus(x)": 14,
    "Softsign(x)": 14,
    "Swish(x)": 24,
    "Swish <alpha = 1.702> (x)": 24,
}


@pytest.mark.parametrize("node", ELEMENTWISE)
@pytest.mark.parametrize("name", ["float", "float16"])
def test_writes_activations_out(node: str, name: str) -> None:
    dtype = {"float": np.float32, "float16": np.float16}[name]
    before = model_of(f"g ({name}[n] x) => (y) {{ y = {node} }}", opset=ELEMENTWISE[node])
    after, _ = optimized(before, "decompose")
    assert not set(operators(before)) & set(operators(after)) - {"Softplus"}
    x = np.concatenate([np.linspace(-12, 12, 199), [0, -0.0, 100, -100, 1e4, -1e4]]).astype(dtype)
    check_equivalent(before, after, {"x": x[np.abs(x) < 20]}, rtol=1e-6 if name == "float" else 4e-3)
    check_equivalent(before, after, {"x": x}, rtol=1e-6 if name == "float" else 4e-3)


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_writes_celu_out_which_onnxruntime_has_in_single_precision_only(alpha: float) -> None:
    before = model_of(f"g (float[n] x) => (y) {{ y = Celu <alpha = {alpha}> (x) }}")
    after, _ = optimized(before, "decompose")
    assert operators(after) == ({"Elu": 1} if alpha == 1 else {"Div": 1, "Elu": 1, "Mul": 1})
    check_equivalent(before, after, {"x": np.array([-1e30, -5, -0.1, -0.0, 0, 0.1, 5, 1e30, np.nan], np.float32)})


def test_softplus_does_not_overflow() -> None:
    before = model_of("g (float[n] x) => (y) { y = Softplus(x) }")
    after, _ = optimized(before, "decompose{ops=Softplus}")
    check_equivalent(before, after, {"x": np.array([1e30, 500, -500, np.inf, -np.inf, np.nan], np.float32)})


NORMS = {
    "LayerNormalization(x, g, b)": (17, "float"),
    "LayerNormalization <axis = 1, epsilon = 0.01> (x, g2)": (18, "float"),
    "LayerNormalization <axis = -2> (x, g2, g2)": (17, "float"),
    "RMSNormalization(x, g)": (23, "float"),
    "GroupNormalization <num_groups = 2> (x, c, c)": (21, "float"),
    "GroupNormalization <num_groups = 2, epsilon = 0.1> (x, groups, groups)": (18, "float"),
}


@pytest.mark.parametrize("node", NORMS)
def test_writes_normalisations_out(node: str) -> None:
    opset, name = NORMS[node]
    weights = {"g": normal(8), "b": normal(8), "g2": normal(4, 8), "c": normal(4), "groups": normal(2)}
    before = model_of(f"g ({name}[n, 4, 8] x) => (y) {{ y = {node} }}", opset=opset, weights=weights)
    after, _ = optimized(before, "decompose")
    assert not set(operators(before)) & set(operators(after))
    for x in (normal(1, 4, 8), normal(3, 4, 8) * 20 + 1):
        check_equivalent(before, after, {"x": x})


def test_half_precision_statistics_are_computed_in_single_precision() -> None:
    weights = {"g": normal(8).astype(np.float16)}
    body = "g (float16[n, 4, 8] x) => (y) { y = LayerNormalization(x, g) }"
    before = model_of(body, weights=weights)
    after, _ = optimized(before, "decompose")
    assert operators(after)["Cast"] == 2
    x = (normal(1, 4, 8) * 1000).astype(np.float16)
    check_equivalent(before, after, {"x": x}, rtol=2e-3)


def test_only_what_is_asked_for() -> None:
    before = model_of("g (float[n] x) => (y) { t = HardSwish(x) y = Softplus(t) }")
    after, _ = optimized(before, "decompose{ops=HardSwish}")
    assert operators(after) == {"HardSigmoid": 1, "Mul": 1, "Softplus": 1}


def test_refuses_an_operator_it_does_not_know() -> None:
    before = model_of("g (float[n] x) => (y) { y = Relu(x) }")
    with pytest.raises(UsageError, match="Relu"):
        optimized(before, 'decompose{ops="HardSwish+Relu"}')


def test_says_why_a_normalisation_stays() -> None:
    weights = {"g": normal(8), "b": normal(8)}
    body = "g (float[n, 4, 8] x) => (y, m) { y, m = LayerNormalization(x, g, b) }"
    before = model_of(body, weights=weights)
    after, result = optimized(before, "decompose")
    assert operators(after) == operators(before)
    assert codes(result) == {"DEC001"}


@pytest.mark.parametrize("bias", [True, False])
def test_group_normalization_there_and_back(bias: bool) -> None:
    weights = {
        "one": np.ones(2, np.float32),
        "zero": np.zeros(2, np.float32),
        "g": normal(4, 1, 1),
        "b": normal(4, 1, 1),
        "fold": np.array([0, 2, -1]),
    }
    last = "m = Mul(r, g) y = Add(m, b)" if bias else "y = Mul(r, g)"
    nodes = f"t = Reshape(x, fold) i = InstanceNormalization(t, one, zero) s = Shape(x) r = Reshape(i, s) {last}"
    before = model_of(f"g (float[n, 4, 5, h] x) => (y) {{ {nodes} }}", opset=21, weights=weights)
    after, _ = optimized(before, "recognize-groupnorm")
    assert operators(after)["GroupNormalization"] == 1
    assert operators(after)["InstanceNormalization"] == 0
    check_equivalent(before, after, {"x": normal(2, 4, 5, 3)})


GROUP_LEFT = {
    "statistics scaled": ("i = InstanceNormalization(t, two, zero)", 21),
    "the opset is too low": ("i = InstanceNormalization(t, one, zero)", 17),
}


@pytest.mark.parametrize("reason", GROUP_LEFT)
def test_leaves_group_normalization(reason: str) -> None:
    node, opset = GROUP_LEFT[reason]
    weights = {"one": np.ones(2, np.float32), "two": np.full(2, 2, np.float32), "zero": np.zeros(2, np.float32)}
    weights |= {"g": normal(4, 1, 1), "fold": np.array([0, 2, -1])}
    nodes = f"t = Reshape(x, fold) {node} s = Shape(x) r = Reshape(i, s) y = Mul(r, g)"
    before = model_of(f"g (float[n, 4, 5, h] x) => (y) {{ {nodes} }}", opset=opset, weights=weights)
    after, result = optimized(before, "recognize-groupnorm")
    assert operators(after) == operators(before)
    assert codes(result) == ({"GN001"} if opset < 21 else set())
