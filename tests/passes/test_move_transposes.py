"""move-transposes: pairs cancel through every operator that can be carried over, and nothing gets worse."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx import helper as h

from graphopt import io
from graphopt.analysis.layout import compose, induced, inverse
from tests.helpers import check_equivalent, model_of, operators, optimized

X = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
GIVEN = "float[2,3,4,5] x"
WEIGHTS = {
    "c": np.arange(1, 4, dtype=np.float32).reshape(3, 1, 1),
    "row": np.arange(1, 6, dtype=np.float32),
    "one": np.float32(2),
    "axes": np.array([2, 3]),
    "two": np.array([2]),
    "zero": np.array([0]),
    "neg": np.array([-1]),
    "s": np.array([0, 1]),
    "e": np.array([2, 3]),
    "pads": np.array([0, 1, 2, 0, 0, 0, 1, 0]),
    "reps": np.array([1, 2, 1, 3]),
    "idx": np.array([2, 0]),
    "i": np.array(1),
    "axis": np.array(1),
    "q": np.float32(0.1),
    "qz": np.uint8(128),
    "q4": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
    "qz4": np.zeros(4, np.uint8),
}


def both(lines: str, opset: int = 18, given: str = GIVEN, result: str = "float y", weights=None):
    words = set(re.findall(r"\w+", lines))
    used = {name: array for name, array in {**WEIGHTS, **(weights or {})}.items() if name in words}
    before = model_of(f"g ({given}) => ({result}) {{ {lines} }}", opset=opset, weights=used)
    return before, optimized(before, "move-transposes,remove-dead")[0]


T1, T2 = "a = Transpose<perm = [0, 2, 3, 1]>(x)", "y = Transpose<perm = [0, 3, 1, 2]>(b)"
# in the layout of a: float[2,4,5,3]


@pytest.mark.parametrize(
    "middle",
    [
        "b = Relu(a)",
        "b = Cast<to = 11>(a)",
        "b = Clip(a, one)",
        "b = LeakyRelu(a)",
        "b = Mul(a, one)",
        "b = Add(row, a)",
        "b = Add(a, a)",
        "b = Max(a, c, row)",
        "b = PRelu(a, row)",
        "d = Greater(a, c) b = Where(d, a, one)",
        "b = Softmax(a)",
        "b = LogSoftmax<axis = 1>(a)",
        "b = Concat<axis = -1>(a, a)",
        "d, f = Split<axis = 2, num_outputs = 2>(a) b = Concat<axis = 2>(f, d)",
        "b = Slice(a, s, e, axes)",
        "b = Slice(a, s, e)",
        "b = Pad(a, pads)",
        "b = Pad(a, s, , axes1)",
        "b = ReduceMean(a, two)",
        "b = ReduceSum(a, axes)",
        "b = ArgMax<axis = 3>(a)",
        "b = Tile(a, reps)",
        "b = Gather<axis = 2>(a, idx)",
        "b = CumSum(a, axis)",
        "d = QuantizeLinear(a, q, qz) b = DequantizeLinear(d, q, qz)",
        "d = QuantizeLinear<axis = 1>(a, q4, qz4) b = DequantizeLinear<axis = 1>(d, q4, qz4)",
        "f = Unsqueeze(a, zero) d = Squeeze(f, zero) b = Neg(d)",
    ],
)
def test_a_pair_cancels(middle):
    weights = {"axes1": np.array([2]), "row": np.arange(1, 4, dtype=np.float32), "c": np.ones((4, 1, 1), np.float32)}
    kind = "double" if "Cast" in middle else "int64" if "ArgMax" in middle else "float"
    before, after = both(f"{T1} {middle} {T2}", result=f"{kind}[m,n,o,p] y", weights=weights)
    assert operators(after)["Transpose"] == 0
    assert operators(after).total() == operators(before).total() - 2
    check_equivalent(before, after, {"x": X})


@pytest.mark.parametrize(
    ("middle", "last"),
    [
        ("b = ReduceMax<keepdims = 0, axes = [1, 2]>(a)", "y = Neg(b)"),  # [2,3]: nothing is left to undo
        ("d = ReduceMax<keepdims = 0, axes = [3]>(a) b = Neg(d)", "y = Relu(b)"),
        ("b = ArgMin<keepdims = 0, axis = -1>(a)", "y = Cast<to = 1>(b)"),
        ("b = Gather<axis = 3>(a, i)", "y = Neg(b)"),
        ("d = Slice<starts = [0], ends = [1], axes = [3]>(a) b = Squeeze<axes = [3]>(d)", "y = Neg(b)"),
    ],
)
def test_a_transpose_vanishes_with_the_dimension_it_moves(middle, last):
    opset = 9 if "Slice" in middle else 11
    before, after = both(f"{T1} {middle} {last}", opset=opset)
    assert operators(after)["Transpose"] == 0
    check_equivalent(before, after, {"x": X})


def test_transposes_in_a_row_merge():
    before, after = both("a = Transpose(x) b = Transpose<perm = [1, 0, 2, 3]>(a) y = Transpose<perm = [2, 1, 3, 0]>(b)")
    assert operators(after) == {"Transpose": 1}
    check_equivalent(before, after, {"x": X})


def test_the_outputs_keep_their_names_and_values_when_a_region_crosses_them():
    lines = f"{T1} b = Relu(a) d = Exp(b) {T2} z = Transpose<perm = [0, 3, 1, 2]>(d)"
    before, after = both(lines, result="float y, float d, float z")
    assert operators(after)["Transpose"] == 1
    assert [value.name for value in after.graph.outputs] == ["y", "d", "z"]
    check_equivalent(before, after, {"x": X})


def test_branches_of_concat_share_one_transpose():
    lines = """a = Transpose<perm = [0, 2, 3, 1]>(x) b = Transpose<perm = [0, 2, 3, 1]>(w)
               d = Concat<axis = 3>(a, b) f = Relu(d) y = Neg(f)"""
    before, after = both(lines, given=f"{GIVEN}, float[2,6,4,5] w")
    assert operators(after)["Transpose"] == 1
    check_equivalent(before, after, {"x": X, "w": np.concatenate([X, X], 1)})


def test_an_operand_from_outside_gets_a_transpose_where_that_pays():
    lines = f"{T1} b = Add(a, w) {T2}"
    before, after = both(lines, given=f"{GIVEN}, float[2,4,5,3] w")
    assert operators(after) == {"Transpose": 1, "Add": 1}
    check_equivalent(before, after, {"x": X, "w": np.ones((2, 4, 5, 3), np.float32)})


@pytest.mark.parametrize(
    "lines",
    [
        f"{T1} y = Relu(a)",  # nothing to cancel with
        f"{T1} b = MatMul(a, m) {T2}",  # works on the last dimensions
        f"{T1} b = Add(a, w) y = Relu(b)",
        f"{T1} k = Shape(a) b = Expand(one, k) {T2}",
    ],
)
def test_stays(lines):
    weights = {"m": np.eye(3, dtype=np.float32)}
    before, after = both(lines, given=f"{GIVEN}, float[2,4,5,3] w", weights=weights)
    assert operators(after) == operators(before)


def test_moves_behind_what_leaves_less_to_move():
    before, after = both("a = Transpose<perm = [0, 3, 2, 1]>(x) b = Slice(a, s, e, axes) y = MatMul(b, b)", opset=13)
    assert [node.op_type for node in after.graph] == ["Slice", "Transpose", "MatMul"]
    check_equivalent(before, after, {"x": X})


def test_unit_dimensions_make_it_a_reshape():
    before, after = both("y = Transpose<perm = [0, 2, 3, 1]>(x)", given="float[N,1,4,5] x")
    assert operators(after) == {"Reshape": 1}
    check_equivalent(before, after, {"x": X[:, :1]})
    _, after = both("y = Transpose<perm = [1, 0, 2, 3]>(x)", given="float[N,M,1,1] x")
    assert operators(after) == {"Transpose": 1}


def test_a_reshape_of_unit_dimensions_is_taken_in():
    before, after = both("a = Transpose<perm = [0, 2, 3, 1]>(x) y = Reshape(a, t)", given="float[N,3,1,5] x",
                         weights={"t": np.array([-1, 5, 3, 1])})  # fmt: skip
    assert operators(after) == {"Transpose": 1}
    check_equivalent(before, after, {"x": X[:, :, :1]})
    before, after = both("a = Reshape(x, t) y = Transpose<perm = [0, 3, 1, 2]>(a)", given="float[N,3,1,5] x",
                         weights={"t": np.array([-1, 3, 5, 1])})  # fmt: skip
    assert operators(after) == {"Reshape": 1}
    check_equivalent(before, after, {"x": X[:, :, :1]})


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        ("t = Transpose(a) y = Gemm(t, b)", {"Gemm": 1}),
        ("t = Transpose(a) u = Transpose(b) y = Gemm<transA = 1, transB = 1>(t, u)", None),
        ("t = Transpose(a) y = MatMul(t, b)", {"Gemm": 1}),
        ("t = Transpose(b) y = MatMul(a, t)", {"Gemm": 1}),
        ("t = Transpose(a) y = MatMul(t, b) z = Neg(t)", {"Transpose": 1, "MatMul": 1, "Neg": 1}),
        ("t = Transpose(a) y = MatMul(t, t)", {"Transpose": 1, "MatMul": 1}),
    ],
)
def test_matrix_products(lines, kept):
    results = "float y, float z" if "z =" in lines else "float y"
    before, after = both(lines, given="float[4,4] a, float[4,4] b", result=results)
    assert operators(after) == (kept or {"Gemm": 1})
    check_equivalent(before, after, {"a": X[0, :, :, :4].reshape(-1)[:16].reshape(4, 4), "b": X[1, 0, :, :4]})


def test_integer_matrices_stay_with_matmul():
    _, after = both("t = Transpose(a) y = MatMul(t, a)", given="int32[4,4] a", result="int32 y")
    assert operators(after) == {"Transpose": 1, "MatMul": 1}


def test_a_gemm_without_addend_needs_opset_11():
    """Found by ONNX's own test model test_Linear_no_bias."""
    _, after = both("t = Transpose(a) y = MatMul(t, b)", given="float[4,4] a, float[4,4] b", opset=9)
    assert operators(after) == {"Transpose": 1, "MatMul": 1}


