"""recognize-activations: every way of writing each function, at values where overflow, signs and NaN show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.driver import optimize
from graphopt.targets import find
from tests.helpers import clone, codes, model_of, operators, optimized, run

EDGES = np.array([0, -0.0, 1, -1, 3, -3, 6, -6, 0.1, -0.1, 100, -100, 1e4, -1e4, 1e-30, np.inf, -np.inf, np.nan])
CONSTANTS = {
    "half": 0.5,
    "one": 1,
    "two": 2,
    "three": 3,
    "six": 6,
    "sixth": 1 / 6,
    "zero": 0,
    "root": 2**0.5,
    "unroot": 0.5**0.5,
    "k": 0.044715,
    "r": (2 / np.pi) ** 0.5,
    "a": 0.3,
    "low": -1.5,
    "nearly": 0.4999,
}
TANH = "q = Mul(x, x) c = Mul(x, q) u = Mul(c, k) v = Add(x, u) w = Mul(v, r) t = Tanh(w) g = Add(t, one)"
ERF = "d = Div(x, root) e = Erf(d) g = Add(e, one)"
GATE3 = "p = Add(x, three) c = Clip(p, zero, six)"

RECOGNISED = {
    "gelu: (x g) / 2": (20, f"{ERF} m = Mul(x, g) y = Mul(m, half)", {"Gelu": 1}),
    "gelu: (x / 2) g": (20, f"{ERF} m = Mul(x, half) y = Mul(m, g)", {"Gelu": 1}),
    "gelu: x (g / 2)": (20, f"{ERF} m = Mul(half, g) y = Mul(x, m)", {"Gelu": 1}),
    "gelu: (x g) over 2": (20, f"{ERF} m = Mul(g, x) y = Div(m, two)", {"Gelu": 1}),
    "gelu: x times the root of 1/2": (
        20,
        "d = Mul(unroot, x) e = Erf(d) g = Add(one, e) m = Mul(x, g) y = Mul(half, m)",
        {"Gelu": 1},
    ),
    "gelu by tanh": (20, f"{TANH} m = Mul(x, g) y = Mul(m, half)", {"Gelu": 1}),
    "gelu by tanh, power": (
        20,
        "c = Pow(x, three) u = Mul(k, c) v = Add(u, x) w = Mul(v, r) t = Tanh(w) g = Add(t, one) "
        "m = Mul(x, half) y = Mul(m, g)",
        {"Gelu": 1},
    ),
    "gelu by tanh, factored": (
        20,
        "q = Mul(x, x) u = Mul(q, k) v = Add(u, one) z = Mul(x, v) w = Mul(z, r) t = Tanh(w) g = Add(t, one) "
        "m = Mul(x, half) y = Mul(m, g)",
        {"Gelu": 1},
    ),
    "hard swish: x (c / 6)": (14, f"{GATE3} h = Div(c, six) y = Mul(x, h)", {"HardSwish": 1}),
    "hard swish: (x c) / 6": (14, f"{GATE3} h = Mul(x, c) y = Div(h, six)", {"HardSwish": 1}),
    "hard swish: (x c) times 1/6": (14, f"{GATE3} h = Mul(c, x) y = Mul(h, sixth)", {"HardSwish": 1}),
    "hard swish of a hard sigmoid": (
        14,
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(h, x)",
        {"HardSwish": 1},
    ),
    "hard swish before its opset": (
        12,
        f"{GATE3} h = Mul(x, c) y = Div(h, six)",
        {"HardSigmoid": 1, "Mul": 1},
    ),
    "hard swish with attributes": (
        10,
        "p = Add(x, three) c = Clip <min = 0.0, max = 6.0> (p) h = Mul(x, c) y = Div(h, six)",
        {"HardSigmoid": 1, "Mul": 1},
    ),
    "hard swish of min and max": (
        14,
        "p = Add(x, three) n = Max(p, zero) c = Min(n, six) h = Mul(x, c) y = Div(h, six)",
        {"HardSwish": 1},
    ),
    "hard sigmoid": (13, f"{GATE3} y = Div(c, six)", {"HardSigmoid": 1}),
    "hard sigmoid, a line": (13, "m = Mul(x, a) p = Add(m, half) y = Clip(p, zero, one)", {"HardSigmoid": 1}),
    "mish": (18, "s = Softplus(x) t = Tanh(s) y = Mul(x, t)", {"Mish": 1}),
    "sigmoid": (13, "n = Neg(x) e = Exp(n) p = Add(one, e) y = Reciprocal(p)", {"Sigmoid": 1}),
    "sigmoid, divided": (13, "n = Neg(x) e = Exp(n) p = Add(e, one) y = Div(one, p)", {"Sigmoid": 1}),
    "relu": (13, "y = Max(zero, x)", {"Relu": 1}),
    "leaky relu": (13, "m = Mul(x, a) y = Max(m, x)", {"LeakyRelu": 1}),
    "clip: min of max": (13, "m = Max(x, low) y = Min(m, six)", {"Clip": 1}),
    "clip: max of min": (13, "m = Min(six, x) y = Max(m, low)", {"Clip": 1}),
    "clip: relu and min": (13, "m = Relu(x) y = Min(m, six)", {"Clip": 1}),
    "clip before opset 11": (9, "m = Max(x, low) y = Min(m, six)", {"Clip": 1}),
}


def constants(dtype: type = np.float32) -> dict[str, Any]:
    return {name: dtype(value) for name, value in CONSTANTS.items()}


def same(want: np.ndarray[Any, Any], got: np.ndarray[Any, Any], rtol: float) -> None:
    """NaN and infinities in the same places, the rest close."""
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("what", RECOGNISED)
def test_recognises(what: str) -> None:
    opset, nodes, left = RECOGNISED[what]
    before = model_of(f"g (float[n] x) => (y) {{ {nodes} }}", opset=opset, weights=constants())
    after, _ = optimized(before, "recognize-activations")
    assert operators(after) == left
    x = np.concatenate([EDGES, np.linspace(-8, 8, 333)]).astype(np.float32)
    same(run(before, {"x": x})[0], run(after, {"x": x})[0], 1e-6)


@pytest.mark.parametrize("what", ["gelu: (x g) / 2", "hard sigmoid", "mish", "relu", "leaky relu", "clip: min of max"])
def test_recognises_half_precision(what: str) -> None:
    opset, nodes, left = RECOGNISED[what]
    before = model_of(f"g (float16[n] x) => (y) {{ {nodes} }}", opset=opset, weights=constants(np.float16))
    after, _ = optimized(before, "recognize-activations")
    assert operators(after) == left
    x = np.linspace(-8, 8, 333).astype(np.float16)
    same(run(before, {"x": x})[0], run(after, {"x": x})[0], 8 * float(np.finfo(np.float16).eps))


@pytest.mark.parametrize(("what", "recognised"), [("relu", True), ("sigmoid", True), ("hard sigmoid", False)])
def test_double_precision_only_where_the_runtime_has_a_kernel(what: str, recognised: bool) -> None:
    opset, nodes, left = RECOGNISED[what]
    before = model_of(f"g (double[n] x) => (y) {{ {nodes} }}", opset=opset, weights=constants(np.float64))
    after, _ = optimized(before, "recognize-activations")
    assert (operators(after) == left) == recognised
    x = np.concatenate([EDGES, np.linspace(-8, 8, 333)])
    same(run(before, {"x": x})[0], run(after, {"x": x})[0], 1e-12)


LEFT_ALONE = {
    "another constant": f"{ERF} m = Mul(x, g) y = Mul(m, nearly)",
    "another input": f"{ERF} m = Mul(z, g) y = Mul(m, half)",
    "a constant that adds an axis": "y = Max(x, deep)",
    "a vector": "y = Max(x, vector)",
    "three operands": "y = Max(x, zero, z)",
    "crossed bounds": "m = Max(x, six) y = Min(m, low)",
    "another height": f"{GATE3} y = Div(c, three)",
    "a computed bound": "p = Add(x, three) c = Clip(p, zero, w) y = Div(c, six)",
    "a slope above one": "m = Mul(x, three) y = Max(m, x)",
    "softplus, unless asked for": "e = Exp(x) p = Add(e, one) y = Log(p)",
    "swish, unless asked for": "s = Sigmoid(x) y = Mul(x, s)",
    "clip without an upper bound, which holds back infinity": "y = Clip(x, zero)",
}


@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_leaves_alone(reason: str) -> None:
    extra = {"deep": np.zeros((1, 1), np.float32), "vector": np.zeros(4, np.float32)}
    body = f"g (float[n] x, float[n] z, float w) => (y) {{ {LEFT_ALONE[reason]} }}"
    before = model_of(body, opset=24, weights={**constants(), **extra})
    after, result = optimized(before, "recognize-activations")
    assert operators(after) == operators(before)
    assert not result.run.ctx.rewrites


def test_leaves_a_form_whose_middle_is_read_elsewhere() -> None:
    body = f"g (float[n] x) => (y, g) {{ {ERF} m = Mul(x, g) y = Mul(m, half) }}"
    before = model_of(body, opset=20, weights=constants())
    after, _ = optimized(before, "recognize-activations")
    assert operators(after) == operators(before)


def test_says_when_the_opset_is_too_low() -> None:
    before = model_of(f"g (float[n] x) => (y) {{ {ERF} m = Mul(x, g) y = Mul(m, half) }}", weights=constants())
    after, result = optimized(before, "recognize-activations")
    assert operators(after) == operators(before)
    assert codes(result) == {"ACT001"}


GELU = f"{ERF} m = Mul(x, g) y = Mul(m, half)"


def test_takes_gelu_from_the_targets_own_domain_where_the_opset_lacks_it() -> None:
    before = model_of(f"g (float[n] x) => (y) {{ {GELU} }}", weights=constants())
    after = clone(before)
    result = optimize(after, pipeline="recognize-activations", target=find("cpu-x64"))
    assert [node.op_identifier() for node in after.graph] == [("com.microsoft", "Gelu", "")]
    assert after.opset_imports["com.microsoft"] == 1
    assert not codes(result)
    x = EDGES.astype(np.float32)
    same(run(before, {"x": x})[0], run(after, {"x": x})[0], 1e-6)


@pytest.mark.parametrize(
    ("opset", "dtype"),
    [(20, np.float32), (17, np.float64), (17, np.float16)],
    ids=["ONNX has it", "no kernel for double", "no kernel for float16"],
)
def test_stays_with_onnx_where_it_has_gelu_or_the_target_no_kernel(opset: int, dtype: type) -> None:
    kind = {np.float32: "float", np.float64: "double", np.float16: "float16"}[dtype]
    model = model_of(f"g ({kind}[n] x) => (y) {{ {GELU} }}", opset=opset, weights=constants(dtype))
    optimize(model, pipeline="recognize-activations", target=find("cpu-x64"))
    assert {node.domain for node in model.graph} == {""}


def test_swish_and_softplus_on_request() -> None:
    nodes = "e = Exp(x) p = Add(e, one) l = Log(p) s = Sigmoid(l) y = Mul(l, s)"
    before = model_of(f"g (float[n] x) => (y) {{ {nodes} }}", opset=24, weights=constants())
    after, _ = optimized(before, "recognize-activations{swish=true,softplus=true}")
    assert operators(after) == {"Softplus": 1, "Swish": 1}
    x = np.linspace(-20, 20, 99).astype(np.float32)
    same(run(before, {"x": x})[0], run(after, {"x": x})[0], 1e-6)


def test_recognises_inside_a_branch() -> None:
    body = """g (float[n] x, bool c) => (y) {
      y = If (c) <then_branch = a () => (p) { m = Max(x, low) p = Min(m, six) },
                  else_branch = o () => (q) { q = Neg(x) }>
    }"""
    before = model_of(body, weights=constants())
    after, _ = optimized(before, "recognize-activations")
    assert operators(after) == {"If": 1, "Clip": 1, "Neg": 1}
