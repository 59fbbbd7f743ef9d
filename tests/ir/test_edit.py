"""The editor keeps uses, names, graph outputs and its index right."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.errors import PassError
from graphopt.ir import Editor, constant, verify
from tests.helpers import model_of, run

X = {"x": np.array([-1.0, 2.0], np.float32)}
CHAIN = "g (float[2] x) => (float[2] y) { a = Relu(x) \n b = Neg(a) \n y = Exp(b) }"
BRANCHES = """
g (float[2] x, bool c) => (float[2] y) {
  y = If (c) <
    then_branch = t () => (float[2] r) { n = Neg(x) \n r = Exp(n) },
    else_branch = e () => (float[2] r) { n = Abs(x) \n r = Log(n) }
  >
}
"""


def test_replace_uses_moves_readers_and_erase_dead_takes_the_chain():
    model = model_of(CHAIN)
    edit = Editor(model)
    exp = edit.nodes("Exp")[0]
    edit.replace_uses(exp.inputs[0], model.graph.inputs[0])
    assert edit.erase_dead(edit.nodes("Neg")[0])
    assert edit.nodes("Relu", "Neg") == []
    verify(model)
    np.testing.assert_allclose(run(model, X)[0], np.exp(X["x"]), rtol=1e-6)


def test_an_attribute_may_be_an_array():
    model = model_of("g (int64[1] s) => (y) { y = ConstantOfShape(s) }")
    edit = Editor(model)
    edit.set_attr(edit.nodes("ConstantOfShape")[0], "value", np.array([2.5], np.float32))
    verify(model)
    np.testing.assert_array_equal(run(model, {"s": np.array([2])})[0], np.float32([2.5, 2.5]))


def test_a_graph_output_keeps_its_name_when_another_value_takes_its_place():
    model = model_of(CHAIN)
    edit = Editor(model)
    exp, neg = edit.nodes("Exp")[0], edit.nodes("Neg")[0]
    assert edit.replace(exp, [neg.outputs[0]])
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert edit.nodes("Exp") == []
    verify(model)
    np.testing.assert_array_equal(run(model, X)[0], -np.maximum(X["x"], 0))


def test_an_output_that_becomes_an_input_needs_an_identity_and_gets_no_second_one():
    model = model_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    edit = Editor(model)
    assert edit.replace(edit.nodes("Relu")[0], [model.graph.inputs[0]])
    assert len(edit.nodes("Identity")) == 1
    revision = edit.revision
    assert not edit.replace(edit.nodes("Identity")[0], [model.graph.inputs[0]])
    assert edit.revision == revision
    verify(model)
    np.testing.assert_array_equal(run(model, X)[0], X["x"])


def test_a_value_that_is_an_output_twice_over_keeps_both_names():
    model = model_of("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) \n z = Identity(y) }")
    edit = Editor(model)
    edit.replace(edit.nodes("Identity")[0], [edit.nodes("Relu")[0].outputs[0]])
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    verify(model)
    assert len(run(model, X)) == 2


def test_a_node_put_behind_a_value_goes_on_reading_it():
    model = model_of(CHAIN)
    edit = Editor(model)
    relu = edit.nodes("Relu")[0]
    added = edit.insert_after(relu, "Sqrt", [relu.outputs[0]], like=relu.outputs[0])
    edit.replace_uses(relu.outputs[0], added.outputs[0])
    assert added.inputs[0] is relu.outputs[0]
    verify(model)
    np.testing.assert_allclose(run(model, X)[0], np.exp(-np.sqrt(np.maximum(X["x"], 0))), rtol=1e-6)


def test_new_names_are_derived_and_unique():
    edit = Editor(model_of(CHAIN))
    assert edit.new_name("fresh") == "fresh"
    assert edit.new_name("fresh") == "fresh_2"
    assert edit.new_name("a") == "a_2"


def test_set_weight_changes_value_dtype_and_shape_together():
    weights = {"w": np.ones((2,), np.float32)}
    model = model_of("g (float[2] x) => (y) { y = Add(x, w) }", weights=weights)
    edit = Editor(model)
    value = edit.nodes("Add")[0].inputs[1]
    edit.set_weight(value, np.full((3, 2), 2, np.float32))
    np.testing.assert_array_equal(constant(value), np.full((3, 2), 2, np.float32))
    assert tuple(value.shape.dims) == (3, 2)
    assert run(model, X)[0].shape == (3, 2)


def test_erasing_a_node_that_is_still_read_is_refused_with_its_place():
    edit = Editor(model_of(CHAIN))
    with pytest.raises(PassError, match="still read") as caught:
        edit.erase(edit.nodes("Relu")[0])
    assert "Relu" in str(caught.value.context)


def test_a_capture_by_a_subgraph_is_a_use():
    body = BRANCHES.replace("{\n  y = If", "{\n  k = Relu(x) \n  y = If").replace("Neg(x)", "Neg(k)")
    model = model_of(body, opset=17)
    edit = Editor(model)
    assert not edit.erase_dead(edit.nodes("Relu")[0])
    edit.replace_uses(edit.nodes("Relu")[0].outputs[0], model.graph.inputs[0])
    assert edit.erase_dead(edit.nodes("Relu")[0])
    verify(model)


@pytest.mark.parametrize(
    ("branch", "want"), [("then_branch", np.exp(-X["x"])), ("else_branch", np.log(np.abs(X["x"])))]
)
def test_splice_moves_a_branch_out_and_keeps_names_unique(branch, want):
    model = model_of(BRANCHES)
    edit = Editor(model)
    node = edit.nodes("If")[0]
    edit.splice(node, node.attributes[branch].as_graph())
    assert edit.nodes("If") == []
    assert [value.name for value in model.graph.outputs] == ["y"]
    verify(model)
    np.testing.assert_allclose(run(model, X | {"c": np.array(True)})[0], want, rtol=1e-6)


def test_rewrite_changes_a_node_in_place_and_drops_what_it_no_longer_reads():
    model = model_of(
        "g (float[2] x) => (float[2] y) { a = Exp(x) y = Add(a, c) }", weights={"c": np.ones(2, np.float32)}
    )
    edit = Editor(model)
    (add,) = edit.nodes("Add")
    edit.rewrite(add, "LeakyRelu", [model.graph.inputs[0]], {"alpha": 0.5})
    assert [node.op_type for node in model.graph] == ["LeakyRelu"]
    assert edit.nodes("LeakyRelu") == [add]
    assert not model.graph.initializers
    assert run(model, {"x": np.array([-2, 2], np.float32)})[0].tolist() == [-1, 2]
