"""Reading Q/DQ pairs off a model: in which type a node gets its values, and where a pair is missing."""

from __future__ import annotations

from collections.abc import Iterator

from graphopt.ir import DataType, Model, Node, Value, constant, is_constant, nodes
from graphopt.targets import Quantization

_FLOATS = frozenset({DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE})
_OPERATORS = frozenset(
    {
        *("ConvInteger", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "MatMulBnb4"),
        *("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention", "QGemm"),
        *("QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool"),
        *("QLinearLeakyRelu", "QLinearMatMul", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid"),
        *("QLinearSoftmax", "QLinearWhere", "QEmbedLayerNormalization", "QOrderedMatMul"),
    }
)
"""Operators of quantized models that hold no Q/DQ pairs."""


def quantizes(node: Node | None) -> bool:
    """Tell whether ``node`` is a QuantizeLinear, ONNX's or onnxruntime's."""
    return node is not None and node.op_type == "QuantizeLinear" and node.domain in ("", "com.microsoft")


def dequantizes(node: Node | None) -> bool:
    """Tell whether ``node`` is a DequantizeLinear, ONNX's or onnxruntime's."""
    return node is not None and node.op_type == "DequantizeLinear" and node.domain in ("", "com.microsoft")


def is_quantized(model: Model) -> bool:
    """Tell whether the model holds Q/DQ pairs."""
    return any(quantizes(node) or dequantizes(node) for node in nodes(model))


def other_forms(model: Model) -> list[Node]:
    """Return the nodes of a quantized model that is not, or not only, written with Q/DQ pairs."""
    return [node for node in nodes(model) if node.op_type in _OPERATORS]


def integer_type(node: Node) -> str:
    """Return numpy's name of the integers that a Q or DQ node writes or reads, "" where that is not known."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and zero.dtype is not None:
        return _name(zero.dtype)
    if zero is not None and (array := constant(zero)) is not None:
        return str(array.dtype.name)
    integers = node.outputs[0] if quantizes(node) else node.inputs[0]
    if integers is not None and integers.dtype is not None:
        return _name(integers.dtype)
    return "uint8" if quantizes(node) else ""


def activation_type(node: Node) -> str:
    """Return the type that ``node`` computes its activations in: an integer's where a pair stands before or behind it.

    ``float`` stands for no pair at all.
    """
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and dequantizes(producer) and not is_constant(producer.inputs[0]):
            return integer_type(producer) or "float"
    for value in node.outputs:
        for use in value.uses():
            if quantizes(use.node):
                return integer_type(use.node)
    return "float"


def missing_pairs(model: Model, wanted: Quantization) -> Iterator[tuple[Node, Value]]:
    """Yield operators that lack a pair where the target needs one on every edge, with the value that has none."""
    for node in nodes(model):
        if node.domain or node.op_type == "Identity" or node.op_type not in {*wanted.kernels, *wanted.moves}:
            continue
        value = _bare_input(node, wanted) or _bare_output(node, wanted)
        if value is not None:
            yield node, value


def _bare_input(node: Node, wanted: Quantization) -> Value | None:
    required = wanted.kernels.get(node.op_type, ())
    for index, value in enumerate(node.inputs):
        if value is None or not _is_float(value):
            continue
        if index not in required and (is_constant(value) or (required and index > max(required))):
            continue  # biases, bounds and the like
        producer = value.producer()
        if not dequantizes(producer) and not _absorbs(producer, node, wanted):
            return value
    return None


def _bare_output(node: Node, wanted: Quantization) -> Value | None:
    for value in node.outputs:
        readers = [use.node for use in value.uses()]
        if not _is_float(value) or (not readers and not value.is_graph_output()):
            continue
        if value.is_graph_output() or not all(quantizes(r) or _absorbs(node, r, wanted) for r in readers):
            return value
    return None


def _absorbs(first: Node | None, second: Node, wanted: Quantization) -> bool:
    """Tell whether the target computes ``second`` in the kernel of ``first``, so that no pair belongs in between."""
    if first is None or second.op_type not in wanted.absorbed.get(first.op_type, frozenset()):
        return False
    return len(first.outputs[0].uses()) == 1


def _is_float(value: Value) -> bool:
    return value.dtype in _FLOATS


def _name(dtype: DataType) -> str:
    return str(dtype.numpy().name)
