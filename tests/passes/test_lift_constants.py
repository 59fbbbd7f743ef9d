"""lift-constants: every kind of Constant becomes an initializer, inputs with a default are settled."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from graphopt import io
from graphopt.ir import verify
from tests.helpers import check_equivalent, codes, model_of, operators, optimized, run

KINDS = {
    "value": ("float[1] = {2.5}", "Mul"),
    "value_float": ("2.5", "Mul"),
    "value_floats": ("[2.5, 1.0]", "Mul"),
}


def test_every_attribute_of_constant_is_lifted_and_keeps_its_name():
    for name, (text, operator) in KINDS.items():
        before = model_of(
            f"g (float[2] x) => (float[2] y) {{ c = Constant<{name} = {text}>() \n y = {operator}(x, c) }}"
        )
        after, _ = optimized(before, "lift-constants")
        assert operators(after) == {operator: 1}
        assert list(after.graph.initializers) == ["c"]
        check_equivalent(before, after, {"x": np.array([1.0, -2.0], np.float32)})


def test_integers_and_strings():
    before = model_of(
        """g (int64[2] x, string[1] t) => (int64[2] y, bool[1] z, string[2] s) {
        i = Constant<value_int = 3>()  j = Constant<value_ints = [1, -1]>()
        k = Constant<value_string = "ä b">()  s0 = Constant<value_strings = ["p", "q"]>()
        a = Add(x, i)  y = Mul(a, j)  z = Equal(t, k)  s = Identity(s0) }""",
        opset=19,
    )
    after, _ = optimized(before, "lift-constants")
    assert "Constant" not in operators(after)
    feeds = {"x": np.array([5, 7]), "t": np.array(["ä b"], object)}
    check_equivalent(before, after, feeds)


def test_constants_of_branches_go_to_the_main_graph_and_equal_names_stay_apart():
    before = model_of(
        """g (float[2] x, bool c) => (float[2] y) { y = If(c) <
        then_branch = t () => (float[2] r) { k = Constant<value_float = 2.0>() r = Mul(x, k) },
        else_branch = e () => (float[2] r) { k = Constant<value_float = 3.0>() r = Add(x, k) }> }"""
    )
    after, _ = optimized(before, "lift-constants")
    verify(after)
    assert "Constant" not in operators(after)
    assert len(after.graph.initializers) == 2
    for c in (True, False):
        check_equivalent(before, after, {"x": np.array([1.0, 2.0], np.float32), "c": np.array(c)})


def test_a_constant_that_a_branch_returns_stays_inside_it():
    before = model_of(
        """g (bool c) => (float y) { y = If(c) <
        then_branch = t () => (float r) { r = Constant<value_float = 2.0>() },
        else_branch = e () => (float s) { s = Constant<value_float = 3.0>() }> }"""
    )
    after, _ = optimized(before, "lift-constants")
    assert operators(after) == {"If": 1}
    for c in (True, False):
        check_equivalent(before, after, {"c": np.array(c)})


def test_a_constant_that_is_a_graph_output_keeps_the_output():
    before = model_of("g (float x) => (float y, float c) { c = Constant<value_float = 2.0>() \n y = Add(x, c) }")
    after, _ = optimized(before, "lift-constants")
    assert operators(after) == {"Add": 1}
    assert [value.name for value in after.graph.outputs] == ["y", "c"]
    check_equivalent(before, after, {"x": np.float32(1)})


def sparse_model(dims: list[int], index: int) -> onnx.ModelProto:
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("v", TensorProto.FLOAT, [1], [5.0]),
        helper.make_tensor("i", TensorProto.INT64, [1], [index]),
        dims,
    )
    nodes = [helper.make_node("Constant", [], ["c"], sparse_value=sparse), helper.make_node("Add", ["x", "c"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_small_sparse_constant_becomes_dense():
    after, _ = optimized(io.from_proto(sparse_model([4], 2)), "lift-constants")
    assert "Constant" not in operators(after)
    np.testing.assert_array_equal(run(after, {"x": np.zeros(1, np.float32)})[0], [0, 0, 5, 0])


def test_a_sparse_constant_too_large_to_be_dense_stays_with_a_remark():
    after, result = optimized(io.from_proto(sparse_model([1 << 40], 2)), "lift-constants")
    assert operators(after)["Constant"] == 1
    assert codes(result) == {"LIFT001"}


def test_sparse_indices_out_of_range_stay_with_a_remark():
    after, result = optimized(io.from_proto(sparse_model([4], 9)), "lift-constants")
    assert operators(after)["Constant"] == 1
    assert codes(result) == {"LIFT002"}


def listed(ir_version: int):
    proto = io.to_proto(model_of("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }"))
    proto.ir_version = ir_version
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    return io.from_proto(proto)


def test_ir_version_3_lists_initializers_as_inputs_which_are_constants():
    after, _ = optimized(listed(3), "lift-constants")
    assert after.ir_version == 4
    assert [value.name for value in after.graph.inputs] == ["x"]
    np.testing.assert_array_equal(run(after, {"x": np.ones(2, np.float32)})[0], [2, 2])


def test_overridable_initializers_stay_listed_unless_frozen():
    kept, result = optimized(listed(8), "lift-constants")
    assert [value.name for value in kept.graph.inputs] == ["x", "w"]
    assert codes(result) == {"LIFT003"}
    frozen, _ = optimized(listed(8), "lift-constants{freeze_inputs=true}")
    assert [value.name for value in frozen.graph.inputs] == ["x"]
