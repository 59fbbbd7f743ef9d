"""Layers that are linear in their input (Conv, ConvTranspose, Gemm, MatMul by a constant): where their channels are.

``linear_behind(value)`` and ``linear_after(value)`` find one; ``rescale`` and ``rescale_input`` multiply and shift its
output or input channels by writing new weights. The arithmetic is float64, the result is cast back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes
import numpy as np
import onnx_ir

from graphopt.ir.edit import Editor
from graphopt.ir.query import attr, constant, rank_of, sole_use, tensor_of, use_count

Array = np.ndarray[Any, Any]
_FLOATS = (
    onnx_ir.DataType.FLOAT,
    onnx_ir.DataType.DOUBLE,
    onnx_ir.DataType.FLOAT16,
    onnx_ir.DataType.BFLOAT16,
)


@dataclass(frozen=True)
class Linear:
    """One linear layer: ``output = node(input, weight) + bias``.

    ``bias`` is the constant behind input 2, or, for a MatMul whose only reader is an Add of a constant vector, that
    constant, and ``add`` is then the Add. ``channels`` is the number of output channels, which lie along ``axis`` of
    the output (1 or -1). ``rank`` is the output's, ``None`` when unknown.
    """

    node: onnx_ir.Node
    weight: onnx_ir.Value
    bias: onnx_ir.Value | None
    add: onnx_ir.Node | None
    channels: int
    axis: int
    rank: int | None

    @property
    def output(self) -> onnx_ir.Value:
        """The value that holds the layer's result, bias included."""
        return (self.add or self.node).outputs[0]

    def vector(self, array: Array, rank: int | None = None) -> Array | None:
        """Return ``array``, an operand broadcast against the output, as float64 of shape ``[channels]``.

        ``None`` when it varies along another axis, or could change the output's shape.
        """
        rank = self.rank if rank is None else rank
        if array.size == 1 and array.ndim <= (rank if rank is not None else 1):
            return np.full(self.channels, array.reshape(-1)[0], dtype=np.float64)
        if array.size != self.channels or array.ndim > (rank if rank is not None else 1):
            return None
        place = array.ndim - (1 if self.axis == -1 else (rank or 0) - 1)
        if place < 0 or array.shape[place] != self.channels:
            return None
        return array.astype(np.float64).reshape(-1)


def linear_of(node: onnx_ir.Node | None) -> Linear | None:
    """Return ``node`` as a linear layer with constant floating-point weights (and bias, where it has one)."""
    if node is None or node.domain != "" or node.graph is None:
        return None
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = tensor_of(weight)
    if weight is None or tensor is None or tensor.dtype not in _FLOATS:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and tensor_of(bias) is None:
        return None
    shape = tensor.shape.numpy()
    if node.op_type in ("Conv", "ConvTranspose"):
        group = attr(node, "group", 1)
        channels = shape[0] if node.op_type == "Conv" else shape[1] * group
        return Linear(node, weight, bias, None, channels, 1, len(shape))
    if len(shape) != 2:
        return None
    if node.op_type == "Gemm":
        channels = shape[0] if attr(node, "transB", 0) else shape[1]
        return Linear(node, weight, bias, None, channels, -1, 2) if _gemm_bias_fits(bias, channels) else None
    return Linear(node, weight, None, None, shape[1], -1, rank_of(node.outputs[0]))


def _gemm_bias_fits(bias: onnx_ir.Value | None, channels: int) -> bool:
    """Tell whether a Gemm's bias is one row (a bias that differs from row to row stays as it is)."""
    tensor = tensor_of(bias)
    return tensor is None or tensor.size == 1 or (tensor.size == channels and tensor.shape[-1] == channels)


