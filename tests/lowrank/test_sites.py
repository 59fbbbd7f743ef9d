"""Which layers can be split, and why others cannot."""

import numpy as np
import pytest

from graphopt.analysis import Shapes
from graphopt.analysis.manager import AnalysisManager
from graphopt.errors import ModelError
from graphopt.ir import Editor, Model, nodes
from graphopt.lowrank.sites import Extent, Site, site_of
from tests.helpers import model_of
from tests.lowrank.split_layers import CASES, model, site

RNG = np.random.default_rng(0)


def weights(*shape: int, dtype: type = np.float32):
    return RNG.normal(size=shape).astype(dtype)


def reason(text: str, *, operator: str = "", **arrays) -> str:
    found = model_of(text, weights=arrays)
    named = [node for node in nodes(found) if node.op_type == (operator or "Conv")]
    taken = site_of(named[0])
    assert isinstance(taken, str)
    return taken


@pytest.mark.parametrize("name", CASES)
def test_a_site_holds_the_weights_with_the_outputs_first(name):
    case = CASES[name]
    taken = site(model(case))
    turned = case.operator.startswith("MatMul") or case.operator == "Gemm"
    assert taken.weights.shape == (case.weights[::-1] if turned else case.weights)
    assert taken.weights.dtype == np.float64
    assert taken.name == "y"
    assert taken.parameters == taken.weights.size


def test_depthwise():
    why = reason("agraph (float[1,4,8,8] x) => (float y) { y = Conv<group=4>(x, w) }", w=weights(4, 1, 3, 3))
    assert why.startswith("a depthwise convolution has one input channel")


def test_transposed_convolution():
    text = "agraph (float[1,4,8,8] x) => (float y) { y = ConvTranspose(x, w) }"
    assert reason(text, operator="ConvTranspose", w=weights(4, 4, 3, 3)) == "a ConvTranspose is not split"


def test_computed_weights():
    why = reason("agraph (float[4,8] x, float[8,8] v) => (float y) { y = MatMul(x, v) }", operator="MatMul")
    assert why == "it does not multiply by a constant matrix of floats"


def test_a_constant_stack_of_matrices():
    text = "agraph (float[3,4,8] x) => (float y) { y = MatMul(x, w) }"
    assert reason(text, operator="MatMul", w=weights(3, 8, 8)) == "it does not multiply by a constant matrix of floats"


def test_a_bias_that_is_computed_or_differs_from_row_to_row():
    why = "its bias is not one constant number for each output"
    text = "agraph (float[4,8] x, float[8] b) => (float y) { y = Gemm(x, w, b) }"
    assert reason(text, operator="Gemm", w=weights(8, 8)) == why
    text = "agraph (float[4,8] x) => (float y) { y = Gemm(x, w, b) }"
    assert reason(text, operator="Gemm", w=weights(8, 8), b=weights(4, 8)) == why


def test_weights_of_integers():
    text = "agraph (int32[4,8] x) => (int32 y) { y = MatMul(x, w) }"
    why = reason(text, operator="MatMul", w=np.ones((8, 8), np.int32))
    assert why == "it does not multiply by a constant matrix of floats"


def test_other_operators():
    assert reason("agraph (float[4,8] x) => (float y) { y = Relu(x) }", operator="Relu").startswith("Relu is no Conv")


def test_weights_that_a_caller_may_override():
    text = "agraph (float[4,8] x, float[8,8] w) => (float y) { y = MatMul(x, w) }"
    assert "a caller may override" in reason(text, operator="MatMul", w=weights(8, 8))


def test_weights_that_are_an_output():
    text = "agraph (float[4,8] x) => (float y, float[8,8] w) { y = MatMul(x, w) }"
    assert reason(text, operator="MatMul", w=weights(8, 8)) == "its weights are an output of the model"


def test_one_output_or_one_input():
    for shape in ((8, 1), (1, 8)):
        text = f"agraph (float[4,{shape[0]}] x) => (float y) {{ y = MatMul(x, w) }}"
        assert reason(text, operator="MatMul", w=weights(*shape)) == "it has one input or one output"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(value):
    array = weights(8, 8)
    array[3, 5] = value
    found = model_of("agraph (float[4,8] x) => (float y) { [bad] y = MatMul(x, w) }", weights={"w": array})
    with pytest.raises(ModelError, match="NaN or Inf") as caught:
        site_of(found.graph[0])
    assert caught.value.where == "MatMul node 'bad'"


def test_weights_that_something_else_reads():
    text = "agraph (float[4,8] x, int64[4] i) => (float y, float z) { y = MatMul(x, w) [table] z = Gather(w, i) }"
    assert reason(text, operator="MatMul", w=weights(8, 8)) == "its weights are read by Gather node 'table' too"


def test_weights_read_from_both_sides():
    text = "agraph (float[8,8] x) => (float y, float z) { y = Gemm(x, w) [other] z = Gemm<transB=1>(x, w) }"
    why = reason(text, operator="Gemm", w=weights(8, 8))
    assert why == "its weights are read the other way round by Gemm node 'other'"


def test_weights_read_in_other_groups():
    text = """agraph (float[1,4,8,8] x, float[1,8,8,8] x2) => (float y, float z) {
        y = Conv(x, w) [other] z = Conv<group=2>(x2, w) }"""
    assert reason(text, w=weights(8, 4, 3, 3)) == "its weights are read in other groups by Conv node 'other'"


def test_shared_weights_are_one_site_with_every_layer():
    text = """agraph (float[5,8] x) => (float y, float z) {
        a = MatMul(x, w)  y = Add(a, b)  z = MatMul(y, w) }"""
    found = model_of(text, weights={"w": weights(8, 8), "b": weights(8)})
    products = [node for node in nodes(found) if node.op_type == "MatMul"]
    first, second = site_of(products[0]), site_of(products[1])
    assert isinstance(first, Site)
    assert isinstance(second, Site)
    assert [layer.node for layer in first.layers] == [layer.node for layer in second.layers] == products
    assert [layer.add is not None for layer in first.layers] == [True, False]
    assert len(first.requests()) == 2


def annotated(text: str, **arrays) -> Model:
    found = model_of(text, weights=arrays)
    AnalysisManager(Editor(found)).get(Shapes)
    return found


def test_how_often_a_convolution_is_computed():
    found = annotated(
        "agraph (float[2,4,9,12] x) => (float y) { y = Conv<strides=[2,3],pads=[1,0,1,0]>(x, w) }",
        w=weights(8, 4, 3, 3),
    )
    taken = site(found)
    assert taken.extents == (Extent(2, (9, 12), (5, 4)),)
    assert taken.macs == 2 * 5 * 4 * 8 * 4 * 9


def test_a_symbolic_batch_counts_once_and_unknown_sizes_as_one_position():
    text = "agraph (float[N,4,{}] x) => (float y) {{ y = Conv<strides=[2,3],pads=[1,0,1,0]>(x, w) }}"
    assert site(annotated(text.format("9,12"), w=weights(8, 4, 3, 3))).extents == (Extent(1, (9, 12), (5, 4)),)
    assert site(annotated(text.format("H,12"), w=weights(8, 4, 3, 3))).extents == (Extent(1, (2, 3), (1, 1)),)
    text = "agraph (float[N,7,S,8] x) => (float y) { y = MatMul(x, w) }"
    assert site(annotated(text, w=weights(8, 16))).extents == (Extent(7, (), ()),)
