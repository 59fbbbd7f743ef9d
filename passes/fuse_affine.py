"""Mul, Div, Add, Sub and Neg by constants: into the weights of a neighbouring layer, and into each other.

Before::

    c = Conv(x, W, b)
    m = Mul(c, s)                    # s of shape [C, 1, 1]
    y = Add(m, t)

After::

    y = Conv(x, W * s, b * s + t)

A constant has to lie along the output channels of a layer in front (Conv, ConvTranspose, Gemm, MatMul), or along the
input channels of one behind, where a shift asks for a layer without padding. What no layer takes is merged where that
leaves fewer nodes: ``(x * a + b) * c`` becomes ``x * ac + bc``. Products are formed in float64 and cast back. The last
operations of a decomposed Gelu or LayerNormalization stay: onnxruntime runs the whole as one operator only with them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.analysis import Shapes
from graphopt.ir import DataType, Model, Node, Value, constant, rank_of, shape_of
from graphopt.ir import linear as layers
from graphopt.ir.query import constant_size, sole_use, tensor_of
from graphopt.pipeline import Changes, Pass, PassContext, option

Array = np.ndarray[Any, Any]
_OPERATORS = ("Mul", "Div", "Add", "Sub", "Neg")
_FLOATS = (DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16, DataType.BFLOAT16)


@dataclass(frozen=True)
class Step:
    """One node as ``x * scale + shift``; ``None`` stands for 1 and 0. Arrays are float64, shaped as in the model."""

    node: Node
    source: Value
    scale: Array | None
    shift: Array | None
    dtype: np.dtype[Any]


@dataclass(frozen=True, kw_only=True)
class FuseAffine(Pass):
    """Fold Mul, Div, Add, Sub and Neg by constants into neighbouring weights and into each other."""

    name: ClassVar[str] = "fuse-affine"
    preserves: ClassVar = (Shapes,)
    growth: int = option(1 << 20, "bytes that the copy of a shared weight may take", ge=0)

    def run(self, model: Model, ctx: PassContext) -> Changes:
        """Visit each node, again when the one in front of it went: first the layers around it, then its chain."""
        changes = Changes()
        waiting = deque(ctx.nodes(*_OPERATORS))
        if waiting:
            ctx.get(Shapes)
        fusible = bool(ctx.nodes("Erf", "Sqrt"))
        while waiting:
            step = _step(waiting.popleft())
            if step is None or (fusible and _is_fused_at_run_time(step)):
                continue
            readers = [use.node for value in step.node.outputs for use in value.uses()]
            if self._into_producer(step, ctx) or self._into_consumer(step, ctx):
                changes["folded into weights"] += 1
                waiting.extendleft(reader for reader in readers if reader.op_type in _OPERATORS)
            elif _merge(step, ctx):
                changes["merged"] += 1
        return changes

    def _into_producer(self, step: Step, ctx: PassContext) -> bool:
        layer = layers.linear_behind(step.source)
        if layer is None or layer.add is step.node or sole_use(step.source) is not step.node:
            return False
        if layer.node.graph is not step.node.graph:
            return False
        scale = _vector(layer, step.scale, 1.0)
        shift = _vector(layer, step.shift, 0.0)
        if scale is None or shift is None:
            return False
        weights = layers.rescaled(layer, scale, shift)
        if not self._may_write(step.node, layer, weights, ctx):
            return False
        if not ctx.may_rewrite(step.node, f"fold it into {layer.node.op_type} {layer.node.name!r}"):
            return False
        layers.write(ctx.edit, layer, *(weights or ()))
        return ctx.edit.replace(step.node, [layer.output])

    def _into_consumer(self, step: Step, ctx: PassContext) -> bool:
        layer = layers.linear_ahead(step.node.outputs[0])
        if layer is None or layer.node.graph is not step.node.graph:
            return False
        reader = layer.node
        if step.shift is not None and not layers.pads_nothing(reader):
            return False
        scale = _input_vector(layer, step.source, step.scale, 1.0)
        shift = _input_vector(layer, step.source, step.shift, 0.0)
        if scale is None or shift is None:
            return False
        weights = layers.rescaled_input(layer, scale, shift)
        if not self._may_write(step.node, layer, weights, ctx):
            return False
        if not ctx.may_rewrite(step.node, f"fold it into {reader.op_type} {reader.name!r} behind it"):
            return False
        layers.write(ctx.edit, layer, *(weights or ()))
        return ctx.edit.replace(step.node, [step.source])

    def _may_write(self, node: Node, layer: layers.Linear, weights: Any, ctx: PassContext) -> bool:
        if weights is not None and not layers.can_hold(layer, weights[1]):
            return False
        why = layers.refusal(layer, weights, self.growth)
        if why is not None:
            ctx.missed("AFF001", node, why, f"{self.name}{{growth=...}} sets how much a copy may take")
        return why is None


def _step(node: Node) -> Step | None:
    """Read ``node`` as an affine step in floating point, or return ``None``."""
    if node.graph is None:
        return None
    if node.op_type == "Neg":
        source = node.inputs[0]
        if source is None or source.dtype is None or source.dtype not in _FLOATS:
            return None
        return Step(node, source, np.array(-1.0), None, source.dtype.numpy())
    if len(node.inputs) != 2:
        return None
    sizes = [constant_size(value) for value in node.inputs]
    if (sizes[0] is None) == (sizes[1] is None):
        return None
    place = 1 if sizes[0] is None else 0
    source, array = node.inputs[1 - place], constant(node.inputs[place])
    tensor = tensor_of(node.inputs[place])
    if source is None or array is None or tensor is None or tensor.dtype not in _FLOATS or array.size == 0:
        return None
    if place == 0 and node.op_type == "Div":
        return None
    parts = _parts(node.op_type, array.astype(np.float64), constant_first=place == 0)
    if parts is None or any(part is not None and _leaves_range(part, array.dtype) for part in parts):
        return None
    return Step(node, source, *parts, array.dtype)


def _is_fused_at_run_time(step: Step) -> bool:
    """Tell whether ``step`` ends a decomposed Gelu or LayerNormalization, which onnxruntime turns into one operator."""
    front = [step.source]
    for _ in range(3):
        producers = [producer for value in front if (producer := value.producer()) is not None]
        if any(producer.op_type in ("Erf", "Sqrt") for producer in producers):
            return True
        inner = [producer for producer in producers if producer.op_type in ("Mul", "Add", "Div", "Reciprocal")]
        front = [value for producer in inner for value in producer.inputs if value is not None]
    return False


def _parts(operator: str, array: Array, *, constant_first: bool) -> tuple[Array | None, Array | None] | None:
    if not np.isfinite(array).all():
        return None
    if operator == "Mul":
        return array, None
    if operator == "Div":
        return (1.0 / array, None) if np.all(array != 0) else None
    if operator == "Add":
        return None, array
    return (np.array(-1.0), array) if constant_first else (None, -array)


def _vector(layer: layers.Linear, array: Array | None, neutral: float) -> Array | None:
    return np.full(layer.channels, neutral) if array is None else layer.vector(array)


def _input_vector(layer: layers.Linear, source: Value, array: Array | None, neutral: float) -> Array | None:
    """Return a constant as one number for each input channel, ``None`` when it varies otherwise or broadcasts."""
    channels = layers.input_channels(layer)
    if channels is None:
        return None
    if array is None:
        return np.full(channels, neutral)
    rank = layer.rank if layer.node.op_type != "MatMul" else rank_of(source)
    if array.size == 1:
        return np.full(channels, array.reshape(-1)[0]) if array.ndim <= (rank or 0) else None
    axis = 1 if layer.node.op_type == "Conv" else -1
    shape = shape_of(source)
    if shape is None or array.ndim > len(shape) or shape[axis] != channels or array.size != channels:
        return None
    place = array.ndim - (1 if axis == -1 else len(shape) - 1)
    return array.reshape(-1) if place >= 0 and array.shape[place] == channels else None


def _merge(last: Step, ctx: PassContext) -> bool:
    """Merge the chain of affine steps that ends at ``last`` when fewer nodes can say the same."""
    if (reader := sole_use(last.node.outputs[0])) is not None and _step(reader) is not None:
        return False
    chain = [last]
    while (step := _previous(chain[-1])) is not None:
        chain.append(step)
    chain.reverse()
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        scale, shift = _composed(chain)
    needed = (scale is not None) + (shift is not None)
    if needed >= len(chain) or needed == 0:
        return False
    dtype, source = last.dtype, chain[0].source
    largest = max(part.size for step in chain for part in (step.scale, step.shift) if part is not None)
    if any(array is not None and (array.size > largest or _leaves_range(array, dtype)) for array in (scale, shift)):
        return False
    if not ctx.may_rewrite(last.node, f"merge {len(chain)} operations by constants into {needed}"):
        return False
    result = last.node.outputs[0]
    base, value = result.name or "affine", source
    for operator, kind, array in (("Mul", "scale", scale), ("Add", "shift", shift)):
        if array is not None:
            operand = ctx.edit.constant(array.astype(dtype), f"{base}.{kind}")
            value = ctx.edit.insert_before(last.node, operator, [value, operand]).outputs[0]
            ctx.edit.annotate(value, result.dtype, None)
    ctx.edit.annotate(value, result.dtype, shape_of(result))
    return ctx.edit.replace(last.node, [value])


def _previous(step: Step) -> Step | None:
    producer = step.source.producer()
    if producer is None or producer.op_type not in _OPERATORS or producer.domain != "":
        return None
    if producer.graph is not step.node.graph or sole_use(step.source) is not step.node:
        return None
    return _step(producer)


def _composed(chain: list[Step]) -> tuple[Array | None, Array | None]:
    scale: Array | None = None
    shift: Array | None = None
    for step in chain:
        if step.scale is not None:
            scale = step.scale if scale is None else scale * step.scale
            shift = None if shift is None else shift * step.scale
        if step.shift is not None:
            shift = step.shift if shift is None else shift + step.shift
    return scale, shift


def _leaves_range(array: Array, dtype: np.dtype[Any]) -> bool:
    """Tell whether a constant, in float64, overflows ``dtype`` or falls among its denormal numbers."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype).astype(np.float64)
        return not bool(np.all(np.abs(cast - array) <= 2.0**-7 * np.abs(array)))