def test_inside_a_branch_and_captured():
    body = f"""g (bool k, {GIVEN}) => (float y) {{
        {T1} b = Relu(a)
        y = If(k) <then_branch = t () => (float u) {{ u = Transpose<perm = [0, 3, 1, 2]>(b) }},
                   else_branch = e () => (float v) {{ v = Transpose<perm = [0, 3, 1, 2]>(a) }}>
    }}"""
    before = model_of(body)
    after, _ = optimized(before, "move-transposes,remove-dead")
    for choice in (True, False):
        check_equivalent(before, after, {"k": np.array(choice), "x": X})


def random_model(seed: int) -> onnx.ModelProto:
    """Return a graph of operators that can be carried over with Transposes strewn in between."""
    rng = np.random.default_rng(seed)
    nodes, values, weights = [], [("x", (2, 3, 4, 1))], []

    def put(op, inputs, shape, **attributes):
        name = f"v{len(nodes)}"
        nodes.append(h.make_node(op, inputs, [name], **attributes))
        values.append((name, tuple(shape)))

    def weight(array):
        weights.append(onnx.numpy_helper.from_array(array, f"w{len(weights)}"))
        return weights[-1].name

    for _ in range(14):
        name, shape = values[rng.integers(max(0, len(values) - 4), len(values))]
        rank, kind = len(shape), rng.integers(9)
        if kind <= 2:
            perm = [[0, 2, 3, 1], [0, 3, 1, 2], [0, 2, 1, 3]][kind] if rank == 4 else list(rng.permutation(rank))
            put("Transpose", [name], [shape[axis] for axis in perm], perm=perm)
        elif kind == 3:
            put(str(rng.choice(["Relu", "Neg", "Sigmoid"])), [name], shape)
        elif kind == 4:
            other = next((n for n, s in reversed(values) if s == shape and n != name), name)
            put(str(rng.choice(["Add", "Mul"])), [name, other], shape)
        elif kind == 5:
            array = rng.normal(size=[1 if rng.integers(2) else dim for dim in shape]).astype(np.float32)
            put("Add", [weight(array), name], shape)
        elif kind == 6 and rank > 2:
            axis, keep = int(rng.integers(rank)), int(rng.integers(2))
            left = [1 if i == axis else d for i, d in enumerate(shape) if keep or i != axis]
            put("ReduceMean", [name, weight(np.array([axis]))], left, keepdims=keep)
        elif kind == 7 and rank < 5:
            axis = int(rng.integers(rank + 1))
            put("Unsqueeze", [name, weight(np.array([axis]))], [*shape[:axis], 1, *shape[axis:]])
        else:
            axis = int(rng.integers(rank))
            put("Concat", [name, name], [d * 2 if i == axis else d for i, d in enumerate(shape)], axis=axis)
    read = {name for node in nodes for name in node.input}
    outputs = [h.make_tensor_value_info(n, TensorProto.FLOAT, None) for n, _ in values if n not in read or n == "v3"]
    inputs = [h.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 1])]
    graph = h.make_graph(nodes, "g", inputs, outputs, weights)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("seed", range(150))
def test_random_graphs_stay_equal_and_never_grow(seed):
    before = io.from_proto(random_model(seed))
    after, result = optimized(before, "fixpoint{max=20}(move-transposes,remove-reshapes)")
    check_equivalent(before, after, {"x": X[:, :, :, :1]})
    assert operators(after).total() <= operators(before).total()
    assert not result.run.records[-1].changes  # it came to an end


def test_permutations():
    assert compose((1, 2, 0), (1, 2, 0)) == (2, 0, 1)
    assert inverse((1, 2, 0)) == (2, 0, 1)
    assert induced((0, 2, 3, 1), [3]) == (0, 1, 2)
    assert induced((3, 2, 1, 0), [0, 1]) == (1, 0)
