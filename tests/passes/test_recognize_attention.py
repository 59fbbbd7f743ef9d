"""recognize-attention: the ways of writing multi-head attention, what only looks like it, and models without target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt import io
from graphopt.analysis import Cost
from graphopt.driver import Result, optimize
from graphopt.ir import Model
from graphopt.ir.infer import infer
from graphopt.targets import Target, find
from tests.helpers import check_equivalent, clone, codes, model_of, operators, run, shared

RNG = np.random.default_rng(5)
CPU = find("cpu-x64")
NOWHERE = Target(name="none", description="", provider="", source="", verified=True)
WIDTH, HEADS = 256, 4


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


WEIGHTS = {
    "cut": np.array([0, 0, HEADS, WIDTH // HEADS]),
    "one": np.array([0, 0, 1, WIDTH // HEADS]),
    "across": np.array([1, -1, HEADS, WIDTH // HEADS]),
    "whole": np.array([0, 0, WIDTH]),
    "flat": np.array([-1, WIDTH]),
    "eight": np.array(8, np.float32),
    "zero": np.array(0, np.float32),
    "eighth": np.array([0.125], np.float32),
    "gain": normal(WIDTH),
    "causal": np.triu(np.full((5, 5), -np.inf, np.float32), 1),
}
INPUTS = f"float[n, s, {WIDTH}] q, float[n, t, {WIDTH}] k, float[n, t, {WIDTH}] v"
PARTS = {
    "query": "q4 = Reshape(q, cut) qt = Transpose <perm = [0, 2, 1, 3]> (q4)",
    "key": "k4 = Reshape(k, cut) kt = Transpose <perm = [0, 2, 3, 1]> (k4)",
    "value": "v4 = Reshape(v, cut) vt = Transpose <perm = [0, 2, 1, 3]> (v4)",
    "scores": "a = MatMul(qt, kt) b = Div(a, eight)",
    "softmax": "p = Softmax <axis = -1> (b)",
    "end": "o = MatMul(p, vt) ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape(ot, whole)",
}


def attention(*, opset: int = 17, inputs: str = "", output: str = "float[a, b, c] y", **parts: str) -> Model:
    body = " ".join({**PARTS, **parts}.values())
    named = ", ".join(filter(None, [INPUTS, inputs]))
    weights = {name: array for name, array in WEIGHTS.items() if f" {name})" in body or f"({name}," in body}
    return model_of(f"g ({named}) => ({output}) {{ {body} }}", opset=opset, weights=weights)


def recognised(before: Model, target: Target | None = CPU) -> tuple[Model, Result]:
    copy = clone(before)
    return copy, optimize(copy, pipeline="recognize-attention", target=target)


def feeds(n: int = 2, s: int = 3, t: int = 5) -> dict[str, np.ndarray[Any, Any]]:
    return {"q": normal(n, s, WIDTH), "k": normal(n, t, WIDTH), "v": normal(n, t, WIDTH)}


SAME: dict[str, dict[str, Any]] = {
    "a quotient of the scores": {},
    "a product": {"scores": "a = MatMul(qt, kt) b = Mul(eighth, a)"},
    "no factor": {"scores": "b = MatMul(qt, kt)"},
    "a factor on the queries": {"scores": "qs = Mul(qt, eighth) b = MatMul(qs, kt)"},
    "a factor before the Transpose": {
        "query": "q4 = Reshape(q, cut) qs = Div(q4, eight) qt = Transpose <perm = [0, 2, 1, 3]> (qs)",
        "scores": "b = MatMul(qt, kt)",
    },
    "factors on queries and keys": {"scores": "qs = Mul(qt, eighth) ks = Mul(kt, eight) b = MatMul(qs, ks)"},
    "keys transposed twice": {
        "key": "k4 = Reshape(k, cut) k5 = Transpose <perm = [0, 2, 1, 3]> (k4) "
        "kt = Transpose <perm = [0, 1, 3, 2]> (k5)",
    },
}


@pytest.mark.parametrize("what", SAME)
def test_recognises_attention(what: str) -> None:
    before = attention(**SAME[what])
    after, _ = recognised(before)
    assert operators(after) == {"MultiHeadAttention": 1}
    assert after.opset_imports["com.microsoft"] == 1
    for sizes in ((2, 3, 5), (1, 1, 1), (3, 40, 70)):
        check_equivalent(before, after, feeds(*sizes))


def test_infinities_and_nan_come_out_as_before() -> None:
    before = attention()
    after, _ = recognised(before)
    for name in ("q", "k", "v"):
        for odd in (np.inf, -np.inf, np.nan):
            given = feeds()
            given[name][0, 1, 7] = odd
            for want, got in zip(run(before, given), run(after, given), strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


MASKS = {
    "for each query and key": ("float[n, 1, s, t] m", (2, 1, 3, 5)),
    "for each head": (f"float[1, {HEADS}, s, t] m", (1, HEADS, 3, 5)),
    "of rank 2": ("float[s, t] m", (3, 5)),
    "of rank 3": (f"float[{HEADS}, s, t] m", (HEADS, 3, 5)),
}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("what", MASKS)
def test_takes_an_added_mask(what: str, opset: int) -> None:
    declared, shape = MASKS[what]
    softmax = f"d = Add(m, b) p = Softmax <axis = {3 if opset == 11 else -1}> (d)"
    before = attention(opset=opset, inputs=declared, softmax=softmax)
    after, _ = recognised(before)
    assert operators(after) == ({"MultiHeadAttention": 1} | ({"Unsqueeze": 1} if len(shape) < 4 else {}))
    for lowest in (-np.inf, np.finfo(np.float32).min):
        mask = np.where(RNG.random(shape) < 0.3, np.float32(lowest), normal(*shape)).astype(np.float32)
        mask[..., 0, :] = lowest  # a query that may look at nothing: NaN for -inf, an average otherwise
        check_equivalent(before, after, {**feeds(), "m": mask})


def test_takes_a_constant_mask() -> None:
    fixed = f"float[n, 5, {WIDTH}]"
    body = " ".join({**PARTS, "softmax": "d = Add(b, causal) p = Softmax(d)"}.values())
    before = model_of(f"g ({fixed} q, {fixed} k, {fixed} v) => (float[a, b, c] y) {{ {body} }}", weights=WEIGHTS)
    after, _ = recognised(before)
    assert operators(after)["MultiHeadAttention"] == 1
    check_equivalent(before, after, feeds(2, 5, 5))


OTHER: dict[str, dict[str, Any]] = {
    "a mask for the keys alone": {"inputs": "float[n, 1, 1, t] m", "softmax": "d = Add(b, m) p = Softmax(d)"},
    "a mask of unknown size": {"inputs": "float[e, 1, f, h] m", "softmax": "d = Add(b, m) p = Softmax(d)"},
    "a mask by Where": {"inputs": "bool[n, 1, s, t] m", "softmax": "d = Where(m, b, eight) p = Softmax(d)"},
    "a Softmax over the queries": {"softmax": "p = Softmax <axis = 2> (b)"},
    "one head of values": {
        "inputs": f"float[n, t, {WIDTH // HEADS}] w",
        "value": "v4 = Reshape(w, one) vt = Transpose <perm = [0, 2, 1, 3]> (v4)",
    },
    "the same keys for the whole batch": {
        "inputs": f"float[1, t, {WIDTH}] r",
        "key": PARTS["key"].replace("(k,", "(r,"),
    },
    "a Softmax that means all axes from the second": {"opset": 11, "softmax": "p = Softmax(b)"},
    "heads cut across positions": {"query": PARTS["query"].replace("cut", "across")},
    "queries in another order": {"query": "q4 = Reshape(q, cut) qt = Transpose <perm = [0, 2, 3, 1]> (q4)"},
    "a result of rank 2": {"end": "o = MatMul(p, vt) ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape(ot, flat)"},
    "a factor on the values": {"value": f"{PARTS['value'].replace('vt', 'vu')} vt = Mul(vu, eighth)"},
    "scores scaled by zero": {"scores": "a = MatMul(qt, kt) b = Mul(a, zero)"},
}


@pytest.mark.parametrize("what", OTHER)
def test_leaves_what_the_operator_cannot_stand_for_and_says_why(what: str) -> None:
    before = attention(output="float y" if "rank 2" in what else "float[a, b, c] y", **OTHER[what])
    after, result = recognised(before)
    assert operators(after) == operators(before)
    assert "com.microsoft" not in after.opset_imports
    assert codes(result) >= ({"ATT001"} if "zero" not in what else set())


def test_leaves_a_mask_where_it_makes_the_operator_slower() -> None:
    small = "float[n, s, 16]"
    body = " ".join({**PARTS, "softmax": "d = Add(b, m) p = Softmax(d)"}.values())
    weights = {**WEIGHTS, "cut": np.array([0, 0, 2, 8]), "whole": np.array([0, 0, 16])}
    text = f"g ({small} q, {small} k, {small} v, float[n, 1, s, s] m) => (float[a, b, c] y) {{ {body} }}"
    after, result = recognised(model_of(text, weights=weights))
    assert operators(after)["MultiHeadAttention"] == 0
    assert ["width below 256" in item.message for item in result.diagnostics] == [True]


@pytest.mark.parametrize("name", ["p", "b", "ot"])
def test_leaves_what_others_read(name: str) -> None:
    before = attention(output=f"float[a, b, c] y, float[d, e, f, h] {name}")
    assert operators(recognised(before)[0]) == operators(before)


def test_leaves_other_precisions() -> None:
    text = " ".join({**PARTS, "scores": "b = MatMul(qt, kt)"}.values())
    half = INPUTS.replace("float[", "float16[")
    before = model_of(f"g ({half}) => (float16[a, b, c] y) {{ {text} }}", weights=WEIGHTS)
    after, result = recognised(before)
    assert operators(after) == operators(before)
    assert codes(result) == {"ATT001"}


@pytest.mark.parametrize("target", [None, NOWHERE])
def test_without_a_target_that_runs_the_operator_nothing_changes(target: Target | None) -> None:
    before = attention()
    after, result = recognised(before, target)
    assert operators(after) == operators(before)
    assert "com.microsoft" not in after.opset_imports
    assert not codes(result)


def test_sizes_and_macs_are_those_of_the_parts() -> None:
    # The layer behind it has its sizes from inference, which knows nothing of the operator.
    end = PARTS["end"].replace("y =", "z =") + " y = LayerNormalization(z, gain)"
    before = attention(end=end)
    after, _ = recognised(before)
    sizes = {"n": 2, "s": 3, "t": 5}
    want, got = Cost.measure(before, sizes), Cost.measure(after, sizes)
    assert got.total_macs == want.total_macs == 2 * 3 * 5 * WIDTH * 2
    assert got.computed == want.computed == got.total_macs
    assert not got.unknown
    assert infer(after)[0][after.graph.outputs[0]][1] == ("n", "s", WIDTH)


@pytest.mark.parametrize(
    ("model", "left"), [("fashion_transformer.onnx", 61), ("minilm_l6_v2.onnx", 134)], ids=["fashion", "minilm"]
)
def test_real_transformers_compute_the_same_with_fewer_nodes(model: str, left: int) -> None:
    own = Path(__file__).parents[2] / "models" / model
    path = own if own.exists() else shared("models", model)
    before = io.load(path)
    after = optimize(io.load(path), target=CPU).model
    assert sum(operators(after).values()) == left
    for batch, length in ((1, 7), (3, 20)):
        if model.startswith("fashion"):
            given: dict[str, np.ndarray[Any, Any]] = {"images": normal(batch, 1, 28, 28)}
        else:
            given = {name: RNG.integers(0, 2, (batch, length)) for name in ("token_type_ids", "attention_mask")}
            given["input_ids"] = RNG.integers(0, 30000, (batch, length))
            given["attention_mask"][:, 0] = 1
        check_equivalent(before, after, given)