def linear_behind(value: onnx_ir.Value | None) -> Linear | None:
    """Return the linear layer whose result is ``value``: its own output, or that of the Add with a MatMul's bias."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Add" or node.domain != "":
        return linear_of(node)
    for index in (0, 1):
        layer = _matmul_with_bias(node, node.inputs[index], node.inputs[1 - index])
        if layer is not None:
            return layer
    return None


def _matmul_with_bias(add: onnx_ir.Node, product: onnx_ir.Value | None, bias: onnx_ir.Value | None) -> Linear | None:
    tensor = tensor_of(bias)
    if product is None or tensor is None or len(tensor.shape) > 1 or sole_use(product) is not add:
        return None
    layer = linear_of(product.producer())
    if layer is None or layer.node.op_type != "MatMul" or layer.node.graph is not add.graph:
        return None
    if tensor.size not in (1, layer.channels):
        return None
    return Linear(layer.node, layer.weight, bias, add, layer.channels, -1, layer.rank)


def linear_ahead(value: onnx_ir.Value) -> Linear | None:
    """Return the linear layer that alone reads ``value``, as its input 0; with its Add for a MatMul that has one."""
    reader = sole_use(value)
    layer = linear_of(reader)
    if reader is None or layer is None or reader.inputs[0] is not value:
        return None
    add = sole_use(reader.outputs[0]) if reader.op_type == "MatMul" else None
    biased = linear_behind(add.outputs[0]) if add is not None else None
    return biased if biased is not None and biased.node is reader else layer


def is_overridable(node: onnx_ir.Node | None) -> bool:
    """Tell whether ``node`` would be a linear layer if its weights were not listed as inputs of the model too."""
    if node is None or node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return False
    return any(value is not None and value.is_initializer() and value.is_graph_input() for value in node.inputs[1:])


def is_shared(value: onnx_ir.Value | None) -> bool:
    """Tell whether a constant has other readers, so that changing it for one layer means a copy."""
    return value is not None and (use_count(value) > 1 or value.is_graph_output())


def rescaled(layer: Linear, scale: Array, shift: Array) -> tuple[Array | None, Array | None] | None:
    """Return weight and bias (``None``: unchanged) with which ``layer`` gives ``output * scale + shift``.

    ``scale`` and ``shift`` are float64 of shape ``[channels]``. ``None`` when the weight's dtype cannot hold the
    numbers: they overflow, or all weights are among its denormal numbers, which have few digits.
    """
    weight = _array(layer.weight)
    dtype, wide = weight.dtype, weight.astype(np.float64)
    new_weight = None if np.all(scale == 1) else wide * _along_outputs(layer, scale)
    bias = _bias(layer) * scale + shift
    unchanged = layer.bias is None and not np.any(bias)
    return _cast(new_weight, None if unchanged else bias, dtype)


def rescaled_input(layer: Linear, scale: Array, shift: Array) -> tuple[Array | None, Array | None] | None:
    """Return weight and bias with which ``layer`` of ``x`` gives what it gave of ``x * scale + shift``.

    ``scale`` and ``shift`` are float64 with one number for each input channel. As :func:`rescaled` otherwise. The
    caller sees to it that the layer does not pad when there is a shift.
    """
    weight = _array(layer.weight)
    dtype, wide = weight.dtype, weight.astype(np.float64)
    new_weight = None if np.all(scale == 1) else wide * _along_inputs(layer, scale)
    moved = (wide * _along_inputs(layer, shift)).sum(axis=_input_axes(layer)).reshape(-1)
    bias = _bias(layer) + moved * (attr(layer.node, "alpha", 1.0) if layer.node.op_type == "Gemm" else 1.0)
    return _cast(new_weight, bias if np.any(shift) else None, dtype)


def input_channels(layer: Linear) -> int | None:
    """Return the number of input channels of a Conv, Gemm or MatMul, ``None`` for a ConvTranspose (not supported)."""
    tensor = tensor_of(layer.weight)
    if tensor is None or layer.node.op_type == "ConvTranspose":
        return None
    shape = tensor.shape.numpy()
    if layer.node.op_type == "Conv":
        return shape[1] * int(attr(layer.node, "group", 1))
    return shape[1] if layer.node.op_type == "Gemm" and attr(layer.node, "transB", 0) else shape[0]


def pads_nothing(node: onnx_ir.Node) -> bool:
    """Tell whether a Conv, Gemm or MatMul reads no value from outside its input."""
    if node.op_type != "Conv":
        return node.op_type in ("Gemm", "MatMul")
    return attr(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(attr(node, "pads", []))


def refusal(layer: Linear, weights: tuple[Array | None, Array | None] | None, limit: int) -> str | None:
    """Return why new weights should not be written, ``None`` when they may.

    They may not when their dtype cannot hold them, or when the layer shares its weights and a copy takes more than
    ``limit`` bytes.
    """
    if weights is None:
        return "the folded weights would leave the range of their dtype"
    if weights[0] is not None and is_shared(layer.weight) and weights[0].nbytes > limit:
        return f"its weights are shared, and a copy takes {weights[0].nbytes} bytes"
    return None


def can_hold(layer: Linear, bias: Array | None) -> bool:
    """Tell whether the layer has a place for the bias: a MatMul has one only in its Add, or as a Gemm (2-D input)."""
    if bias is None or layer.node.op_type != "MatMul" or layer.add is not None:
        return True
    return rank_of(layer.node.inputs[0]) == 2


def write(editor: Editor, layer: Linear, weight: Array | None, bias: Array | None) -> None:
    """Give the layer a new weight and bias (``None``: leave it). A shared constant is copied, not changed.

    A MatMul that gets a bias becomes a Gemm; ask :func:`can_hold` first.
    """
    if weight is not None:
        _set_constant(editor, layer.node, 1, layer.weight, weight)
    if bias is None:
        return
    if layer.add is not None:
        index = 1 if layer.add.inputs[1] is layer.bias else 0
        _set_constant(editor, layer.add, index, layer.bias, bias)
        return
    if layer.node.op_type == "MatMul":
        editor.set_operator(layer.node, "Gemm")
    if layer.node.op_type == "Gemm":
        editor.set_attr(layer.node, "beta", None)
    _set_constant(editor, layer.node, 2, layer.bias, bias)


def _set_constant(editor: Editor, node: onnx_ir.Node, index: int, old: onnx_ir.Value | None, array: Array) -> None:
    if old is not None and old.is_initializer() and not is_shared(old):
        editor.set_weight(old, array)
        return
    kind = "bias" if index == 2 or node.op_type == "Add" else "weight"
    base = (old.name if old is not None else None) or f"{node.name or node.outputs[0].name}.{kind}"
    editor.set_input(node, index, editor.constant(array, base))
    producer = old.producer() if old is not None else None
    if producer is not None:
        editor.erase_dead(producer)


def _array(value: onnx_ir.Value) -> Array:
    array = constant(value)
    if array is None:
        raise ValueError(f"{value.name!r} is no constant")
    return array


def _bias(layer: Linear) -> Array:
    """Return the bias as float64 of shape ``[channels]``, a Gemm's beta multiplied in; zeros without one."""
    if layer.bias is None:
        return np.zeros(layer.channels)
    beta = attr(layer.node, "beta", 1.0) if layer.node.op_type == "Gemm" else 1.0
    flat = _array(layer.bias).astype(np.float64).reshape(-1)
    return np.broadcast_to(flat * beta, (layer.channels,))


