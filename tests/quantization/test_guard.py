"""A model that is quantized already is refused by name of node, with the way back."""

from __future__ import annotations

import onnx.parser
import pytest

from graphopt import io
from graphopt.ir import Editor, Model
from graphopt.quantization.guard import quantized_node

QUANTIZED = {
    "a pair": "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
    "dynamic": "q, a, z0 = DynamicQuantizeLinear(x) c = Cast <to = 1> (q) d = Cast <to = 1> (z0) e = Sub(c, d) "
    "y = Mul(e, a)",
    "an operator of onnxruntime's": "y = com.microsoft.DynamicQuantizeMatMul(x, w, s)",
    "one of its QLinear operators": "y = com.microsoft.QLinearSigmoid(x, s, z)",
    "in a branch": "y = If (b) <"
    "then_branch = t () => (u) { q = QuantizeLinear(x, s, z) u = DequantizeLinear(q, s, z) },"
    "else_branch = e () => (v) { v = Relu(x) }>",
}
TEXT = "g (float[2] x, bool b) => (float[2] y) <float s = {0.5}, uint8 z = {3}, uint8[2,2] w = {1, 2, 3, 4}>"


def _model(body: str) -> Model:
    header = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
    return io.from_proto(onnx.parser.parse_model(f"{header}\n{TEXT} {{ {body} }}"))


@pytest.mark.parametrize("form", QUANTIZED)
def test_a_quantized_model_is_recognized(form: str) -> None:
    node = quantized_node(Editor(_model(QUANTIZED[form])))
    assert node is not None
    assert "quant" in node.op_type.lower() or "QLinear" in node.op_type


def test_a_float_model_is_not() -> None:
    assert quantized_node(Editor(_model("y = Relu(x)"))) is None
