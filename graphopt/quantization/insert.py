"""Writing Q/DQ pairs: around the values of a placement, and behind integer weights and biases."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from graphopt.ir import Editor, Node, Value
from graphopt.ir.query import attr, is_constant
from graphopt.quantization.grid import Grid, grid_for_range
from graphopt.quantization.layers import BIAS, WEIGHT
from graphopt.quantization.placement import LINEAR, Placement, read
from graphopt.targets import Quantization

_FILL = 2
"""Which input of a Pad is the number that it fills in."""

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


@dataclass
class Inserter:
    """Writes a placement into a model; ``grids`` holds the grid of each value that has one of its own."""

    edit: Editor
    facts: Quantization
    placement: Placement
    grids: Mapping[Value, Grid]
    ask: Ask
    _constants: dict[tuple[str, bytes], Value] = field(default_factory=dict)
    _pairs: int = 0

    def run(self, layers: list[Layer]) -> int:
        """Insert everything; return the number of Q/DQ pairs around computed values."""
        readers: dict[Value, list[tuple[Node, int]]] = {}
        for node in self.placement.nodes:
            wanted = set(read(node, self.facts))
            for index, value in enumerate(node.inputs):
                if value is not None and value in wanted:
                    readers.setdefault(value, []).append((node, index))
        for value, root in self.placement.values.items():
            self._pair(value, self.grids[root], readers.get(value, []))
        for node in self.placement.nodes:
            self._constant_operands(node)
            if node.op_type in self.facts.on_integers:
                self._on_integers(node)
        for layer in layers:
            self._weights(layer)
        return self._pairs

    def _pair(self, value: Value, grid: Grid, readers: list[tuple[Node, int]]) -> None:
        producer = value.producer()
        anchor = producer if producer is not None else readers[0][0]
        if not self.ask(anchor, f"quantize {value.name}"):
            return
        scale, zero = self._scale(value, grid), self._zero(value, grid)
        base = value.name or anchor.name or "value"
        if producer is None:
            first = self.edit.model.graph[0]
            quantize = self.edit.insert_before(first, "QuantizeLinear", [value, scale, zero], name=f"{base}/Quantize")
        else:
            quantize = self.edit.insert_after(producer, "QuantizeLinear", [value, scale, zero], name=f"{base}/Quantize")
        self.edit.annotate(quantize.outputs[0], zero.dtype, None if value.shape is None else _dims(value))
        inputs = [quantize.outputs[0], scale, zero]
        dequantize = self.edit.insert_after(quantize, "DequantizeLinear", inputs, name=f"{base}/Dequantize", like=value)
        self._pairs += 1
        if value in self.placement.made:
            self.edit.replace_uses(value, dequantize.outputs[0])
            self.edit.set_input(quantize, 0, value)
            return
        for node, index in readers:
            self.edit.set_input(node, index, dequantize.outputs[0])

    def _constant_operands(self, node: Node) -> None:
        """Quantize the constant operands of an elementwise operator: its integer kernel wants all of them."""
        for index in self.facts.kernels.get(node.op_type, ()):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or not is_constant(value) or (index == WEIGHT and node.op_type in LINEAR):
                continue
            array = value.const_value.numpy() if value.const_value is not None else None
            if array is None or not self.ask(node, f"quantize the constant {value.name}"):
                continue
            low, high = float(array.min()), float(array.max())
            facts = self.facts
            grid = grid_for_range(low, high, facts.activations, symmetric=facts.activations_symmetric)
            self.edit.set_input(node, index, self._dequantized(node, value, grid, grid.quantize(array)))
            self.edit.drop_unread(value)

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
        if layer.bias is not None:
            self._bias(layer, np.asarray(layer.grid.scale, np.float32) * self._input_scale(data))

    def _input_scale(self, data: Value) -> np.float32:
        producer = data.producer()
        scale = producer.inputs[1] if producer is not None and producer.op_type == "DequantizeLinear" else None
        if scale is None or scale.const_value is None:
            raise ValueError(f"the input {data.name} of a quantized layer is not quantized")
        return np.float32(scale.const_value.numpy())

    def _bias(self, layer: Layer, scale: NDArray[np.float32]) -> None:
        node, bias = layer.node, layer.bias
        assert bias is not None
        scales = np.broadcast_to(scale.reshape(-1), bias.shape).astype(np.float32)
        limits = np.iinfo(np.int32)
        integers = np.clip(np.rint(bias / scales.astype(np.float64)), limits.min, limits.max).astype(np.int32)
        old = node.inputs[BIAS] if len(node.inputs) > BIAS else None
        base = (old.name if old is not None else None) or f"{node.name or node.outputs[0].name}/bias"
        ints, factor = self.edit.constant(integers, f"{base}_quantized"), self.edit.constant(scales, f"{base}_scale")
        dequantize = self.edit.insert_before(
            node, "DequantizeLinear", [ints, factor], {"axis": 0}, name=f"{base}/Dequantize"
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
            node, "DequantizeLinear", inputs, attributes, name=f"{base}/Dequantize", like=value
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


def stored(integers: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return integers as the type that a model stores, 4-bit ones included."""
    kind = getattr(ml_dtypes, dtype) if dtype in ("int4", "uint4") else dtype
    return np.asarray(integers, order="C").astype(kind)


def _dims(value: Value) -> list[Any]:
    return [] if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape.dims]
