from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).parents[2]


def _chain() -> onnx.ModelProto:
    """x [N,64] -> MatMul (its weight is large enough to be cut out of the file) -> Add -> Relu -> y, with metadata."""
    weight = np.arange(64 * 32, dtype=np.float32).reshape(64, 32) / 100
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="mul", doc_string="the product"),
        helper.make_node("Add", ["h", "b"], ["s"], name="add"),
        helper.make_node("Relu", ["s"], ["y"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        [
            numpy_helper.from_array(weight, "w"),
            helper.make_tensor("b", TensorProto.FLOAT, [32], [0.5] * 32),
        ],
        value_info=[helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 32])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="tests")
    helper.set_model_props(model, {"author": "somebody", "a key": 'with "quotes" and {braces}'})
    nodes_meta = model.graph.node[0].metadata_props.add()
    nodes_meta.key, nodes_meta.value = "pkg.torch.onnx.name", "encoder/mul"
    return model


def _nested() -> onnx.ModelProto:
    """An If whose branches read an outer value and have initializers of their own."""

    def branch(name: str, value: float) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Mul", ["x", f"{name}_c"], [f"{name}_y"], name=f"{name}_mul")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [4])],
            [numpy_helper.from_array(np.full(4, value, np.float32), f"{name}_c")],
        )

    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch("then", 2), else_branch=branch("else", 3))
    graph = helper.make_graph(
        [node],
        "nested",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _function() -> onnx.ModelProto:
    """A model-local function with an attribute, called twice, beside a custom operator that ONNX does not know."""
    body = [
        helper.make_node("Constant", [], ["k"]),
        helper.make_node("Mul", ["a", "k"], ["b"], name="scale"),
    ]
    body[0].attribute.add(name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="factor")
    function = helper.make_function(
        "local", "Scale", ["a"], ["b"], body, [helper.make_opsetid("", 17)], attributes=["factor"]
    )
    nodes = [
        helper.make_node("Scale", ["x"], ["p"], name="first", domain="local", factor=2.0),
        helper.make_node("Scale", ["p"], ["q"], name="second", domain="local", factor=3.0),
        helper.make_node("Mystery", ["q", ""], ["y"], name="custom", domain="com.example", text='{"a": 1}'),
    ]
    graph = helper.make_graph(
        nodes,
        "with function",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1), helper.make_opsetid("com.example", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=[function])


BUILDERS = {"chain": _chain, "nested": _nested, "function": _function}


@pytest.fixture
def build() -> Callable[[str], onnx.ModelProto]:
    """Make a small model by name: ``chain``, ``nested`` or ``function``."""
    return lambda name: BUILDERS[name]()


@pytest.fixture
def real_models() -> list[Path]:
    """The trained models of the repository and the smallest of those beside it, where they are."""
    found = sorted((ROOT / "models").glob("*.onnx"))
    found += [p for p in sorted((ROOT.parent / "shared" / "models").glob("*.onnx")) if p.stat().st_size < 2_000_000]
    if not found:
        pytest.skip("no trained model in models/ nor in ../shared/models")
    return found
