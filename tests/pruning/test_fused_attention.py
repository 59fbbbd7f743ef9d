"""Attention as one operator of onnxruntime's: heads go as a whole, and the layers around it shrink with them."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.analysis import AnalysisManager, Shapes
from graphopt.analysis.channels import Channels
from graphopt.ir import Editor, Model, attr, nodes
from tests.helpers import check_equivalent, model_of
from tests.pruning.pruned import cut

RNG = np.random.default_rng(3)
BODY = """(float[2,5,24] x) => (float[2,5,24] y) {{
  q = MatMul(x, Q)
  k = MatMul(x, K)
  v = MatMul(x, V)
  a = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v{mask})
  g = com.microsoft.Gelu(a)
  y = MatMul(g, O)
}}"""


def attention(mask: str = "") -> Model:
    weights = {name: RNG.standard_normal((24, 24)).astype(np.float32) for name in "QKVO"}
    weights |= {"bias": RNG.standard_normal(72).astype(np.float32)} if "bias" in mask else {}
    masks = {"m": RNG.standard_normal((1, 4, 5, 5)), "one": RNG.standard_normal((1, 1, 5, 5))}
    weights |= {name: array.astype(np.float32) for name, array in masks.items() if name in mask}
    model = model_of(f"g {BODY.format(mask=mask)}", weights=weights, domain="com.microsoft")
    manager = AnalysisManager(Editor(model))
    manager.get(Shapes)
    for node in nodes(model):
        if node.domain:  # the runtime's own operators have no shape inference
            manager.editor.annotate(node.outputs[0], node.inputs[0].dtype, [2, 5, 24])
    return model


@pytest.mark.parametrize("mask", ["", ", , , m", ", , , one"])
def test_heads_are_the_units_and_what_is_left_equals_the_masked_network(mask: str) -> None:
    model = attention(mask)
    groups = AnalysisManager(Editor(model)).get(Channels).groups
    assert [group.units for group in groups] == [4]

    pair = cut(model, 1)

    (fused,) = [node for node in nodes(pair.removed) if node.op_type == "MultiHeadAttention"]
    assert attr(fused, "num_heads") == 2
    check_equivalent(pair.masked, pair.removed, {"x": RNG.standard_normal((2, 5, 24)).astype(np.float32)})


def test_a_bias_inside_the_operator_is_not_followed() -> None:
    model = attention(", bias")
    assert AnalysisManager(Editor(model)).get(Channels).groups == ()
