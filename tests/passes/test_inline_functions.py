"""inline-functions: bodies take the place of calls, with attributes resolved and names unique."""

from __future__ import annotations

import numpy as np
import onnx

from graphopt import io
from graphopt.driver import optimize
from graphopt.ir import verify
from tests.helpers import check_equivalent, codes, operators, optimized

X = {"x": np.array([1.0, -2.0], np.float32)}
SCALE = """<domain: "local", opset_import: ["": 17]>
Scale <factor: float = 3.0> (a) => (b) { f = Constant <value_float: float = @factor> () b = Mul(a, f) }"""
TWICE = """<domain: "local", opset_import: ["": 17, "local": 1]>
Twice (a) => (b) { c = local.Scale <factor = 2.0> (a) b = local.Scale(c) }"""


def model(body: str, *functions: str, given: str = "float[2] x", result: str = "float[2] y"):
    text = f'<ir_version: 8, opset_import: ["": 17, "local": 1]> g ({given}) => ({result}) {{ {body} }}'
    return io.from_proto(onnx.parser.parse_model("\n".join([text, *functions])))


def inlined(before, feed=X):
    after, result = optimized(before, "inline-functions")
    verify(after)
    check_equivalent(before, after, feed)
    return after, result


def test_attributes_come_from_the_call_then_from_the_default():
    before = model("t = local.Scale <factor = 2.0> (x) y = local.Scale(t)", SCALE)
    after, _ = inlined(before)
    assert operators(after) == {"Constant": 2, "Mul": 2}
    assert not after.functions
    assert [value.name for value in after.graph.outputs] == ["y"]


def test_functions_that_call_functions():
    after, _ = inlined(model("y = local.Twice(x)", SCALE, TWICE))
    assert operators(after) == {"Constant": 2, "Mul": 2}
    assert not after.functions


def test_unused_functions_are_dropped():
    after, result = inlined(model("y = Neg(x)", SCALE, TWICE))
    assert not after.functions
    assert result.run.records[0].changes == {"functions dropped": 2}


def test_calls_inside_branches_and_branches_inside_functions():
    choose = """<domain: "local", opset_import: ["": 17]> Choose (a, c) => (b) { n = Neg(a) b = If(c) <
    then_branch = t () => (float[2] r) { m = Exp(n) r = Add(m, a) },
    else_branch = e () => (float[2] r) { r = Abs(n) }> }"""
    before = model(
        """n = Relu(x) y = If(c) <then_branch = t () => (float[2] r) { r = local.Choose(n, d) },
        else_branch = e () => (float[2] r) { r = local.Choose(x, d) }>""",
        choose,
        given="float[2] x, bool c, bool d",
    )
    for c in (True, False):
        after, _ = inlined(before, X | {"c": np.array(c), "d": np.array(not c)})
    assert operators(after)["If"] == 3


def test_an_input_that_is_passed_on_and_one_that_is_missing():
    pick = (
        '<domain: "local", opset_import: ["": 17]> Pick (a, low) => (b, same) { b = Clip(a, low) same = Identity(a) }'
    )
    after, _ = inlined(model("t, y = local.Pick(x)", pick))
    assert operators(after) == {"Clip": 1, "Identity": 1}


def test_another_version_of_the_operators_stays_with_a_remark():
    after, result = optimized(model("y = local.Scale(x)", SCALE.replace("17", "13")), "inline-functions")
    assert codes(result) == {"INLINE001"}
    assert len(after.functions) == 1


def test_a_function_that_calls_itself_stays_with_a_remark():
    again = '<domain: "local", opset_import: ["": 17, "local": 1]> Again (a) => (b) { b = local.Again(a) }'
    before = model("y = local.Again(x)", again)
    result = optimize(before, pipeline="inline-functions")
    assert "INLINE001" in codes(result)
    assert operators(before) == {"Again": 1}


def test_a_body_that_would_explode_stays_with_a_remark():
    """Forty functions that each call the one before twice would be a million million nodes."""
    functions = ['<domain: "local", opset_import: ["": 17]> F0 (a) => (b) { b = Neg(a) }']
    header = '<domain: "local", opset_import: ["": 17, "local": 1]>'
    functions += [f"{header} F{i} (a) => (b) {{ c = local.F{i - 1}(a) b = local.F{i - 1}(c) }}" for i in range(1, 41)]
    before = model("y = local.F0(x)", *functions)
    before.graph[0].op_type = "F40"
    result = optimize(before, pipeline="inline-functions")
    assert "INLINE001" in codes(result)
    assert operators(before) == {"F40": 1}


def test_fuel_inlines_one_call():
    before = model("t = local.Scale(x) y = local.Scale(t)", SCALE)
    optimize(before, pipeline="inline-functions", fuel={"inline-functions": 1})
    verify(before)
    assert operators(before)["Scale"] == 1
    assert len(before.functions) == 1
