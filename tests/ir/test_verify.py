"""Each invariant is broken on purpose and found, by the full check and by the check of touched nodes."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from graphopt.errors import VerifyError
from graphopt.ir import INVARIANTS, Model, Shape, nodes, verify
from tests.helpers import model_of


def chain() -> Model:
    weights = {"w": np.ones((2,), np.float32)}
    return model_of("g (float[2] x) => (float[2] y) { a = Add(x, w) \n y = Relu(a) }", weights=weights)


def wrong_producer(model: Model) -> None:
    first, second = nodes(model)
    first.outputs[0]._producer = second


def missing_use(model: Model) -> None:
    first, second = nodes(model)
    first.outputs[0]._remove_usage(second, 0)


def unnamed_output(model: Model) -> None:
    next(nodes(model)).outputs[0].name = ""


def unknown_domain(model: Model) -> None:
    next(nodes(model)).domain = "nowhere"


def too_many_inputs(model: Model) -> None:
    relu = list(nodes(model))[1]
    relu.resize_inputs(2)
    relu.replace_input_with(1, model.graph.inputs[0])


def wrong_attribute(model: Model) -> None:
    list(nodes(model))[1].attributes["speed"] = onnx_ir.AttrInt64("speed", 1)


def wrong_tensor(model: Model) -> None:
    model.graph.initializers["w"].shape = Shape([3])


def reads_too_early(model: Model) -> None:
    first, second = nodes(model)
    model.graph.remove(second)
    model.graph.insert_before(first, second)


def duplicate_name(model: Model) -> None:
    next(nodes(model)).outputs[0].name = "y"


def undefined_output(model: Model) -> None:
    model.graph.outputs[0] = onnx_ir.Value(name="nothing")


BREAKS = {
    "IR001": wrong_producer,
    "IR002": missing_use,
    "IR003": unnamed_output,
    "IR004": unknown_domain,
    "IR005": too_many_inputs,
    "IR006": wrong_tensor,
    "IR007": duplicate_name,
    "IR008": reads_too_early,
    "IR009": undefined_output,
}


@pytest.mark.parametrize("code", BREAKS)
def test_a_broken_invariant_is_found(code):
    model = chain()
    verify(model)
    BREAKS[code](model)
    with pytest.raises(VerifyError, match=code):
        verify(model)


@pytest.mark.parametrize("code", BREAKS)
def test_a_broken_invariant_is_found_on_touched_nodes(code):
    model = chain()
    BREAKS[code](model)
    with pytest.raises(VerifyError, match=code):
        verify(model, list(nodes(model)))


def test_every_invariant_of_a_node_has_a_break():
    assert {invariant.code for invariant in INVARIANTS} <= set(BREAKS)


def test_an_attribute_that_the_operator_does_not_have_is_found():
    model = chain()
    wrong_attribute(model)
    with pytest.raises(VerifyError, match="no attribute 'speed'"):
        verify(model)


def test_an_error_shows_the_node_and_the_ir_around_it():
    model = chain()
    too_many_inputs(model)
    with pytest.raises(VerifyError) as caught:
        verify(model)
    assert "Relu node" in str(caught.value)
    assert "> %y = Relu(%a, %x)" in str(caught.value)


def test_a_value_of_one_branch_is_not_visible_in_the_other():
    body = """
    g (float[2] x, bool c) => (float[2] y) {
      y = If (c) <
        then_branch = t () => (float[2] r) { n = Neg(x) \n r = Exp(n) },
        else_branch = e () => (float[2] r) { m = Abs(x) \n r = Log(m) }
      >
    }
    """
    model = model_of(body)
    verify(model)
    neg, log = (next(n for n in nodes(model) if n.op_type == kind) for kind in ("Neg", "Log"))
    log.replace_input_with(0, neg.outputs[0])
    with pytest.raises(VerifyError, match="IR008"):
        verify(model)
