"""Nodes that show the same elements in another shape: Reshape, Flatten, Squeeze, Unsqueeze."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod

from graphopt.ir import Dim, Node, attr, rank_of, shape_of
from graphopt.ir.facts import axes_of
from graphopt.ir.query import ints

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

Shape = Sequence[Dim]


def is_view(node: Node | None) -> bool:
    """Tell whether a node only changes the shape of its first input."""
    return node is not None and node.op_type in VIEWS and node.domain == ""


def view_shape(node: Node) -> tuple[Dim, ...] | None:
    """Return the output shape of a view, from its inputs; ``None`` when not even the rank is known.

    The declared shape of a graph output is not believed.
    """
    computed = _computed_shape(node)
    output = node.outputs[0]
    known = None if output.is_graph_output() else shape_of(output)
    if computed is None or known is None or len(known) != len(computed):
        return computed if computed is not None else known
    return tuple(b if a is None or (isinstance(a, str) and isinstance(b, int)) else a
                 for a, b in zip(computed, known, strict=True))  # fmt: skip


def _computed_shape(node: Node) -> tuple[Dim, ...] | None:
    source = shape_of(node.inputs[0])
    if node.op_type == "Reshape":
        target = _target(node)
        return None if target is None else _reshaped(source, target, bool(attr(node, "allowzero", 0)))
    if source is None:
        return None
    if node.op_type == "Flatten":
        axis = attr(node, "axis", 1)
        axis += len(source) if axis < 0 else 0
        return _product(source[:axis]), _product(source[axis:])
    origin = origin_of_dims(node)
    return None if origin is None else tuple(1 if dim is None else source[dim] for dim in origin)


def _target(node: Node) -> list[int] | None:
    shape = attr(node, "shape")
    return shape if shape is not None else ints(node.inputs[1]) if len(node.inputs) > 1 else None


def _product(dims: Shape) -> Dim:
    """Return the product of dimensions where it has a name: a size, or one symbol times ones."""
    if all(isinstance(dim, int) for dim in dims):
        return prod(dim for dim in dims if isinstance(dim, int))
    others = [dim for dim in dims if dim != 1]
    return others[0] if len(others) == 1 else None


def _reshaped(source: Shape | None, target: Sequence[int], allowzero: bool) -> tuple[Dim, ...]:
    dims: list[Dim] = []
    for index, size in enumerate(target):
        copied = size == 0 and not allowzero
        dims.append((source[index] if source is not None and index < len(source) else None) if copied else size)
    if -1 in target and source is not None:
        place = list(target).index(-1)
        dims[place] = _quotient(source, dims[:place] + dims[place + 1 :])
    return tuple(None if dim == -1 else dim for dim in dims)


def _quotient(whole: Shape, parts: Shape) -> Dim:
    """Return the product of ``whole`` over that of ``parts`` where it is one size or one symbol."""
    symbols = Counter(dim for dim in whole if not isinstance(dim, int))
    divided = Counter(dim for dim in parts if not isinstance(dim, int))
    if None in symbols or None in divided or divided - symbols:
        return None
    over, under = (prod(dim for dim in dims if isinstance(dim, int)) for dims in (whole, parts))
    rest = list((symbols - divided).elements())
    if under == 0 or over % under or len(rest) > 1:
        return None
    if not rest:
        return over // under
    return rest[0] if over == under else None


def origin_of_dims(node: Node) -> list[int | None] | None:
    """Return for each output dimension of a Squeeze or Unsqueeze the input dimension it is, ``None`` for a new one."""
    rank, axes = rank_of(node.inputs[0]), axes_of(node)
    if rank is None or axes is None or node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    if node.op_type == "Squeeze":
        shape = shape_of(node.inputs[0]) or ()
        if not axes and not all(isinstance(dim, int) for dim in shape):
            return None
        gone = {axis % rank for axis in axes} if axes else {i for i, dim in enumerate(shape) if dim == 1}
        return [dim for dim in range(rank) if dim not in gone]
    size = rank + len(axes)
    new = {axis % size for axis in axes}
    old = iter(range(rank))
    return [None if dim in new else next(old) for dim in range(size)]


def same_view(source: Shape | None, wanted: Shape | None) -> bool:
    """Tell whether two shapes of the same elements are provably equal: one dimension may be unproven."""
    if source is None or wanted is None or len(source) != len(wanted):
        return False
    doubtful = [(a, b) for a, b in zip(source, wanted, strict=True) if a != b or a is None]
    if any(isinstance(a, int) and isinstance(b, int) for a, b in doubtful):
        return False
    return not doubtful or (len(doubtful) == 1 and 0 not in source)


def reshape_target(source: Shape | None, wanted: Shape | None) -> list[int] | None:
    """Return the constant target with which Reshape turns ``source`` into ``wanted``, or ``None`` when there is none.

    Sizes stand for themselves, 0 for a symbol at the same place in both, and -1 for at most one other.
    """
    if wanted is None or 0 in wanted:
        return None
    target: list[int] = []
    for index, dim in enumerate(wanted):
        if isinstance(dim, int):
            target.append(dim)
        elif source is not None and index < len(source) and dim is not None and source[index] == dim:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def moves_only_ones(node: Node) -> list[int | None] | None:
    """Return for each output dimension of a view the input dimension it is, when only dimensions of size 1 come, go or
    change places; ``None`` otherwise. A new dimension of size 1 is ``None`` in the list.
    """
    origin = origin_of_dims(node)
    if origin is not None:
        return origin
    source, wanted = shape_of(node.inputs[0]), view_shape(node)
    if source is None or wanted is None:
        return None
    left = [index for index, dim in enumerate(source) if dim != 1]
    right = [index for index, dim in enumerate(wanted) if dim != 1]
    if not same_view([source[index] for index in left], [wanted[index] for index in right]):
        return None
    place = dict(zip(right, left, strict=True))
    return [place.get(index) for index in range(len(wanted))]
