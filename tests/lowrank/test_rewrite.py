"""The thin layers in the graph: names, shapes, biases, dtypes, several layers of one weight."""

from itertools import pairwise

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.analysis.statistics import Gram
from graphopt.ir import Editor, constant, nodes, verify
from graphopt.ir.query import attr, shape_of
from graphopt.lowrank.costs import forms_of, full_ranks
from graphopt.lowrank.forms import Splitter
from graphopt.lowrank.rewrite import replace
from graphopt.lowrank.sites import Site, site_of
from tests.helpers import clone, model_of, operators, run
from tests.lowrank.split_layers import CASES, apply, layer, model, site, weights_of

EVERY = [(name, form) for name, case in CASES.items() for form in forms_of(site(model(case)))]
RNG = np.random.default_rng(3)


def thirds(taken: Site, form: str) -> tuple[int, ...]:
    return tuple(max(rank // 3, 1) for rank in full_ranks(taken, form))


@pytest.mark.parametrize(("name", "form"), EVERY)
def test_the_last_layer_is_the_old_node_and_shapes_between_are_right(name, form):
    found = model(CASES[name])
    old, output = layer(found), layer(found).outputs[0]
    old_weight = old.inputs[1].name
    thin = apply(found, Splitter(site(found), None).at(form, thirds(site(found), form)))
    assert thin[-1] is old
    assert len(thin) == (3 if form == "tucker" else 2)
    assert old.outputs[0] is output
    assert all(after.inputs[0] is before.outputs[0] for before, after in pairwise(thin))
    assert old_weight not in found.graph.initializers
    noted = {value.name: shape_of(value) for node in thin for value in node.outputs}
    types = {value.name: value.dtype for node in thin for value in node.outputs}
    again = clone(found)
    for node in nodes(again):
        for value in node.outputs:
            Editor(again).annotate(value, None, None)
    AnalysisManager(Editor(again)).get(Shapes)
    assert noted == {value.name: shape_of(value) for node in nodes(again) for value in node.outputs}
    assert types == {value.name: value.dtype for node in nodes(again) for value in node.outputs}


def test_names_come_from_the_old_ones():
    text = "agraph (float[1,8,6,6] x) => (float y) { [block] y = Conv<pads=[1,1,1,1]>(x, w) }"
    found = model_of(text, weights={"w": RNG.normal(size=(8, 8, 3, 3)).astype(np.float32)})
    thin = apply(found, Splitter(site(found), None).at("tucker", (2, 3)))
    assert [node.name for node in thin] == ["block_1", "block_2", "block"]
    assert [node.inputs[1].name for node in thin] == ["w_1", "w_2", "w_3"]
    assert [node.outputs[0].name for node in thin] == ["block_1_output", "block_2_output", "y"]


def test_which_layer_has_which_attributes():
    text = """agraph (float[1,8,16,16] x) => (float y) {
        y = Conv<pads=[1,2,3,4],strides=[2,3],dilations=[2,1]>(x, w) }"""
    arrays = {"w": RNG.normal(size=(8, 8, 3, 3)).astype(np.float32)}
    found = model_of(text, weights=arrays)
    column, row = apply(found, Splitter(site(found), None).at("spatial", (4,)))
    assert [attr(column, name) for name in ("kernel_shape", "pads", "strides", "dilations")] == [
        [3, 1],
        [1, 0, 3, 0],
        [2, 1],
        [2, 1],
    ]
    assert [attr(row, name) for name in ("kernel_shape", "pads", "strides", "dilations")] == [
        [1, 3],
        [0, 2, 0, 4],
        [1, 3],
        [1, 1],
    ]
    found = model_of(text, weights=arrays)
    first, middle, last = apply(found, Splitter(site(found), None).at("tucker", (4, 5)))
    assert set(first.attributes) == set(last.attributes) == {"kernel_shape"}
    assert attr(middle, "pads") == [1, 2, 3, 4]


@pytest.mark.parametrize(("name", "dtype"), [("conv strided", "float16"), ("gemm", "float16"), ("gemm", "double")])
def test_other_dtypes_are_kept(name, dtype):
    before = model(CASES[name], dtype=dtype)
    kind = np.float16 if dtype == "float16" else np.float64
    values = RNG.normal(size=CASES[name].data).astype(kind)
    for form in forms_of(site(before)):
        after = clone(before)
        apply(after, Splitter(site(after), None).at(form, full_ranks(site(after), form)))
        (want,), (got,) = run(before, {"x": values}), run(after, {"x": values})
        assert got.dtype == kind
        lost = np.abs(want.astype(np.float64) - got).max()
        assert lost < (0.02 if dtype == "float16" else 1e-12) * np.abs(want).max()


def test_a_matmul_keeps_the_add_of_its_bias_which_makes_up_for_means():
    text = "agraph (float[40,10] x) => (float y) { a = MatMul(x, w)  y = Add(b, a) }"
    values = (RNG.normal(size=(40, 10)) + 3).astype(np.float32)
    arrays = {"w": RNG.normal(size=(10, 12)).astype(np.float32), "b": RNG.normal(size=12).astype(np.float32)}
    before = model_of(text, weights=arrays)
    after = clone(before)
    rows = values.T[None].astype(np.float64)
    taken = site(after)
    apply(after, Splitter(taken, Gram(rows @ rows.transpose(0, 2, 1), rows.sum(axis=2), 40)).at("matrix", (4,)))
    assert operators(after) == {"MatMul": 2, "Add": 1}
    (want,), (got,) = run(before, {"x": values}), run(after, {"x": values})
    assert np.abs(want - got).max() > 0.1
    np.testing.assert_allclose(want.mean(axis=0), got.mean(axis=0), atol=1e-4)


def test_a_bias_that_others_read_is_copied():
    text = "agraph (float[1,8,6,6] x) => (float y, float[8] z) { y = Conv(x, w, b)  z = Neg(b) }"
    arrays = {"w": weights_of((8, 8, 3, 3), RNG).astype(np.float32), "b": RNG.normal(size=8).astype(np.float32)}
    before = model_of(text, weights=arrays)
    after = clone(before)
    values = (RNG.normal(size=(1, 8, 6, 6)) + 2).astype(np.float32)
    gram = Gram(np.eye(72)[None] * 100 + 400, np.full((1, 72), 200.0), 100)
    apply(after, Splitter(site(after), gram).at("channel", (2,)))
    np.testing.assert_array_equal(run(after, {"x": values})[1], -arrays["b"])
    conv = [node for node in nodes(after) if node.op_type == "Conv"][-1]
    assert not np.array_equal(constant(conv.inputs[2]), arrays["b"])


def test_layers_of_one_weight_share_its_factors_and_have_biases_of_their_own():
    text = """agraph (float[60,8] x) => (float y, float z) {
        a = MatMul(x, w)  y = Add(a, b)  h = Tanh(y)  c = MatMul(h, w)  z = Add(c, d) }"""
    arrays = {"w": weights_of((8, 8), RNG).astype(np.float32)}
    arrays |= {name: RNG.normal(size=8).astype(np.float32) for name in "bd"}
    before = model_of(text, weights=arrays)
    values = (RNG.normal(size=(60, 8)) + 1).astype(np.float32)
    seen = [values, np.tanh(run(before, {"x": values})[0])]
    grams = [Gram((rows.T @ rows)[None].astype(np.float64), rows.sum(axis=0)[None], len(rows)) for rows in seen]
    after = clone(before)
    taken = site_of(next(node for node in nodes(after) if node.op_type == "MatMul"))
    assert isinstance(taken, Site)
    split = Splitter(taken, grams).at("matrix", (3,))
    editor = Editor(after)
    thin = replace(editor, taken, split)
    verify(after)
    assert len(thin) == 4
    assert thin[0].inputs[1] is thin[2].inputs[1]
    assert thin[1].inputs[1] is thin[3].inputs[1]
    want = arrays["w"].T @ (seen[0] - seen[0].mean(axis=0)).T, arrays["w"].T @ (seen[1] - seen[1].mean(axis=0)).T
    product = split.weights[0] @ split.weights[1]
    lost = sum(np.square((arrays["w"] - product).T @ (rows - rows.mean(axis=0)).T).sum() for rows in seen)
    assert split.candidate.error == pytest.approx(lost / sum(np.square(part).sum() for part in want), rel=1e-3)
    # The first layer reads the same in both models: its means are right.
    np.testing.assert_allclose(
        run(after, {"x": values})[0].mean(axis=0), run(before, {"x": values})[0].mean(axis=0), atol=1e-4
    )


def test_a_layer_inside_a_branch():
    text = """agraph (float[5,8] x, bool c) => (float y) {
        y = If (c) <then_branch = one () => (float p) { p = MatMul(x, w) },
                    else_branch = two () => (float q) { q = Neg(x) }> }"""
    before = model_of(text, weights={"w": weights_of((8, 8), RNG).astype(np.float32)})
    after = clone(before)
    apply(after, Splitter(site(after), None).at("matrix", (8,)))
    assert operators(after)["MatMul"] == 2
    values = RNG.normal(size=(5, 8)).astype(np.float32)
    for c in (True, False):
        feeds = {"x": values, "c": np.array(c)}
        np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], atol=1e-5)


def test_weights_behind_a_constant_node():
    text = "agraph (float[3,2] x) => (float y) { w = Constant<value = float[2,2] {1,2,3,4}>()  y = MatMul(x, w) }"
    found = model_of(text)
    apply(found, Splitter(site(found), None).at("matrix", (1,)))
    assert operators(found) == {"MatMul": 2}
