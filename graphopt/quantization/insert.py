"""Writing Q/DQ pairs: around the values of a placement, and behind integer weights and biases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from graphopt.ir import Editor, Node, Value, opset
from graphopt.ir.query import attr, constant
from graphopt.quantization.grid import Grid, grid_for_range, weight_grid
from graphopt.quantization.layers import BIAS, WEIGHT
from graphopt.quantization.placement import Placement, is_layer, operands, read, writes
from graphopt.quantization.types import Types
from graphopt.targets import Quantization

_FILL = 2
"""Which input of a Pad is the number that it fills in."""

WEIGHTS = {("ConvTranspose", 1): 1, ("MatMul", 1): -1, ("Gemm", 1): None, ("LSTM", 1): None, ("LSTM", 2): None,
           ("GRU", 1): None, ("GRU", 2): None, ("Conv", 1): 0}  # fmt: skip
"""The inputs that are weights of what is rounded to nearest, with the axis that scales lie along, if any."""

BIASED = ("ConvTranspose", "LayerNormalization", "InstanceNormalization")
"""Those of them whose bias is quantized by the product of the other operands' scales."""

WIDE_OPSET = 21
"""The first opset whose QuantizeLinear knows 16 bits."""

Ask = Callable[[Node, str], bool]
"""Asked right before each rewrite whether it may be made."""


@dataclass(frozen=True, eq=False)
class Layer:
    """What becomes of a layer's weights: integers of the weights' shape on ``grid``, and its bias in float.

    ``bias`` is float[O], ``None`` where the layer has none of that form; ``error`` and ``power`` are the expected
    squared error of the output by rounding the weights, and the expected square of the output, in its units.
    """

    node: Node
    grid: Grid
    integers: NDArray[Any]
    bias: NDArray[np.float64] | None = None
    error: float = 0.0
    power: float = 0.0

    @property
    def sqnr(self) -> float | None:
        """The expected SQNR of the output in dB by rounding the weights alone; None where it is not known."""
        return 10 * math.log10(self.power / self.error) if self.power > 0 and self.error > 0 else None


Grids = Mapping[str, Mapping[Value, Grid]]
"""The grids of values that have one of their own, by type."""


