"""Symbolic sizes and elements are what the runtime finds, whatever sizes stand for the names."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis import AnalysisManager
from graphopt.analysis.shape_values import ShapeValues
from graphopt.analysis.symbolic import Call, Expr
from graphopt.ir import Editor, Model
from tests.helpers import model_of, run

INTEGERS = {
    "i0": 0, "i1": 1, "i2": 2, "v0": [0], "v1": [1], "v2": [2], "v3": [3], "m1": [-1], "m3": [-3], "k4": [4],
    "k12": [12],
    "v01": [0, 1], "pair": [[0, 1], [2, 0]], "end": [2**31 - 1], "last": [2**63 - 1], "shape4": [4, 1, 1, 1],
    "ones": [1, 1, 1], "two_one": [2, 1], "minus": [-7], "flags": [1, 0, 1],
}  # fmt: skip
WEIGHTS = {name: np.array(value, np.int64) for name, value in INTEGERS.items()} | {
    "w": np.ones((12, 5), np.float32),
    "u": np.ones((5, 12), np.float32),
    "table": np.ones((1, 512), np.float32),
}
SIZES = [{"b": 2, "n": 5}, {"b": 1, "n": 3}, {"b": 3, "n": 1}]


def value_of(expr: Expr, sizes: dict[str, int]) -> int | None:
    """Return the number that an expression stands for, ``None`` when it contains a size without a name."""
    total = 0
    for monomial, coefficient in expr.terms:
        for atom in monomial:
            factor = call(atom, sizes) if isinstance(atom, Call) else sizes.get(atom)
            if factor is None:
                return None
            coefficient *= factor
        total += coefficient
    return total


def call(atom: Call, sizes: dict[str, int]) -> int | None:
    left, right = value_of(atom.left, sizes), value_of(atom.right, sizes)
    if left is None or right is None:
        return None
    return {"div": left // right, "mod": left % right, "min": min(left, right), "max": max(left, right)}[atom.function]


def facts_of(model: Model) -> ShapeValues:
    return AnalysisManager(Editor(model)).get(ShapeValues)


DIMENSIONS = {
    "elementwise": ("t = Relu(x)", "b n 12"),
    "broadcast": ("t = Add(x, u)", None),
    "broadcast of a row": ("r = ReduceMax<axes = [1]>(x) t = Mul(x, r)", "b n 12"),
    "matmul": ("t = MatMul(x, w)", "b n 5"),
    "gemm": ("s = ReduceMax<axes = [1], keepdims = 0>(x) t = Gemm<transB = 1>(s, u)", "b 5"),
    "transposed gemm": ("s = ReduceMax<axes = [0], keepdims = 0>(x) v = Transpose(s) t = Gemm<transA=1>(v, w)", "n 5"),
    "transpose": ("t = Transpose<perm = [1, 2, 0]>(x)", "n 12 b"),
    "transpose by default": ("t = Transpose(x)", "12 n b"),
    "reshape to the rest": ("t = Reshape(x, two_one_rest)", None),
    "flatten": ("t = Flatten(x)", "b 12*n"),
    "flatten at the end": ("t = Flatten<axis = -1>(x)", "b*n 12"),
    "concat": ("t = Concat<axis = 1>(x, x)", "b 2*n 12"),
    "concat with others": ("a = Relu(x) t = Concat<axis = -1>(x, a, x)", "b n 36"),
    "unsqueeze": ("t = Unsqueeze(x, v01)", "1 1 b n 12"),
    "squeeze": ("a = Unsqueeze(x, v1) t = Squeeze(a, v1)", "b n 12"),
    "slice": ("t = Slice(x, v0, v2, v2)", "b n 2"),
    "slice to the end": ("t = Slice(x, v0, end, v1)", "b n 12"),
    "slice from the end": ("t = Slice(x, m3, last, v2)", "b n 3"),
    "slice backwards": ("t = Slice(x, m1, minus, v2, m1)", "b n 6"),
    "slice with a step": ("t = Slice(x, v0, last, v2, v2)", "b n 6"),
    "slice that may be short": ("t = Slice(x, v0, v2, v1)", "b min(2,n) 12"),
    "slice of a table": ("s = Shape(x) n = Gather(s, v1) t = Slice(table, v0, n, v1)", "1 min(512,n)"),
    "gather": ("t = Gather<axis = 2>(x, pair)", "b n 2 2"),
    "gather one": ("t = Gather<axis = 2>(x, i0)", "b n"),
    "reduce": ("t = ReduceSum(x, v1)", "b 1 12"),
    "reduce away": ("t = ReduceSum<keepdims = 0>(x, v01)", "12"),
    "reduce all": ("t = ReduceMean<keepdims = 0>(x)", ""),
    "reduce nothing": ("t = ReduceSum<noop_with_empty_axes = 1>(x)", "b n 12"),
    "expand": ("t = Expand(x, shape4)", "4 b n 12"),
    "constant of shape": ("s = Shape(x) t = ConstantOfShape(s)", "b n 12"),
    "range": ("s = Shape(x) n = Gather(s, i1) r = Range(i0, n, i1) t = Cast<to = 1>(r)", "n"),
    "range of numbers": ("r = Range(i0, i2, i1) t = Cast<to = 1>(r)", "2"),
    "norm": ("a = Softmax(x) t = Clip(a)", "b n 12"),
    "where": ("c = Less(x, x) t = Where(c, x, x)", "b n 12"),
}  # fmt: skip


@pytest.mark.parametrize("body,expected", DIMENSIONS.values(), ids=DIMENSIONS.keys())
def test_dimensions(body, expected):
    weights = WEIGHTS | {"two_one_rest": np.array([0, 2, -1])}
    model = model_of(f"g (float[b,n,12] x) => (float[p,q,r,s,t5] y) {{ {body} y = Unsqueeze(t, v0) }}", weights=weights,
                     opset=17 if "axes = " not in body else 13)  # fmt: skip
    producer = next(node for node in model.graph if node.outputs[0].name == "t")
    found = facts_of(model).sizes(producer.outputs[0])
    assert found is not None
    if expected is not None:
        assert " ".join(str(size).replace(" ", "") for size in found) == expected
    model.graph.outputs[0].shape = None
    for sizes in SIZES:
        if expected is None and sizes["n"] != 5:
            continue
        feeds = {"x": np.arange(sizes["b"] * sizes["n"] * 12, dtype=np.float32).reshape(sizes["b"], sizes["n"], 12)}
        actual = run(model, feeds)[0].shape[1:]
        values = [value_of(size, sizes) for size in found]
        assert len(values) == len(actual)
        assert all(value is None or value == size for value, size in zip(values, actual, strict=True))


S = "s = Shape(x)"
ELEMENTS = {
    "shape": f"{S} t = Identity(s)",
    "part of a shape": "t = Shape<start = -2, end = 3>(x)",
    "size": "t = Size(x)",
    "cast": f"{S} c = Cast<to = 6>(s) t = Cast<to = 7>(c)",
    "truth": f"{S} c = Cast<to = 9>(s) t = Cast<to = 7>(c)",
    "truth of numbers": "c = Cast<to = 9>(flags) t = Cast<to = 7>(c)",
    "gather": f"{S} t = Gather(s, i2)",
    "gather several": f"{S} t = Gather(s, m3)",
    "concat": f"{S} t = Concat<axis = 0>(s, m1, s)",
    "slice": f"{S} t = Slice(s, v1, end)",
    "slice backwards": f"{S} t = Slice(s, m1, minus, v0, m1)",
    "split": f"{S} a, t, c = Split(s, ones)",
    "split unevenly": f"{S} t, c = Split(s, two_one)",
    "split evenly": f"{S} q = Concat<axis = 0>(s, v1) t, c = Split(q)",
    "arithmetic": f"{S} a = Mul(s, k4) c = Add(a, i1) e = Sub(c, v1) t = Div(e, v2)",
    "division": f"{S} a = Div(s, v2) t = Mul(a, v3)",
    "negative division": "t = Div(minus, v2)",
    "remainder": f"{S} t = Mod(s, v2)",
    "smallest": f"{S} t = Min(s, k4)",
    "largest": f"{S} t = Max(s, k4, v3)",
    "neg": f"{S} t = Neg(s)",
    "equal": f"{S} q = Equal(s, m1) t = Cast<to = 7>(q)",
    "compared": f"{S} q = Less(m1, s) t = Cast<to = 7>(q)",
    "compared the other way": f"{S} q = Greater(m1, s) r = Not(q) t = Cast<to = 7>(r)",
    "at least": f"{S} q = GreaterOrEqual(s, v0) t = Cast<to = 7>(q)",
    "at most": f"{S} q = LessOrEqual(s, m1) t = Cast<to = 7>(q)",
    "where": f"{S} q = Equal(s, k12) t = Where(q, m1, s)",
    "where of one": f"{S} q = Equal(v1, v1) t = Where(q, s, m1)",
    "filled": "t = ConstantOfShape<value = int64[1] {7}>(v3)",
    "expanded": f"{S} n = Gather(s, v1) t = Expand(n, v3)",
    "expanded to itself": f"{S} t = Expand(s, v3)",
    "product": f"{S} t = ReduceProd<keepdims = 1>(s)",
    "sum": f"{S} t = ReduceSum<keepdims = 0>(s, v0)",
    "maximum": f"{S} t = ReduceMax<keepdims = 0>(s)",
    "minimum": f"{S} t = ReduceMin(s)",
    "nothing reduced": f"{S} t = ReduceSum<noop_with_empty_axes = 1>(s)",
    "range": "t = Range(i0, i2, i1)",
    "reshaped": f"{S} n = Gather(s, i0) t = Reshape(n, m1)",
    "squeezed": f"{S} n = Gather(s, v1) t = Squeeze(n)",
    "unknown part": f"{S} f = Cast<to = 1>(s) g = Cast<to = 7>(f) t = Concat<axis = 0>(g, s)",
}
SAID = {"unknown part": 3, "nothing reduced": 0, "truth": 1, "where": 1}
"""How many elements are known where not all are: a size may be 0, or 12."""


@pytest.mark.parametrize("name", ELEMENTS)
def test_elements(name):
    model = model_of(f"g (float[b,n,12] x) => (int64[k] y) {{ {ELEMENTS[name]} y = Abs(t) }}", weights=WEIGHTS)
    value = next(out for node in model.graph for out in node.outputs if out.name == "t")
    found = facts_of(model).elements(value)
    said = 0 if found is None else sum(item is not None for item in found.items)
    for sizes in SIZES:
        feeds = {"x": np.zeros((sizes["b"], sizes["n"], 12), np.float32)}
        exposed = model_of(f"g (float[b,n,12] x) => (int64[k] t) {{ {ELEMENTS[name]} }}", weights=WEIGHTS)
        exposed.graph.outputs[0].shape = None
        actual = run(exposed, feeds)[0]
        assert said == SAID.get(name, actual.size)
        if found is not None:
            assert found.rank == actual.ndim
            values = [None if item is None else value_of(item, sizes) for item in found.items]
            assert all(v is None or v == a for v, a in zip(values, actual.reshape(-1).tolist(), strict=True))


def test_arithmetic_that_overflows_is_not_followed():
    model = model_of(
        "g (float[b,n,12] x) => (int64[1] t) { a = Mul(big, big) t = Add(a, v1) }",
        weights=WEIGHTS | {"big": np.array([2**40])},
    )
    assert facts_of(model).elements(model.graph[0].outputs[0]).known is None


def test_supposing_leaves_the_facts_alone():
    model = model_of("g (float[b,n,12] x) => (float[p,q,r] y) { y = Relu(x) }")
    facts = facts_of(model).facts
    x = model.graph.inputs[0]
    supposed = facts.supposing()
    supposed.put_sizes(x, [facts.fresh()])
    assert len(supposed.sizes(x)) == 1
    assert len(facts.sizes(x)) == 3
