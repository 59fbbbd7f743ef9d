"""What the checkers of CPU toolchains ask alike: does each quantized layer run in an integer kernel?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphopt.backend.qdq import activation_type, dequantizes, quantizes
from graphopt.backend.report import Gate, NodeVerdict, Place
from graphopt.diagnostics import Diagnostic
from graphopt.ir import Model, Node

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
INTEGERS = frozenset({"int8", "uint8"})


def quantized_layers(model: Model) -> list[Node]:
    """Return the layers of which both operands come from Q/DQ pairs."""
    return [node for node in model.graph if node.op_type in LAYERS and not node.domain and _quantized(node)]


def _quantized(node: Node) -> bool:
    return all(value is not None and dequantizes(value.producer()) for value in node.inputs[:2])


def verdicts(model: Model, types: Mapping[str, str], findings: Sequence[Diagnostic]) -> list[NodeVerdict]:
    """Return where each node runs; ``types`` holds, by name, the type that a node's kernel reads."""
    known = {finding.node: finding.message for finding in findings}
    layers = {node.name for node in quantized_layers(model)}
    found = []
    for node in model.graph:
        name = node.name or ""
        dtype = types.get(name, "")
        why = ""
        if name in layers and name in types and dtype not in INTEGERS:
            why = known.get(name) or f"no integer kernel takes it as it stands ({activation_type(node)} activations)"
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        found.append(NodeVerdict(name, operator, Place.TARGET if name in types else Place.MERGED, dtype, why))
    return found


def integer_gate(model: Model, found: Sequence[NodeVerdict]) -> Gate:
    """Return whether every quantized layer runs in an integer kernel."""
    layers = {node.name for node in quantized_layers(model)}
    if not layers:
        held = any(quantizes(node) or dequantizes(node) for node in model.graph)
        return Gate(
            "integers", None, "no layer has pairs on both operands" if held else "the model holds no Q/DQ pairs"
        )
    floats = [verdict for verdict in found if verdict.name in layers and verdict.why]
    if not floats:
        return Gate("integers", True, f"all {len(layers)} quantized layers run in integer kernels")
    first = floats[0]
    text = f"{len(floats)} of {len(layers)} quantized layers run in float: {first.op} {first.name!r}: {first.why}"
    return Gate("integers", False, text)