@dataclass
class Inserter:
    """Writes a placement into a model; ``grids`` holds the grid of each value that has one of its own, ``types`` which
    type each node computes in.
    """

    edit: Editor
    facts: Quantization
    placement: Placement
    grids: Grids
    types: Types
    ask: Ask
    _constants: dict[tuple[str, bytes], Value] = field(default_factory=dict)
    _pairs: int = 0

    def run(self, layers: list[Layer]) -> int:
        """Insert everything; return the number of Q/DQ pairs around computed values."""
        readers: dict[Value, dict[str, list[tuple[Node, int]]]] = {}
        for node in self.placement.nodes:
            wanted = set(read(node, self.facts))
            for index, value in enumerate(node.inputs):
                if value is not None and value in wanted:
                    readers.setdefault(value, {}).setdefault(self.types.nodes[node], []).append((node, index))
        for value, root in self.placement.values.items():
            by_type = readers.get(value, {})
            own = self.types.roots[root]
            source = self._pair(value, self.grids[own][root], by_type.pop(own, []), made=value in self.placement.made)
            for kind, others in sorted(by_type.items()):
                self._pair(source or value, self.grids[kind][root], others, made=False)
        for node in self.placement.nodes:
            self._constant_operands(node)
            if node.op_type in self.facts.on_integers:
                self._on_integers(node)
        for layer in layers:
            self._weights(layer)
        return self._pairs

    def _pair(self, value: Value, grid: Grid, readers: list[tuple[Node, int]], *, made: bool) -> Value | None:
        """Put a pair behind ``value`` and have ``readers``, or everybody where it is ``made``, read what it gives.

        Return that value where it is made.
        """
        producer = value.producer()
        if producer is None and not readers:
            return None
        anchor = producer if producer is not None else readers[0][0]
        if not self.ask(anchor, f"quantize {value.name}"):
            return None
        scale, zero = self._scale(value, grid), self._zero(value, grid)
        base, domain = value.name or anchor.name or "value", use_domain(self.edit, grid.dtype)
        operands, name = [value, scale, zero], f"{base}/Quantize"
        if producer is None:
            first = self.edit.model.graph[0]
            quantize = self.edit.insert_before(first, "QuantizeLinear", operands, name=name, domain=domain)
        else:
            quantize = self.edit.insert_after(producer, "QuantizeLinear", operands, name=name, domain=domain)
        self.edit.annotate(quantize.outputs[0], zero.dtype, None if value.shape is None else _dims(value))
        operands, name = [quantize.outputs[0], scale, zero], f"{base}/Dequantize"
        dequantize = self.edit.insert_after(
            quantize, "DequantizeLinear", operands, name=name, domain=domain, like=value
        )
        self._pairs += 1
        if made:
            self.edit.replace_uses(value, dequantize.outputs[0])
            self.edit.set_input(quantize, 0, value)
            return dequantize.outputs[0]
        for node, index in readers:
            self.edit.set_input(node, index, dequantize.outputs[0])
        return None

    def _constant_operands(self, node: Node) -> None:
        """Quantize the constants that a node's integer kernel wants as integers, but for the weights of layers."""
        if is_layer(node) or not (self.facts.every_edge or self.facts.kernels.get(node.op_type)):
            return
        for index, value in operands(node, self.facts).items():
            array = constant(value)
            if array is None or not array.size or not self.ask(node, f"quantize the constant {value.name}"):
                continue
            grid = self._constant_grid(node, index, array)
            grid = grid.off_middle() if self.facts.off_middle else grid
            self.edit.set_input(node, index, self._dequantized(node, value, grid, grid.quantize(array)))
            self.edit.drop_unread(value)
        if self.facts.bias and node.op_type in BIASED and len(node.inputs) > BIAS:
            self._plain_bias(node)

    def _constant_grid(self, node: Node, index: int, array: NDArray[Any]) -> Grid:
        facts = self.facts
        if (node.op_type, index) in WEIGHTS:
            axis = WEIGHTS[node.op_type, index] if facts.per_channel and attr(node, "group", 1) == 1 else None
            if axis is not None and array.ndim < 2:
                axis = None
            return weight_grid(array, facts.weights, axis=axis, power_of_two=facts.power_of_two)
        if node.op_type in facts.moves:
            return self.grids[self.types.nodes[node]][self.placement.values[writes(node, facts)[0]]]
        kind = self.types.nodes[node]
        low, high = float(array.min()), float(array.max())
        # The factor of a normalization in 16 bits is refused unless its zero is at the middle.
        middle = is_symmetric(facts, kind) or (node.op_type in BIASED and kind != facts.activations)
        return grid_for_range(low, high, kind, symmetric=middle, power_of_two=facts.power_of_two)

    def _plain_bias(self, node: Node) -> None:
        """Quantize the constant bias of what is no layer by the scales of its other two operands."""
        bias, data, weight = node.inputs[BIAS], node.inputs[0], node.inputs[WEIGHT]
        array = constant(bias)
        if array is None or data is None or weight is None or not self.ask(node, "quantize the bias"):
            return
        scale = np.asarray(self._input_scale(weight), np.float32) * self._input_scale(data)
        self._write_bias(node, np.asarray(array, np.float64), scale)

    def _on_integers(self, node: Node) -> None:
        """Let ``node``, which moves data between two pairs of the same grid, read and write the integers themselves."""
        before = node.inputs[0].producer() if node.inputs[0] is not None else None
        after = next((use.node for use in node.outputs[0].uses()), None)
        pairs = before is not None and before.op_type == "DequantizeLinear"
        if before is None or after is None or not pairs or after.op_type != "QuantizeLinear":
            return
        integers, zero = before.inputs[0], before.inputs[2]
        if integers is None or zero is None or not self.ask(node, "work on integers"):
            return
        self.edit.set_input(node, 0, integers)
        if node.op_type == "Pad" and attr(node, "mode", "constant") == "constant":
            self.edit.set_input(node, _FILL, zero)
        output = node.outputs[0]
        self.edit.replace_uses(after.outputs[0], output)
        for conversion in (after, before):
            self.edit.erase_dead(conversion)
        self.edit.annotate(output, zero.dtype, None if output.shape is None else _dims(output))

    def _weights(self, layer: Layer) -> None:
        node = layer.node
        weight, data = node.inputs[WEIGHT], node.inputs[0]
        if weight is None or data is None or not self.ask(node, f"quantize the weights {weight.name}"):
            return
        self.edit.set_input(node, WEIGHT, self._dequantized(node, weight, layer.grid, layer.integers))
        self.edit.drop_unread(weight)
        if layer.bias is not None and not self.facts.bias:
            self._float_bias(node, layer.bias)
        elif layer.bias is not None:
            self._write_bias(node, layer.bias, np.asarray(layer.grid.scale, np.float32) * self._input_scale(data))

    def _input_scale(self, data: Value) -> NDArray[np.float32]:
        producer = data.producer()
        scale = producer.inputs[1] if producer is not None and producer.op_type == "DequantizeLinear" else None
        if scale is None or scale.const_value is None:
            raise ValueError(f"the input {data.name} of a quantized layer is not quantized")
        return np.asarray(scale.const_value.numpy(), np.float32)

    def _float_bias(self, node: Node, bias: NDArray[np.float64]) -> None:
        old = node.inputs[BIAS] if len(node.inputs) > BIAS else None
        base = (old.name if old is not None else None) or f"{node.name or node.outputs[0].name}/bias"
        self.edit.set_input(node, BIAS, self.edit.constant(bias.astype(np.float32), base))
        if old is not None:
            self.edit.drop_unread(old)

    def _write_bias(self, node: Node, bias: NDArray[np.float64], scale: NDArray[np.float32]) -> None:
        scales = scale if scale.ndim == 0 else np.broadcast_to(scale.reshape(-1), bias.shape).astype(np.float32)
        limits = np.iinfo(np.int32)
        integers = np.clip(np.rint(bias / scales.astype(np.float64)), limits.min, limits.max).astype(np.int32)
        old = node.inputs[BIAS] if len(node.inputs) > BIAS else None
        base = (old.name if old is not None else None) or f"{node.name or node.outputs[0].name}/bias"
        ints, factor = self.edit.constant(integers, f"{base}_quantized"), self.edit.constant(scales, f"{base}_scale")
        inputs = [ints, factor]
        if self.facts.bias_zero_point:
            inputs.append(self.edit.constant(np.zeros(scales.shape, np.int32), f"{base}_zero_point"))
        dequantize = self.edit.insert_before(
            node, "DequantizeLinear", inputs, {"axis": 0} if scale.ndim else {}, name=f"{base}/Dequantize"
        )
        self.edit.annotate(dequantize.outputs[0], factor.dtype, list(bias.shape))
        self.edit.set_input(node, BIAS, dequantize.outputs[0])
        if old is not None:
            self.edit.drop_unread(old)

    def _dequantized(self, node: Node, value: Value, grid: Grid, integers: NDArray[Any]) -> Value:
        base = value.name or "constant"
        ints = self._named(f"{base}_quantized", stored(integers, grid.dtype))
        inputs = [ints, self._scale(value, grid), self._zero(value, grid)]
        attributes = {} if grid.axis is None else {"axis": grid.axis}
        dequantize = self.edit.insert_before(
            node,
            "DequantizeLinear",
            inputs,
            attributes,
            name=f"{base}/Dequantize",
            domain=use_domain(self.edit, grid.dtype),
            like=value,
        )
        return dequantize.outputs[0]

    def _scale(self, value: Value, grid: Grid) -> Value:
        return self._named(f"{value.name}_scale", np.asarray(grid.scale, np.float32))

    def _zero(self, value: Value, grid: Grid) -> Value:
        return self._named(f"{value.name}_zero_point", stored(grid.zero_point, grid.dtype))

    def _named(self, name: str, array: NDArray[Any]) -> Value:
        """Return the initializer with this content, the same one for the same name and content."""
        key = (name, array.tobytes())
        if key not in self._constants or self._constants[key].const_value is None:
            self._constants[key] = self.edit.constant(array, name)
        return self._constants[key]


def use_domain(edit: Editor, dtype: str) -> str:
    """Return the domain of what quantizes to ``dtype``, imported: ONNX's own knows 16 bits from opset 21 on."""
    if dtype not in ("uint16", "int16") or opset(edit.model) >= WIDE_OPSET:
        return ""
    if "com.microsoft" not in edit.model.opset_imports:
        edit.set_opset(1, "com.microsoft")
    return "com.microsoft"


def is_symmetric(facts: Quantization, kind: str) -> bool:
    """Tell whether grids of activations of type ``kind`` have their zero at the middle."""
    return facts.activations_symmetric or (kind != facts.activations and kind.startswith("int"))


def stored(integers: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return integers as the type that a model stores, 4-bit ones included."""
    kind = getattr(ml_dtypes, dtype) if dtype in ("int4", "uint4") else dtype
    return np.asarray(integers, order="C").astype(kind)


def _dims(value: Value) -> list[Any]:
    return [] if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape.dims]