def _along_outputs(layer: Linear, scale: Array) -> Array:
    """Reshape a vector over output channels so that it multiplies the weight."""
    shape = _array(layer.weight).shape
    kind = layer.node.op_type
    if kind == "Conv":
        return scale.reshape(-1, *[1] * (len(shape) - 1))
    if kind == "ConvTranspose":
        group = attr(layer.node, "group", 1)
        by_input = np.repeat(scale.reshape(group, shape[1]), shape[0] // group, axis=0)
        return by_input.reshape(*shape[:2], *[1] * (len(shape) - 2))
    if kind == "Gemm" and attr(layer.node, "transB", 0):
        return scale.reshape(-1, 1)
    return scale.reshape(1, -1)


def _along_inputs(layer: Linear, scale: Array) -> Array:
    """Reshape a vector over input channels so that it multiplies the weight."""
    shape = _array(layer.weight).shape
    if layer.node.op_type == "Conv":
        group = attr(layer.node, "group", 1)
        by_output = np.repeat(scale.reshape(group, shape[1]), shape[0] // group, axis=0)
        return by_output.reshape(*shape[:2], *[1] * (len(shape) - 2))
    if layer.node.op_type == "Gemm" and attr(layer.node, "transB", 0):
        return scale.reshape(1, -1)
    return scale.reshape(-1, 1)


def _input_axes(layer: Linear) -> tuple[int, ...]:
    if layer.node.op_type == "Conv":
        return tuple(range(1, _array(layer.weight).ndim))
    return (1,) if layer.node.op_type == "Gemm" and attr(layer.node, "transB", 0) else (0,)


def _cast(weight: Array | None, bias: Array | None, dtype: np.dtype[Any]) -> tuple[Array | None, Array | None] | None:
    """Return float64 arrays in ``dtype``, ``None`` when it cannot hold them."""
    limits = cast("Any", ml_dtypes).finfo(dtype)
    sizes = [0.0 if array is None or array.size == 0 else float(np.abs(array).max()) for array in (weight, bias)]
    # A bias may vanish: it is added to what the weights give.
    if not all(size <= float(limits.max) for size in sizes) or 0 < sizes[0] < float(limits.smallest_normal):
        return None
    return None if weight is None else weight.astype(dtype), None if bias is None else bias.astype(dtype)
