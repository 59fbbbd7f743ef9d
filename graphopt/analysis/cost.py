"""What a model costs: multiply-accumulates (MACs) of each node, parameters and their bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

from graphopt.analysis.manager import AnalysisManager
from graphopt.analysis.shape_values import ShapeValues
from graphopt.diagnostics import Diagnostic, Severity
from graphopt.ir import DataType, Editor, ExternalTensor, Model, Node, TensorProtocol, Value, graphs, is_constant, nodes
from graphopt.ir.edit import operator_key
from graphopt.ir.infer import infer
from graphopt.ir.query import attr, place, shape_of, static_shape, tensor_of
from graphopt.ir.tensors import string_items

Bindings = Mapping[str, int]
"""Sizes of the symbolic dimensions of a model's inputs, by name; one without a size counts as 1."""


@dataclass(frozen=True)
class Cost:
    """The cost of a model.

    ``macs`` holds the multiply-accumulates of each node that multiplies, ``computed`` the share of them in products of
    two computed operands, which no weight can shrink. A node inside a loop's body counts once. ``parameters`` are the
    elements, and ``size`` the bytes, of all initializers and Constant nodes, a tensor that several values share once.
    ``unknown`` names the nodes that multiply and whose sizes the inputs' shapes do not tell; they are in no sum.
    ``assumed`` names the symbolic dimensions of the inputs that were taken as 1 (``?`` stands for those without name).
    """

    macs: Mapping[Node, int]
    computed: int
    parameters: int
    size: int
    unknown: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @property
    def total_macs(self) -> int:
        """The multiply-accumulates of the whole model."""
        return sum(self.macs.values())

    @classmethod
    def compute(cls, model: Model, manager: AnalysisManager) -> Self:
        """Measure ``model`` with every symbolic dimension taken as 1; what is unknown is reported."""
        cost = cls.measure(model)
        if cost.unknown:
            some = ", ".join(cost.unknown[:3])
            text = f"{len(cost.unknown)} nodes, whose shapes are not known, are left out of the MACs: {some}"
            manager.report(Diagnostic(Severity.REMARK, "COST001", text))
        return cost

    @classmethod
    def measure(cls, model: Model, bindings: Bindings | None = None) -> Self:
        """Measure ``model``, symbolic dimensions of its inputs as in ``bindings``; nothing is written to the model."""
        assumed: dict[str, None] = {}

        def size(name: str | None) -> int:
            if name is not None and bindings and name in bindings:
                return bindings[name]
            assumed.setdefault(name or "?")
            return 1

        sizes = _Sizes(model, size)
        macs: dict[Node, int] = {}
        unknown = []
        computed = 0
        for node in nodes(model):
            count = _COUNTERS.get(operator_key(node))
            if count is None:
                continue
            found = count(node, sizes)
            if found is None:
                unknown.append(place(node))
                continue
            macs[node] = found
            operands = _OPERANDS.get(operator_key(node), ())
            if operands and not any(is_constant(node.inputs[index]) for index in operands):
                computed += found
        tensors = parameters(model)
        elements = sum(tensor.size for tensor in tensors)
        return cls(macs, computed, elements, sum(map(_bytes, tensors)), tuple(unknown), tuple(assumed))


def parameters(model: Model) -> list[TensorProtocol]:
    """Return the tensors of all initializers and Constant nodes, nested graphs included, each tensor once."""
    found: dict[object, TensorProtocol] = {}
    for graph in graphs(model):
        tensors = [value.const_value for value in graph.initializers.values()]
        tensors += [tensor_of(node.outputs[0]) for node in graph if node.op_type == "Constant" and not node.domain]
        for tensor in tensors:
            if tensor is not None:
                found.setdefault(_identity(tensor), tensor)
    return list(found.values())


def weight_bytes(model: Model) -> int:
    """Return the bytes of all constants of the model."""
    return sum(map(_bytes, parameters(model)))


def _identity(tensor: TensorProtocol) -> object:
    """Return what tensors share that are the same piece of memory or of a data file."""
    if isinstance(tensor, ExternalTensor):
        return tensor.path, tensor.offset, tensor.length
    return id(tensor)


def _bytes(tensor: TensorProtocol) -> int:
    return sum(map(len, string_items(tensor))) if tensor.dtype == DataType.STRING else tensor.nbytes


