"""What is known of sizes: the dimensions of values and the elements of small integer tensors, as expressions."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field

from graphopt.analysis.symbolic import Expr, number, symbol
from graphopt.ir import DataType, Node, Value
from graphopt.ir.query import Dim, attr, shape_of, tensor_of
from graphopt.ir.tensors import dims_of

Sizes = tuple[Expr, ...]

MAX_ELEMENTS = 64
"""Integer tensors up to this many elements are followed: shapes, axes and sizes are not longer."""

FOLLOWED = {DataType.INT64, DataType.INT32, DataType.BOOL}
_NO_NAMES = {"none", "unk", "unknown", "dynamic", "any", "null", "nan"}


@dataclass(frozen=True)
class Elements:
    """The elements of a scalar (``rank`` 0) or vector (``rank`` 1) of integers or truth values; ``None`` is unknown."""

    items: tuple[Expr | None, ...]
    rank: int

    @property
    def known(self) -> list[int] | None:
        """The elements as numbers, ``None`` unless all are."""
        found = [item.value for item in self.items if item is not None and item.value is not None]
        return found if len(found) == len(self.items) else None


@dataclass
class SizeFacts:
    """Symbolic dimensions and elements, found so far or read off constants and annotations."""

    _sizes: MutableMapping[Value, Sizes] = field(default_factory=dict)
    _elements: MutableMapping[Value, Elements | None] = field(default_factory=dict)
    _same: MutableMapping[str, Expr] = field(default_factory=dict)
    _fresh: int = 0

    def supposing(self) -> SizeFacts:
        """Return facts to add to for the sake of argument: these ones do not change."""
        return SizeFacts(ChainMap({}, self._sizes), ChainMap({}, self._elements), ChainMap({}, self._same), self._fresh)

    def sizes(self, value: Value | None) -> Sizes | None:
        """Return the dimensions of ``value``, ``None`` when not even its rank is known."""
        if value is None:
            return None
        found = self._sizes.get(value)
        if found is None:
            shape = _shape(value)
            if shape is None:
                return None
            found = self._sizes[value] = tuple(self._dim(dim) for dim in shape)
        return found

    def put_sizes(self, value: Value, sizes: Sequence[Expr | None]) -> None:
        """Record dimensions; an unknown one (``None``) is taken from the annotation."""
        shape: tuple[Dim, ...] = _shape(value) or (None,) * len(sizes)
        if len(shape) != len(sizes):
            shape = (None,) * len(sizes)
        self._sizes[value] = tuple(map(self._agreed, sizes, shape))

    def _agreed(self, size: Expr | None, annotated: Dim) -> Expr:
        if size is None or isinstance(annotated, int):
            return self._dim(annotated)
        if isinstance(annotated, str) and _is_name(annotated) and size.name != annotated:
            self._same.setdefault(annotated, size)
        return size

    def declare(self, value: Value) -> None:
        """Take the named dimensions of a graph input as symbols of their own."""
        for dim in shape_of(value) or ():
            if isinstance(dim, str) and _is_name(dim):
                self._same[dim] = symbol(dim)

    def _dim(self, dim: Dim) -> Expr:
        if isinstance(dim, int):
            return self.fresh() if dim < 0 else number(dim)
        if dim is None or not _is_name(dim):
            return self.fresh()
        found = self._same.get(dim)
        return symbol(dim) if found is None else found

    def fresh(self) -> Expr:
        """Return a size that nothing is known of."""
        self._fresh += 1
        return symbol(f"?{self._fresh}")

    def elements(self, value: Value | None) -> Elements | None:
        """Return what is known of the elements of a small integer tensor, ``None`` when nothing is."""
        if value is None:
            return None
        if value not in self._elements:
            self._elements[value] = _constant_elements(value)
        return self._elements[value]

    def put_elements(self, value: Value, elements: Elements) -> None:
        """Record the elements of ``value``."""
        self._elements[value] = elements

    def numbers(self, node: Node, index: int, attribute: str | None = None) -> list[int] | None:
        """Return the integers that a node is given as an input, or in older operator sets as an attribute.

        ``None`` when they are absent or not known numbers; :func:`has` tells which.
        """
        if len(node.inputs) > index and node.inputs[index] is not None:
            elements = self.elements(node.inputs[index])
            return None if elements is None else elements.known
        found = None if attribute is None else attr(node, attribute)
        return [found] if isinstance(found, int) else found


def has(node: Node, index: int, attribute: str | None = None) -> bool:
    """Tell whether a node is given something as an input, or in older operator sets as an attribute."""
    return (len(node.inputs) > index and node.inputs[index] is not None) or (
        attribute is not None and attribute in node.attributes
    )


def _shape(value: Value) -> tuple[Dim, ...] | None:
    tensor = tensor_of(value)
    if tensor is not None:
        return dims_of(tensor)
    shape = shape_of(value)
    graph = value.graph
    if shape is None or graph is None or value.producer() is None or not value.is_graph_output():
        return shape
    # The names that a file gives the sizes of its outputs are not ones that inference found.
    return tuple(dim if isinstance(dim, int) else None for dim in shape)


def _is_name(text: str) -> bool:
    """Tell a name from what exporters write for a size they know nothing of, which does not mean equal sizes."""
    return any(char.isalpha() for char in text) and text.lower() not in _NO_NAMES


def _constant_elements(value: Value) -> Elements | None:
    tensor = tensor_of(value)
    if tensor is None or tensor.dtype not in FOLLOWED:
        return None
    dims = dims_of(tensor)
    if len(dims) > 1 or math.prod(dims) > MAX_ELEMENTS:
        return None
    return Elements(tuple(number(int(item)) for item in tensor.numpy().reshape(-1).tolist()), len(dims))
