"""Reading the vendors' logs and names: no toolchain is needed."""

import pytest

from graphopt.backend.check_qnn import QnnNode, _placement, reasons
from graphopt.backend.report import NodeVerdict, Place
from graphopt.backend.toolchain import Answer

TOLD = "2026-11-22 [V:onnxruntime:, qnn_execution_provider.cc:1713 LogNodeSupport] Validation"
WARNED = (
    "2026-11-22 [W:onnxruntime:, qnn_model_wrapper.cc:565 CreateQnnNode] QNN.backendValidateOpConfig() failed for node"
)
ERF = "Operators of type `Erf` are not supported by QNN EP.Erf node `erf 1` will not be assigned to QNN EP."
LOG = "\n".join(
    [
        f"{TOLD} FAILED for 3 nodes in OrtNodeUnit (Erf) :",
        "\tOperator type: DequantizeLinear Node name: r1/D Node index: 6",
        "\tOperator type: Erf Node name: erf 1 Node index: 7",
        f"\tREASON : {ERF}",
        "",
        f"{WARNED} `conv2_token_7` of type `Conv2d` with error code 3110",
        f"{TOLD} FAILED for 1 nodes in OrtNodeUnit (Conv) :",
        "\tOperator type: Conv Node name: conv2_token_7 Node index: 24",
        "\tREASON : Failed to add node.",
        "",
        f"{TOLD} PASSED for 1 nodes in OrtNodeUnit (Relu) :",
        "\tOperator type: Relu Node name: relu Node index: 1",
        "",
    ]
)


def test_reasons_are_told_by_node_in_the_providers_words():
    found = reasons(LOG)

    assert set(found) == {"r1/D", "erf 1", "conv2"}
    assert found["erf 1"].startswith("Operators of type 'Erf' are not supported by QNN EP. Erf node")
    assert found["conv2"] == "the HTP refuses Conv2d with these types (error code 3110): Failed to add node."


def test_floats_count_but_at_the_ends():
    assert QnnNode("c", "Conv2d", ("float32", "int8"), ("uint8",)).in_float
    assert not QnnNode("q", "Quantize", ("float32",), ("uint8",)).in_float
    assert not QnnNode("c", "Conv2d", ("uint8", "int8", "int32"), ("uint8",)).in_float


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_the_operator_that_is_refused_is_named_and_not_a_pair_in_front_of_it(domain):
    nodes = [("q", "QuantizeLinear", ""), ("p", "Pad", "")]
    verdicts = [
        NodeVerdict("q", f"{domain}QuantizeLinear", Place.HOST, "", "the provider did not take it"),
        NodeVerdict("p", "Pad", Place.HOST, "", "Pad mode only support constant."),
    ]

    gate = _placement(Answer({"assignment": [{"provider": "CPUExecutionProvider", "nodes": nodes}]}, ""), verdicts)

    assert gate.detail == "2 of 2 nodes run on the CPU; Pad 'p': Pad mode only support constant."
