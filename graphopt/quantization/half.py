"""Which nodes of a model can compute in half precision, and why others cannot. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import ml_dtypes
import numpy as np

from graphopt.ir import DataType, Graph, Model, Node, TensorType, Value, attr, constant, is_constant, opset, subgraphs
from graphopt.ir.schema import formal_types, schema

Array = np.ndarray[Any, Any]
TYPES = {"float16": DataType.FLOAT16, "bfloat16": DataType.BFLOAT16}
_INTEGERS = {DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64}
_INTEGERS |= {DataType.UINT8, DataType.UINT16, DataType.UINT32, DataType.UINT64}
_GENERATORS = "it makes numbers of a type that an attribute names"
UNSAFE = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), "scales need all their digits"),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "EyeLike"), _GENERATORS),
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix", "Bernoulli"), _GENERATORS),
    **dict.fromkeys(("DFT", "STFT"), "its sums need more digits"),
}
"""Operators that stay in float32 whatever the type, and why."""
_LARGE = {"CumSum", "LpNormalization", "Pow", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"}
_LARGE |= {"ReduceSum", "ReduceSumSquare", "SoftmaxCrossEntropyLoss"}
UNSAFE_FLOAT16 = dict.fromkeys(sorted(_LARGE), "sums and powers leave the range of float16 early")
"""Operators that stay in float32 rather than float16, and why."""
_TRIGONOMETRIC = ("Sin", "Cos")
_ANGLES, _SIZES = "angles made from indices need all their digits", "sizes and indices are computed with it"
_MAY_CLAMP = {"Where", "Add", "Sub", "Clip", "Min", "Max", "Pad", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_MAY_CLAMP |= {
    "Concat",
    "Expand",
    "Identity",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Gather",
    "Slice",
    "Transpose",
    "Tile",
}
"""Operators for which a number beyond the range of the type does as well as the last one within it."""


def fits(array: Array, dtype: DataType) -> tuple[bool, bool]:
    """Tell whether all finite numbers of ``array`` are in the range of ``dtype``, and whether not all become zero."""
    limits = cast("Any", ml_dtypes).finfo(dtype.numpy())
    finite = array[np.isfinite(array)] if array.size else array
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    return largest <= float(limits.max), largest == 0.0 or largest > float(limits.smallest_subnormal) / 2


def rounded(array: Array, dtype: DataType) -> Array:
    """Return ``array`` in ``dtype``; finite numbers beyond its range become the last one within it."""
    largest = float(cast("Any", ml_dtypes).finfo(dtype.numpy()).max)
    return np.where(np.isfinite(array), np.clip(array, -largest, largest), array).astype(dtype.numpy())


@dataclass
class HalfPlan:
    """The nodes that stay in float32, with the reason; empty for those that the user named.

    ``takes(node, "input", index)`` tells whether the operator takes ``dtype`` there.
    """

    model: Model
    dtype: DataType
    kept: dict[Node, str] = field(default_factory=dict)
    owners: dict[Graph, Node | None] = field(default_factory=dict)
    _whole: set[Value] = field(default_factory=set)

    @classmethod
    def make(cls, model: Model, dtype: DataType, patterns: Sequence[str]) -> HalfPlan:
        """Decide for every node; dtypes of all values have to be inferred before."""
        plan = cls(model, dtype, owners={model.graph: None})
        order = list(plan._walk(model.graph))
        for node in order:
            plan._mark_whole(node)
        for node in order:
            reason = plan._reason(node, patterns)
            if reason is not None:
                plan.kept[node] = reason
        plan._keep_index_arithmetic(order)
        return plan

    def takes(self, node: Node, side: str, index: int) -> bool:
        """Tell whether the operator of ``node`` takes the type at a place."""
        if schema("", node.op_type, opset(self.model)) is None:
            return False
        formals = formal_types(node.op_type, opset(self.model))[side == "output"]
        return f"tensor({self.dtype.name.lower()})" in formals[min(index, len(formals) - 1)]

    def wants_half(self, node: Node, index: int) -> bool:
        """Tell whether ``node`` is to read float32 input ``index`` in the other type."""
        return node not in self.kept and self.takes(node, "input", index)

    def gives_half(self, node: Node, index: int) -> bool:
        """Tell whether ``node`` is to give its float32 output ``index`` in the other type."""
        return node not in self.kept and self.takes(node, "output", index)

    def _walk(self, graph: Graph) -> Iterator[Node]:
        for node in graph:
            yield node
            for inner in subgraphs(node):
                self.owners[inner] = node
                yield from self._walk(inner)

    def _reason(self, node: Node, patterns: Sequence[str]) -> str | None:
        """Return why a node stays; ``None`` when it need not."""
        values = [value for value in (*node.inputs, *node.outputs) if value is not None]
        owner = self.owners.get(node.graph) if isinstance(node.graph, Graph) else None
        if owner in self.kept:
            return ""
        if any(is_named(node, pattern) for pattern in patterns):
            return ""
        if not any(value.dtype == DataType.FLOAT or value.dtype is None for value in values):
            return None
        if node.domain:
            return "it is not one of ONNX's own operators"
        if any(value.type is None for value in values):
            return "the type of an input or output is unknown"
        if any(not isinstance(value.type, TensorType) for value in values):
            return "it works on sequences, optional values or sparse tensors"
        if node.op_type in UNSAFE:
            return UNSAFE[node.op_type]
        if self.dtype == DataType.FLOAT16 and node.op_type in UNSAFE_FLOAT16:
            return UNSAFE_FLOAT16[node.op_type]
        return self._unfit(node)

    def _unfit(self, node: Node) -> str | None:
        sides = (("input", node.inputs), ("output", node.outputs))
        places = [(side, i) for side, group in sides for i, v in enumerate(group) if v and v.dtype == DataType.FLOAT]
        if not any(self.takes(node, side, index) for side, index in places):
            return f"opset {opset(self.model)} has no such operator in {self.dtype.name.lower()}"
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != DataType.FLOAT or not is_constant(value):
                continue
            array = constant(value)
            if array is None or not self.takes(node, "input", index):
                continue
            in_range, visible = fits(array, self.dtype)
            if not visible:
                return "a constant would become zero"
            other = node.inputs[1 - index] if node.op_type == "Mul" and len(node.inputs) == 2 else None
            if not in_range and node.op_type not in _MAY_CLAMP and other not in self._whole:
                return "a constant is out of range"
        return None

    def _mark_whole(self, node: Node) -> None:
        """Note the float outputs of nodes that depend on integers and constants alone."""
        reads = [value for value in node.inputs if value is not None]
        if all(
            value.dtype not in (DataType.FLOAT, None) or is_constant(value) or value in self._whole for value in reads
        ):
            self._whole.update(value for value in node.outputs if value.dtype == DataType.FLOAT)

    def _keep_index_arithmetic(self, order: Sequence[Node]) -> None:
        """Keep what computes sizes, indices or angles from integers: float16 counts to 2048 only."""
        for node in reversed(order):
            floats = [value for value in node.outputs if value.dtype == DataType.FLOAT]
            if node in self.kept or not floats or any(value not in self._whole for value in floats):
                continue
            uses = [(use.node, use.idx) for value in floats for use in value.uses()]
            if node.op_type in _TRIGONOMETRIC:
                self.kept[node] = _ANGLES
            elif uses and not any(v.is_graph_output() for v in floats) and all(self._counts(*use) for use in uses):
                self.kept[node] = _SIZES

    def _counts(self, node: Node, index: int) -> bool:
        if node.op_type == "Cast" and attr(node, "to") in _INTEGERS:
            return True
        return not self.takes(node, "input", index) or self.kept.get(node, "") in (_ANGLES, _SIZES)


def is_named(node: Node, pattern: str) -> bool:
    """Tell whether a glob pattern names the operator or the name of ``node``."""
    return fnmatchcase(node.op_type, pattern) or bool(node.name and fnmatchcase(node.name, pattern))