class _Sizes:
    """The shapes of values as numbers: by inference and, where that gives up, by following shape arithmetic."""

    def __init__(self, model: Model, size: Callable[[str | None], int]):
        self._model = model
        self._size = size
        self._known = infer(model, size)[0]
        self._followed: dict[Value, tuple[int | None, ...]] | None = None

    def __call__(self, value: Value | None) -> tuple[int, ...] | None:
        """Return the shape of ``value``, ``None`` when a dimension is not a known number."""
        if value is None:
            return None
        shape = self._known[value][1] if value in self._known else static_shape(value)
        if not _is_static(shape):
            self._followed = self._follow() if self._followed is None else self._followed
            shape = self._followed.get(value)
        return cast("tuple[int, ...]", shape) if _is_static(shape) else None

    def _follow(self) -> dict[Value, tuple[int | None, ...]]:
        """Return the outputs' sizes in a copy of the model whose inputs have the sizes asked for."""
        copy = self._model.clone()
        editor = Editor(copy)
        for value in copy.graph.inputs:
            shape = shape_of(value)
            if shape is not None:
                editor.set_input_shape(value, [dim if isinstance(dim, int) else self._size(dim) for dim in shape])
        facts = AnalysisManager(editor).get(ShapeValues)
        found = {}
        for node, twin in zip(nodes(self._model), nodes(copy), strict=True):
            for value, other in zip(node.outputs, twin.outputs, strict=True):
                sizes = facts.sizes(other)
                if sizes is not None:
                    found[value] = tuple(None if item is None else item.value for item in sizes)
        return found


def _is_static(shape: Sequence[object] | None) -> bool:
    return shape is not None and all(isinstance(dim, int) for dim in shape)


_Counter = Callable[[Node, _Sizes], int | None]


def _input(node: Node, index: int) -> Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _convolution(weight_index: int) -> _Counter:
    """Each output element takes one product with each weight of its channel: [C_out, C_in / groups, kernel...]."""

    def count(node: Node, sizes: _Sizes) -> int | None:
        weight, result = sizes(_input(node, weight_index)), sizes(node.outputs[0])
        if weight is None or result is None:
            return None
        return math.prod(result) * math.prod(weight[1:])

    return count


def _transposed_convolution(node: Node, sizes: _Sizes) -> int | None:
    """Each input element is multiplied with each weight of its channel: [C_in, C_out / groups, kernel...]."""
    weight, data = sizes(_input(node, 1)), sizes(_input(node, 0))
    if weight is None or data is None:
        return None
    return math.prod(data) * math.prod(weight[1:])


def _product(node: Node, sizes: _Sizes) -> int | None:
    """Each output element is a sum over the last axis of the left operand."""
    left, result = sizes(_input(node, 0)), sizes(node.outputs[0])
    if not left or result is None:
        return None
    return math.prod(result) * left[-1]


def _gemm(node: Node, sizes: _Sizes) -> int | None:
    left, result = sizes(_input(node, 0)), sizes(node.outputs[0])
    if left is None or len(left) != 2 or result is None:
        return None
    return math.prod(result) * left[0 if attr(node, "transA", 0) else 1]


def _recurrent(node: Node, sizes: _Sizes) -> int | None:
    """Each step of each sequence takes one product with each weight of W and R, of all directions."""
    data, weight, recurrence = (sizes(_input(node, index)) for index in range(3))
    if data is None or len(data) != 3 or weight is None or recurrence is None:
        return None
    return data[0] * data[1] * (math.prod(weight) + math.prod(recurrence))


def _attention(node: Node, sizes: _Sizes) -> int | None:
    """Each pair of a query and a key takes a product over the width of the keys and one over that of the values."""
    query, key, values = (sizes(_input(node, index)) for index in range(3))
    if query is None or key is None or values is None or not len(query) == len(key) == len(values) == 3:
        return None
    return query[0] * query[1] * key[1] * (query[2] + values[2])


_ATTENTION = "com.microsoft::MultiHeadAttention"
_OPERANDS = {"MatMul": (0, 1), "Gemm": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3), _ATTENTION: (0, 1, 2)}
_COUNTERS: dict[str, _Counter] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    "Gemm": _gemm,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    _ATTENTION: _attention,
}
