"""Products of quantized matrices with their bias as one operator, where a target has one and merges no bias itself."""

from __future__ import annotations

from graphopt.ir import Editor, Node, Value, shape_of
from graphopt.ir.query import is_constant, sole_use
from graphopt.quantization.insert import Ask


def merge_biases(edit: Editor, operator: str, ask: Ask) -> int:
    """Write ``operator`` (domain::name, with the inputs of MatMulIntegerToFloat) for MatMul of two DequantizeLinear
    and the Add of a bias behind it. The results are the same to the bit. Return how many were written.
    """
    domain, _, name = operator.rpartition("::")
    merged = 0
    for node in edit.nodes("MatMul"):
        decoded = [value.producer() if value is not None else None for value in node.inputs]
        data, weight = decoded
        add = sole_use(node.outputs[0])
        if data is None or weight is None or add is None or add.op_type != "Add":
            continue
        if data.op_type != "DequantizeLinear" or weight.op_type != "DequantizeLinear":
            continue
        bias = next((value for value in add.inputs if value is not node.outputs[0]), None)
        if not _is_bias(bias, weight) or not ask(node, f"write {name} with its bias"):
            continue
        edit.set_opset(1, domain)
        operands = [data.inputs[0], weight.inputs[0], data.inputs[1], weight.inputs[1], data.inputs[2]]
        inputs = [*operands, weight.inputs[2] if len(weight.inputs) > 2 else None, bias]
        made = edit.insert_before(add, name, inputs, domain=domain, name=f"{node.name}/{name}", like=add.outputs[0])
        edit.replace(add, made.outputs)
        merged += 1
    return merged


def _is_bias(value: Value | None, weight: Node) -> bool:
    shape = shape_of(weight.inputs[0])
    return value is not None and is_constant(value) and bool(shape) and shape_of(value) == (shape or ())[-1:]
